"""The state of one workflow: a fold of its journal. Only `evolve` changes it.

Each fact is stored once. What is derived for speed is marked so, and `invariants` recomputes it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from enum import IntEnum, unique
from typing import Any

import msgspec

from ray_workflows._model.catalog import DAG, Tag
from ray_workflows._model.events import End
from ray_workflows._model.outbox import OutboxMessage
from ray_workflows._model.plan import BODY, Environment, Function, Plan
from ray_workflows._model.status import WorkflowStatus
from ray_workflows._model.steps import History, StepOutcome, StepRecord
from ray_workflows._model.values import ErrorInfo, Outcome, Value


@unique
class Phase(IntEnum):
    """The phase of a task."""

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
    #: Its last attempt failed, and no task caught the error.
    FAILED = 5
    #: It waits for a signal, since ``until``.
    AWAITING_SIGNAL = 6
    #: A body that waits for outcomes of its steps, without an attempt.
    AWAITING_STEPS = 7


class Frame:
    """A plan in execution: the submitted one, a continuation, or a step of a body.

    ``parent`` is the task whose result this plan's output becomes; None for the workflow itself.
    It is never itself the output of its frame: a continuation in tail position replaces the frame
    it ends (see `evolve.apply_task_continued`), so frames nest only as deep as the user's tree.
    ``step``: the path of the step, whose body is ``parent``; empty in other frames. A step gives
    its body whatever error it ends with.
    ``wraps``: ``catch_exceptions`` of the parent applies to everything inside.
    ``checkpoint``: the default for tasks without this option. ``stored``: its result is stored
    whatever they say. True for the workflow's output, which users ask for, and for frames in which
    tasks wait for a signal: a signal is taken once, so the frame could not run again.
    """

    __slots__ = (
        "checkpoint",
        "consumers",
        "first",
        "number",
        "output",
        "parent",
        "plan",
        "step",
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
        step: str = "",
    ) -> None:
        self.number = number
        self.plan = plan
        self.first = first
        self.parent = parent
        self.wraps = wraps
        self.checkpoint = checkpoint
        self.stored = stored
        self.step = step
        # Derived from the plan: the number of the task whose result is the frame's; the consumers
        # of each task.
        self.output = first + plan.output
        consumers: list[list[int]] = [[] for _ in plan.tasks]
        for index, spec in enumerate(plan.tasks):
            for upstream in spec.upstream:
                consumers[upstream].append(first + index)
        self.consumers = consumers


class Task:
    """A task of a frame.

    ``attempts`` counts ended attempts, ``charged`` those that count against ``max_retries``,
    ``preempted`` those whose node was lost, and ``setbacks`` the last ones in a row that ended
    without an error of user code. ``last_end`` says why the last one ended, as an `AttemptOutcome`.
    ``until``: when a timer is due, or the earliest start of the next attempt, or the start of a
    wait for a signal.
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
        # From the frame: the captured task, its bound options, the numbers of its consumers.
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
        #: The task had its outcome, and no task can need it again.
        self.released = False
        # Derived: the number of missing inputs; the number of consumers that may still need the
        # outcome.
        self.unmet = len(spec.upstream)
        self.wanted = len(consumers)

    @property
    def upstream(self) -> tuple[int, ...]:
        """Numbers of its upstream tasks, in the order of its placeholders."""
        first, upstream = self.frame.first, self.spec.upstream
        return tuple([first + index for index in upstream]) if first else upstream

    @property
    def checkpoint(self) -> bool:
        """Whether its result is to be stored, by its own option or the inherited one."""
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


class Body(msgspec.Struct, array_like=True):
    """What the body of a durable function has asked for, and was given.

    Snapshots contain this very record: fields may be added at the end, with a default.
    """

    #: When it was first called, in seconds since 1970.
    began: float
    #: By path, in the order in which they were recorded.
    steps: dict[str, StepRecord] = {}
    outcomes: list[StepOutcome] = []
    #: By path, the frames of the steps that run.
    frames: dict[str, int] = {}
    #: The step whose error ended its last attempt, if one did. The next attempt does without it.
    failed: str = ""
    #: The most outcomes that it has had: one more is progress. After an error it may have fewer.
    most: int = 0

    @property
    def history(self) -> History:
        """What the next attempt needs."""
        return History(tuple(self.steps.values()), tuple(self.outcomes), self.began)


