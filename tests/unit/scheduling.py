"""A `RayExecutor` over Ray tasks that do as a test says, in this process and without Ray."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import msgspec

from ray_workflows._codec.transport import message, opened
from ray_workflows._executor.executor import RayExecutor
from ray_workflows._executor.protocol import (
    ENCODER,
    GIVEN_DECODER,
    AttemptRequest,
    AttemptTemplate,
    BatchReport,
    GivenOutcomes,
    decode_batch,
)
from ray_workflows._executor.scheduling.invariants import check
from ray_workflows._model.messages import AttemptNews, AttemptReturned
from ray_workflows._model.plan import Environment, Function, TaskOptions
from ray_workflows._model.values import Outcome, Value

INCARNATION = "i"


def template(name: str, **options: Any) -> AttemptTemplate:
    function = Function(name, name, b"")
    return AttemptTemplate("w", INCARNATION, function, TaskOptions(**options), Environment(), ())


def attempt(
    of: AttemptTemplate, task: int, attempt: int = 1, upstream: Sequence[int] = ()
) -> AttemptRequest:
    inputs = tuple(Outcome(Value(b"")) for _ in upstream)
    arguments = Value(b"")
    return AttemptRequest(
        of, task, f"t{task}", 0, attempt, arguments, False, tuple(upstream), (), inputs
    )


def chain(of: AttemptTemplate, first: int, length: int) -> list[AttemptRequest]:
    """Attempts of which each takes the unstored result of the one before."""
    head = attempt(of, first)
    rest = [attempt(of, task, upstream=(task - 1,)) for task in range(first + 1, first + length)]
    return [head, *rest]


class RayTask:
    """A Ray task: it has batches, and what is called when it ends. ``ended``: its result."""

    def __init__(self, loads: list[Any], asks: bool) -> None:
        self.asks = asks
        self.loads = loads
        self.ended: Any = None
        self.canceled = False
        #: Outcomes of steps that its body was given.
        self.given: list[GivenOutcomes] = []
        self.callbacks: list[Callable[[Any], None]] = []

    def future(self) -> RayTask:
        return self

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self.callbacks.append(callback)

    def result(self) -> Any:
        if isinstance(self.ended, BaseException):
            raise self.ended
        return self.ended

    def batches(self) -> list[tuple[int, list[AttemptRequest]]]:
        """The number of each, and its attempts."""
        decoded = [decode_batch(opened(load)[0]) for load in self.loads]
        return [(number, requests) for number, _, requests in decoded]

    def sequences(self) -> list[int]:
        """What fencing tokens are made of."""
        return [decode_batch(opened(load)[0])[1] for load in self.loads]


class Cluster:
    """Takes the place of Ray."""

    def __init__(self, capacity: int) -> None:
        self.tasks: list[RayTask] = []
        self.size = capacity
        #: Why the package of all that is sent can't be brought.
        self.refusal: Exception | None = None
        #: What the head of the cluster raises when it is asked.
        self.away: Exception | None = None
        #: Whether hosts that die served others too.
        self.shared = False
        #: Shapes of which is known what their attempts need.
        self.prepared: set[str] = set()
        self.executor: RayExecutor | None = None

    def head(self) -> None:
        """It is asked, by a thread that holds up nobody."""
        assert self.executor is not None
        assert not self.executor.lock._is_owned()  # type: ignore[attr-defined]
        if self.away is not None:
            raise self.away

    def nodes(self) -> list[dict[str, float]]:
        self.head()
        return [{"CPU": float(self.size)}]

    def prepare(self, template: AttemptTemplate) -> None:
        self.head()

    def keep(self, shape: str, needs: None) -> None:
        self.prepared.add(shape)

    def is_prepared(self, shape: str) -> bool:
        return shape in self.prepared

    def missing(self, batches: Iterable[Any]) -> set[str]:
        self.head()
        return {"package"} if self.refusal is not None else set()

    def send(self, sent: Any, loads: list[Any], asks: bool, values: Any) -> RayTask:
        self.tasks.append(RayTask(list(loads), asks))
        return self.tasks[-1]

    def give(self, ref: RayTask, given: bytes) -> None:
        ref.given.append(GIVEN_DECODER.decode(given))

    def cancel(self, ref: RayTask, *, force: bool) -> None:
        ref.canceled = True

    def lacked(self, sent: Any, missing: Collection[str]) -> bool:
        return bool(missing)

    def why_missing(self, sent: Any, missing: Collection[str]) -> Exception | None:
        return self.refusal

    def tidy(self) -> None:
        """Nothing was brought."""

    def ended(self, ref: Any, *, host_died: bool) -> bool:
        return host_died and self.shared

    def close(self) -> None:
        """Nothing was started."""


class Scheduling:
    """The executor, its Ray tasks, and what was reported. Every step is checked."""

    def __init__(self, capacity: int = 2) -> None:
        self.now = 0.0
        #: Whether the head of the cluster does not answer.
        self.head_hangs = False
        self.reported: list[AttemptNews] = []
        self.later: list[Callable[[], None]] = []
        self.timers: list[Callable[[], None]] = []
        #: What the head of the cluster is asked, with what takes the answer.
        self.asked: list[tuple[Callable[[], Any], Callable[[Any], None]]] = []
        self.cluster = Cluster(capacity)
        self.executor = RayExecutor(
            self.cluster, self.take, self.later.append, self.ask, deadlines=self, clock=self
        )
        self.cluster.executor = self.executor
        self.executor.placement.look()

    def ask(self, work: Callable[[], Any], then: Callable[[Any], None]) -> None:
        self.asked.append((work, then))

    def time(self) -> float:
        return self.now

    def monotonic(self) -> float:
        """Each look takes a while, so that whatever is waited for is late at some time."""
        self.now += 0.0001
        return self.now

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        self.timers.append(action)

    def take(self, incarnation: str, reports: Sequence[AttemptNews]) -> None:
        self.reported += reports

    @property
    def tasks(self) -> list[RayTask]:
        """Ray tasks that have not ended."""
        return [task for task in self.cluster.tasks if task.ended is None]

    @property
    def outcomes(self) -> list[tuple[int, str]]:
        """The task of each report, and what it says."""
        return [(report.task, type(report).__name__) for report in self.reported]

    def known(self, *names: str, seconds: float = 0.001) -> None:
        for name in names:
            self.executor.dispatch.durations.seconds[name] = seconds

    # -- steps -----------------------------------------------------------------------------

    def start(self, request: AttemptRequest, followers: Iterable[AttemptRequest] = ()) -> None:
        self.executor.start(request, followers)
        self.check()

    def flush(self) -> None:
        self.executor.flush()
        self.check()

    def cancel(self, task: int) -> None:
        self.executor.cancel(INCARNATION, task)
        self.check()

    def settle(self) -> None:
        """What was to be done later is done, and the time of all timers has come."""
        actions = [*self.later, *self.timers]
        self.later.clear()
        self.timers.clear()
        for action in actions:
            action()
            self.executor.flush()
            self.check()

    def end(self, task: RayTask, reports: list[Any] | BaseException) -> None:
        """The Ray task ends with reports of its batches, or with an error."""
        task.ended = reports
        for callback in task.callbacks:
            callback(task)
        self.check()

    def end_well(self, task: RayTask) -> None:
        """It runs all that it has, and ends."""
        reports = [report_of(number, requests) for number, requests in task.batches()]
        self.end(task, reports)

    def report_first(self, task: RayTask) -> None:
        """It is through with its first batch, and asks for another one."""
        (number, requests), *_ = task.batches()
        del task.loads[0]

        def answer(loads: list[Any] | None) -> None:
            task.loads += loads or []

        self.executor.batch_done(report_of(number, requests), answer)
        self.check()

    def hand_back(self, task: RayTask, ran: int) -> None:
        """Its first batch overran: it has run some members and hands back those behind."""
        (number, requests), *_ = task.batches()
        unstarted = tuple(range(ran, len(requests)))
        self.executor.batch_overran(report_of(number, requests[:ran], unstarted))
        self.check()

    def check(self) -> None:
        check(self.executor)
        while self.asked and not self.head_hangs:
            work, then = self.asked.pop(0)
            result: Any
            try:
                result = work()
            except Exception as error:
                result = error
            then(result)
            check(self.executor)


def report_of(number: int, ran: list[AttemptRequest], unstarted: Sequence[int] = ()) -> Any:
    """A batch whose first members have returned."""
    reports = tuple(
        (index, AttemptReturned(r.task, r.epoch, r.attempt, 0.0, 0.0, Value(b"")))
        for index, r in enumerate(ran)
    )
    report = BatchReport(number, reports, (0.001,) * len(ran), tuple(unstarted))
    return message(ENCODER.encode(msgspec.structs.replace(report)))
