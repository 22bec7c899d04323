"""Requests to the loop, and its answers. A callback gets each answer, once."""

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


#: How much longer than other requests a submission may take, in seconds per byte. A million tasks
#: are 80 MB, and take 8 s to decide, fold and commit on an idle machine.
SECONDS_PER_BYTE = 1e-6


class Submission(msgspec.Struct, frozen=True):
    """A workflow from a driver. ``plan`` and ``fork`` are encoded: the plan, and the first events
    of a fork. ``change``: the change with which the stored incarnation ``changes`` goes on."""

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
        """The encoded size in bytes."""
        return len(self.plan) + len(self.fork or b"")


def submit_input(submission: Submission) -> msg.Submit:
    """The engine's message for a submission."""
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
    """How much longer these together may take than other requests, in seconds."""
    return SECONDS_PER_BYTE * sum(submission.size for submission in submissions)


class Asked(NamedTuple):
    """A request about a workflow.

    ``until``: how long the caller waits, on `Loop.elapsed`. A request that was not begun by then is
    dropped, because its caller got an error.
    """

    message: msg.Asked
    reply: Reply
    until: float


class WatchRequest(NamedTuple):
    """A watch: a caller waits until the journal has grown beyond ``after``, or the workflow is
    settled. ``after`` None: until it is settled."""

    workflow_id: str
    reply: Reply
    after: int | None


class Watched(msgspec.Struct, frozen=True):
    """The answer of a watch. ``row`` is None if this coordinator does not drive the workflow.

    ``output``: of a successful workflow, so that the caller need not read it. ``live``: the
    ObjectRef of its live copy, which this record keeps alive.
    """

    row: CatalogRow | None
    output: Outcome | None = None
    live: Any = None


class Submitted(msgspec.Struct, frozen=True):
    """The answers to several submissions, from the holder with this id. The driver handles
    `Stopped` ones, and sends them again."""

    holder_id: str
    answers: list[Accepted | Finished | Exception]
