"""What may be asked of the loop, and what it answers. Answers go to a callback, once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import msgspec

from ray_workflows._codec.journal import decode_plan, events_from
from ray_workflows._model import messages as msg
from ray_workflows._model.answers import Accepted, Finished
from ray_workflows._model.catalog import CatalogRow, Tag
from ray_workflows._model.plan import EnvironmentChange
from ray_workflows._model.values import Outcome

#: Takes the answer, or the exception that is the answer.
Reply = Callable[[Any], None]


#: How much longer than other requests a submission may take, in seconds for each byte of it. A
#: million tasks are 80 MB, and are decided, folded and committed in 8 s where nothing else runs.
SECONDS_PER_BYTE = 1e-6


class Submission(msgspec.Struct, frozen=True):
    """A workflow on its way from a driver. ``plan`` and ``fork`` are encoded: the plan, and what a
    fork knows of its tasks from the start. ``change``: how a stored one goes on, of the incarnation
    ``changes``."""

    workflow_id: str
    incarnation: str
    plan: msgspec.Raw
    metadata: dict[str, Any]
    timeout: float | None
    request_id: str
    fork: bytes | None = None
    change: EnvironmentChange | None = None
    changes: str = ""
    tags: dict[str, Tag] = {}

    @property
    def size(self) -> int:
        """How many bytes are to be read."""
        return len(self.plan) + len(self.fork or b"")


def submit_input(submission: Submission) -> msg.Submit:
    """What a driver submits, as the engine takes it."""
    fork = submission.fork
    return msg.Submit(
        plan=decode_plan(submission.plan),
        metadata=submission.metadata,
        incarnation=submission.incarnation,
        request_id=submission.request_id,
        timeout=submission.timeout,
        history=None if fork is None else tuple(events_from(fork)),
        change=submission.change,
        asks_first=submission.change is None,
        changes=submission.changes,
        tags=submission.tags,
    )


def seconds_more(submissions: Iterable[Submission]) -> float:
    """How much longer these may take, all together, than any other request."""
    return SECONDS_PER_BYTE * sum(submission.size for submission in submissions)


class Asked(NamedTuple):
    """What is asked about a workflow.

    ``until``: by `Loop.elapsed`, somebody waits so long for the answer: what was not begun by then
    is not done any more, because whoever asked was told that it failed.
    """

    message: msg.Asked
    reply: Reply
    until: float


class WatchRequest(NamedTuple):
    """Somebody waits until the journal has grown beyond ``after``, or the workflow is settled.

    ``after`` None: only until it is settled.
    """

    workflow_id: str
    reply: Reply
    after: int | None


class Watched(msgspec.Struct, frozen=True):
    """What a watch saw. ``row`` is None if this coordinator does not drive the workflow.

    ``output``: of a workflow that has succeeded, so that who waits need not read it. ``live``: the
    ObjectRef of a live copy of it, which lives on as long as somebody has this.
    """

    row: CatalogRow | None
    output: Outcome | None = None
    live: Any = None


class Submitted(msgspec.Struct, frozen=True):
    """What became of several submissions: an answer to each, by the holder of this id.

    On its way to the driver there may be `Stopped` among them.
    """

    holder_id: str
    answers: list[Accepted | Finished | Exception]
