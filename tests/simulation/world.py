"""One world: a storage, clusters with coordinators, clients, and the trouble of one seed."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Generator, Mapping
from random import Random
from typing import Any

from ray_workflows._coordinator.snapshots import SnapshotRule
from ray_workflows._model.catalog import Append, Holder
from ray_workflows._model.plan import Plan
from ray_workflows._model.values import Blob, ErrorInfo, Outcome
from ray_workflows.storage.base import CommitOutcome, Storage
from ray_workflows.storage.memory import MemoryStorage
from ray_workflows.testing.clock import VirtualClock
from tests.simulation import scripts, shapes
from tests.simulation.clients import Client, Pause, Put, draw_clients
from tests.simulation.executor import SimulatedExecutor
from tests.simulation.faults import Faults
from tests.simulation.http_events import start_events
from tests.simulation.io import Job
from tests.simulation.life import Life, Ticket
from tests.simulation.monitor import Monitor
from tests.simulation.oracle import Expected, expect
from tests.simulation.storage import LateCommit
from tests.simulation.violations import Violation
from tests.support.put_once import MemoryObjectStorage, MemoryOperations

#: After the trouble ends, everything has to end within this many virtual seconds.
PATIENCE = 400.0

#: A client gives up on an answer after this many seconds, as the coordinator's host does.
ANSWER_SECONDS = 20.0

#: What a client gets instead of an answer.
CRASHED, TIMEOUT = "crashed", "timeout"

#: By how much clocks are set, back or forward.
STEP_SECONDS = 3600.0

#: Crashes of coordinators in one seed.
MAX_CRASHES = 8


#: When coordinators save states: whole ones always or often, lifecycles alone, both, or as they do.
SNAPSHOTS = [
    SnapshotRule(entries=1, share=0),
    SnapshotRule(entries=2, share=1),
    SnapshotRule(entries=1, share=0, tasks=0),
    SnapshotRule(entries=2, share=0, tasks=3),
    SnapshotRule(),
]


class Cluster:
    """A cluster, which starts its coordinator again after a crash, unless it is ``lost``."""

    def __init__(self, name: str, host: str, limits: tuple[int, int]) -> None:
        self.name = name
        self.host = host
        self.limits = limits
        self.life: Life | None = None
        self.lives = 0
        self.lost = False
        #: By how much somebody has set the clock of its machine.
        self.clock_set = 0.0


class SettableClock:
    """A wall clock that somebody sets now and then."""

    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock
        self.wrong = 0.0

    def __call__(self) -> float:
        return self.clock.now + self.wrong


def in_memory(clock: Callable[[], float]) -> Callable[[], Storage]:
    """One instance for all."""
    storage = MemoryStorage(clock=clock)
    return lambda: storage


def objects_in_memory(clock: Callable[[], float]) -> Callable[[], Storage]:
    """The algorithm of object stores and shared directories, on one store of objects."""
    operations = MemoryOperations(clock)
    MemoryObjectStorage(operations, clock).open()
    return lambda: MemoryObjectStorage(operations, clock)


STORAGES: dict[str, Callable[[Callable[[], float]], Callable[[], Storage]]] = {
    "memory": in_memory,
    "objects": objects_in_memory,
}


class World:
    """All of one seed. `run` raises a `Violation` if a promise is broken.

    ``trouble`` are faults that are not drawn; ``crowded``: many workflows, and few may run.
    """

    #: Which of `STORAGES` is used.
    storage_kind = "memory"

    #: Polls that may wait in one coordinator.
    seats = 2

    #: Whether somebody observes what coordinators commit.
    observed = True

    def __init__(
        self,
        seed: int,
        *,
        trouble: Mapping[str, float] | None = None,
        crowded: bool = False,
        trace: bool = False,
    ) -> None:
        self.seed = seed
        self.rng = Random(seed)
        self.clock = VirtualClock()
        self.began = self.clock.now
        self.lines: list[str] = []
        self.tracing = trace
        self.numbers = 0
        #: Decides when clocks are set.
        self.clocks = Random(f"clocks {seed}")
        self.faults = Faults(self.rng, self.clocks, trouble or {})
        self.storage_clock = SettableClock(self.clock)
        self.patience = PATIENCE
        self.crowded = crowded
        #: Commands that a coordinator starts in one step. By a die of its own: what else a seed has
        #: stays as it was.
        self.starts = Random(f"starts {seed}").choice([1, 2, 5_000])
        self.snapshots = Random(f"snapshots {seed}").choice(SNAPSHOTS)
        #: After how long at rest workflows leave a coordinator's memory.
        self.evicts_after = Random(f"evicts {seed}").choice([0.0, 0.5, 10.0])
        self.auto_resume = self.faults.auto_resume > 0.0
        #: Gives each process its own instance.
        self.open_storage = STORAGES[self.storage_kind](self.storage_clock)
        self.storage = self.open_storage()
        self.monitor = self.new_monitor()
        self.job: Job | None = None
        self.jobs: dict[Job, None] = {}
        self.late: list[LateCommit] = []
        self.lives: list[Life] = []
        self.crashes = 0
        self.steps_taken = 0
        #: Whether the storage's clock was set: then leases say nothing for a while.
        self.storage_clock_set = False
        self.failure: Violation | None = None
        self.steps = 0
        self.calm = False
        self.clusters = self.draw_clusters()
        self.clients: list[Client] = draw_clients(self)
        self.busy_clients = len(self.clients)

    def draw_clusters(self) -> list[Cluster]:
        rng = self.rng
        same_host = rng.random() < 0.3
        clusters = []
        for name in ("east", "west")[: 1 if rng.random() < 0.5 else 2]:
            limits = (rng.choice([-1, -1, 1, 2]), rng.choice([-1, -1, 0, 1, 3]))
            if self.crowded:
                limits = (1, -1)
            clusters.append(Cluster(name, "host" if same_host else name, limits))
        return clusters

    # -- what other worlds do in other ways ------------------------------------------------

    def accepted(self, client: Client) -> None:
        """The workflow of a client is durable."""
        start_events(client)

    def new_monitor(self) -> Monitor:
        """What watches the journals."""
        return Monitor()

    def executor_for(self, life: Life) -> Any:
        """What runs the attempts of a coordinator."""
        return SimulatedExecutor(self, life)

    def draw_plan(self) -> Plan:
        """A plan of scripts."""
        return shapes.draw_plan(self.rng)

    def expect(self, plan: Plan) -> Expected:
        """The result that the workflow must have."""
        return expect(plan)

    def submitted(self, plan: Plan) -> Plan:
        """A plan of scripts as it is submitted."""
        return plan

    def pack(self, text: str, maker: str) -> bytes:
        """The stored form of a value."""
        return scripts.pack(text, maker)

    def seen_as(self, incarnation: str, outcome: Outcome) -> str:
        """A stored outcome as a consumer sees it."""
        data: bytes | None = None
        if outcome.value is not None:
            if isinstance(outcome.value.data, Blob):
                data = bytes(self.storage.read_blob(incarnation, outcome.value.data))
            else:
                data = outcome.value.data
        return scripts.seen_as(outcome, data)

    def script_of(self, error: ErrorInfo) -> str | None:
        """The script that raised an error; None if no script did."""
        return error.message if error.type_name == scripts.SCRIPT_ERROR else None

    def life_begins(self, life: Life) -> None:
        """Called when a coordinator begins, which replaces all earlier ones of its cluster."""

    def died(self, life: Life) -> None:
        """Called when a process has died."""

    def close(self) -> None:
        """Called at the end of a seed, also after a violation."""

    # -- time ------------------------------------------------------------------------------

    def run(self) -> World:
        """Run the seed."""
        # Faults are intended here, so their warnings are noise.
        logger = logging.getLogger("ray_workflows")
        disabled, logger.disabled = logger.disabled, True
        silenced = logging.root.manager.disable
        logging.disable(logging.CRITICAL)
        try:
            self.live()
        finally:
            self.close()
            logger.disabled = disabled
            logging.disable(silenced)
        return self

    def live(self) -> None:
        self.trace(
            "faults: %s, %s starts, evicts after %s",
            self.faults.describe(),
            self.starts,
            self.evicts_after,
        )
        for cluster in self.clusters:
            self.trace("cluster %s: limits %s", cluster.name, cluster.limits)
            self.begin_life(cluster)
        for client in self.clients:
            self.go_on(client, client.story(), None)
        self.clock.after(self.faults.until, self.calm_down)
        while self.busy_clients or not self.calm:
            self.advance()
            if self.clock.now > self.began + self.faults.until + self.patience:
                raise Violation("stuck", "; ".join(self.unfinished()))
        # Calls that hung when the trouble ended may still come back.
        end = self.clock.now + PATIENCE
        while self.clock.now < end and any(life.exists and life.tickets for life in self.lives):
            self.advance()
        self.check_end()

    def advance(self) -> None:
        self.clock.advance()
        self.steps += 1
        if self.failure is not None:
            raise self.failure

    def fail(self, violation: Violation) -> None:
        """Note a violation found where an exception would be swallowed."""
        self.failure = self.failure or violation

    def calm_down(self) -> None:
        """End the trouble. Lost clusters stay lost; everything else comes back."""
        self.calm = True
        self.faults.stop()
        self.trace("calm")
        for life in self.lives:
            life.storage.way.away_until = 0.0
            if life.exists and (life.cluster.life is not life or life.offloader.stuck):
                self.crash(life)
            life.resume()
        for cluster in self.clusters:
            if cluster.life is None and not cluster.lost:
                self.begin_life(cluster)

    def check_end(self) -> None:
        for life in self.lives:
            if life.exists and life.tickets:
                what = sorted(ticket.what for ticket in life.tickets)
                raise Violation("replies", f"{life.name} never answered {what}")
        for journal in self.monitor.journals.values():
            self.monitor.check_replay(journal)
        for client in self.clients:
            client.check_end()

    def unfinished(self) -> list[str]:
        return [client.describe() for client in self.clients if not client.finished]

    # -- lives -----------------------------------------------------------------------------

    def begin_life(self, cluster: Cluster) -> None:
        if cluster.life is not None or cluster.lost:
            return
        cluster.lives += 1
        if cluster.clock_set:
            # What its earlier lives meant by their times may be that much later for it.
            self.patience = PATIENCE + STEP_SECONDS * self.steps_taken
        life = Life(self, cluster, cluster.lives)
        cluster.life = life
        self.lives.append(life)
        self.trace("%s begins", life.name)
        self.life_begins(life)

    def crash(self, life: Life) -> None:
        """Kill a process; its cluster starts another one, sooner or later or never."""
        if not life.exists:
            return
        life.die()
        self.trace("%s is dead", life.name)
        self.died(life)
        for ticket in sorted(life.tickets, key=lambda ticket: ticket.what):
            self.clock.after(0.01, lambda ticket=ticket: self.settle(ticket, CRASHED))
        if life.cluster.life is life:
            life.cluster.life = None
            self.crashes += 1
            others = any(c is not life.cluster and not c.lost for c in self.clusters)
            if others and not self.calm and self.rng.random() < 0.15:
                life.cluster.lost = True
                self.trace("%s is lost for ever", life.cluster.name)
            else:
                self.restart(life.cluster)

    def restart(self, cluster: Cluster) -> None:
        delay = self.rng.choice([0.05, 1.0, 10.0]) * self.rng.random()
        self.clock.after(delay, lambda: self.begin_life(cluster))

    def set_clocks(self, life: Life) -> None:
        faults, die = self.faults, self.clocks
        if not faults.clock_step and not faults.storage_clock_step:
            return
        if die.random() < faults.clock_step:
            self.steps_taken += 1
            seconds = die.choice([-STEP_SECONDS, STEP_SECONDS])
            life.cluster.clock_set += seconds
            self.trace("the clock of %s is set by %+.0f s", life.cluster.name, seconds)
        if die.random() < faults.storage_clock_step:
            seconds = die.choice([-STEP_SECONDS, STEP_SECONDS])
            self.storage_clock.wrong += seconds
            self.storage_clock_set = True
            self.trace("the clock of the storage is set by %+.0f s", seconds)

    def after_step(self, life: Life) -> None:
        """Crash, stop or replace a coordinator between two steps, at random."""
        self.set_clocks(life)
        faults, rng = self.faults, self.rng
        if self.crashes < MAX_CRASHES and faults.hit(faults.crash_after_step):
            self.crash(life)
        elif faults.hit(faults.pause):
            seconds = rng.choice([0.5, 5.0, 40.0]) * rng.random()
            self.trace("%s stops for %.3f s", life.name, seconds)
            life.pause()
            self.clock.after(seconds, life.resume)
            if faults.hit(faults.zombie) and life.cluster.life is life:
                # Its node is cut off: it is replaced, and comes back.
                self.trace("%s is replaced meanwhile", life.name)
                life.replaced = True
                life.cluster.life = None
                self.restart(life.cluster)
                self.clock.after(seconds + rng.uniform(0.0, 20.0), lambda: self.crash(life))
        if self.crashes >= MAX_CRASHES:
            faults.crash_within_step = 0.0

    def probe(self, holder: Holder) -> bool | None:
        """Whether a holder's process exists, as processes on its machine see it."""
        hosts = [cluster.host for cluster in self.clusters]
        if hosts.count(holder.host) < 2:
            return None
        process = (holder.coordinator, holder.pid)
        return any(
            life.exists and (life.cluster.name, life.holder.pid) == process for life in self.lives
        )

    # -- clients ---------------------------------------------------------------------------

    def go_on(self, client: Client, story: Generator[Any, Any, None], value: Any) -> None:
        """Give a client the value that it waited for, and carry out its next wish."""
        try:
            wish = story.send(value)
        except StopIteration:
            self.busy_clients -= 1
            return
        if isinstance(wish, Pause):
            self.clock.after(wish.seconds, lambda: self.go_on(client, story, None))
        else:
            self.put(wish, lambda answer: self.go_on(client, story, answer))

    def put(self, wish: Put, then: Callable[[Any], None]) -> None:
        life = wish.cluster.life
        if life is None:
            self.clock.after(0.3, lambda: then(CRASHED))
            return
        told = False

        def once(answer: Any) -> None:
            nonlocal told
            if not told:
                told = True
                then(answer)

        def answered(answer: Any) -> None:
            self.trace("%s answers %s: %s", life.name, wish.what, describe(answer))
            if answer is not CRASHED:
                wish.judge(answer)
            self.clock.after(self.rng.uniform(0.0, 0.003), lambda: once(answer))

        self.trace("%s asked for %s", life.name, wish.what)
        ticket = Ticket(life, f"{wish.what} #{self.number()}", answered)
        life.ask(ticket, wish.ask)
        if wish.patient:
            self.clock.after(ANSWER_SECONDS, lambda: once(TIMEOUT))

    def settle(self, ticket: Ticket, answer: Any) -> None:
        if not ticket.answers:
            ticket.answers = 1
            ticket.then(answer)

    # -- what the surroundings of coordinators need ----------------------------------------

    def number(self) -> int:
        self.numbers += 1
        return self.numbers

    def new_id(self) -> str:
        return f"id{self.number()}"

    def learn(self, incarnation: str, seq: int) -> None:
        """Note that the sender of the running job will know this many entries."""
        if self.job is not None:
            learned = self.job.learned
            learned[incarnation] = max(learned.get(incarnation, 0), seq)

    def interleave(self) -> None:
        """Run another piece of waiting work now, in the middle of this one."""
        if self.job is None or len(self.jobs) == 0:
            return
        jobs = [job for job in self.jobs if job.sent or job.life.running]
        if jobs:
            job = self.rng.choice(jobs)
            job.life.offloader.execute(job)

    def committed(self, life: Life, append: Append, outcome: CommitOutcome) -> None:
        if self.tracing:
            journal = self.monitor.journals.get(append.incarnation)
            self.trace(
                "commit %s/%s %d->%d by %s: %s",
                append.workflow_id,
                append.incarnation,
                append.expected_seq,
                append.catalog.seq,
                life.name,
                outcome.value,
            )
            del journal
        if outcome is CommitOutcome.OK:
            self.monitor.appended(life.name, append)
            if self.tracing:
                events = self.monitor.journals[append.incarnation].events
                self.trace("    now %s after %s", append.catalog.status, type(events[-1]).__name__)

    # -- the trace -------------------------------------------------------------------------

    def trace(self, text: str, *arguments: Any) -> None:
        if self.tracing:
            line = f"{self.clock.now - self.began:9.4f} {text % arguments}"
            self.lines.append(line)

    def digest(self) -> str:
        """A digest of all events of the seed."""
        return hashlib.sha256("\n".join(self.lines).encode()).hexdigest()


def describe(answer: Any) -> str:
    if isinstance(answer, Exception):
        return type(answer).__name__
    return repr(answer)[:100]
