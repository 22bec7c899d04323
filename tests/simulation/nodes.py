"""A simulated Ray cluster: nodes that come and go, processes, Ray tasks, listener hosts, objects.

It outlives coordinators. Each coordinator has it through a `ClusterOfLife`, and what that started
ends with it, sooner or later.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Coroutine, Iterable
from typing import TYPE_CHECKING, Any

from ray import cloudpickle
from ray.exceptions import (
    ActorDiedError,
    NodeDiedError,
    RayTaskError,
    RpcError,
    TaskCancelledError,
    WorkerCrashedError,
)

from ray_workflows._executor.protocol import AttemptTemplate
from ray_workflows._executor.scheduling.hosts import Hosts
from ray_workflows._executor.scheduling.slots import Brought, SentBatch
from ray_workflows._executor.worker.batch import EncodedBatch, Home
from ray_workflows._executor.worker.event_loops import OneLoop
from ray_workflows._executor.worker.listeners import listen
from ray_workflows._executor.worker.loop import run_loads
from ray_workflows._model.plan import BODY
from tests.simulation.body_hosts import BodyActor
from tests.simulation.processes import CoordinatorHandle, Objects, RayCluster, SimulatedProcess
from tests.simulation.violations import Violation
from tests.simulation.work import HERE

if TYPE_CHECKING:
    from tests.simulation.life import Life
    from tests.simulation.world import Cluster as Place
    from tests.simulation.world_of_workers import WorldOfWorkers


class SimulatedTask:
    """A Ray task, or a call of a listener host; its ObjectRef and its future too."""

    def __init__(
        self, life: Life, sent: SentBatch, loads: list[EncodedBatch], asks: bool, values: Brought
    ) -> None:
        self.life = life
        self.sent = sent
        self.loads = loads
        self.asks = asks
        self.values = values
        self.process: SimulatedProcess | None = None
        #: The host of bodies that it is a call of.
        self.actor: BodyActor | None = None
        self.over = False
        self.outcome: Any = None
        self.action: Callable[[Any], None] | None = None

    def future(self) -> SimulatedTask:
        """Its result."""
        return self

    def add_done_callback(self, action: Callable[[Any], None]) -> None:
        """Call ``action`` when the task has ended."""
        self.action = action

    def result(self) -> Any:
        """The returned value, or Ray's error, with errors of user code unpickled here."""
        if isinstance(self.outcome, bytes):
            raise cloudpickle.loads(self.outcome)
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome


class Node:
    """A machine. It keeps idle processes for further Ray tasks."""

    def __init__(self, name: str, slots: int) -> None:
        self.name = name
        self.capacity = slots
        self.taken = 0
        self.alive = True
        self.processes: dict[SimulatedProcess, None] = {}
        self.storage_away_until = 0.0


