"""Drivers that block in ``get_output``: the real waiting over the death of coordinators, in fibers.

Ray repeats none of these calls: one that is lost raises, and the driver looks for the coordinator,
and into the storage.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ray_workflows._capture.values import ValueReader
from ray_workflows._client.outputs import await_output
from ray_workflows._client.patience import PING_SECONDS
from ray_workflows._client.reader import Reader
from ray_workflows._coordinator.long_polls import SIT_SECONDS
from ray_workflows._coordinator.protocol import encode_watched
from ray_workflows._coordinator.requests import Watched, WatchRequest
from tests.simulation.fibers import Fiber

if TYPE_CHECKING:
    from tests.simulation.drivers import Driver, Ref
    from tests.simulation.life import Life


class LostCall:
    """A call of a coordinator that Ray does not repeat; its ObjectRef too."""

    def __init__(self, here: BlockedThread, workflow_id: str, after: int | None) -> None:
        self.here = here
        self.driver = here.driver
        self.workflow_id = workflow_id
        self.after = after
        self.settled = False
        self.value: Any = None
        #: The coordinator that has it.
        self.life: Life | None = None

    def send(self) -> None:
        """Send the call."""
        world = self.driver.world
        faults = world.driver_faults
        delay = world.die.uniform(0.0002, 0.003)
        if faults.hit(faults.call_late):
            delay += world.die.choice([0.1, 1.0, 10.0]) * world.die.random()
        world.clock.after(delay, self.arrive)

    def arrive(self) -> None:
        """As `watch_one` of the coordinator's actor, without its thread."""
        life = self.driver.cluster.life
        if life is None:
            self.settle(ConnectionError("the coordinator is gone"))
            return
        self.life = life
        if not life.running:
            life.frozen.append(self.arrive)
            return
        if not life.polls.seats.take():
            self.reply(life, None)
            return
        over = False

        def end(seen: Watched | None) -> None:
            nonlocal over
            if over or not life.exists:
                return
            if not life.running:
                life.frozen.append(lambda: end(seen))
                return
            over = True
            life.polls.seats.give_back()
            if seen is None:
                life.post(lambda: life.loop.watchers.withdraw(request))
            self.reply(life, seen)

        request = WatchRequest(self.workflow_id, end, self.after)
        life.post(lambda: life.loop.watchers.add(request))
        self.driver.world.clock.after(SIT_SECONDS, lambda: end(None))

    def reply(self, life: Life, seen: Watched | None) -> None:
        world = self.driver.world
        faults = world.driver_faults
        value: Any = encode_watched(seen)
        if faults.hit(faults.answer_lost):
            world.seen["answers that are lost"] += 1
            value = ConnectionError("the answer is lost")
        world.clock.after(world.die.uniform(0.0002, 0.003), lambda: self.settle(value))

    def settle(self, value: Any) -> None:
        """Set the answer, or the error if there will be none."""
        if not self.settled:
            self.settled = True
            self.value = value
            self.here.wake()


class BlockedThread:
    """A thread of a driver that waits for an output: `Surroundings` and `Connection` for it."""

    def __init__(self, ref: Ref) -> None:
        self.ref = ref
        self.driver: Driver = ref.driver
        self.call: LostCall | None = None
        self.fiber = Fiber(self.work, self.ended)

    @classmethod
    def start(cls, ref: Ref) -> None:
        """Wait for an output."""
        thread = cls(ref)
        thread.driver.threads[thread] = None
        thread.fiber.go_on()

    def work(self) -> Any:
        ref = self.ref
        return await_output(
            ConnectionOfThread(self),  # type: ignore[arg-type]
            ref.workflow_id,
            ref.task_id,
            fresh=ref.fresh,
            incarnation=ref.incarnation,
            here=self,
        )

    def ended(self, result: Any, error: BaseException | None) -> None:
        driver, world = self.driver, self.driver.world
        driver.threads.pop(self, None)
        if self.fiber.killed:
            return
        self.ref.ready = True
        world.seen["outputs that were waited for"] += 1
        if error is None:
            world.judge_value(self.ref, result)
        else:
            world.judge_error(self.ref, error)

    def wake(self) -> None:
        """End the wait."""
        if not self.fiber.over and not self.fiber.killed:
            self.fiber.go_on()

    def pause(self, seconds: float, ends: Callable[[], bool]) -> None:
        """Let others go on for a while, at most until ``ends`` is true."""
        fiber, clock = self.fiber, self.driver.world.clock
        until = clock.now + seconds
        while not ends() and clock.now < until:
            turns = fiber.turns
            clock.after(
                until - clock.now, lambda t=turns: self.wake() if fiber.turns == t else None
            )
            fiber.pause()

    # -- Surroundings ----------------------------------------------------------------------

    def monotonic(self) -> float:
        """The world's time."""
        return self.driver.world.clock.now

    def sleep(self, seconds: float) -> None:
        """Let others go on for a while."""
        self.pause(seconds, lambda: False)

    def wait(self, ref: LostCall, seconds: float) -> bool:
        """Wait for an answer. Returns whether it came."""
        self.pause(seconds, lambda: ref.settled)
        return ref.settled

    def ping(self, coordinator: Any) -> None:
        """Raise unless a coordinator answers."""
        cluster = self.driver.cluster
        self.pause(PING_SECONDS, lambda: cluster.life is None or cluster.life.running)
        if cluster.life is None or not cluster.life.running:
            raise ConnectionError("the coordinator does not answer")

    def search(self) -> BlockedThread:
        """Look for the coordinator."""
        self.driver.world.seen["searches for a coordinator"] += 1
        return self

    def look(self) -> Any | None:
        """The coordinator, if it is there."""
        life = self.driver.cluster.life
        return life if life is not None and life.running else None


class ConnectionOfThread(Reader):
    """The `Connection` of a driver, in one of its threads."""

    def __init__(self, here: BlockedThread) -> None:
        super().__init__(here.driver.storage, cluster=here.driver.cluster.name)
        self.here = here
        self.resumes_orphans = here.driver.world.auto_resume
        self.coordinator = self
        self.watch_one = self

    def remote(self, workflow_id: str, after: int | None) -> LostCall:
        """Call ``watch_one`` of the coordinator."""
        call = LostCall(self.here, workflow_id, after)
        self.here.call = call
        self.here.driver.called("watch_one")
        call.send()
        return call

    def take(self, ref: LostCall, seconds: float) -> Any:
        """The answer to a call."""
        if isinstance(ref.value, Exception):
            raise ref.value
        return ref.value

    def adopt(self, coordinator: Any) -> bool:
        """True: the coordinator is of the same cluster."""
        return True

    def say_away(self, workflow_id: str) -> None:
        """Nothing: no user reads the message."""

    def values(self, incarnation: str) -> ValueReader:
        """Values are opened by their driver."""
        return ValueReader(self.storage, incarnation)
