"""Hosts of bodies in a simulated cluster: the real host, on an event loop of the world's clock and
with fibers for threads."""

from __future__ import annotations

import asyncio
import itertools
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ray import cloudpickle
from ray.exceptions import ActorDiedError, TaskCancelledError

from ray_workflows._codec.transport import opened
from ray_workflows._executor.protocol import decode_batch
from ray_workflows._executor.worker.batch import Home
from ray_workflows._executor.worker.bodies.host import BodyHost
from tests.simulation.event_loops import SimulatedLoop
from tests.simulation.fibers import Fiber, Killed
from tests.simulation.processes import CoordinatorHandle, SimulatedProcess
from tests.simulation.violations import Violation
from tests.simulation.work import HERE

if TYPE_CHECKING:
    from tests.simulation.life import Life
    from tests.simulation.nodes import SimulatedCluster, SimulatedTask

#: What is pickled in place of a home, which no process here shares with another one.
HOMES: dict[int, Home] = {}
NUMBERS = itertools.count()


def home_numbered(number: int) -> Home:
    """What `HomeOf` is unpickled as."""
    return HOMES[number]


class HomeOf:
    """Unpickles as a home."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> Any:
        return home_numbered, (self.number,)


class HostProcess(SimulatedProcess):
    """The process of a host: it has many threads."""

    def __init__(self, actor: BodyActor) -> None:
        super().__init__(actor.cluster, actor.cluster.nodes[0])
        self.actor = actor
        self.life_name = actor.life.name
        self.fibers: dict[Fiber, None] = {}

    def spawn(self, work: Callable[[], Any]) -> None:
        """Run something on a thread."""
        fiber = Fiber(work, lambda result, error: self.thread_ended(fiber, error))
        self.fibers[fiber] = None
        delay = self.world.rng.uniform(0.0002, 0.003)
        self.world.clock.after(delay, lambda: self.alive and self.go_on(fiber))

    def submit(self, work: Callable[..., Any], *args: Any) -> None:
        """As of a pool of threads; nobody waits for the result."""
        if self.alive:
            self.spawn(lambda: work(*args))

    def go_on(self, fiber: Fiber) -> None:
        outer, self.fiber = self.fiber, fiber
        try:
            super().go_on(fiber)
        finally:
            self.fiber = outer

    def thread_ended(self, fiber: Fiber, error: BaseException | None) -> None:
        self.fibers.pop(fiber, None)
        if error is not None and not isinstance(error, Killed):
            self.world.fail(Violation("unexpected", f"a thread of a host raised {error!r}"))

    def kill(self, why: str) -> None:
        self.die(why)
        outer, HERE.process = HERE.process, self
        try:
            for fiber in list(self.fibers):
                fiber.kill()
        finally:
            HERE.process = outer
        self.fibers.clear()
        self.actor.died()


class BodyActor:
    """The actor of a host."""

    def __init__(self, cluster: SimulatedCluster, life: Life) -> None:
        self.cluster = cluster
        self.life = life
        self.world = cluster.world
        self.process = HostProcess(self)
        self.loop = SimulatedLoop(self.world.clock, self.process.spawn, self.met_error)
        #: Without a pool of real threads.
        self.host: Any = BodyHost.__new__(BodyHost)
        self.host.threads = self.host.step_threads = self.process
        self.host.bodies = {}
        self.host.early = OrderedDict()
        self.calls: dict[SimulatedTask, asyncio.Task[Any]] = {}
        # Another one in each world of this process: what it unpickles as is cached.
        number = next(NUMBERS)
        HOMES[number] = Home(self.process.storage, CoordinatorHandle(self.process), self.process)
        self.home = number
        self.pickled_home = cloudpickle.dumps(HomeOf(number))
        cluster.actors[self] = None

    def met_error(self, text: str) -> None:
        self.world.fail(Violation("unexpected", f"a host: {text}"))

    def call(self, task: SimulatedTask) -> None:
        """Run the attempt of a body."""
        if task.over:
            return
        if not self.process.alive:
            self.end_with_host(task)
            return
        task.process = self.process
        (load,) = task.loads
        running = self.loop.create_task(self.host.run(load, self.pickled_home))
        self.calls[task] = running
        running.add_done_callback(lambda running: self.ended(task, running))

    def ended(self, task: SimulatedTask, running: asyncio.Task[Any]) -> None:
        self.calls.pop(task, None)
        if running.cancelled():
            self.cluster.end(task, TaskCancelledError())
        elif running.exception() is not None:
            self.met_error(f"run raised {running.exception()!r}")
        else:
            self.cluster.end(task, running.result())

    def cancel(self, task: SimulatedTask) -> None:
        """As ``ray.cancel``."""
        if task in self.calls:
            self.calls[task].cancel()
        else:
            self.cluster.end(task, TaskCancelledError())

    def give(self, given: bytes) -> None:
        """Bring an outcome: late, and in any order."""
        faults, rng = self.world.worker_faults, self.world.rng
        delay = rng.uniform(0.0002, 0.003)
        if faults.hit(faults.call_late):
            delay += rng.choice([0.1, 1.0, 10.0]) * rng.random()

        def arrive() -> None:
            if self.process.alive:
                self.loop.create_task(self.host.give(given))

        self.world.clock.after(delay, arrive)

    def end_later(self) -> None:
        """The coordinator ends it: no call is open."""
        self.world.clock.after(self.world.rng.uniform(0.0, 0.01), self.end)

    def end(self) -> None:
        """End its process."""
        if self.process.alive:
            self.process.kill("it is ended")

    def died(self) -> None:
        """Its process has ended, with all that it ran."""
        self.loop.close()
        self.cluster.actors.pop(self, None)
        HOMES.pop(self.home, None)
        for task in list(self.calls):
            self.end_with_host(task)
        self.calls.clear()

    def end_with_host(self, task: SimulatedTask) -> None:
        """Ray says that the host has died. Which of its bodies is to blame is not known."""
        *_, requests = decode_batch(opened(task.loads[0])[0])
        for request in requests:
            key = request.incarnation, request.task, request.epoch, request.attempt
            self.world.suspects.add(key)
            self.world.died_with.add(key)
        self.cluster.end(task, ActorDiedError())
