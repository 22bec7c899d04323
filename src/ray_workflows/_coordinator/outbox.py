"""What workflows send to others: a message goes to its target by the way that submissions take."""

from __future__ import annotations

import logging
import queue
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from ray_workflows._coordinator.requests import Reply, Submission, submit_input
from ray_workflows._coordinator.retrying_storage import RetryingStorage, is_refusal
from ray_workflows._coordinator.workflow import Workflow
from ray_workflows._model import messages as msg
from ray_workflows._model.errors import name_of, text_of
from ray_workflows._model.outbox import OutboxMessage
from ray_workflows._model.values import Blob, ErrorInfo

logger = logging.getLogger(__name__)

#: How soon a message is sent again that could not be delivered, in seconds.
AGAIN_SECONDS = 1.0

DECODER = msgspec.msgpack.Decoder(Submission)


class Deliveries:
    """Messages on their way. Each is delivered until its target has answered; the target knows it
    by its id, in whichever cluster it is, and so takes it once.

    Args:
        store: where large messages are.
        after: has something done on the loop's thread in so many seconds.
        ask: puts a request about a workflow to the loop.
        report: brings what was heard to the workflow of an incarnation, if it is in memory.
    """

    def __init__(
        self,
        store: RetryingStorage,
        after: Callable[[float, Callable[[], None]], None],
        ask: Callable[[str, msg.Asked, Reply], None],
        report: Callable[[str, Iterable[msg.Delivered]], None],
    ) -> None:
        self.store = store
        self.after = after
        self.ask = ask
        self.report = report
        #: By the sender's incarnation and their ids.
        self.under_way: set[tuple[str, str]] = set()

    def deliver(self, workflow: Workflow, message: OutboxMessage) -> None:
        """Bring a message to its target, unless that is being done."""
        sender, incarnation = workflow.workflow_id, workflow.incarnation
        key = (incarnation, message.message_id)
        if key in self.under_way:
            return
        self.under_way.add(key)
        self.store.call(
            lambda: self.read(sender, incarnation, message),
            lambda submit: self.send(incarnation, message, submit),
            what=f"A message of workflow '{sender}'",
        )

    def read(self, sender: str, incarnation: str, message: OutboxMessage) -> msg.Submit:
        """The submission in a message. Blocks."""
        body = message.body.data
        if isinstance(body, Blob):
            body = bytes(self.store.storage.read_blob(incarnation, body))
        submission = submit_input(DECODER.decode(body))
        # A history, even an empty one, goes into no workflow that is there.
        return msgspec.structs.replace(
            submission, request_id=message.message_id, history=(), parent=sender
        )

    def send(
        self, incarnation: str, message: OutboxMessage, submit: msg.Submit | Exception
    ) -> None:
        if isinstance(submit, Exception):
            # What is damaged in storage does not become whole.
            self.end(incarnation, message, submit)
            return

        def take(answer: Any) -> None:
            if isinstance(answer, Exception) and not is_final(answer):
                logger.warning("Workflow '%s' can't be started yet: %s", message.target, answer)
                self.after(AGAIN_SECONDS, lambda: self.send(incarnation, message, submit))
            else:
                self.end(incarnation, message, answer)

        self.ask(message.target, submit, take)

    def end(self, incarnation: str, message: OutboxMessage, answer: Any) -> None:
        """A message was answered."""
        self.under_way.discard((incarnation, message.message_id))
        refusal = None
        if isinstance(answer, Exception):
            refusal = ErrorInfo(name_of(answer), text_of(answer))
            logger.warning("Workflow '%s' is not started: %s", message.target, answer)
        self.report(incarnation, [msg.Delivered(message.message_id, refusal)])


def is_final(error: Exception) -> bool:
    """Whether a target will always answer so. A storage that is damaged or misconfigured is waited
    for until somebody has mended it."""
    return is_refusal(error) and not isinstance(error, queue.Full)
