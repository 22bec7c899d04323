"""A world with the real executor: its batches, its Ray tasks and the code of its workers.

Below it is a simulated Ray cluster; above it are the coordinators, clients and troubles of `World`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from random import Random
from typing import Any

from ray.exceptions import RpcError

from ray_workflows._codec.transport import opened
from ray_workflows._executor.executor import RayExecutor
from ray_workflows._executor.protocol import AttemptRequest, decode_batch
from ray_workflows._executor.scheduling.invariants import check as check_scheduling
from ray_workflows._executor.scheduling.placement import CHECK_SECONDS
from ray_workflows._executor.worker.batch import EncodedBatch
from ray_workflows._model.messages import AttemptRuns
from ray_workflows._model.plan import Plan
from ray_workflows._model.values import Blob, ErrorInfo, Outcome
from tests.simulation import shapes, work
from tests.simulation.executor import Judged
from tests.simulation.laws import MonitorOfWorkers
from tests.simulation.life import Life
from tests.simulation.nodes import ClusterOfLife, Node, SimulatedCluster, SimulatedTask
from tests.simulation.oracle import Expected, expect
from tests.simulation.processes import Execution, SimulatedProcess
from tests.simulation.repeated import draw_repeated
from tests.simulation.violations import Violation
from tests.simulation.world import World

#: After the last workflow has ended, what an executor has started is over within so many seconds.
REST_SECONDS = 60.0


#: Errors of users that are hard to bring home: see `work.error_named`.
POISONS = ("surrogate", "raises", "exit", "exits", "canceled", "keyboard")


class WorkerFaults:
    """Trouble of one seed on the side of workers. Probabilities are per call, operation or run."""

    def __init__(self, rng: Random, trouble: Mapping[str, float]) -> None:
        self.rng = rng
        peaceful = rng.random() < 0.15

        def some(share: float, low: float, high: float) -> float:
            if rng.random() >= share or peaceful:
                return 0.0
            return low * (high / low) ** rng.random()

        self.worker_dies = some(0.4, 0.002, 0.1)
        self.preempt = some(0.3, 0.01, 0.3)
        self.object_lost = some(0.35, 0.005, 0.1)
        self.storage_fails = some(0.35, 0.05, 0.5)
        self.write_unsaid = some(0.3, 0.03, 0.3)
        self.call_late = some(0.35, 0.01, 0.3)
        self.call_twice = some(0.35, 0.02, 0.4)
        self.end_late = some(0.35, 0.01, 0.3)
        self.watch_late = some(0.3, 0.05, 0.5)
        self.head_away = some(0.3, 0.02, 0.3)
        #: Not trouble: how many of the functions that raise do it with an error that is one.
        self.poison = some(0.5, 0.1, 0.6)
        for name, value in trouble.items():
            if hasattr(self, name):
                setattr(self, name, value)

    def hit(self, probability: float) -> bool:
        return probability > 0.0 and self.rng.random() < probability

    def stop(self) -> None:
        """From now on the world is kind."""
        for name, value in vars(self).items():
            if isinstance(value, float):
                setattr(self, name, 0.0)

    def describe(self) -> str:
        numbers = {k: round(v, 4) for k, v in vars(self).items() if isinstance(v, float) and v}
        return " ".join(f"{name}={value}" for name, value in numbers.items())


class Manner:
    """How functions of one name behave: how long they take, what they do to their worker."""

    def __init__(self, world: WorldOfWorkers, salt: str) -> None:
        rng = Random(f"{world.seed} {salt}")
        self.world = world
        self.kind = rng.choice(["brisk"] * 5 + ["slow", "sluggish", "turning", "mixed"])
        #: Until when, in seconds of the world, one that is turning is brisk.
        self.turns_at = rng.uniform(0.5, 15.0)
        self.deaths = rng.choice([0] * 12 + [1, 2])
        poison = rng.choice(POISONS)
        self.error = poison if rng.random() < world.worker_faults.poison else "error"

    def seconds(self, request: AttemptRequest) -> float:
        """How long a run takes."""
        world = self.world
        rng, kind = world.rng, self.kind
        if kind == "turning":
            kind = "brisk" if world.clock.now - world.began < self.turns_at else "slow"
        elif kind == "mixed":
            kind = rng.choice(["brisk"] * 9 + ["slow"])
        if request.options.timeout is not None and request.attempt > 1:
            kind = "brisk"  # It is to end at some time.
        if kind == "brisk":
            return rng.uniform(0.0002, 0.003)
        if kind == "sluggish":
            return rng.uniform(0.02, 0.12)
        return rng.uniform(0.3, 3.0)

    def kills(self, request: AttemptRequest) -> bool:
        """Whether a run takes its worker down."""
        # Not by task: continuations that start anew have new ones.
        key = (request.incarnation, request.function.digest)
        if self.world.kills[key] >= self.deaths:
            return False
        self.world.kills[key] += 1
        return True


class RealExecutor(Judged, RayExecutor):
    """The executor of a coordinator, whose starts and reports are judged."""

    def __init__(self, world: WorldOfWorkers, life: Life) -> None:
        cluster = ClusterOfLife(world.cluster_of(life), life)
        timers = Timers(world, life)
        self.timers = timers
        super().__init__(
            *(world, life, cluster, self.send, life.post, self.ask_head),
            deadlines=timers,
            clock=timers,
        )
        timers.after(0.0, self.look_at_nodes)

    def ask_head(self, work: Callable[[], Any], then: Callable[[Any], None]) -> None:
        """Ask the head of the cluster on another thread, which may have to wait for it."""
        faults = self.world.worker_faults
        seconds = 20.0 * faults.rng.random() if faults.hit(faults.head_away) else 0.001

        def ask() -> None:
            result: Any
            try:
                result = work()
            except RpcError as error:
                result = error
            self.life.post(lambda: then(result))

        self.timers.after(seconds, ask)

    def look_at_nodes(self) -> None:
        """As a job of the coordinator's."""

        def look_again(result: Any = None) -> None:
            self.timers.after(CHECK_SECONDS, self.look_at_nodes)

        if self.dispatch.ready_queues or not self.placement.has_looked:
            self.ask_head(self.placement.look, look_again)
        else:
            look_again()

    def cancel(self, incarnation: str, task: int) -> None:
        """Stop an attempt, and note that."""
        self.world.stops[incarnation] += 1
        super().cancel(incarnation, task)

    def forget(self, incarnation: str) -> None:
        """Stop all attempts of a workflow, and note that."""
        self.world.stops[incarnation] += 1
        super().forget(incarnation)

    def requests(self) -> list[AttemptRequest]:
        """What runs, or waits to run."""
        return [
            flight.request
            for flights in self.flights.values()
            for flight in flights.values()
            if not flight.follows
        ]

    def tell(
        self, incarnation: str, task: int, epoch: int, attempt: int, started_at: float, node: str
    ) -> None:
        """As the coordinator's actor does when a worker says that an attempt runs."""
        self.arrive(incarnation, AttemptRuns(task, epoch, attempt, started_at, node))

    def left(self) -> list[str]:
        """What is there though no workflow is."""
        dispatch = self.dispatch
        slots = dispatch.slots
        found = {
            "flights": self.flights,
            "live values": self.live,
            "suspects": self.suspects,
            "attempts that were cut off": self.cut_off,
            "batches": dispatch.sent,
            "ready_queues": {
                shape: ready_queue
                for shape, ready_queue in dispatch.ready_queues.items()
                if not ready_queue.idle
            },
            "slots": slots.flying,
            "waiting": slots.waiting,
            "taking": slots.taking,
            "leaving": slots.leaving,
        }
        return [f"{len(things)} {name}" for name, things in found.items() if things]