class SimulatedCluster:
    """The simulated Ray of one cluster."""

    def __init__(self, world: WorldOfWorkers, place: Place) -> None:
        self.world = world
        self.place = place
        self.objects = Objects(self)
        self.calls = RayCluster(self)
        self.names: dict[SimulatedProcess, int] = {}
        sizes = world.rng.choice([[1], [2], [4], [2, 2], [1, 3]])
        self.nodes = [Node(f"{place.name}-n{i}", size) for i, size in enumerate(sizes)]
        self.waiting: deque[SimulatedTask] = deque()
        self.running: dict[SimulatedTask, None] = {}
        self.hosts: dict[SimulatedTask, Listening] = {}
        self.actors: dict[BodyActor, None] = {}

    # -- Ray tasks -------------------------------------------------------------------------

    def submit(self, task: SimulatedTask) -> None:
        """Queue a task until a slot is free."""
        if task.sent.hosted and task.actor is not None:
            delay = self.world.rng.uniform(0.001, 0.02)
            self.world.clock.after(delay, lambda: task.actor and task.actor.call(task))
            return
        if task.sent.hosted:
            self.world.clock.after(self.world.rng.uniform(0.001, 0.02), lambda: self.listen(task))
            return
        self.waiting.append(task)
        self.schedule()

    def schedule(self) -> None:
        self.world.clock.after(self.world.rng.uniform(0.0003, 0.002), self.start_some)

    def start_some(self) -> None:
        """Start queued tasks on the free slots."""
        while self.waiting:
            free = [node for node in self.nodes if node.alive and node.taken < node.capacity]
            if not free:
                return
            self.start(self.waiting.popleft(), self.world.rng.choice(free))

    def start(self, task: SimulatedTask, node: Node) -> None:
        live: dict[str, dict[str, Any]] = {}
        for (incarnation, key), ref in task.values.items():
            try:
                live.setdefault(incarnation, {})[key] = self.objects.get(ref)
            except Exception as error:
                # Ray does not even start it.
                self.end(task, error)
                return
        process = self.process_on(node)
        task.process = process
        node.taken += 1
        self.running[task] = None
        home = Home(process.storage, CoordinatorHandle(process), process)
        keys = list(task.values)
        brought = [live[incarnation][key] for incarnation, key in keys]
        self.world.trace("worker %s on %s runs %s", self.name(process), node.name, task.sent.digest)
        process.run(task, lambda: run_loads(home, task.loads, task.asks, keys, brought))

    def process_on(self, node: Node) -> SimulatedProcess:
        for process in node.processes:
            if process.task is None:
                return process
        process = SimulatedProcess(self, node)
        node.processes[process] = None
        return process

    def name(self, process: SimulatedProcess) -> int:
        """The number of a process in the trace."""
        return self.names.setdefault(process, len(self.names))

    def leave(self, task: SimulatedTask) -> None:
        """Free the slot of a task."""
        if self.running.pop(task, False) is None:
            assert task.process is not None
            task.process.node.taken -= 1
            self.schedule()

    def worker_ended(
        self,
        process: SimulatedProcess,
        task: SimulatedTask,
        result: Any,
        error: BaseException | None,
    ) -> None:
        """End a Ray task whose code has returned or raised."""
        self.leave(task)
        if error is None:
            self.end(task, result)
            return
        wrapped = RayTaskError("run_batches", repr(error), error)
        self.end(task, cloudpickle.dumps(wrapped))

    def worker_died(self, process: SimulatedProcess, task: SimulatedTask) -> None:
        """End the Ray task of a worker that died."""
        self.leave(task)
        self.world.worker_died(task, process)
        self.end(task, WorkerCrashedError() if process.node.alive else NodeDiedError("it ended"))

    def end(self, task: SimulatedTask, outcome: Any) -> None:
        """Tell the owner, if it is still alive."""
        if task.over:
            return
        task.over = True
        task.outcome = outcome
        self.world.trace("Ray task of %s ends: %s", task.sent.digest, type(outcome).__name__)
        delay = self.world.rng.uniform(0.0002, 0.003)
        faults = self.world.worker_faults
        if faults.hit(faults.end_late):
            delay += self.world.rng.choice([0.1, 1.0, 10.0]) * self.world.rng.random()
        self.world.clock.after(delay, lambda: self.hear(task))

    def hear(self, task: SimulatedTask) -> None:
        life = task.life
        if not life.exists:
            return
        if not life.running:
            life.frozen.append(lambda: self.hear(task))
        elif task.action is None:
            self.world.clock.after(0.001, lambda: self.hear(task))
        else:
            task.action(task)

    # -- listeners -------------------------------------------------------------------------

    def listen(self, task: SimulatedTask) -> None:
        """Call the listener host, which runs its calls concurrently."""
        if task.over:
            return
        process = SimulatedProcess(self, self.nodes[0])
        process.life_name = task.life.name
        process.task = task
        task.process = process
        home = Home(process.storage, CoordinatorHandle(process), process)
        (load,) = task.loads
        # It must not wait: its calls share one thread with all else.
        call = listen(load, home, OneLoop(), patience=0.0)
        self.hosts[task] = Listening(self, task, process, call)
        self.hosts[task].go_on()

    # -- what is stopped -------------------------------------------------------------------

    def cancel(self, task: SimulatedTask, force: bool) -> None:
        """As ``ray.cancel``: takes a while, and does nothing if the task has ended by then."""
        delay = self.world.rng.uniform(0.0003, 0.01)
        self.world.clock.after(delay, lambda: self.stop(task, force))

    def stop(self, task: SimulatedTask, force: bool = True) -> None:
        if task.over:
            return
        if task in self.waiting:
            self.waiting.remove(task)
            self.end(task, TaskCancelledError())
        elif task in self.hosts:
            self.hosts[task].cancel()
        elif task.actor is not None:
            task.actor.cancel(task)
        elif task in self.running and force:
            assert task.process is not None
            self.kill(task.process, "its task was canceled")
        else:
            # It was not submitted yet: a listener host is on its way.
            self.end(task, TaskCancelledError())

    def kill(self, process: SimulatedProcess, why: str) -> None:
        """Kill a process with everything that runs in it."""
        task = process.task
        process.kill(why)
        if task is not None and task in self.hosts:
            self.hosts.pop(task)
            self.end(task, ActorDiedError())

    def preempt(self, node: Node) -> None:
        """Kill a node; a new one takes its place after a while."""
        self.world.trace("node %s ends", node.name)
        self.world.seen["nodes that end"] += 1
        node.alive = False
        for process in list(node.processes):
            self.kill(process, "its node ended")
        delay = self.world.rng.choice([0.5, 3.0, 15.0]) * self.world.rng.random()
        self.world.clock.after(delay, lambda: self.bring_back(node))

    def bring_back(self, node: Node) -> None:
        node.alive = True
        self.world.trace("node %s is there", node.name)
        self.schedule()

    def coordinator_died(self, life: Life) -> None:
        """End everything that a dead coordinator has started, after a while."""
        self.calls.coordinator_died()
        tasks = [*self.waiting, *self.running, *self.hosts]
        for task in tasks:
            if task.life is life:
                delay = self.world.rng.choice([0.01, 0.5, 3.0]) * self.world.rng.random()
                self.world.clock.after(delay, lambda task=task: self.stop(task))
        for actor in [each for each in self.actors if each.life is life]:
            delay = self.world.rng.choice([0.01, 0.5, 3.0]) * self.world.rng.random()
            self.world.clock.after(delay, actor.end)

    def close(self) -> None:
        """End all threads at the end of a seed."""
        for task in list(self.running):
            if task.process is not None:
                task.process.kill("the seed is over")
        for listening in self.hosts.values():
            listening.coroutine.close()
        for actor in list(self.actors):
            actor.end()


