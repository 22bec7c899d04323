"""A coordinator and its workers in this process, on a virtual clock: the cluster behind
`Environment`.

The engine, the coordinator's loop, the journal, the pickling of values and the worker's code are
those of a real cluster. What is missing is Ray: tasks run here, one after the other.
"""

from __future__ import annotations

import asyncio
import itertools
import queue
import zlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NoReturn, TypeVar

import ray

from ray_workflows._client.reader import ACTIVE, Reader
from ray_workflows._coordinator.admission import Limits
from ray_workflows._coordinator.deletion import Deletion
from ray_workflows._coordinator.liveness import this_holder
from ray_workflows._coordinator.loop import Loop
from ray_workflows._coordinator.offload import Inbox, work_off
from ray_workflows._coordinator.protocol import SENT
from ray_workflows._coordinator.recovery import list_rows, recover
from ray_workflows._executor.inline import InlineAttempt, InlineBody, InlineExecutor
from ray_workflows._executor.protocol import AnyReport, AttemptRequest, News
from ray_workflows._executor.worker.attempt import AttemptRun, run_attempt
from ray_workflows._executor.worker.listeners import awaited
from ray_workflows._executor.worker.process import Pool
from ray_workflows._model import messages as msg
from ray_workflows._model.catalog import Append, CatalogQuery
from ray_workflows._model.plan import LISTENER, Environment, Plan
from ray_workflows._model.steps import StepOutcome
from ray_workflows._model.values import Outcome
from ray_workflows._testing.local_bodies import LocalBody
from ray_workflows._testing.local_objects import LocalObjects, LocalReader
from ray_workflows.storage import CommitOutcome, Storage
from ray_workflows.storage.memory import MemoryBlobs, MemoryHome, MemoryJournals, MemoryLeases
from ray_workflows.testing.clock import VirtualClock

T = TypeVar("T")

#: The coordinator of every life.
COORDINATOR = "testing.Environment"

#: What a task may raise, on a cluster too, that is no `Exception`.
OF_TASKS = (SystemExit, GeneratorExit, asyncio.CancelledError)

#: For longer than any test passes, in seconds.
FOR_EVER = 1e12


class ClusterCrashed(BaseException):
    """The coordinator and the workers die here. Nothing in between may catch it."""


class CrashingJournals(MemoryJournals):
    """Journals at whose commits the cluster can crash.

    Attributes:
        before: called with what is to be committed; it may raise `ClusterCrashed`, as ``after``.
        after: called when it is committed.
    """

    before: Callable[[Sequence[Append]], None]
    after: Callable[[Sequence[Append]], None]

    def commit(self, appends: Sequence[Append]) -> list[CommitOutcome]:
        """As `MemoryJournals.commit`, with a chance to crash before and after it."""
        appends = list(appends)
        self.before(appends)
        outcomes = super().commit(appends)
        self.after(appends)
        return outcomes


class NoWatchdog:
    """Nobody watches attempts here: they end before anything else happens."""

    def add(self, watched: Any) -> None:
        """Nothing."""

    def remove(self, watched: Any) -> None:
        """Nothing."""


class LocalProcess:
    """The process of the workers, which is this one, on the virtual clock."""

    watch = NoWatchdog()
    node_id = ""

    def __init__(self, clock: VirtualClock, objects: LocalObjects) -> None:
        self.objects = objects
        self.time = clock
        self.monotonic = clock

    def seed(self, of: str) -> int:
        """The same in every run of a test, also after a crash."""
        return zlib.crc32(of.encode())

    def sleep(self, seconds: float) -> None:
        """Nothing that a worker waits for takes time here."""

    def put(self, value: Any) -> Any:
        """A live value stays in this process."""
        return value

    def get(self, ref: Any) -> Any:
        """What `put` was given, or the value of an ObjectRef of user code."""
        return self.objects.get(ref) if isinstance(ref, ray.ObjectRef) else ref

    def pool(self) -> AbstractContextManager[Pool]:
        """Does at once what it is given."""
        return nullcontext(SameThread())