class Timers:
    """`Timers` and `Clock` of an executor, on the world's clock."""

    def __init__(self, world: WorldOfWorkers, life: Life) -> None:
        self.world = world
        self.life = life

    def time(self) -> float:
        """What the machine's clock says."""
        return self.life.wall()

    def monotonic(self) -> float:
        """The world's time."""
        return self.world.clock.now

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Call it then, or when the process goes on."""

        def act() -> None:
            if self.life.running:
                action()
            elif self.life.exists:
                self.life.frozen.append(action)

        self.world.clock.after(seconds, act)


class WorldOfWorkers(World):
    """As `World`, with real executors."""

    def __init__(self, seed: int, **options: Any) -> None:
        trouble = dict(options.get("trouble") or {})
        self.worker_faults = WorkerFaults(Random(f"workers {seed}"), trouble)
        ours = vars(self.worker_faults)
        options["trouble"] = {name: v for name, v in trouble.items() if name not in ours}
        self.manners: dict[str, Manner] = {}
        self.simulated: dict[str, SimulatedCluster] = {}
        #: What happened, and how often.
        self.seen: Counter[str] = Counter()
        self.ran: set[tuple[str, int, int, int]] = set()
        self.kills: Counter[tuple[str, str]] = Counter()
        #: How often tasks raised, and killed their worker.
        self.failures: Counter[tuple[str, int]] = Counter()
        #: What attempts raised that were to fail, by attempt.
        self.raised: dict[tuple[str, int, int, int], str] = {}
        #: Attempts that ran when their worker died, or may be what it died of.
        self.suspects: set[tuple[str, int, int, int]] = set()
        #: Attempts that a worker had, or was sent, that died.
        self.died_with: set[tuple[str, int, int, int]] = set()
        #: How often coordinators have stopped attempts of a workflow, by incarnation.
        self.stops: Counter[str] = Counter()
        super().__init__(seed, **options)

    def new_monitor(self) -> MonitorOfWorkers:
        return MonitorOfWorkers(self)

    def executor_for(self, life: Life) -> RealExecutor:
        return RealExecutor(self, life)

    def cluster_of(self, life: Life) -> SimulatedCluster:
        """The Ray cluster of a coordinator, which is there before and after it."""
        found = self.simulated.get(life.cluster.name)
        if found is None:
            found = self.simulated[life.cluster.name] = SimulatedCluster(self, life.cluster)
        return found

    def manner(self, salt: str) -> Manner:
        """How functions of a name behave."""
        found = self.manners.get(salt)
        if found is None:
            found = self.manners[salt] = Manner(self, salt)
        return found

    # -- plans and values ------------------------------------------------------------------

    def draw_plan(self) -> Plan:
        """Half of them of many tasks with few functions, which travel in batches."""
        if self.rng.random() < 0.6:
            return draw_repeated(self.rng)
        return shapes.draw_plan(self.rng)

    def expect(self, plan: Plan) -> Expected:
        return expect(plan, work.TIMER)

    def submitted(self, plan: Plan) -> Plan:
        return work.captured(plan, self.storage, "")

    def pack(self, text: str, maker: str) -> bytes:
        return work.sealed((text, maker))

    def seen_as(self, incarnation: str, outcome: Outcome) -> str:
        return work.seen(work.read_back(self.storage, incarnation, outcome))

    def script_of(self, error: ErrorInfo) -> str | None:
        if error.type_name in ("ScriptError", "Poisoned", "CancelledError", "KeyboardInterrupt"):
            return error.message.removesuffix("\\udce9")
        return None

    # -- what happens on workers -----------------------------------------------------------

    def begins(self, execution: Execution, inputs: tuple[Any, ...]) -> None:
        """A task's function is called with its inputs."""
        request, process = execution.request, execution.process
        self.trace("%s begins %s", execution.name, request.task_id)
        self.seen["fused attempts"] += request.fused
        self.seen["attempts that run again"] += execution.key in self.ran
        self.seen["listeners"] += process.fiber is None
        self.ran.add(execution.key)
        self.judge(lambda: self.monitor.begins(execution, inputs))
        faults = self.worker_faults
        if faults.hit(faults.object_lost):
            process.cluster.objects.lose_one()
        if process.fiber is not None and faults.hit(faults.worker_dies):
            delay = self.rng.choice([0.001, 0.01, 1.0]) * self.rng.random()
            task = process.task
            self.clock.after(delay, lambda: self.strike(process, task))

    def strike(self, process: Any, task: Any) -> None:
        """Kill a worker, if it still runs the same Ray task."""
        if process.alive and process.task is task:
            process.cluster.kill(process, "it was killed")

    def judge(self, law: Callable[[], None]) -> None:
        """Look at something where an exception would be taken for the user's."""
        try:
            law()
        except Violation as violation:
            self.fail(violation)

    def worker_died(self, task: SimulatedTask, process: SimulatedProcess) -> None:
        """What a worker may have died of: what ran; if nothing did, anything it was given."""
        self.seen["deaths of workers"] += 1
        self.died_with.update(process.given)
        executions = process.executions
        running = [execution for execution in executions if not execution.over]
        if running:
            self.suspects.add(running[-1].key)
            return
        process.died_idle = True
        self.suspects.update(process.given)

    def given(self, process: SimulatedProcess, loads: Iterable[EncodedBatch]) -> None:
        """A worker gets batches, or would, were it not dead."""
        for load in loads:
            *_, requests = decode_batch(opened(load)[0])
            self.seen["batches"] += len(requests) > 1
            for request in requests:
                key = request.incarnation, request.task, request.epoch, request.attempt
                process.given.add(key)
        if not process.alive:
            self.died_with.update(process.given)
        if process.died_idle:
            self.suspects.update(process.given)

    # -- trouble ---------------------------------------------------------------------------

    def live(self) -> None:
        self.trace("workers: %s", self.worker_faults.describe())
        work.HERE.exploded.clear()
        if self.worker_faults.preempt:
            self.clock.after(self.rng.uniform(0.0, 5.0), self.preempt)
        super().live()

    def preempt(self) -> None:
        """Nodes end now and then."""
        if not self.worker_faults.preempt:
            return
        nodes: list[tuple[SimulatedCluster, Node]] = [
            (cluster, node)
            for cluster in self.simulated.values()
            for node in cluster.nodes
            if node.alive
        ]
        if nodes:
            cluster, node = self.rng.choice(nodes)
            cluster.preempt(node)
        self.clock.after(self.rng.expovariate(self.worker_faults.preempt), self.preempt)

    def calm_down(self) -> None:
        self.worker_faults.stop()
        for cluster in self.simulated.values():
            for node in cluster.nodes:
                node.storage_away_until = 0.0
        super().calm_down()

    def died(self, life: Life) -> None:
        if life.cluster.name in self.simulated:
            self.simulated[life.cluster.name].coordinator_died(life)

    def check_end(self) -> None:
        super().check_end()
        end = self.clock.now + REST_SECONDS
        while self.clock.now < end and any(self.left_over()):
            self.advance()
        left = self.left_over()
        if left:
            raise Violation("left over", "; ".join(left))
        if work.HERE.exploded:
            raise Violation("unpickled", f"{work.HERE.exploded} outside of workers")

    def left_over(self) -> list[str]:
        """What the executors still have, of coordinators that have no workflow in hand."""
        return [
            f"{life.name} has {', '.join(life.executor.left())}"
            for life in self.lives
            if life.exists and not life.loop.active and life.executor.left()
        ]

    def after_step(self, life: Life) -> None:
        try:
            check_scheduling(life.executor)
        except AssertionError as error:
            raise Violation("scheduling", f"{life.name}: {error}") from error
        super().after_step(life)

    def close(self) -> None:
        for cluster in self.simulated.values():
            cluster.close()

    def known(self, life_name: str, incarnation: str) -> int:
        """How many entries of a journal a coordinator has read or committed. Of one that was
        replaced and lives, nothing counts: it is fenced, and hears of nothing."""
        for life in self.lives:
            if life.name == life_name and not life.replaced:
                return life.known.get(incarnation, 0)
        return 0

    def is_replaced(self, life_name: str) -> bool:
        """Whether workers report to another life of a coordinator, though this one lives."""
        return any(life.replaced for life in self.lives if life.name == life_name)

    def live_value(self, life_name: str, incarnation: str, blob: Blob) -> Any:
        """What a coordinator has in the object store for a blob; None if there is nothing."""
        for life in self.lives:
            if life.name == life_name and life.exists:
                held = life.executor.live.get(incarnation)
                ref = held.objects.get(blob.key) if held is not None else None
                if ref is not None:
                    return self.cluster_of(life).objects.peek(ref)
        return None
