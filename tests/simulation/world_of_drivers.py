"""A world with drivers whose refs wait for outputs: the real waiter and the real long polls.

Coordinators, clients and troubles are those of `World`.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from random import Random
from typing import Any

from ray_workflows._client import waiter as waiter_module
from ray_workflows._coordinator.long_polls import SIT_SECONDS
from ray_workflows._model import events as ev
from ray_workflows._model.answers import Accepted, Finished
from ray_workflows._model.status import WorkflowStatus
from ray_workflows._model.values import Blob, Outcome
from ray_workflows.exceptions import (
    OutputNotAvailableError,
    StorageUnavailableError,
    WorkflowCancellationError,
    WorkflowExecutionError,
    WorkflowNotFoundError,
)
from tests.simulation import scripts
from tests.simulation.clients import Client, Put
from tests.simulation.drivers import Driver, Ref
from tests.simulation.life import Life
from tests.simulation.monitor import Journal
from tests.simulation.violations import Violation
from tests.simulation.world import World

#: After the faults and the last workflow have ended, every ref is ready within this many seconds.
REF_SECONDS = 30.0

#: An error that was caught, as `seen` has it.
ERROR = ("error", "")


class DriverFaults:
    """Trouble of one seed between drivers and coordinators. Probabilities are per call or read;
    deaths are per second."""

    def __init__(self, rng: Random, trouble: Mapping[str, float]) -> None:
        self.rng = rng
        peaceful = rng.random() < 0.15

        def some(share: float, low: float, high: float) -> float:
            if rng.random() >= share or peaceful:
                return 0.0
            return low * (high / low) ** rng.random()

        self.call_late = some(0.35, 0.01, 0.3)
        self.call_twice = some(0.35, 0.02, 0.4)
        self.answer_late = some(0.35, 0.01, 0.3)
        self.answer_lost = some(0.35, 0.02, 0.3)
        self.ref_late = some(0.6, 0.1, 1.0)
        self.reads_fail = some(0.35, 0.02, 0.3)
        self.waiter_dies = some(0.35, 0.01, 0.2)
        self.driver_goes = some(0.2, 0.01, 0.1)
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


class WorldOfDrivers(World):
    """As `World`, with drivers."""

    def __init__(self, seed: int, **options: Any) -> None:
        trouble = dict(options.get("trouble") or {})
        #: What happens to drivers is decided by it alone.
        self.die = Random(f"drivers {seed}")
        self.driver_faults = DriverFaults(self.die, trouble)
        ours = vars(self.driver_faults)
        options["trouble"] = {name: v for name, v in trouble.items() if name not in ours}
        self.seats = self.die.choice([1, 2, 256])
        self.max_early = self.die.choice([1, waiter_module.MAX_EARLY])
        #: What happened, and how often.
        self.seen: Counter[str] = Counter()
        self.in_thread = False
        super().__init__(seed, **options)
        self.drivers: list[Driver] = []

    def live(self) -> None:
        self.trace("drivers: %s", self.driver_faults.describe())
        before, waiter_module.MAX_EARLY = waiter_module.MAX_EARLY, self.max_early
        scripts.OPENED.append(self.opened)
        try:
            for cluster in self.clusters:
                for _ in range(self.die.choice([1, 1, 2, 3])):
                    self.new_driver(cluster)
            for client in self.clients:
                self.ask_for_outputs(client)
            super().live()
        finally:
            scripts.OPENED.remove(self.opened)
            waiter_module.MAX_EARLY = before

    def new_driver(self, cluster: Any) -> None:
        driver = Driver(self, cluster, f"driver{len(self.drivers)}")
        self.drivers.append(driver)
        self.trouble(driver)

    def opened(self) -> None:
        """A value is unpickled."""
        if self.in_thread or asyncio._get_running_loop() is not None:
            self.fail(Violation("unpickled", "a waiter unpickles what is its driver's"))

    # -- what users of drivers do ----------------------------------------------------------

    def driver_in(self, cluster: Any) -> Driver | None:
        """One of those that are there."""
        there = [d for d in self.drivers if d.alive and d.cluster is cluster and not cluster.lost]
        return self.die.choice(there) if there else None

    def put(self, wish: Put, then: Callable[[Any], None]) -> None:
        life, client = wish.cluster.life, wish.submits
        driver = self.driver_in(wish.cluster) if client is not None and life is not None else None
        if client is None or life is None or driver is None or self.die.random() < 0.2:
            super().put(wish, then)
            return
        ask, workflow_id = wish.ask, client.workflow_id
        faults = self.driver_faults
        late = faults.hit(faults.ref_late)
        pause = self.die.choice([0.1, 3.0]) * self.die.random() if late else 0.0

        def taken(answer: Any) -> None:
            if isinstance(answer, (Accepted, Finished)):
                driver.submitted(workflow_id, answer, life.name, pause)
                if late:
                    # Another thread may be faster than the one that has submitted it.
                    driver.get_output(workflow_id, None, blocks=False)
            then(answer)

        watched = Put(
            wish.cluster,
            wish.what,
            lambda loop, reply: ask(loop, life.polls.watching(driver.name, workflow_id, reply)),
            wish.judge,
            patient=wish.patient,
        )
        super().put(watched, taken)

    def ask_for_outputs(self, client: Client) -> None:
        """Somebody asks for outputs of its workflow now and then."""
        for _ in range(self.die.choice([0, 1, 3, 12])):
            at = self.die.choice([1.0, 10.0, 40.0]) * self.die.random()
            self.clock.after(at, lambda: self.get_output(client))

    def get_output(self, client: Client) -> None:
        driver = self.driver_in(self.die.choice(self.clusters))
        if driver is None:
            return
        journal = self.monitor.journals.get(client.incarnation)
        task_ids = [] if journal is None else sorted(journal.task_ids)
        task_id = self.die.choice(task_ids) if task_ids and self.die.random() < 0.5 else None
        driver.get_output(client.workflow_id, task_id, blocks=self.die.random() < 0.3)

    # -- trouble ---------------------------------------------------------------------------

    def trouble(self, driver: Driver) -> None:
        """What happens to a driver, each second."""
        if not driver.alive or self.calm:
            return
        faults = self.driver_faults
        if faults.hit(faults.driver_goes):
            self.seen["drivers that go"] += 1
            driver.go()
            if self.die.random() < 0.7:
                self.new_driver(driver.cluster)
            return
        if driver.waiter is not None and faults.hit(faults.waiter_dies):
            self.seen["waiters that die"] += 1
            driver.die()
            self.clock.after(2.0 * self.die.random(), driver.begin)
        self.clock.after(1.0, lambda: self.trouble(driver))

    def calm_down(self) -> None:
        self.driver_faults.stop()
        for driver in self.drivers:
            driver.storage.journals.home.away_until = 0.0
        super().calm_down()

    def life_begins(self, life: Life) -> None:
        for driver in self.drivers:
            if driver.cluster is life.cluster:
                driver.coordinator_died([each for each in self.lives if each is not life])

    def died(self, life: Life) -> None:
        for driver in self.drivers:
            if driver.cluster is life.cluster:
                driver.coordinator_died([life])

    def crash(self, life: Life) -> None:
        super().crash(life)
        for driver in self.drivers:
            if driver.alive and driver.cluster.lost:
                driver.go()

    # -- laws ------------------------------------------------------------------------------

    def judge_value(self, ref: Ref, value: Any) -> None:
        """A ref is ready with a value: the committed one of the workflow that it is about."""
        journal = self.monitor.journals[ref.incarnation]
        found = seen(value)
        if ref.task_id is not None:
            # Which task's it is may have been handed on: that of a continuation is its task's.
            right = found == ERROR or found[1] == "" or self.is_committed(journal, found[1])
        else:
            outcome = journal.state.output
            right = outcome is not None and (
                journal.deleted or found == self.committed_value(ref.incarnation, outcome)
            )
        if not right:
            raise Violation("ref", f"{ref!r} has {found}, not {journal.state.output}")

    def is_committed(self, journal: Journal, maker: str) -> bool:
        """Whether a value of this maker is in a journal."""
        for event in journal.events:
            if isinstance(event, (ev.TaskSucceeded, ev.SignalReceived)):
                data = event.value.data
                if maker == (data.key if isinstance(data, Blob) else scripts.maker(data)):
                    return True
        return False

    def committed_value(self, incarnation: str, outcome: Outcome) -> tuple[str, str]:
        """An outcome, and the attempt that it is of."""
        if outcome.value is None:
            return ERROR
        data = outcome.value.data
        if not isinstance(data, bytes):
            data = bytes(self.storage.read_blob(incarnation, data))
        return scripts.seen_as(outcome, data), scripts.maker(data)

    def judge_error(self, ref: Ref, error: BaseException) -> None:
        """A ref is ready with an error: something of the kind was so."""
        journal = self.monitor.journals[ref.incarnation]
        state = journal.state
        if isinstance(error, WorkflowNotFoundError):
            right = journal.deleted
        elif isinstance(error, WorkflowExecutionError):
            right = WorkflowStatus.FAILED in journal.statuses
        elif isinstance(error, WorkflowCancellationError):
            right = WorkflowStatus.CANCELED in journal.statuses
        elif isinstance(error, StorageUnavailableError):
            # A caller that blocks can ask again; a failed ref stays failed.
            right = not ref.fresh or ref.method == "get_output"
        elif isinstance(error, OutputNotAvailableError):
            ended = journal.statuses & {WorkflowStatus.FAILED, WorkflowStatus.CANCELED}
            away = [life for life in self.lives if life.cluster is not ref.driver.cluster]
            elsewhere = state.holder in [life.name for life in away]
            right = bool(ended) or ref.task_id is not None or state.released or elsewhere
        else:
            right = False
        if not right:
            raise Violation("ref", f"{ref!r} has {error!r}, and it is {state.status}")

    def check_end(self) -> None:
        super().check_end()
        end = self.clock.now + REF_SECONDS
        while self.clock.now < end and self.open_refs():
            self.advance()
        left = self.open_refs()
        if left:
            raise Violation("ref", f"nothing comes of {left[0]!r}, and {len(left)} in all")
        # The last poll of a waiter waits for as long as it may, also one that comes twice.
        end = self.clock.now + SIT_SECONDS + 25.0
        while self.clock.now < end:
            self.advance()
        kept = [*self.kept_by_waiters(), *self.kept_by_coordinators()]
        if kept:
            raise Violation("kept", "; ".join(kept))

    def open_refs(self) -> list[Ref]:
        """Refs of drivers that are there, and are not ready."""
        return [ref for d in self.drivers if d.alive for ref in d.refs if not ref.ready]

    def kept_by_waiters(self) -> list[str]:
        """What waiters have though nothing waits."""
        kept = []
        for driver in self.drivers:
            waiter = driver.waiter
            if waiter is None:
                continue
            things = {
                "waiting": waiter.waiting,
                "watched": waiter.watched,
                "too early": list(waiter.early)[self.max_early :],
                "calls": driver.calls,
                "tasks": driver.loop.tasks,
            }
            kept += [f"{driver.name}: {len(v)} {name}" for name, v in things.items() if v]
        return kept

    def kept_by_coordinators(self) -> list[str]:
        """What coordinators have of polls though nothing waits."""
        kept = []
        for life in self.lives:
            if not life.exists:
                continue
            polls = life.polls
            if polls.seats.taken:
                kept.append(f"{life.name}: {polls.seats.taken} seats")
            for client, watches in polls.lists.items():
                waiting = [*watches.pending, *([client] if watches.waiting else [])]
                if waiting:
                    kept.append(f"{life.name}: {len(waiting)} watches of {client}")
        return kept

    def close(self) -> None:
        for driver in self.drivers:
            driver.end_threads()
            driver.die()


def seen(value: Any) -> tuple[str, str]:
    """What a consumer makes of an output, and the attempt that it is of."""
    if isinstance(value, scripts.Packed):
        return value.text, value.maker
    inner, error = value
    if error is not None:
        return ERROR
    return f"wrapped {inner.text}", inner.maker
