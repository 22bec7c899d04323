"""The state of one workflow: a fold of its journal. Only `evolve` changes it.

Each fact is stored once. What is derived for speed is marked so, and `invariants` recomputes it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from enum import IntEnum, unique
from typing import Any

import msgspec

from ray_workflows._model.catalog import Tag
from ray_workflows._model.events import End
from ray_workflows._model.outbox import OutboxMessage
from ray_workflows._model.plan import Environment, Function, Plan
from ray_workflows._model.status import WorkflowStatus
from ray_workflows._model.values import ErrorInfo, Outcome, Value


@unique
class Phase(IntEnum):
    """Where a task stands."""

    #: Not all of its inputs are there, or the workflow was never started.
    WAITING = 0
    #: Its current attempt should be running.
    ACTIVE = 1
    #: A timer that goes off at ``until``.
    AWAITING_TIMER = 2
    #: It returned a plan and waits for the plan's output.
    CONTINUED = 3
    #: It has its one result.
    SUCCEEDED = 4
    #: Its last attempt failed, and nobody caught the error.
    FAILED = 5
    #: It waits for a signal, since ``until``.
    AWAITING_SIGNAL = 6


class Frame:
    """A plan in execution: the submitted one, or a continuation.

    ``parent`` is the task whose result this plan's output becomes; None for the workflow itself.
    It is never itself the output of its frame: a continuation in tail position replaces the frame
    it ends (see `evolve.apply_task_continued`), so frames nest only as deep as the user's tree.
    ``wraps``: ``catch_exceptions`` of the parent applies to everything inside.
    ``checkpoint`` is what tasks inherit that do not say. ``stored``: its result is, whatever they
    say: it can't be made again. That of the workflow has to be there for who asks; one that a
    signal is waited for inside can't have the signal again, because a signal is taken once.
    """

    __slots__ = (
        "checkpoint",
        "consumers",
        "first",
        "number",
        "output",
        "parent",
        "plan",
        "stored",
        "wraps",
    )

    def __init__(
        self,
        number: int,
        plan: Plan,
        first: int,
        parent: int | None,
        wraps: bool,
        checkpoint: bool,
        stored: bool,
    ) -> None:
        self.number = number
        self.plan = plan
        self.first = first
        self.parent = parent
        self.wraps = wraps
        self.checkpoint = checkpoint
        self.stored = stored
        # Derived from the plan: the number of the task whose result is the frame's; for each task,
        # who takes its result.
        self.output = first + plan.output
        consumers: list[list[int]] = [[] for _ in plan.tasks]
        for index, spec in enumerate(plan.tasks):
            for upstream in spec.upstream:
                consumers[upstream].append(first + index)
        self.consumers = consumers


class Task:
    """A task of a frame.

    ``attempts`` counts ended attempts, ``charged`` those that count against ``max_retries``,
    ``preempted`` those whose node was lost, and ``setbacks`` the last ones in a row that ended for
    no error of user code. ``last_end`` says why the last one ended, as an `AttemptOutcome`.
    ``until`` is when a timer goes off, or before when the next attempt must not start, or since
    when a signal is waited for.
    """

    __slots__ = (
        "attempts",
        "charged",
        "consumers",
        "frame",
        "last_end",
        "number",
        "options",
        "outcome",
        "phase",
        "preempted",
        "released",
        "setbacks",
        "spec",
        "task_id",
        "unmet",
        "until",
        "wanted",
    )

    def __init__(self, number: int, task_id: str, frame: Frame) -> None:
        index = number - frame.first
        spec = frame.plan.tasks[index]
        consumers = frame.consumers[index]
        self.number = number
        self.task_id = task_id
        self.frame = frame
        # Found in the frame: what was captured of the task, the options it was bound with, the
        # numbers of the tasks that take its result.
        self.spec = spec
        self.options = frame.plan.options[spec.options]
        self.consumers = consumers
        self.phase = Phase.WAITING
        self.attempts = 0
        self.charged = 0
        self.preempted = 0
        self.setbacks = 0
        self.last_end = ""
        self.until = 0.0
        self.outcome: Outcome | None = None
        #: The outcome was there and nobody can want it again.
        self.released = False
        # Derived: inputs that are not there yet; consumers that may still ask for the outcome.
        self.unmet = len(spec.upstream)
        self.wanted = len(consumers)

    @property
    def upstream(self) -> tuple[int, ...]:
        """Numbers of the tasks whose results it takes, in the order of its placeholders."""
        first, upstream = self.frame.first, self.spec.upstream
        return tuple([first + index for index in upstream]) if first else upstream

    @property
    def checkpoint(self) -> bool:
        """Whether its result is to be stored: as it says, or as it inherits."""
        checkpoint = self.options.checkpoint
        return self.frame.checkpoint if checkpoint is None else checkpoint

    @property
    def is_output(self) -> bool:
        """Whether its result is the result of its frame."""
        return self.number == self.frame.output

    @property
    def is_final(self) -> bool:
        """Whether the task will never run again."""
        if self.phase is not Phase.SUCCEEDED:
            return False
        return self.released or (self.outcome is not None and self.outcome.stored)


class Lifecycle(msgspec.Struct, array_like=True, eq=False):
    """The part of the state that does not depend on the tasks: the holder, the status, the signals.

    A snapshot has it as it is; so a field may be added at the end, with a default, and none may be
    moved or removed.
    """

    workflow_id: str
    incarnation: str
    #: PENDING, RUNNING, SUCCESSFUL, FAILED or CANCELED; NONE before the first event.
    status: WorkflowStatus = WorkflowStatus.NONE
    holder: str = ""
    #: Counts changes of the holder: attempts of an earlier epoch no longer count.
    epoch: int = 0
    released: bool = False
    cancel_requested: bool = False
    metadata: dict[str, Any] = {}
    plan_digest: str = ""
    #: Where its code runs. What resumptions have changed: functions by the digest of the one they
    #: take the place of, Ray options by task id.
    environment: Environment = Environment()
    functions: dict[str, Function] = {}
    ray_options: dict[str, dict[str, Any]] = {}
    #: The requests that submitted it and that last resumed it.
    request_id: str = ""
    resume_id: str = ""
    #: How long it may run from each start, in seconds, and when that is over.
    timeout: float | None = None
    deadline: float | None = None
    submitted_at: float = 0.0
    started_at: float | None = None
    ended_at: float | None = None
    error: ErrorInfo | None = None
    failed_task: str | None = None
    output: Outcome | None = None
    #: By name and id, the signals that nobody has taken, in the order they were received.
    #: (OrderedDicts, whose first is found at once; no type for that can be decoded.)
    signals: dict[str, dict[str, Value]] = {}
    #: Names and ids of signals that were taken; the newest ones, see `signals.REMEMBERED`.
    taken: dict[tuple[str, str], None] = {}
    #: What the function is called whose result is the workflow's.
    name: str = ""
    tags: dict[str, Tag] = {}
    #: The workflow that started it.
    parent: str = ""
    #: By id, the messages that are not delivered. A workflow that has ended has none.
    outbox: dict[str, OutboxMessage] = {}
    #: How it ends, once they are.
    ending: End | None = None

    def is_known(self, request_id: str) -> bool:
        """Whether it is here, or goes on, by this request."""
        return bool(request_id) and request_id in (self.request_id, self.resume_id)

    @property
    def running(self) -> bool:
        """Whether attempts may be started."""
        return self.status is WorkflowStatus.RUNNING and not self.released and self.ending is None


class WorkflowState(Lifecycle, eq=False):
    """Everything that decisions about one workflow depend on: its lifecycle, and its tasks."""

    frames: dict[int, Frame] = {}
    tasks: dict[int, Task] = {}
    next_task: int = 0
    next_frame: int = 0
    #: For each base name, the suffix to try next.
    names: dict[str, int] = {}
    # Derived: tasks in phase ACTIVE, in the order they became so; by the signal's name, those
    # in phase AWAITING_SIGNAL, in that order; when tasks in phase AWAITING_TIMER go off, and when
    # those in phase AWAITING_SIGNAL give up. (The first of an OrderedDict is found at once.)
    active: dict[int, None] = {}
    waits: dict[str, OrderedDict[int, None]] = {}
    timers: dict[int, float] = {}

    def checkpoints(self, task: Task) -> bool:
        """Whether the task's result is stored."""
        return task.checkpoint or (task.is_output and task.frame.stored)

    def frames_around(self, frame: Frame) -> Iterator[Frame]:
        """A frame, that of its parent, and so on to the workflow's."""
        yield frame
        while frame.parent is not None:
            frame = self.tasks[frame.parent].frame
            yield frame
