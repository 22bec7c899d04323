"""What workflows send to others: a message goes to its target by the way that submissions take."""

from __future__ import annotations

import logging
import queue
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import msgspec

from ray_workflows._coordinator.requests import Reply, Submission, submit_input
from ray_workflows._coordinator.retrying_storage import RetryingStorage, is_refusal
from ray_workflows._coordinator.workflow import Workflow
from ray_workflows._model import messages as msg
from ray_workflows._model.errors import name_of, text_of
from ray_workflows._model.outbox import OutboxMessage
from ray_workflows._model.values import Blob, ErrorInfo
from ray_workflows.exceptions import CoordinatorUnavailableError

logger = logging.getLogger(__name__)

#: How often it is looked for targets that may be asked again, in seconds.
LOOK_SECONDS = 1.0

#: Pauses before a target is asked again that could not take a message, in seconds: each is twice
#: the one before, up to this.
LONGEST_PAUSE = 60.0

#: What could not be decided on within so many seconds is given up for now. Some storages refuse an
#: incarnation that was deleted for hours, and it is decided on again each time.
ASK_SECONDS = 20.0

SUBMISSION = msgspec.msgpack.Decoder(Submission)


class Letter(NamedTuple):
    """A message that was read: whose it is, and what is asked of its target."""

    incarnation: str
    message: OutboxMessage
    submit: msg.Submit


class BlockedTarget:
    """A target that could not take a message: one is sent again after a pause, the others wait."""

    __slots__ = ("due", "failures", "letters")

    def __init__(self) -> None:
        self.letters: deque[Letter] = deque()
        self.failures = 0
        #: When it is asked again; None while it is being asked.
        self.due: float | None = None


class Deliveries:
    """Messages on their way. Each is delivered until its target has answered; the target knows it
    by its id, in whichever cluster it is, and so takes it once.

    A target that is damaged is asked again after longer and longer pauses, by one message, however
    many there are for it. While the storage is away, no target is asked.

    Args:
        store: where large messages are.
        after: has something done on the loop's thread in so many seconds.
        elapsed: seconds of a clock that nobody sets.
        ask: puts a request about a workflow to the loop.
        report: brings what was heard to the workflow of an incarnation, if it is in memory.
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
        #: By the sender's incarnation and their ids.
        self.under_way: set[tuple[str, str]] = set()
        #: By id.
        self.blocked: dict[str, BlockedTarget] = {}
        #: Whether it will be looked for those whose pause is over.
        self.looks = False

    def deliver(self, workflow: Workflow, message: OutboxMessage) -> None:
        """Bring a message to its target, unless that is being done."""
        sender, incarnation = workflow.workflow_id, workflow.incarnation
        key = (incarnation, message.message_id)
        if key in self.under_way:
            return
        self.under_way.add(key)
        body = message.body.data
        if isinstance(body, Blob):
            self.store.call(
                lambda: self.decode(sender, message, self.read(incarnation, body)),
                lambda submit: self.was_read(incarnation, message, submit),
                what=f"A message of workflow '{sender}'",
            )
            return
        try:
            submit: msg.Submit | Exception = self.decode(sender, message, body)
        except Exception as error:
            submit = error
        self.was_read(incarnation, message, submit)

    def read(self, incarnation: str, body: Blob) -> bytes:
        """A large message. Blocks."""
        return bytes(self.store.storage.read_blob(incarnation, body))

    def decode(self, sender: str, message: OutboxMessage, body: bytes) -> msg.Submit:
        """The submission in a message."""
        submission = submit_input(SUBMISSION.decode(body))
        # A history, even an empty one, goes into no workflow that is there.
        return msgspec.structs.replace(
            submission, request_id=message.message_id, history=(), parent=sender
        )

    def was_read(
        self, incarnation: str, message: OutboxMessage, submit: msg.Submit | Exception
    ) -> None:
        if isinstance(submit, Exception):
            # What is damaged in storage does not become whole.
            self.end(incarnation, message, submit)
            return
        letter = Letter(incarnation, message, submit)
        blocked = self.blocked.get(message.target)
        if blocked is None:
            self.send(letter)
        else:
            blocked.letters.append(letter)

    def send(self, letter: Letter) -> None:
        """Ask the target to take a message."""
        target = letter.message.target
        self.ask(
            target,
            letter.submit,
            lambda answer: self.answered(target, letter, answer),
            self.elapsed() + ASK_SECONDS,
        )

    def answered(self, target: str, letter: Letter, answer: Any) -> None:
        """The target has taken a message, refuses it, or can't say."""
        if isinstance(answer, Exception) and not is_final(answer):
            self.block(target, letter, answer)
            return
        self.end(letter.incarnation, letter.message, answer)
        blocked = self.blocked.pop(target, None)
        if blocked is not None:
            for each in blocked.letters:
                self.send(each)

    def end(self, incarnation: str, message: OutboxMessage, answer: Any) -> None:
        """A message was answered."""
        self.under_way.discard((incarnation, message.message_id))
        refusal = None
        if isinstance(answer, Exception):
            refusal = ErrorInfo(name_of(answer), text_of(answer))
            logger.warning("Workflow '%s' is not started: %s", message.target, answer)
        self.report(incarnation, [msg.Delivered(message.message_id, refusal)])

    # -- targets that can't take anything ----------------------------------------------------

    def block(self, target: str, letter: Letter, error: Exception) -> None:
        """Send the message again later, and nothing else to the target before that."""
        self.look_later()
        blocked = self.blocked.setdefault(target, BlockedTarget())
        blocked.letters.append(letter)
        if blocked.due is not None:
            return  # It was sent before the target was known to be blocked.
        pause = min(LONGEST_PAUSE, LOOK_SECONDS * 2**blocked.failures)
        blocked.failures += 1
        blocked.due = self.elapsed() + pause
        logger.warning(
            "Workflow '%s' can't be started yet; again in %.0f s: %s", target, pause, error
        )

    def look_later(self) -> None:
        if not self.looks:
            self.looks = True
            self.after(LOOK_SECONDS, self.look)

    def look(self) -> None:
        """Ask the targets whose pause is over."""
        self.looks = False
        now, away = self.elapsed(), self.store.error is not None
        for target, blocked in list(self.blocked.items()):
            if blocked.due is None:
                continue
            if away:
                # Nothing was wrong with the target itself: it is asked as soon as that is over.
                blocked.failures, blocked.due = 0, now
            elif blocked.due <= now:
                self.ask_again(target, blocked)
        if self.blocked:
            self.look_later()

    def ask_again(self, target: str, blocked: BlockedTarget) -> None:
        """Send the first message whose sender is still driven here; let go of others."""
        while blocked.letters:
            letter = blocked.letters.popleft()
            if self.is_driven(letter.incarnation):
                blocked.due = None
                self.send(letter)
                return
            # Whoever drives it delivers.
            self.under_way.discard((letter.incarnation, letter.message.message_id))
        del self.blocked[target]


def is_final(error: Exception) -> bool:
    """Whether a target will always answer so. A storage that is damaged or misconfigured is waited
    for until somebody has mended it."""
    return is_refusal(error) and not isinstance(error, (queue.Full, CoordinatorUnavailableError))
