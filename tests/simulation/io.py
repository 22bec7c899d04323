"""Blocking work of one coordinator, done after a while: late, very late, or never."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tests.simulation.violations import Violation

if TYPE_CHECKING:
    from tests.simulation.life import Life
    from tests.simulation.world import World


class Job:
    """A piece of blocking work. ``sent``: it reaches the storage even if its sender is gone."""

    __slots__ = ("done", "learned", "life", "sent", "then", "work")

    def __init__(
        self, life: Life, work: Callable[[], Any], then: Callable[[Any], None], sent: bool
    ) -> None:
        self.life = life
        self.work = work
        self.then = then
        self.sent = sent
        self.done = False
        #: What its sender knows when it has the result: entries per incarnation.
        self.learned: dict[str, int] = {}


class SimulatedIo:
    """`Offloader` of one coordinator on the world's clock."""

    def __init__(self, world: World, life: Life) -> None:
        self.world = world
        self.life = life
        #: Work that will never come back while this coordinator lives.
        self.stuck = 0

    def call(
        self, work: Callable[[], Any], then: Callable[[Any], None], *, brief: bool = False
    ) -> None:
        world, faults, rng = self.world, self.world.faults, self.world.rng
        self.life.may_crash()

        def came(result: Any) -> None:
            self.life.threads.note(result)
            then(result)

        job = Job(self.life, work, came, rng.random() < 0.5)
        delay = rng.uniform(0.0005, 0.02)
        if faults.hit(faults.hang):
            delay = rng.choice([0.5, 5.0, 30.0]) * rng.random()
        if faults.hit(faults.hang_forever) and not self.stuck:
            world.trace("a call of %s hangs", self.life.name)
            self.stuck += 1
            if rng.random() < 0.5:
                return
            job.then = lambda result: None
        world.jobs[job] = None
        world.clock.after(delay, lambda: self.execute(job))

    def execute(self, job: Job) -> None:
        world, life = self.world, self.life
        if job.done:
            return
        if not job.sent and not life.running:
            if life.exists:
                life.frozen.append(lambda: self.execute(job))
            else:
                world.jobs.pop(job, None)
            return
        job.done = True
        world.jobs.pop(job, None)
        outer, world.job = world.job, job
        try:
            result = job.work()
        except Violation:
            raise
        except Exception as error:
            result = error
        finally:
            world.job = outer
        faults, rng = world.faults, world.rng
        delay = rng.uniform(0.0, 0.005)
        if faults.hit(faults.hang):
            delay = rng.choice([0.5, 5.0, 30.0]) * rng.random()
        world.clock.after(delay, lambda: life.post(lambda: self.deliver(job, result)))

    def deliver(self, job: Job, result: Any) -> None:
        known = self.life.known
        for incarnation, seq in job.learned.items():
            known[incarnation] = max(known.get(incarnation, 0), seq)
        job.then(result)
