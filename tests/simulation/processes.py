"""Worker processes of a simulated cluster: the code of workers runs in them really.

Their clocks are the world's, their threads are fibers, and whatever may take time lets others go on
meanwhile.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import ObjectLostError, OwnerDiedError

from ray_workflows._capture.pickling import Pickled
from ray_workflows._executor.protocol import AttemptRequest, decode_report
from ray_workflows._executor.worker.batch import EncodedBatch, pack_loads
from ray_workflows._executor.worker.context import CurrentTask, current_task
from ray_workflows._executor.worker.watchdog import CHECK_SECONDS, Watched
from ray_workflows._model.values import Blob
from ray_workflows.exceptions import StorageUnavailableError
from ray_workflows.storage.base import Storage
from ray_workflows.storage.parts import BlobStore
from tests.simulation.fibers import Fiber, Killed
from tests.simulation.scripts import Script
from tests.simulation.work import HERE, error_named

if TYPE_CHECKING:
    from tests.simulation.nodes import Node, SimulatedCluster, SimulatedTask
    from tests.simulation.world_of_workers import WorldOfWorkers

#: A call of the coordinator is given up when there was none for so long, in seconds.
CALL_SECONDS = 60.0


class Execution:
    """One run of a task's function."""

    def __init__(
        self, process: SimulatedProcess, request: AttemptRequest, task: CurrentTask, number: int
    ) -> None:
        self.process = process
        self.request = request
        #: What user code is given: its fencing token, and why the attempt before it ended.
        self.task = task
        #: How often attempts of its workflow had been stopped before.
        self.stops = process.world.stops[request.incarnation]
        self.over = False
        #: Names it; made of characters that a blob key may have.
        self.name = f"{request.blob_prefix}.{process.life_name}.{number}"

    @property
    def key(self) -> tuple[str, int, int, int]:
        """Names the attempt."""
        request = self.request
        return request.incarnation, request.task, request.epoch, request.attempt

    def ends(self) -> None:
        """It returns."""
        self.over = True

    def run(self, script: Script) -> None:
        """Take as long as it takes; raise, or take the process down, if the script says so."""
        process, request = self.process, self.request
        world = process.world
        manner = world.manner(script.salt)
        process.sleep(manner.seconds(request))
        if manner.kills(request):
            process.exit("a task took it down")
        self.fail(script, manner.error)

    def fail(self, script: Script, kind: str) -> None:
        """Raise, if the script says so."""
        world, request = self.process.world, self.request
        failed = world.failures
        some = request.attempt <= script.failures and failed[self.key[:2]] < script.failures
        if script.failures < 0 or some:
            failed[self.key[:2]] += 1
            if kind == "exits" and script.failures < 0:
                kind = "error"  # No exit is told from a crash, and what always crashes never ends.
            if kind == "exits":
                world.suspects.add(self.key)
            world.seen["errors that are hard to bring home"] += kind != "error"
            error = error_named(kind, script.salt)
            world.raised[self.key] = type(error).__name__
            self.ends()
            raise error

    def listening(self, script: Script) -> float | None:
        """How long an event is waited for; None: for ever."""
        if script.endless:
            return None
        seconds: float = self.process.world.rng.uniform(0.05, 6.0)
        return seconds


