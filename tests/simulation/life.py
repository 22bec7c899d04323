"""One life of a coordinator process: the real loop and lease on simulated surroundings."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ray_workflows._coordinator.admission import Limits
from ray_workflows._coordinator.clock import SteadyClock
from ray_workflows._coordinator.failover import Failover
from ray_workflows._coordinator.lease import Lease
from ray_workflows._coordinator.long_polls import LongPolls, PollLimit
from ray_workflows._coordinator.loop import Loop
from ray_workflows._coordinator.requests import Reply
from ray_workflows._coordinator.workflow import Workflow
from ray_workflows._engine.commands import due_at, next_wake
from ray_workflows._engine.decision import ACTIVE
from ray_workflows._model.catalog import Holder
from ray_workflows._model.status import WorkflowStatus
from tests.simulation.io import SimulatedIo
from tests.simulation.observers import Threads
from tests.simulation.storage import FaultyStorage
from tests.simulation.violations import Violation
from tests.support.states import check_same

if TYPE_CHECKING:
    from tests.simulation.world import Cluster, World


class Crashed(BaseException):
    """The process dies in the middle of a step."""


class Ticket:
    """A request on its way. ``then`` gets the answer, or CRASHED."""

    __slots__ = ("answers", "life", "then", "what")

    def __init__(self, life: Life, what: str, then: Callable[[Any], None]) -> None:
        self.life = life
        self.what = what
        self.then = then
        self.answers = 0


class Life:
    """A process. ``exists`` until it crashes; ``running`` while it is not stopped."""

    def __init__(self, world: World, cluster: Cluster, number: int) -> None:
        self.world = world
        self.cluster = cluster
        self.name = f"{cluster.name}{number}"
        self.exists = True
        self.running = True
        #: Cut off, and replaced by a new life of its cluster, but not dead yet.
        self.replaced = False
        self.offset = world.rng.uniform(-1.0, 1.0) * world.faults.skew
        self.inbox: deque[Callable[[], None]] = deque()
        #: What goes on when the process is continued.
        self.frozen: list[Callable[[], None]] = []
        self.tickets: set[Ticket] = set()
        self.due: float | None = None
        #: Of each incarnation, how many entries it has read or committed.
        self.known: dict[str, int] = {}
        #: For each workflow in memory, what was checked last.
        self.checked: dict[Workflow, int] = {}
        self.in_step = False
        self.holder = Holder(self.name, cluster.name, cluster.host, number, 1)
        self.storage = FaultyStorage(world, self)
        self.offloader = SimulatedIo(world, self)
        self.executor = world.executor_for(self)
        self.threads = Threads(world, self)
        self.loop = Loop(
            self.storage,
            self.executor,
            self.offloader,
            self.holder,
            clock=SteadyClock(self.wall, self.elapsed),
            elapsed=self.elapsed,
            new_id=world.new_id,
            limits=Limits(*cluster.limits),
            probe=world.probe,
            starts=world.starts,
            snapshots=world.snapshots,
            evicts_after=world.evicts_after,
            observers=self.threads.observers,
            on_error=self.met_error,
        )
        #: Its time and the true one when they were compared last.
        self.clocks = (self.clock(), world.clock.now)
        self.lease = Lease(self.loop)
        self.orphans = Failover(self.loop, self.lease)
        self.polls = LongPolls(
            self.name,
            lambda watch: self.post(lambda: self.loop.watchers.add(watch)),
            lambda watch: self.post(lambda: self.loop.watchers.withdraw(watch)),
            self.elapsed,
            PollLimit(world.seats),
        )
        self.post(self.lease.start)
        if world.auto_resume:
            self.post(self.orphans.look)

    def clock(self) -> float:
        """The coordinator's time."""
        return self.loop.clock()

    def wall(self) -> float:
        """The clock of its machine, which somebody may set."""
        return self.world.clock.now + self.offset + self.cluster.clock_set

    def elapsed(self) -> float:
        return self.world.clock.now

    def met_error(self, what: str, error: Exception) -> None:
        if isinstance(error, Violation):
            self.world.fail(error)
        else:
            self.world.fail(Violation("unexpected", f"{what} in {self.name}: {error!r}"))

    # -- steps -----------------------------------------------------------------------------

    def post(self, action: Callable[[], None]) -> None:
        """Bring an action to the loop's thread."""
        if self.exists:
            self.inbox.append(action)
            self.schedule(self.world.rng.uniform(0.0, 0.004))

    def schedule(self, delay: float) -> None:
        # Never at the very same time: what is due by the clock must then be due.
        time = self.world.clock.now + delay + 1e-6
        if self.due is None or time < self.due:
            self.due = time
            self.world.clock.at(time, lambda: self.run(time))

    def run(self, time: float) -> None:
        if self.due != time:
            return
        self.due = None
        if not self.running:
            return
        self.in_step = True
        try:
            while self.inbox:
                self.inbox.popleft()()
            delay = self.loop.step()
        except Crashed:
            self.world.trace("%s dies within a step", self.name)
            self.world.crash(self)
            return
        except Violation:
            raise
        except Exception as error:
            raise Violation("unexpected", f"the loop of {self.name}: {error!r}") from error
        finally:
            self.in_step = False
        self.check()
        if delay is not None:
            self.schedule(delay)
        self.world.after_step(self)

    def may_crash(self) -> None:
        faults = self.world.faults
        if self.in_step and faults.hit(faults.crash_within_step):
            raise Crashed

    def pause(self) -> None:
        self.running = False
        self.due = None

    def resume(self) -> None:
        if self.exists and not self.running:
            self.running = True
            for action in self.frozen:
                action()
            self.frozen.clear()
            self.schedule(0.0)

    def die(self) -> None:
        self.exists = self.running = False
        self.inbox.clear()
        self.frozen.clear()
        self.due = None

    # -- requests --------------------------------------------------------------------------

    def ask(self, ticket: Ticket, ask: Callable[[Loop, Reply], None]) -> None:
        self.tickets.add(ticket)

        def reply(value: Any) -> None:
            self.may_crash()
            ticket.answers += 1
            if ticket.answers > 1:
                # `answer` swallows what a reply raises.
                self.world.fail(Violation("replies", f"{ticket.what}: answered twice"))
                return
            self.tickets.discard(ticket)
            ticket.then(value)

        self.post(lambda: ask(self.loop, reply))

    # -- checks ----------------------------------------------------------------------------

    def check_clock(self) -> None:
        """Check that time passes evenly, even if somebody sets the system's clock."""
        before, self.clocks = self.clocks, (self.clock(), self.world.clock.now)
        passed = self.clocks[0] - before[0]
        true = self.clocks[1] - before[1]
        if not 0.98 * true - 1e-3 <= passed <= 1.02 * true + 1e-3:
            raise Violation("clock", f"{passed:.3f} s passed for {self.name} in {true:.3f} s")

    def check_work(self) -> None:
        """A watchdog: each task that should run is in flight or waits for its time, and whatever
        waits for a time has an alarm. What the executor does not have is a report on its way."""
        loop = self.loop
        if loop.elapsed() > loop.lease_until or self.inbox or self.replaced:
            return  # Of one that was replaced, workers report to the other one.
        for workflow in loop.active.values():
            if workflow.busy or not loop.active.drives(workflow):
                continue
            state = workflow.state
            why = ""
            if workflow.inbox:
                why = "nothing decides on what came in"
            elif workflow.commands:
                why = "" if id(workflow) in loop.starter.waiting else "nothing starts its commands"
            elif state.status is WorkflowStatus.PENDING:
                why = "" if state.workflow_id in loop.admission.waiting else "nothing admits it"
            elif state.running:
                why = self.why_idle(workflow)
            if why:
                raise Violation("idle", f"{state.workflow_id} in {self.name}: {why}")
        self.check_evicted()

    def check_evicted(self) -> None:
        """What is in storage alone has nothing to do before it is woken."""
        active, eviction = self.loop.active, self.loop.eviction
        if active.evicted.keys() & active.keys():
            raise Violation("unexpected", f"{self.name}: in memory, and in storage alone")
        if active.evicted.next_due() < eviction.waking_at:
            raise Violation("idle", f"nothing wakes what is in storage alone in {self.name}")
        if not active.evicted:
            return
        # The last one of each id.
        journals = {each.state.workflow_id: each for each in self.world.monitor.journals.values()}
        named: list[str] = []
        for workflow_id, evicted in active.evicted.items():
            journal = journals[workflow_id]
            state = journal.state
            # Others may have appended, or deleted it: that is looked for.
            if journal.seq != evicted.seq or not active.is_ours(state.holder):
                continue
            if state.holder != self.name:
                named.append(state.holder)
            # What may be older than its journal is read sooner.
            late = evicted.due_at > due_at(state)
            if late or (state.holder == self.name and evicted.due_at != due_at(state)):
                raise Violation(
                    "idle", f"{state.workflow_id} in {self.name} is due at {due_at(state)}"
                )
        self.check_leases(set(named))

    def check_leases(self, named: set[str]) -> None:
        """What earlier lives left at rest is held as long as this one lives, for all others."""
        if not named or self.world.storage_clock_set:
            return
        rows = {each.holder_id: each for each in self.world.storage.read_holders()}
        for holder_id in sorted(named):
            row, mine = rows.get(holder_id), rows[self.name]
            if row is None or row.lease_until < mine.lease_until - 1.0:
                raise Violation("lease", f"{self.name} does not renew the lease of {holder_id}")
            if row.pid != self.holder.pid and mine.lease_until > row.lease_until:
                raise Violation("lease", f"{holder_id} names another process than {self.name}")

    def why_idle(self, workflow: Workflow) -> str:
        """What it lacks to go on; nothing if each of its tasks is in flight or waits for its time,
        and it is woken when it has to be."""
        state, delayed = workflow.state, workflow.delayed
        for number in () if state.cancel_requested else state.active:
            flies = self.executor.flight(workflow.incarnation, number)
            if flies is None and number not in delayed:
                return f"nothing comes of task {number}"
        at = next_wake(state)
        if at is not None and (workflow.alarm is None or workflow.alarm_at > at):
            return f"nothing wakes it at {at}"
        return ""

    def check(self) -> None:
        """Check what must hold between any two steps."""
        self.check_clock()
        self.check_work()
        self.threads.check()
        loop, monitor = self.loop, self.world.monitor
        checked: dict[Workflow, int] = {}
        scanned: dict[WorkflowStatus, int] = {}
        for workflow in loop.active.values():
            status = workflow.counted if workflow.reading else workflow.state.status
            if status in ACTIVE and (workflow.reading or loop.active.drives(workflow)):
                scanned[status] = scanned.get(status, 0) + 1
            if workflow.busy:
                continue
            checked[workflow] = workflow.seq
            journal = monitor.journals.get(workflow.incarnation)
            if journal is None or journal.seq < workflow.seq:
                raise Violation("durable", f"{self.name} believes in {workflow.seq} entries")
            if self.checked.get(workflow) == workflow.seq or journal.seq != workflow.seq:
                continue
            # It is the state that was checked when the entry was appended, or it differs from it.
            try:
                check_same(workflow.state, journal.state)
            except AssertionError as error:
                raise Violation(
                    "one truth", f"{workflow.workflow_id} in {self.name} and its journal: {error}"
                ) from error
        self.checked = checked
        for evicted in loop.active.evicted.values():
            scanned[evicted.status] = scanned.get(evicted.status, 0) + 1
        if {status: n for status, n in loop.admission.counts.items() if n} != scanned:
            raise Violation("room", f"{self.name}: counted {loop.admission.counts}, not {scanned}")
        if not loop.admission.waiting.keys() <= loop.active.keys() | loop.active.evicted.keys():
            raise Violation("room", f"{self.name}: {loop.admission.waiting} wait for ever")
        if len(loop.active.by_incarnation) != sum(
            w.incarnation != "" for w in loop.active.values()
        ):
            raise Violation("unexpected", f"{self.name}: two views of what is in hand")
        incarnation, held = "", None
        for request in self.executor.requests():
            if request.incarnation != incarnation:
                incarnation = request.incarnation
                held = loop.active.by_incarnation.get(incarnation)
            if held is None:
                raise Violation("orphan", f"{request.where} runs in {self.name} for nobody")
            if held.busy or held.commands:
                continue  # It may be stopped in the next step.
            if request.task not in held.state.active:
                raise Violation("orphan", f"{request.where} runs in {self.name} without need")