class Lifecycle(msgspec.Struct, array_like=True, eq=False):
    """The part of the state that does not depend on the tasks: the holder, the status, the signals.

    Snapshots contain this very record: fields may be added at the end, with a default, but not
    moved or removed.
    """

    workflow_id: str
    incarnation: str
    #: PENDING, RUNNING, SUCCESSFUL, FAILED or CANCELED; NONE before the first event.
    status: WorkflowStatus = WorkflowStatus.NONE
    holder: str = ""
    #: Counts changes of the holder: reports of attempts of an earlier epoch are ignored.
    epoch: int = 0
    released: bool = False
    cancel_requested: bool = False
    metadata: dict[str, Any] = {}
    plan_digest: str = ""
    #: The environment of its code. The changes of resumptions: functions by the digest of the
    #: replaced one, Ray options by task id.
    environment: Environment = Environment()
    functions: dict[str, Function] = {}
    ray_options: dict[str, dict[str, Any]] = {}
    #: The requests that submitted it and that last resumed it.
    request_id: str = ""
    resume_id: str = ""
    #: How long it may run from each start, in seconds, and when that time ends.
    timeout: float | None = None
    deadline: float | None = None
    submitted_at: float = 0.0
    started_at: float | None = None
    ended_at: float | None = None
    error: ErrorInfo | None = None
    failed_task: str | None = None
    output: Outcome | None = None
    #: By name and id, the untaken signals in the order in which they were received.
    #: (The values are OrderedDicts, whose first item is found at once; msgspec has no type for it.)
    signals: dict[str, dict[str, Value]] = {}
    #: Names and ids of signals that were taken; the newest ones, see `signals.REMEMBERED`.
    taken: dict[tuple[str, str], None] = {}
    #: The name of the root function.
    name: str = ""
    tags: dict[str, Tag] = {}
    #: The workflow that started it.
    parent: str = ""
    #: By id, the undelivered messages. A workflow that has ended has none.
    outbox: dict[str, OutboxMessage] = {}
    #: How it ends, once they are delivered.
    ending: End | None = None
    #: One of `KINDS`.
    kind: str = DAG

    def is_known(self, request_id: str) -> bool:
        """Whether this request submitted it or last resumed it."""
        return bool(request_id) and request_id in (self.request_id, self.resume_id)

    @property
    def running(self) -> bool:
        """Whether attempts may be started."""
        return self.status is WorkflowStatus.RUNNING and not self.released and self.ending is None


class WorkflowState(Lifecycle, eq=False):
    """Everything that decisions about one workflow depend on: its lifecycle, and its tasks."""

    frames: dict[int, Frame] = {}
    tasks: dict[int, Task] = {}
    #: By task, the bodies that have asked for steps and have not ended.
    bodies: dict[int, Body] = {}
    next_task: int = 0
    next_frame: int = 0
    #: For each base name, the suffix to try next.
    names: dict[str, int] = {}
    # Derived: tasks in phase ACTIVE, in the order in which they became so; by the signal's name,
    # tasks in phase AWAITING_SIGNAL, in that order; when tasks in phase AWAITING_TIMER are due, and
    # when those in phase AWAITING_SIGNAL time out. (An OrderedDict finds its first item at once.)
    active: dict[int, None] = {}
    waits: dict[str, OrderedDict[int, None]] = {}
    timers: dict[int, float] = {}

    def checkpoints(self, task: Task) -> bool:
        """Whether the task's result is stored."""
        return (
            task.checkpoint
            or (task.is_output and task.frame.stored)
            # It may have steps that can't run again, such as a wait for a signal.
            or task.options.kind == BODY
        )

    def frames_around(self, frame: Frame) -> Iterator[Frame]:
        """A frame and its enclosing frames, innermost first."""
        yield frame
        while frame.parent is not None:
            frame = self.tasks[frame.parent].frame
            yield frame