class SimulatedProcess:
    """A `Process` of a node. It runs one Ray task at a time, or is a listener host."""

    def __init__(self, cluster: SimulatedCluster, node: Node) -> None:
        self.cluster = cluster
        self.node = node
        self.world: WorldOfWorkers = cluster.world
        self.alive = True
        self.fiber: Fiber | None = None
        #: The Ray task that it runs.
        self.task: SimulatedTask | None = None
        self.life_name = ""
        self.watch = SimulatedWatch(self)
        #: What was run of the Ray task so far.
        self.executions: list[Execution] = []
        #: Whether its node was there when it died.
        self.node_was_alive = True
        #: It died when nothing of it ran.
        self.died_idle = False
        #: The attempts that it was given of the Ray task.
        self.given: set[tuple[str, int, int, int]] = set()
        self.storage = worker_storage(self)

    # -- what the code of workers asks for -------------------------------------------------

    @property
    def node_id(self) -> str:
        """The name of its node."""
        return self.node.name

    def time(self) -> float:
        """The world's time."""
        return self.world.clock.now

    def monotonic(self) -> float:
        """The world's time."""
        return self.world.clock.now

    def seed(self, of: str) -> int:
        """The same each time."""
        return zlib.crc32(of.encode())

    def sleep(self, seconds: float) -> None:
        """Let others go on for a while."""
        fiber = self.fiber
        if fiber is None:
            return  # In a listener host, which waits by awaiting.
        self.check_alive()
        turns = fiber.turns
        self.world.clock.after(seconds, lambda: self.wake(fiber, turns))
        fiber.pause()

    def wake(self, fiber: Fiber, turns: int) -> None:
        """End a pause of a fiber, unless it was ended already."""
        if self.alive and fiber.turns == turns:
            self.go_on(fiber)

    def put(self, value: Any) -> ray.ObjectRef:
        """Own a value from now on."""
        self.check_alive()
        return self.cluster.objects.put(self, value)

    def get(self, ref: ray.ObjectRef) -> Any:
        """A value, which takes a while."""
        self.sleep(0.0003)
        return self.cluster.objects.get(ref)

    @contextmanager
    def pool(self) -> Iterator[PoolOfNone]:
        """What is given to a thread is done where it is given."""
        yield PoolOfNone()

    # -- its life --------------------------------------------------------------------------

    def check_alive(self) -> None:
        if not self.alive:
            raise Killed

    def run(self, task: SimulatedTask, work: Callable[[], Any]) -> None:
        """Run a Ray task."""
        self.task = task
        self.executions = []
        self.given.clear()
        self.world.given(self, task.loads)
        self.life_name = task.life.name
        self.fiber = Fiber(work, self.ended)
        self.go_on(self.fiber)

    def go_on(self, fiber: Fiber) -> None:
        outer, HERE.process = HERE.process, self
        try:
            fiber.go_on()
        finally:
            HERE.process = outer

    def ended(self, result: Any, error: BaseException | None) -> None:
        task, self.task, self.fiber = self.task, None, None
        assert task is not None
        if isinstance(error, SystemExit):
            self.die("its code ended it")
        if self.alive:
            self.cluster.worker_ended(self, task, result, error)
        else:
            self.cluster.worker_died(self, task)

    def begins(self, request: AttemptRequest, inputs: tuple[Any, ...]) -> Execution:
        """A task's function is called."""
        self.check_alive()
        task = current_task()
        assert task is not None
        execution = Execution(self, request, task, self.world.number())
        self.executions.append(execution)
        self.world.begins(execution, inputs)
        return execution

    def exit(self, why: str) -> None:
        """Called by its code: end here and now."""
        self.die(why)
        if self.fiber is not None:
            self.fiber.killed = True
        raise Killed

    def die(self, why: str) -> None:
        """It is dead, and what it owned is lost."""
        if self.alive:
            self.alive = False
            self.node_was_alive = self.node.alive
            self.world.trace("worker %s on %s is dead: %s", id_of(self), self.node.name, why)
            self.cluster.objects.lose_those_of(self)
            self.node.processes.pop(self, None)

    def kill(self, why: str) -> None:
        """Called by the driver: end it wherever it is."""
        self.die(why)
        fiber = self.fiber
        if fiber is not None:
            outer, HERE.process = HERE.process, self
            try:
                fiber.kill()
            finally:
                HERE.process = outer


def id_of(process: SimulatedProcess) -> int:
    """Names a process in the trace."""
    return process.cluster.names.setdefault(process, len(process.cluster.names))


