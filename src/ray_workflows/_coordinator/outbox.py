"""Delivers messages between workflows: a message reaches its target as a submission does."""

from __future__ import annotations

import logging
import queue
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import msgspec

from ray_workflows._coordinator.requests import Reply, Submission, submit_input
from ray_workflows._coordinator.retrying_storage import RetryingStorage, may_concern_all
from ray_workflows._coordinator.workflow import Workflow
from ray_workflows._model import messages as msg
from ray_workflows._model.errors import name_of, text_of
from ray_workflows._model.outbox import OutboxMessage
from ray_workflows._model.values import Blob, ErrorInfo
from ray_workflows.exceptions import CoordinatorUnavailableError, is_transient

logger = logging.getLogger(__name__)

#: The period of checks for targets whose pause is over, in seconds.
LOOK_SECONDS = 1.0

#: The longest pause before a message is sent again to a target that could not take it, in seconds.
#: Each pause is twice the one before, up to this.
LONGEST_PAUSE = 60.0

#: For how many seconds an answer is awaited before the target counts as blocked. Some storages
#: refuse a deleted incarnation for hours, and the loop would try all that time.
ASK_SECONDS = 20.0

SUBMISSION = msgspec.msgpack.Decoder(Submission)


class Letter(NamedTuple):
    """A message that was read: the id and incarnation of its sender, and the submission in it."""

    sender: str
    incarnation: str
    message: OutboxMessage
    submit: msg.Submit


class BlockedTarget:
    """A target that could not take a message. The first is sent again after a pause, others
    wait."""

    __slots__ = ("due", "failures", "letters")

    def __init__(self) -> None:
        self.letters: deque[Letter] = deque()
        self.failures = 0
        #: When the next message is sent; None while one is being sent.
        self.due: float | None = None