class Listening:
    """A call of a listener host."""

    def __init__(
        self,
        cluster: SimulatedCluster,
        task: SimulatedTask,
        process: SimulatedProcess,
        coroutine: Coroutine[Any, Any, Any],
    ) -> None:
        self.cluster = cluster
        self.task = task
        self.process = process
        self.coroutine = coroutine
        self.canceled = False

    def go_on(self, error: BaseException | None = None) -> None:
        """Run the call until it waits again."""
        if self.task not in self.cluster.hosts:
            return
        outer, HERE.process = HERE.process, self.process
        try:
            seconds = self.coroutine.throw(error) if error else self.coroutine.send(None)
        except StopIteration as stop:
            self.over(stop.value)
        except asyncio.CancelledError:
            self.over(TaskCancelledError())
        else:
            if seconds is not None:
                self.cluster.world.clock.after(seconds, self.continue_unless_canceled)
        finally:
            HERE.process = outer

    def continue_unless_canceled(self) -> None:
        if not self.canceled:
            self.go_on()

    def cancel(self) -> None:
        """Raise ``CancelledError`` where the call waits."""
        self.canceled = True
        self.go_on(asyncio.CancelledError())

    def over(self, outcome: Any) -> None:
        self.cluster.hosts.pop(self.task, None)
        self.cluster.end(self.task, outcome)


class ClusterOfLife:
    """The `Cluster` of one coordinator."""

    def __init__(self, cluster: SimulatedCluster, life: Life) -> None:
        self.cluster = cluster
        self.life = life
        #: Shapes of which is known what their attempts need.
        self.prepared: set[str] = set()
        self.hosts = Hosts(lambda actor: actor.end_later())

    def head(self) -> None:
        """Ask the head, which may be away. Not under the executor's lock: other threads, the loop
        among them, wait for that."""
        if self.life.executor.lock._is_owned():
            raise Violation("lock", "the head is asked by a thread that others wait for")
        faults = self.cluster.world.worker_faults
        if faults.hit(faults.head_away):
            raise RpcError("no connection")

    def nodes(self) -> list[dict[str, float]]:
        """The resources of each node."""
        self.head()
        return [{"CPU": float(node.capacity)} for node in self.cluster.nodes if node.alive]

    def prepare(self, template: AttemptTemplate) -> None:
        """Nothing here needs anything."""
        self.head()

    def keep(self, shape: str, needs: None) -> None:
        """It was asked."""
        self.prepared.add(shape)

    def is_prepared(self, shape: str) -> bool:
        """Whether it was asked."""
        return shape in self.prepared

    def missing(self, batches: Iterable[SentBatch]) -> set[str]:
        """Nothing here needs packages."""
        self.head()
        return set()

    def send(
        self, sent: SentBatch, loads: list[EncodedBatch], asks: bool, values: Brought
    ) -> SimulatedTask:
        """Submit a Ray task."""
        task = SimulatedTask(self.life, sent, list(loads), asks, dict(values))
        (request, *_) = (member.request for member in sent.members)
        if request.options.kind == BODY:
            host = self.hosts.take("", request, lambda: BodyActor(self.cluster, self.life))
            task.actor = host.actor
            self.hosts.called(host, task)
        self.cluster.submit(task)
        return task

    def cancel(self, ref: Any, *, force: bool) -> None:
        """Stop one."""
        self.cluster.cancel(ref, force)

    def lacked(self, sent: SentBatch, missing: Collection[str]) -> bool:
        """Nothing here needs packages."""
        return False

    def why_missing(self, sent: SentBatch, missing: Collection[str]) -> None:
        """Nothing here needs packages."""

    def tidy(self) -> None:
        """Nothing to remove."""

    def ended(self, ref: Any, *, host_died: bool) -> bool:
        """Note the end of a call. Each listener has a host of its own."""
        return self.hosts.ended(ref, host_died)

    def give(self, ref: Any, given: bytes) -> None:
        """Send an outcome to the host of a body."""
        host = self.hosts.calls.get(ref)
        if host is not None:
            host.actor.give(given)

    def close(self) -> None:
        """End all hosts of bodies. Others end with the coordinator."""
        self.hosts.close()