class PoolOfNone:
    """Threads that work beside the caller: there are none, and it is done at once."""

    def submit(self, work: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Do it."""
        future: Future[Any] = Future()
        try:
            future.set_result(work(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


class SimulatedWatch:
    """The watch of a process, on the world's clock."""

    def __init__(self, process: SimulatedProcess) -> None:
        self.process = process
        self.watched: dict[int, Watched] = {}
        self.looks = False

    def add(self, watched: Watched) -> None:
        """Look at it from now on."""
        self.watched[id(watched)] = watched
        if not self.looks:
            self.look_later()

    def remove(self, watched: Watched) -> None:
        """Look at it no more."""
        self.watched.pop(id(watched), None)

    def look_later(self) -> None:
        self.looks = True
        world = self.process.world
        late = world.worker_faults.hit(world.worker_faults.watch_late)
        world.clock.after(CHECK_SECONDS * (1 + 9 * late * world.rng.random()), self.look)

    def look(self) -> None:
        self.looks = False
        process = self.process
        if not process.alive:
            return
        outer, HERE.process = HERE.process, process
        try:
            for one in list(self.watched.values()):
                if not one.check(process.monotonic()):
                    self.remove(one)
        finally:
            HERE.process = outer
        if self.watched:
            self.look_later()


class WorkerBlobs(BlobStore):
    """The world's blobs as a worker reaches them: it takes time, and they are away at times."""

    def __init__(self, process: SimulatedProcess) -> None:
        self.blobs = process.world.storage.blobs
        self.home = self.blobs.home
        self.process = process

    def enter(self, what: str) -> None:
        """An operation begins."""
        process = self.process
        process.check_alive()
        world = process.world
        faults = world.worker_faults
        process.sleep(world.rng.uniform(0.0002, 0.004))
        if faults.hit(faults.storage_fails):
            until = world.clock.now + world.rng.choice([0.0, 1.0, 20.0]) * world.rng.random()
            process.node.storage_away_until = max(process.node.storage_away_until, until)
            world.seen["storages that are away"] += 1
            world.trace("storage away from %s until %.3f", process.node.name, until)
            raise StorageUnavailableError(f"{what} failed")
        if world.clock.now < process.node.storage_away_until:
            raise StorageUnavailableError(f"{what}: the storage is away")

    def write_blob(self, incarnation: str, key: str, chunks: Iterable[bytes | memoryview]) -> Blob:
        self.enter("write_blob")
        data = b"".join(chunks)
        blob = self.blobs.write_blob(incarnation, key, [data])
        self.process.world.seen["results in blobs"] += 1
        faults = self.process.world.worker_faults
        if faults.hit(faults.write_unsaid):
            raise StorageUnavailableError("the answer to write_blob is lost")
        return blob

    def read_blob(self, incarnation: str, blob: Blob) -> memoryview:
        self.enter("read_blob")
        return self.blobs.read_blob(incarnation, blob)

    def find_blob(self, incarnation: str, key: str) -> Blob | None:
        self.enter("find_blob")
        return self.blobs.find_blob(incarnation, key)

    def delete_blobs(self, incarnation: str) -> None:
        self.blobs.delete_blobs(incarnation)

    def old_blobs(self, grace_seconds: float) -> list[str]:
        return self.blobs.old_blobs(grace_seconds)


def worker_storage(process: SimulatedProcess) -> Storage:
    """The world's storage, with the blobs as a worker reaches them."""
    storage = process.world.storage
    return Storage(journals=storage.journals, blobs=WorkerBlobs(process), leases=storage.leases)


def arrived(value: Any) -> Any:
    """What Ray makes of a value that it brings."""
    return value.open() if isinstance(value, Pickled) else value


class Objects:
    """The object store of a cluster. An object goes with the process that owns it."""

    def __init__(self, cluster: SimulatedCluster) -> None:
        self.cluster = cluster
        self.values: dict[bytes, tuple[SimulatedProcess, Any]] = {}
        self.lost: set[bytes] = set()

    def put(self, owner: SimulatedProcess, value: Any) -> ray.ObjectRef:
        """A new object."""
        number = self.cluster.world.number()
        self.cluster.world.seen["live values"] += 1
        identity = number.to_bytes(ray.ObjectRef.size(), "big")
        self.values[identity] = (owner, value)
        return ray.ObjectRef(identity)

    def get(self, ref: ray.ObjectRef) -> Any:
        """Its value, or what Ray raises where it is gone."""
        identity = ref.binary()
        if identity in self.lost:
            raise ObjectLostError(ref.hex(), "", "")
        if identity not in self.values:
            raise OwnerDiedError(ref.hex(), "", "")
        return arrived(self.values[identity][1])

    def peek(self, ref: ray.ObjectRef) -> Any:
        """Its value, or None."""
        identity = ref.binary()
        if identity in self.lost or identity not in self.values:
            return None
        return arrived(self.values[identity][1])

    def lose_those_of(self, owner: SimulatedProcess) -> None:
        """The objects of a dead process are gone."""
        for identity in [i for i, (each, _) in self.values.items() if each is owner]:
            del self.values[identity]

    def lose_one(self) -> None:
        """One object is gone, as when the node that had it ends."""
        there = [identity for identity in self.values if identity not in self.lost]
        if there:
            self.lost.add(self.cluster.world.rng.choice(there))


class Answer:
    """The answer of the coordinator to a call, to be."""

    def __init__(self, process: SimulatedProcess) -> None:
        self.process = process
        self.settled = False
        self.value: Any = None
        self.waiting: tuple[Fiber, int] | None = None

    def future(self) -> Answer:
        """As that of an ObjectRef."""
        return self

    def done(self) -> bool:
        """Whether it is here."""
        return self.settled

    def settle(self, value: Any) -> None:
        """It comes; a second one is for a call that was repeated."""
        if self.settled or not self.process.alive:
            return
        self.settled = True
        self.value = value
        if self.waiting is not None:
            fiber, turns = self.waiting
            self.process.wake(fiber, turns)

    def result(self, timeout: float) -> Any:
        """Wait for it."""
        process = self.process
        fiber = process.fiber
        if not self.settled and fiber is not None:
            turns = fiber.turns
            self.waiting = fiber, turns
            process.world.clock.after(timeout, lambda: process.wake(fiber, turns))
            fiber.pause()
            self.waiting = None
        if not self.settled:
            raise TimeoutError
        if isinstance(self.value, Exception):
            raise self.value
        return self.value


class Method:
    """A method of the coordinator, called from a process."""

    def __init__(self, process: SimulatedProcess, name: str) -> None:
        self.process = process
        self.name = name

    def remote(self, *arguments: Any) -> Answer:
        """Call it. A call that was begun arrives even if the process ends, mostly."""
        process = self.process
        answer = Answer(process)
        if process.alive:
            process.cluster.calls.send(self.name, arguments, answer)
        return answer


class CoordinatorHandle:
    """The coordinator of a cluster, as its workers see it."""

    def __init__(self, process: SimulatedProcess) -> None:
        self.batch_done = Method(process, "batch_done")
        self.batch_overran = Method(process, "batch_overran")
        self.attempt_runs = Method(process, "attempt_runs")
        self.attempt_waits = Method(process, "attempt_waits")
        self.body_progress = Method(process, "body_progress")


class RayCluster:
    """Calls of a coordinator on their way. Ray repeats those that a dead coordinator had."""

    def __init__(self, cluster: SimulatedCluster) -> None:
        self.cluster = cluster
        #: Calls that a coordinator has and has not answered.
        self.open: dict[Answer, Callable[[], None]] = {}

    def send(self, name: str, arguments: tuple[Any, ...], answer: Answer) -> None:
        world = self.cluster.world
        faults = world.worker_faults
        until = world.clock.now + CALL_SECONDS
        delay = world.rng.uniform(0.0002, 0.003)
        if faults.hit(faults.call_late):
            delay += world.rng.choice([0.1, 1.0, 10.0]) * world.rng.random()

        def arrive() -> None:
            self.arrive(name, arguments, answer, until)

        world.clock.after(delay, arrive)
        if faults.hit(faults.call_twice):
            world.clock.after(
                delay + world.rng.choice([0.01, 1.0, 20.0]) * world.rng.random(), arrive
            )

    def arrive(self, name: str, arguments: tuple[Any, ...], answer: Answer, until: float) -> None:
        world = self.cluster.world
        life = self.cluster.place.life

        def again() -> None:
            self.arrive(name, arguments, answer, until)

        if life is None:
            if world.clock.now < until:
                world.clock.after(0.1, again)
            else:
                answer.settle(ConnectionError("the coordinator is gone"))
            return
        if not life.running:
            life.frozen.append(again)
            return
        executor: Any = life.executor
        if name == "batch_done":
            self.open[answer] = again
            executor.batch_done(arguments[0], lambda loads: self.reply(answer, loads))
        elif name == "batch_overran":
            report, _ = decode_report(arguments[0])
            world.seen["members handed back"] += len(report.unstarted)
            executor.batch_overran(arguments[0])
        elif name == "body_progress":
            executor.body_progress(*arguments)
        elif name == "attempt_waits":
            executor.attempt_waits(*arguments)
        else:
            executor.attempt_runs(*arguments[:4])
            executor.tell(*arguments)

    def reply(self, answer: Answer, loads: list[EncodedBatch] | None) -> None:
        """A coordinator answers."""
        world = self.cluster.world
        # Of a call that came twice, one answer reaches nobody: but the coordinator has given what
        # is in it, and can't know that.
        world.given(answer.process, loads or ())
        if self.open.pop(answer, None) is not None:
            value = pack_loads(loads)
            world.clock.after(world.rng.uniform(0.0002, 0.003), lambda: answer.settle(value))

    def coordinator_died(self) -> None:
        """Those that it has are repeated to the next one."""
        repeated, self.open = list(self.open.values()), {}
        for again in repeated:
            self.cluster.world.clock.after(0.1, again)
