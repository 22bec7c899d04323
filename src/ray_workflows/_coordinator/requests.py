"""What may be asked of the loop, and what it answers. Answers go to a callback, once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from ray_workflows._model.catalog import CatalogRow
from ray_workflows._model.events import Event
from ray_workflows._model.plan import EnvironmentChange, Plan
from ray_workflows._model.values import Outcome, Value

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

    @property
    def size(self) -> int:
        """How many bytes are to be read."""
        return len(self.plan) + len(self.fork or b"")


def seconds_more(submissions: Iterable[Submission]) -> float:
    """How much longer these may take, all together, than any other request."""
    return SECONDS_PER_BYTE * sum(submission.size for submission in submissions)


class Patience(msgspec.Struct, frozen=True, kw_only=True):
    """Until when, by `Loop.elapsed`, somebody waits for the answer: what was not begun by then is
    not done any more, because the caller was told that it failed."""

    until: float = float("inf")


class Request(Patience, frozen=True):
    """Base of what is asked about one workflow."""

    workflow_id: str
    reply: Reply


class RunRequest(Request, frozen=True, kw_only=True):
    """Base of what is asked about one run of an id. ``incarnation``: which one, so that a request
    that comes late or again is never taken for one about a later workflow of the same id; empty if
    it is about whatever has the id."""

    incarnation: str = ""


class SubmitRequest(Request, frozen=True):
    """Create a workflow, or resume the one of this id. Repeating it with its id is harmless.

    ``fork``: what it knows of its tasks from the start. A fork does not resume what is there.
    ``change``: how a stored one goes on, of this incarnation: ``changes``. ``asks_first``: its
    driver wants to look at that before.
    """

    incarnation: str
    plan: Plan
    metadata: dict[str, Any]
    request_id: str
    timeout: float | None = None
    fork: tuple[Event, ...] | None = None
    change: EnvironmentChange | None = None
    asks_first: bool = False
    changes: str = ""


class ResumeRequest(RunRequest, frozen=True):
    """Resume a workflow. Repeating it with its id is harmless. ``canceled``: also one that was
    canceled. ``change``: see the event."""

    request_id: str
    canceled: bool = False
    change: EnvironmentChange | None = None


class CancelRequest(RunRequest, frozen=True):
    """Stop a workflow."""


class DeleteRequest(RunRequest, frozen=True):
    """Delete a workflow that nobody drives."""


class SignalRequest(RunRequest, frozen=True):
    """Give a workflow a signal."""

    name: str
    signal_id: str
    value: Value


class WatchRequest(Request, frozen=True):
    """Answer when the journal has grown beyond ``after``, or the workflow is settled.

    ``after`` None: only when it is settled. Answered at once if this coordinator does not
    drive the workflow.
    """

    after: int | None = None


class Accepted(msgspec.Struct, frozen=True, tag=True):
    """The workflow is durable and this coordinator drives it.

    ``created``: by this very request. ``same_plan``: what runs is what was submitted.
    """

    incarnation: str
    created: bool
    same_plan: bool = True


class Stopped(msgspec.Struct, frozen=True, tag=True):
    """There is such a workflow, and nobody drives it: whether it can go on here is the driver's to
    find out, who has what may be missing."""


class Finished(msgspec.Struct, frozen=True, tag=True):
    """There is nothing to run: the workflow has succeeded before."""

    row: CatalogRow
    same_plan: bool = True


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