class SameThread:
    """A `Pool` that does everything where it is asked for."""

    def submit(self, work: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Do it now."""
        future: Future[Any] = Future()
        try:
            future.set_result(work(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


class LocalAttempt(AttemptRun):
    """An attempt in this process; ``stand_in`` runs in place of its function, if it is not None."""

    def __init__(
        self, objects: LocalObjects, stand_in: Callable[..., Any] | None, *attempt: Any
    ) -> None:
        super().__init__(*attempt)
        self.objects = objects
        self.stand_in = stand_in
        self.reader = LocalReader(objects, self.storage, self.request.incarnation, self.reader.live)

    def loaded(self) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
        """As on a cluster, with the function that is to run."""
        function, args, kwargs = super().loaded()
        return self.stand_in or function, args, kwargs

    def raised(self, error: BaseException) -> AnyReport:
        """The report for what user code raised. What is to end the test, as Ctrl-C or a failure
        of pytest, does so."""
        if not isinstance(error, (Exception, *OF_TASKS)):
            raise error
        return super().raised(error)

    def reference(self, outcome: Outcome, *, where: str) -> ray.ObjectRef:
        """An ObjectRef of an input."""
        return self.objects.put(self.reader.read_outcome(outcome, where=where))


class LocalConnection(Reader):
    """What the functions of `ray_workflows` act on while an `Environment` is entered."""

    def __init__(self, cluster: LocalCluster, run: Callable[..., Any]) -> None:
        """``run`` is what `ray_workflows.run` does, with its arguments checked."""
        super().__init__(cluster.storage, cluster=COORDINATOR)
        self.local = cluster
        self.run = run

    def values(self, incarnation: str) -> LocalReader:
        """Reads the values of a workflow; ObjectRefs come back as such."""
        return LocalReader(self.local.objects, self.storage, incarnation)

    @property
    def coordinator(self) -> NoReturn:
        """There is none that Ray knows."""
        raise RuntimeError(
            "A testing.Environment is entered, and has no coordinator that Ray knows: use its "
            "methods (env.run, env.run_async, env.resume, env.get_output), or leave it before."
        )

    def patiently(self, work: Callable[[], T]) -> T:
        """The storage is never away here."""
        return work()

    def snapshot(self) -> Environment:
        """Code runs in this process, which has it."""
        return Environment()

    def remember(self, plan: Plan, user: tuple[str, str]) -> Plan:
        """As `snapshot`, of runtime_envs of tasks: nothing is installed here."""
        return plan

    def ask(self, method: str, workflow_id: str, *args: Any, incarnation: str) -> Any:
        """As of a connection to a cluster, about one run of an id."""
        return self.answer(self.verb(method)(workflow_id, *args, incarnation))

    def call(self, method: str, *args: Any) -> Any:
        """As of a connection to a cluster."""
        return self.answer(self.verb(method)(*args))

    def verb(self, method: str) -> Callable[..., Any]:
        """What does something that is asked of a coordinator."""
        found = self.local.verbs.get(method)
        return self.coordinator if found is None else found

    @staticmethod
    def answer(answer: Any) -> Any:
        """An answer; raises what is answered as an error."""
        if isinstance(answer, BaseException):
            raise answer
        return answer


class LocalCluster:
    """A coordinator and workers in this process.

    Args:
        clock: what they take for the time.
        stand_in: gives the function that runs in place of a task's, or None.
        began: called before user code of an attempt runs, with whether something else runs in its
            place.
        before: called before a commit, with what is committed; it may raise `ClusterCrashed`.
        after: called after it; it may raise that too.
    """

    def __init__(
        self,
        clock: VirtualClock,
        stand_in: Callable[[AttemptRequest], Callable[..., Any] | None],
        began: Callable[[AttemptRequest, bool], None],
        before: Callable[[Sequence[Append]], None],
        after: Callable[[Sequence[Append]], None],
    ) -> None:
        self.clock = clock
        self.stand_in = stand_in
        self.began = began
        home = MemoryHome(clock, "testing")
        self.journals = CrashingJournals(home)
        self.journals.before, self.journals.after = before, after
        self.storage = Storage(
            journals=self.journals, blobs=MemoryBlobs(home), leases=MemoryLeases(home)
        )
        self.objects = LocalObjects()
        self.process = LocalProcess(clock, self.objects)
        self.ids = itertools.count(1)
        self.batches = itertools.count(1)
        self.verbs: dict[str, Callable[..., Any]] = {
            "cancel": lambda id, incarnation: self.ask(id, msg.Cancel(incarnation)),
            "set_tags": lambda id, tags, incarnation: self.ask(id, msg.SetTags(tags, incarnation)),
            "signal": self.signal,
            "delete": self.delete,
        }
        self.crashes = 0
        #: Attempts of bodies that run.
        self.bodies: list[LocalBody] = []
        self.start()

    # -- lives -----------------------------------------------------------------------------

    def start(self) -> None:
        """Begin a life of the coordinator, with what an earlier one has left in the storage."""
        self.inbox: Inbox = queue.SimpleQueue()
        #: Attempts that were started and have not run, and what bodies have to do.
        self.ready: deque[Callable[[], None]] = deque()
        self.leave_bodies()
        holder = this_holder(COORDINATOR)
        for earlier in self.storage.read_holders():
            self.storage.remove_holder(earlier.holder_id)
        self.storage.renew_holder(holder, FOR_EVER)
        self.executor = InlineExecutor(
            self.perform,
            self.report,
            clock=self.clock,
            defer=lambda request, action: self.ready.append(action),
            begin=self.begin_body,
        )
        self.loop = Loop(
            self.storage,
            self.executor,
            self,
            holder,
            clock=self.clock,
            elapsed=self.clock,
            new_id=lambda: f"testing-{next(self.ids)}",
            limits=Limits(),
            evicts_after=FOR_EVER,
            on_error=raise_error,
        )
        # Nobody else is here: there is no lease to renew, and what is ours is known.
        self.loop.active.lives, self.loop.active.listed = [], True
        self.loop.lease_until = float("inf")
        query = CatalogQuery(statuses=tuple(ACTIVE))
        for row in list_rows(self.storage, query):
            recovered = recover(self.storage, row.workflow_id)
            if recovered is not None and not row.released:
                self.loop.activation.take(recovered, msg.Claim())

    def leave_bodies(self) -> None:
        """End all bodies where they are."""
        for body in self.bodies:
            body.flight.retired = True
            body.leave()
        self.bodies = []

    def restart(self) -> None:
        """Kill the coordinator and the workers, and begin the next life."""
        self.crashes += 1
        self.start()

    def call(
        self, work: Callable[[], Any], then: Callable[[Any], None], *, brief: bool = False
    ) -> None:
        """Blocking work of the loop: it is done here, and its result comes to the loop later."""
        result: Any
        try:
            result = work()
        except Exception as error:
            result = error
        self.inbox.put(lambda: then(result))

    # -- going on --------------------------------------------------------------------------

    def guarded(self, step: Callable[[], Any]) -> bool:
        """Do something in which the cluster may crash; whether it did not."""
        try:
            step()
        except ClusterCrashed:
            self.restart()
            return False
        return True

    def settle(self) -> None:
        """Let the loop do all that it can do now, and start nothing. A crash is survived."""
        while not self.guarded(self.settle_once):
            pass

    def settle_once(self) -> None:
        """As `settle`; a crash goes through."""
        while True:
            while not self.inbox.empty():
                work_off(self.inbox, 0.0)
            if self.loop.step() > 0.0 and self.inbox.empty():
                return

    def go_on(self, until: float) -> bool:
        """Run what is ready, or else let time pass to the next timer that is due ``until`` then.
        False: there is neither."""
        self.settle()
        if self.ready:
            self.guarded(self.ready.popleft())
            return True
        due = self.next_timer()
        idle = self.first_idle_body()
        if idle is not None and idle[0] <= min(until, float("inf") if due is None else due):
            at, body = idle
            self.clock.now = max(self.clock.now, at)
            body.suspend()
            return True
        if due is None or due > until:
            return False
        self.clock.now = max(self.clock.now, due)
        return True

    def first_idle_body(self) -> tuple[float, LocalBody] | None:
        """The body that gives its place back first, and when."""
        self.bodies = [body for body in self.bodies if not body.flight.retired]
        idle = [(at, body) for body in self.bodies if (at := body.leaves_at()) is not None]
        return min(idle, key=lambda each: each[0], default=None)

    def next_timer(self) -> float | None:
        """When the next timer of the loop is due."""
        due = [timer.due for timer in self.loop.timers.heap if timer.action is not None]
        return min(due, default=None)

    # -- what is asked ---------------------------------------------------------------------

    def ask(self, workflow_id: str, message: msg.Asked) -> Any:
        """The answer to a message. A crash repeats it, as Ray repeats a call."""
        return self.answer(lambda reply: self.loop.ask(workflow_id, message, reply))

    def answer(self, begin: Callable[[Callable[[Any], None]], None]) -> Any:
        """What a request is answered, which is begun again after a crash."""
        answers: list[Any] = []
        while not answers:
            crashes = self.crashes
            self.guarded(lambda: begin(answers.append))
            self.settle()
            if not answers and self.crashes == crashes:
                # Something that takes time, as a storage that is read, has a timer.
                due = self.next_timer()
                assert due is not None, "The coordinator does not answer."
                self.clock.now = max(self.clock.now, due)
                self.settle()
        return answers[0]

    def signal(self, encoded: bytes) -> Any:
        """Give a workflow a signal."""
        sent = SENT.decode(encoded)
        message = msg.Signal(sent.name, sent.signal_id, sent.value, sent.incarnation)
        return self.ask(sent.workflow_id, message)

    def delete(self, workflow_id: str, incarnation: str) -> Any:
        """Delete a workflow."""
        return self.answer(
            lambda reply: Deletion(
                self.loop, workflow_id, incarnation, reply, self.clock() + 60.0
            ).begin()
        )

    # -- workers ---------------------------------------------------------------------------

    def report(self, incarnation: str, reports: Sequence[News]) -> None:
        """Tell the coordinator of the day what became of attempts."""
        self.loop.report(incarnation, reports)

    def perform(
        self, request: AttemptRequest, live: Mapping[str, Any]
    ) -> tuple[AnyReport, dict[str, Any]]:
        """Run an attempt."""
        run = self.attempt(request, live)
        report = run_listener(run) if request.options.kind == LISTENER else run_attempt(run)
        return report, run.made

    def attempt(self, request: AttemptRequest, live: Mapping[str, Any]) -> LocalAttempt:
        """An attempt that begins."""
        batch = next(self.batches)
        attempt = (request, self.storage, live, self.process, batch, batch)
        run = LocalAttempt(self.objects, self.stand_in(request), *attempt)
        self.began(request, run.stand_in is not None)
        return run

    def begin_body(self, flight: InlineAttempt, live: Mapping[str, Any]) -> InlineBody:
        """Begin an attempt of a body; a mock of it runs as any other task does."""
        run = self.attempt(flight.request, live)
        if run.stand_in is not None:
            self.ready.append(lambda: self.executor.land(flight, run_attempt(run), run.made))
            return NoBody()
        body = LocalBody(self, flight, run)
        self.bodies.append(body)
        return body


class NoBody:
    """An `InlineBody` in whose place a mock runs."""

    def give(self, number: int, outcome: StepOutcome) -> None:
        """A mock asks for no steps."""

    def leave(self) -> None:
        """Nothing is left."""


def run_listener(run: LocalAttempt) -> AnyReport:
    """Run a listener's attempt to its end, in an event loop of its own. On a thread: a test may be
    a coroutine itself."""
    try:
        function, args, kwargs = run.loaded()
        with ThreadPoolExecutor(1) as pool:
            result = pool.submit(lambda: asyncio.run(awaited(run, function, args, kwargs))).result()
        return run.returned(result)
    except BaseException as error:
        return run.raised(error)


def raise_error(what: str, error: Exception) -> NoReturn:
    """An error that a coordinator would log and survive ends a test."""
    raise RuntimeError(f"{what} failed in the coordinator: {error!r}") from error