class Deliveries:
    """Messages under way. Each is sent until its target has answered. The target recognizes a
    repetition by the message's id, in any cluster, and so takes the message once.

    A damaged target gets one of its messages again after longer and longer pauses. While the
    storage is away, nothing is sent.

    Args:
        store: has large messages.
        after: calls a function on the loop's thread after some seconds.
        elapsed: seconds of a monotonic clock.
        ask: puts a request about a workflow to the loop.
        report: gives reports to the workflow of an incarnation, if it is in memory.
        is_driven: whether the workflow of an incarnation is driven here.
    """

    def __init__(
        self,
        store: RetryingStorage,
        after: Callable[[float, Callable[[], None]], None],
        elapsed: Callable[[], float],
        ask: Callable[[str, msg.Asked, Reply, float], None],
        report: Callable[[str, Iterable[msg.Delivered]], None],
        is_driven: Callable[[str], bool],
    ) -> None:
        self.store = store
        self.after = after
        self.elapsed = elapsed
        self.ask = ask
        self.report = report
        self.is_driven = is_driven
        #: Incarnations of senders with ids of messages.
        self.under_way: set[tuple[str, str]] = set()
        #: By workflow id.
        self.blocked: dict[str, BlockedTarget] = {}
        #: Whether the next check for targets whose pause is over is scheduled.
        self.looks = False

    def deliver(self, workflow: Workflow, message: OutboxMessage) -> None:
        """Deliver a message to its target, unless it is under way."""
        sender, incarnation = workflow.workflow_id, workflow.incarnation
        key = (incarnation, message.message_id)
        if key in self.under_way:
            return
        self.under_way.add(key)
        body = message.body.data
        if isinstance(body, Blob):
            self.store.call(
                lambda: self.decode(sender, message, self.read(incarnation, body)),
                lambda submit: self.was_read(workflow, message, submit),
                what=f"A message of workflow '{sender}'",
            )
            return
        try:
            submit: msg.Submit | Exception = self.decode(sender, message, body)
        except Exception as error:
            submit = error
        self.was_read(workflow, message, submit)

    def read(self, incarnation: str, body: Blob) -> bytes:
        """Read a large message. Blocks."""
        return bytes(self.store.storage.read_blob(incarnation, body))

    def decode(self, sender: str, message: OutboxMessage, body: bytes) -> msg.Submit:
        """The submission in a message."""
        submission = submit_input(SUBMISSION.decode(body))
        # The empty history makes the target refuse the message if it exists and does not know it.
        return msgspec.structs.replace(
            submission, request_id=message.message_id, history=(), parent=sender
        )

    def was_read(
        self, workflow: Workflow, message: OutboxMessage, submit: msg.Submit | Exception
    ) -> None:
        sender, incarnation = workflow.workflow_id, workflow.incarnation
        if isinstance(submit, Exception):
            # A damaged message stays damaged, so this is the final answer.
            self.end(sender, incarnation, message, submit)
            return
        letter = Letter(sender, incarnation, message, submit)
        blocked = self.blocked.get(message.target)
        if blocked is None:
            self.send(letter)
        else:
            blocked.letters.append(letter)

    def send(self, letter: Letter) -> None:
        """Submit a message to its target."""
        target = letter.message.target
        self.ask(
            target,
            letter.submit,
            lambda answer: self.answered(target, letter, answer),
            self.elapsed() + ASK_SECONDS,
        )

    def answered(self, target: str, letter: Letter, answer: Any) -> None:
        """Handle the answer: the target has taken the message, refuses it, or is blocked."""
        if isinstance(answer, Exception) and not is_final(answer):
            self.block(target, letter, answer)
            return
        self.end(letter.sender, letter.incarnation, letter.message, answer)
        blocked = self.blocked.pop(target, None)
        if blocked is not None:
            for each in blocked.letters:
                self.send(each)

    def end(self, sender: str, incarnation: str, message: OutboxMessage, answer: Any) -> None:
        """Report the final answer to the sender."""
        self.under_way.discard((incarnation, message.message_id))
        refusal = None
        if isinstance(answer, Exception):
            refusal = ErrorInfo(name_of(answer), text_of(answer))
            logger.warning(
                "Workflow '%s' has not started workflow '%s', and will not: %s",
                sender,
                message.target,
                answer,
            )
        self.report(incarnation, [msg.Delivered(message.message_id, refusal)])

    # -- targets that can't take anything ----------------------------------------------------

    def block(self, target: str, letter: Letter, error: Exception) -> None:
        """Send the message again after a pause, in which nothing else is sent to the target."""
        self.look_later()
        blocked = self.blocked.setdefault(target, BlockedTarget())
        blocked.letters.append(letter)
        if blocked.due is not None:
            return  # It was sent before the target was blocked.
        pause = min(LONGEST_PAUSE, LOOK_SECONDS * 2**blocked.failures)
        blocked.failures += 1
        blocked.due = self.elapsed() + pause
        logger.warning(
            "Workflow '%s' can't start workflow '%s' yet; again in %.0f s: %s",
            letter.sender,
            target,
            pause,
            error,
        )

    def look_later(self) -> None:
        if not self.looks:
            self.looks = True
            self.after(LOOK_SECONDS, self.look)

    def look(self) -> None:
        """Send a message to each target whose pause is over."""
        self.looks = False
        now, away = self.elapsed(), self.store.error is not None
        for target, blocked in list(self.blocked.items()):
            if blocked.due is None:
                continue
            if away:
                # The storage is the cause, not the target: send when the storage has returned.
                blocked.failures, blocked.due = 0, now
            elif blocked.due <= now:
                self.ask_again(target, blocked)
        if self.blocked:
            self.look_later()

    def ask_again(self, target: str, blocked: BlockedTarget) -> None:
        """Send the first message whose sender is still driven here; drop those before it."""
        while blocked.letters:
            letter = blocked.letters.popleft()
            if self.is_driven(letter.incarnation):
                blocked.due = None
                self.send(letter)
                return
            # The coordinator that drives the sender now delivers it.
            self.under_way.discard((letter.incarnation, letter.message.message_id))
        del self.blocked[target]


def is_final(error: Exception) -> bool:
    """Whether a target will always answer so. A storage that is damaged or misconfigured is waited
    for until somebody has mended it."""
    waits = may_concern_all(error) or isinstance(error, (queue.Full, CoordinatorUnavailableError))
    return not (waits or is_transient(error))
