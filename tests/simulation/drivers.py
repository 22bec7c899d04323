"""Drivers with refs that wait for outputs: the real waiter on the world's clock, its calls of the
coordinator on their way, and what must come of each ref.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ray_workflows._client.reader import ACTIVE
from ray_workflows._client.waiter import OutputError, UnopenedValues, Waiter
from ray_workflows._coordinator.long_polls import SIT_SECONDS
from ray_workflows._coordinator.protocol import ENCODER, POLL, POLLED, OutputWanted
from ray_workflows._model.answers import Accepted, Finished
from ray_workflows._model.catalog import (
    Append,
    CatalogQuery,
    CatalogRow,
    JournalEntry,
    Page,
)
from ray_workflows._model.values import Blob
from ray_workflows.exceptions import StorageUnavailableError
from ray_workflows.storage.base import Storage
from ray_workflows.storage.parts import BlobStore, CommitOutcome, Home, JournalStore
from tests.simulation.blocking import BlockedThread
from tests.simulation.event_loops import SimulatedLoop
from tests.simulation.violations import Violation

if TYPE_CHECKING:
    from tests.simulation.life import Life
    from tests.simulation.world import Cluster
    from tests.simulation.world_of_drivers import WorldOfDrivers

#: How long Ray takes to notice that a call is lost, at most, in seconds.
REPEAT_SECONDS = 2.0


class DriverHome(Home):
    """The connection of one waiter to the world's storage, which is away at times, as a whole or
    for one operation."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self.inner = driver.world.storage
        self.away_until = 0.0

    @property
    def url(self) -> str:
        return self.inner.url

    def open(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to give back."""

    def enter(self, what: str) -> None:
        """An operation begins."""
        world, faults = self.driver.world, self.driver.world.driver_faults
        if world.clock.now < self.away_until:
            raise StorageUnavailableError(f"{what}: the storage is away")
        if faults.hit(faults.reads_fail):
            self.away_until = world.clock.now + world.die.choice([0.0, 0.0, 3.0, 20.0])
            world.seen["reads that fail"] += 1
            raise StorageUnavailableError(f"{what} failed")


class DriverJournals(JournalStore):
    """The world's journals as one waiter reads them."""

    home: DriverHome

    def __init__(self, home: DriverHome) -> None:
        self.home = home

    def read_catalog(self, workflow_id: str) -> CatalogRow | None:
        self.home.enter("read_catalog")
        self.home.driver.looks.note(1.0)
        return self.home.inner.read_catalog(workflow_id)

    def read_journal(self, incarnation: str, after: int = 0) -> list[JournalEntry]:
        self.home.enter("read_journal")
        return self.home.inner.read_journal(incarnation, after)

    def list_catalog(self, query: CatalogQuery) -> Page:
        return self.home.inner.list_catalog(query)

    def commit(self, appends: Sequence[Append]) -> list[CommitOutcome]:
        raise AssertionError("A waiter commits nothing.")

    def delete(self, workflow_id: str, incarnation: str, expected_seq: int) -> CommitOutcome:
        raise AssertionError("A waiter deletes nothing.")


class DriverBlobs(BlobStore):
    """The world's blobs as one waiter reads them."""

    home: DriverHome

    def __init__(self, home: DriverHome) -> None:
        self.home = home

    def read_blob(self, incarnation: str, blob: Blob) -> memoryview:
        self.home.enter("read_blob")
        return self.home.inner.read_blob(incarnation, blob)

    def stream_blob(self, incarnation: str, blob: Blob) -> Iterator[memoryview]:
        return self.home.inner.stream_blob(incarnation, blob)

    def find_blob(self, incarnation: str, key: str) -> Blob | None:
        return self.home.inner.find_blob(incarnation, key)

    def write_blob(self, incarnation: str, key: str, chunks: Iterable[bytes | memoryview]) -> Blob:
        raise AssertionError("A waiter writes nothing.")

    def delete_blobs(self, incarnation: str) -> None:
        raise AssertionError("A waiter deletes nothing.")

    def old_blobs(self, grace_seconds: float) -> list[str]:
        return self.home.inner.old_blobs(grace_seconds)


def driver_storage(driver: Driver) -> Storage:
    """The storage as one waiter reads it."""
    home = DriverHome(driver)
    leases = home.inner.leases
    return Storage(journals=DriverJournals(home), blobs=DriverBlobs(home), leases=leases)


class ReaderOfDriver(UnopenedValues):
    """The `Reader` of a waiter."""

    def __init__(self, driver: Driver, description: dict[str, Any]) -> None:
        super().__init__(driver.storage, cluster=description["cluster"])
        self.resumes_orphans = description["resumes_orphans"]


class Pace:
    """How often something was done lately. Each time is forgotten after `seconds`."""

    seconds = 10.0

    def __init__(self, driver: Driver, what: str) -> None:
        self.driver = driver
        self.what = what
        self.allowed = 0.0
        self.last = driver.world.clock.now

    def note(self, cost: float) -> None:
        """Count one more; a ``cost`` below 0 allows more calls."""
        driver = self.driver
        now = driver.world.clock.now
        # A token bucket: twice a second for each ref, for there is one that waits for each pause.
        passed, self.last = now - self.last, now
        most = 8.0 * (1 + len(driver.refs))
        self.allowed = min(most, self.allowed + passed * 2.5 * (1 + len(driver.refs)))
        self.allowed -= cost
        if self.allowed < -most:
            driver.world.fail(Violation("pace", f"{driver.name} {self.what} without a pause"))


class Ref:
    """The ObjectRef of an output. ``incarnation``: of its workflow."""

    def __init__(
        self,
        driver: Driver,
        workflow_id: str,
        incarnation: str,
        method: str,
        *args: Any,
        task_id: str | None = None,
        fresh: bool = True,
    ) -> None:
        self.driver = driver
        self.workflow_id = workflow_id
        self.incarnation = incarnation
        self.method = method
        self.args = args
        self.task_id = task_id
        self.fresh = fresh
        self.began = self.ready = False

    def __repr__(self) -> str:
        return (
            f"ref of {self.driver.name} to {self.task_id} of {self.workflow_id}/{self.incarnation}"
        )

    def call(self) -> None:
        """Call the waiter, again if it has died."""
        driver, waiter = self.driver, self.driver.waiter
        if self.method == "get_output":
            if driver.alive and not self.began:
                self.began = True
                BlockedThread.start(self)
            return
        if waiter is None or self.ready:
            return
        loop = driver.loop
        task = loop.create_task(getattr(waiter, self.method)(*self.args))
        task.add_done_callback(lambda task: self.arrive(task.result()))

    def arrive(self, result: Any) -> None:
        """Make it ready. Its value is unpickled here, and nowhere else."""
        world = self.driver.world
        self.ready = True
        world.trace("%r is ready", self)
        world.seen["refs that are ready"] += 1
        if isinstance(result, OutputError):
            world.clock.after(0.0, lambda: world.judge_error(self, result.error))
        else:
            sent = pickle.dumps(result)
            world.clock.after(0.0, lambda: world.judge_value(self, pickle.loads(sent)))


class Call:
    """A call of a coordinator. Ray repeats it if its answer is lost, or the coordinator dies
    meanwhile."""

    def __init__(self, driver: Driver, name: str, args: tuple[Any, ...]) -> None:
        self.driver = driver
        self.name = name
        self.args = args
        self.loop = driver.loop
        self.future = self.loop.create_future()
        #: The coordinator that has it.
        self.life: Life | None = None
        self.sent = 0

    def send(self, delay: float = 0.0) -> None:
        """Send the call."""
        world = self.driver.world
        faults = world.driver_faults
        self.life = None
        self.sent += 1
        number = self.sent
        delay += world.die.uniform(0.0002, 0.003)
        if faults.hit(faults.call_late):
            delay += world.die.choice([0.1, 1.0, 10.0]) * world.die.random()
        world.clock.after(delay, lambda: self.arrive(number))
        if faults.hit(faults.call_twice):
            world.seen["calls that come twice"] += 1
            more = world.die.choice([0.01, 1.0, 20.0]) * world.die.random()
            world.clock.after(delay + more, lambda: self.arrive(number))

    def arrive(self, number: int) -> None:
        """Let the coordinator handle the call, if there is one."""
        driver = self.driver
        life = driver.cluster.life
        if not driver.cluster.lost and number == self.sent:
            if life is None:
                driver.world.clock.after(0.1, lambda: self.arrive(number))
            elif not life.running:
                self.life = life
                life.frozen.append(lambda: self.arrive(number))
            else:
                self.life = life
                getattr(self, self.name)(life, *self.args)

    def reply(self, life: Life, value: Any) -> None:
        """The coordinator answers."""
        world = self.driver.world
        faults = world.driver_faults
        if not life.exists or self.future.done():
            return
        if faults.hit(faults.answer_lost):
            world.seen["answers that are lost"] += 1
            world.trace("an answer to %s of %s is lost: %s", self.name, self.driver.name, value)
            if self.life is life:
                self.send(REPEAT_SECONDS * world.die.random())
            return
        delay = world.die.uniform(0.0002, 0.003)
        if faults.hit(faults.answer_late):
            delay += world.die.choice([0.1, 1.0, 10.0]) * world.die.random()
        world.clock.after(delay, lambda: self.settle(value))

    def settle(self, value: Any) -> None:
        """The answer is there."""
        if self.loop.alive and not self.future.done():
            self.driver.calls.pop(self, None)
            self.driver.world.trace("%s is answered %s: %s", self.driver.name, self.name, value)
            self.future.set_result(value)
            self.driver.answered(self.name, value)

    # -- what a coordinator does with it ---------------------------------------------------

    def describe(self, life: Life) -> None:
        resumes = self.driver.world.auto_resume
        self.reply(life, {"cluster": life.cluster.name, "resumes_orphans": resumes})

    def subscribe(self, life: Life, client: str, name: str, added: list[Any]) -> None:
        self.reply(life, life.polls.subscribe(client, name, added))

    def poll(self, life: Life, encoded: bytes) -> None:
        """As the coordinator's actor does, without its thread."""
        world = self.driver.world
        over = False

        def end() -> None:
            nonlocal over
            if over or not life.exists:
                return
            if not life.running:
                life.frozen.append(end)
                return
            over = True
            self.reply(life, ENCODER.encode(life.polls.end(waiting)))

        def ready() -> None:
            world.clock.after(world.die.uniform(0.0, 0.002), end)

        waiting = life.polls.begin(POLL.decode(encoded), ready)
        world.clock.after(SIT_SECONDS, end)


class Method:
    """A method of the coordinator, called from a waiter."""

    def __init__(self, driver: Driver, name: str) -> None:
        self.driver = driver
        self.name = name

    def remote(self, *args: Any) -> Any:
        """Call it."""
        driver = self.driver
        driver.called(self.name)
        driver.world.trace("%s calls %s %s", driver.name, self.name, args)
        call = Call(driver, self.name, args)
        driver.calls[call] = None
        call.send()
        return call.future


class CoordinatorOfDriver:
    """The coordinator of a cluster, as its drivers see it."""

    def __init__(self, driver: Driver) -> None:
        self.describe = Method(driver, "describe")
        self.subscribe = Method(driver, "subscribe")
        self.poll = Method(driver, "poll")


class Driver:
    """A driver and its waiter, which dies and is started anew."""

    def __init__(self, world: WorldOfDrivers, cluster: Cluster, name: str) -> None:
        self.world = world
        self.cluster = cluster
        self.name = name
        self.alive = True
        self.lives = 0
        self.waiter: Waiter | None = None
        self.refs: dict[Ref, None] = {}
        self.calls: dict[Call, None] = {}
        #: Those that block in it.
        self.threads: dict[BlockedThread, None] = {}
        self.storage = driver_storage(self)
        self.looks = Pace(self, "looks into the storage")
        self.asks = Pace(self, "asks the coordinator")
        self.loop: SimulatedLoop
        self.begin()

    # -- its waiter ------------------------------------------------------------------------

    def begin(self) -> None:
        """Start a waiter. Ray repeats the calls that its earlier lives did not answer."""
        if not self.alive:
            return
        world = self.world
        self.lives += 1
        self.loop = SimulatedLoop(world.clock, self.in_thread, self.went_wrong)
        self.waiter = Waiter(
            CoordinatorOfDriver(self),
            self.name,
            life=f"{self.name}-{self.lives}",
            restarted=self.lives > 1,
            connect=lambda coordinator, description: ReaderOfDriver(self, description),
        )
        for ref in self.refs:
            ref.call()

    def die(self) -> None:
        """Kill the waiter, with all calls that wait in it."""
        if self.waiter is not None:
            self.world.trace("the waiter of %s is dead", self.name)
            self.waiter = None
            self.loop.close()
            self.calls.clear()

    def go(self) -> None:
        """End the driver with its waiter."""
        self.world.trace("%s is gone", self.name)
        self.alive = False
        self.end_threads()
        self.die()
        self.refs.clear()

    def end_threads(self) -> None:
        """End the threads of the driver that block."""
        for thread in list(self.threads):
            thread.fiber.kill()

    def in_thread(self, work: Callable[[], None]) -> None:
        world = self.world

        def act() -> None:
            world.in_thread = True
            try:
                work()
            finally:
                world.in_thread = False

        world.clock.after(world.die.uniform(0.0002, 0.004), act)

    def went_wrong(self, what: str) -> None:
        self.world.fail(Violation("unexpected", f"the waiter of {self.name}: {what}"))

    def coordinator_died(self, lives: Iterable[Life]) -> None:
        """Repeat the calls, as Ray does."""
        for call in list(self.calls):
            if call.life in lives:
                call.send(0.1)
        for thread in list(self.threads):
            lost = thread.call
            if lost is not None and lost.life in lives:
                self.world.clock.after(0.1, lambda lost=lost: lost.settle(ConnectionError("gone")))

    def called(self, name: str) -> None:
        self.world.seen[f"calls of {name}"] += 1
        self.asks.note(1.0)

    def answered(self, name: str, value: Any) -> None:
        if name == "poll" and POLLED.decode(value).seen:
            # It brought something, with which refs look and watch again.
            seen = len(POLLED.decode(value).seen)
            self.world.seen["polls that bring something"] += 1
            self.asks.note(-float(seen))

    # -- what its user does ----------------------------------------------------------------

    def submitted(
        self, workflow_id: str, answer: Accepted | Finished, holder_id: str, pause: float
    ) -> None:
        """As ``run_async`` when its submission was answered."""
        if isinstance(answer, Finished):
            args = (workflow_id, answer.incarnation, None, True)
            self.add(Ref(self, workflow_id, answer.incarnation, "output", *args), pause)
            return
        wanted = OutputWanted(workflow_id, answer.incarnation, holder_id)
        encoded = ENCODER.encode(wanted)
        self.add(Ref(self, workflow_id, answer.incarnation, "submitted_output", encoded), pause)

    def get_output(self, workflow_id: str, task_id: str | None, blocks: bool) -> None:
        """As ``get_output_async``, or, in a thread, as ``get_output``."""
        row = self.world.storage.read_catalog(workflow_id)
        if row is None:
            return
        running = (
            ReaderOfDriver(self, {"cluster": self.cluster.name, "resumes_orphans": False}).status(
                row
            )
            in ACTIVE
        )
        args = (workflow_id, row.incarnation, task_id, running)
        method = "get_output" if blocks else "output"
        ref = Ref(self, workflow_id, row.incarnation, method, *args, task_id=task_id, fresh=running)
        self.add(ref, 0.0)

    def add(self, ref: Ref, pause: float) -> None:
        """A new ref, whose call takes a while to arrive."""
        if not self.alive:
            return
        self.world.seen[f"refs by {ref.method}"] += 1
        self.refs[ref] = None
        self.world.trace("%r is wanted", ref)
        self.world.clock.after(pause + self.world.die.uniform(0.0, 0.003), ref.call)
