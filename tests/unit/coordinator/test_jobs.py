"""What a coordinator does again and again goes on whatever is raised; so do all workflows but the
one that raises."""

from __future__ import annotations

import gc
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from ray.exceptions import RayError

from ray_workflows._coordinator import actor as host_module
from ray_workflows._coordinator import lease as lease_module
from ray_workflows._coordinator.activation import Activation
from ray_workflows._coordinator.actor import CoordinatorService as Host
from ray_workflows._coordinator.actor import Settings
from ray_workflows._coordinator.clock import SteadyClock
from ray_workflows._coordinator.failover import Failover
from ray_workflows._coordinator.holdings import Holdings
from ray_workflows._coordinator.jobs import Job, Steps
from ray_workflows._coordinator.liveness import LEASE_SECONDS
from ray_workflows._coordinator.loop import Loop
from ray_workflows._coordinator.workflow import Workflow
from ray_workflows._elapsed import elapsed
from ray_workflows._model import messages as msg
from ray_workflows._model.status import WorkflowStatus
from ray_workflows._ray.errors import error_without_user_code
from ray_workflows.exceptions import StorageUnavailableError, WorkflowNotFoundError
from ray_workflows.storage.base import Storage
from ray_workflows.storage.memory import MemoryHome, MemoryJournals, MemoryStorage
from ray_workflows.testing.clock import VirtualClock
from tests.support.coordinators import stop
from tests.unit.coordinator.test_failover import Coordinator, World
from tests.unit.plans import plan

HANG_SECONDS = 20.0


class Bug(Exception):
    """Nobody expects it."""


@pytest.fixture
def world() -> World:
    return World()


class Failing:
    """A function that raises while ``broken``."""

    def __init__(self, function: Callable[..., Any], error: Exception) -> None:
        self.function = function
        self.error = error
        self.broken = True
        self.calls = 0

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        self.calls += 1
        if self.broken:
            raise self.error
        return self.function(*arguments, **named)


def method(function: Callable[..., Any]) -> Any:
    """A function that a class can have as its method."""

    def call(self: Any, *arguments: Any) -> Any:
        return function(self, *arguments)

    return call


# -- jobs ----------------------------------------------------------------------------------


def job_of(coordinator: Coordinator, steps: Callable[[], Steps]) -> Job:
    job = coordinator.loop.job("test", steps)
    job.start()
    return job


@pytest.mark.parametrize("where", ["before", "work", "after"])
def test_a_job_that_raises_is_due_again(world: World, where: str) -> None:
    coordinator = Coordinator(world, "one", auto_resume=False)
    runs: list[float] = []
    fails = True

    def fail(place: str) -> None:
        if fails and place == where:
            raise Bug

    def steps() -> Steps:
        runs.append(world.clock.now)
        fail("before")
        yield lambda: fail("work")
        fail("after")
        return 10.0

    job_of(coordinator, steps)
    world.pass_time(30.0)
    assert len(runs) == 3
    fails = False
    world.pass_time(60.0)
    later = len(runs)
    world.pass_time(30.0)
    assert len(runs) == later + 3


def test_a_job_is_done_at_once_when_it_is_hurried(world: World) -> None:
    coordinator = Coordinator(world, "one", auto_resume=False)
    runs: list[float] = []

    def steps() -> Steps:
        runs.append(world.clock.now)
        if len(runs) == 2:
            # While it is being done: what it has looked at may be old.
            job.hurry()
        yield lambda: None
        return 1000.0

    job = job_of(coordinator, steps)
    world.pass_time(5.0)
    assert len(runs) == 1
    job.hurry()
    world.pass_time(5.0)
    assert len(runs) == 3
    world.pass_time(500.0)
    assert len(runs) == 3


def test_a_job_may_be_over(world: World) -> None:
    coordinator = Coordinator(world, "one", auto_resume=False)
    runs: list[None] = []

    def steps() -> Steps:
        runs.append(None)
        return None
        yield

    job = job_of(coordinator, steps)
    world.pass_time(100.0)
    job.hurry()
    world.pass_time(100.0)
    assert len(runs) == 1


# -- the coordinator's own -----------------------------------------------------------------


def test_the_lease_is_renewed_after_an_error_in_its_renewal(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    coordinator = Coordinator(world, "one", auto_resume=False)
    coordinator.submit("w")
    broken = Failing(Activation.verify, Bug())
    monkeypatch.setattr(Activation, "verify", method(broken))
    world.clock.now += 2 * LEASE_SECONDS
    world.pass_time(5.0)
    assert broken.calls
    # What was not read again may be somebody else's: nothing is started.
    assert coordinator.loop.lease_until < world.clock.now
    broken.broken = False
    world.pass_time(70.0)
    assert coordinator.loop.lease_until > world.clock.now


@pytest.mark.parametrize("method", ["list_catalog", "read_holders", "sweep", "renew_holder"])
def test_periodic_work_goes_on_after_any_error_of_the_storage(
    world: World, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_module, "SWEEP_SECONDS", 10.0)
    coordinator = Coordinator(world, "one")
    coordinator.submit("w")
    failing = Failing(getattr(world.storage, method), Bug())
    monkeypatch.setattr(world.storage, method, failing)
    world.pass_time(60.0)
    failing.broken = False
    before = failing.calls
    assert before
    world.pass_time(200.0)
    assert failing.calls > before + 5
    assert coordinator.loop.lease_until > world.clock.now


@pytest.mark.parametrize(("owner", "name"), [(Holdings, "end"), (Failover, "found")])
def test_periodic_work_goes_on_after_a_bug_of_ours(
    world: World, owner: type, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = Failing(getattr(owner, name), Bug())
    monkeypatch.setattr(owner, name, method(failing))
    first = Coordinator(world, "first", host="here")
    first.submit("w")
    first.die()
    # Another life of the same actor takes over by its lease, another actor by looking for orphans.
    second = Coordinator(world, "second", host="here", actor="first" if owner is Holdings else None)
    second.submit("other")
    world.pass_time(100.0)
    assert failing.calls
    failing.broken = False
    world.pass_time(150.0)
    assert world.status("w") == (WorkflowStatus.RUNNING, "second")


def test_an_error_of_one_workflow_leaves_the_others_of_its_commit_alone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    applied = Loop.applied

    def raising(loop: Loop, workflow: Workflow) -> None:
        if workflow.workflow_id == "bad" and workflow.broken is None:
            raise Bug
        applied(loop, workflow)

    monkeypatch.setattr(Loop, "applied", raising)
    coordinator = Coordinator(world, "one", auto_resume=False)
    world.pass_time(1.0)
    answers: dict[str, Any] = {}
    for workflow_id in ("a", "bad", "b"):
        coordinator.loop.ask(
            workflow_id,
            msg.Submit(plan(("f", ())), {}, f"i-{workflow_id}", workflow_id),
            lambda answer, workflow_id=workflow_id: answers.update({workflow_id: answer}),
        )
    coordinator.step()
    assert isinstance(answers["bad"], Bug)
    assert set(coordinator.loop.active) == {"a", "b"}
    assert not any(workflow.busy for workflow in coordinator.loop.active.values())
    world.pass_time(1.0)
    row = world.storage.read_catalog("bad")
    assert row is not None
    assert row.released
    assert "Bug" in (row.error or "")
    coordinator.loop.ask("a", msg.Cancel(), lambda answer: answers.update(canceled=answer))
    coordinator.step()
    assert answers["canceled"] is None


# -- the thread ----------------------------------------------------------------------------


class ReluctantJournals(MemoryJournals):
    """Do not answer at first, when somebody wants to listen."""

    def __init__(self, home: MemoryHome, error: Exception) -> None:
        super().__init__(home)
        self.refusals: queue.SimpleQueue[Exception] = queue.SimpleQueue()
        for _ in range(2):
            self.refusals.put(error)
        self.refused = threading.Event()

    def listen(
        self, holder_id: str, on_news: Callable[[], None], lives: Sequence[str] = ()
    ) -> None:
        if not self.refusals.empty():
            self.refused.set()
            raise self.refusals.get()


@pytest.mark.parametrize("error", [StorageUnavailableError("away"), Bug()])
def test_a_coordinator_answers_whose_storage_refuses_to_listen(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Context:
        current_actor = None

        def get_actor_id(self) -> str:
            return "actor"

    monkeypatch.setattr(host_module.ray, "get_runtime_context", Context)
    monkeypatch.setattr(host_module, "ANSWER_SECONDS", HANG_SECONDS)
    inner = MemoryStorage(clock=VirtualClock())
    journals = ReluctantJournals(inner.journals.home, error)
    storage = Storage(journals=journals, blobs=inner.blobs, leases=inner.leases)
    before = RayError.from_ray_exception, gc.get_threshold()
    host = Host(storage, Settings(), "0")
    # Later tests run in this process.
    assert (RayError.from_ray_exception, gc.get_threshold()) == before
    assert isinstance(host.cancel("nothing"), WorkflowNotFoundError)
    assert journals.refused.wait(HANG_SECONDS)
    assert isinstance(host.loop.clock, SteadyClock)
    assert host.loop.elapsed is elapsed
    # Whatever else is brought to its thread.
    for _ in range(5):
        host.inbox.put(lambda: 1 // 0)
    assert isinstance(host.cancel("nothing"), WorkflowNotFoundError)
    stop(host)


def test_the_actor_sets_its_process_up_before_all_else(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[object] = []

    def begin(self: Host, storage: Storage, settings: Settings, started_by: str) -> None:
        read.append(RayError.from_ray_exception)
        assert gc.get_threshold()[0] == host_module.YOUNG_OBJECTS

    monkeypatch.setattr(RayError, "from_ray_exception", RayError.from_ray_exception)
    monkeypatch.setattr(Host, "__init__", begin)
    threshold = gc.get_threshold()
    try:
        host_module.Coordinator(MemoryStorage(), Settings(), "0")
    finally:
        gc.set_threshold(*threshold)
    assert read == [error_without_user_code]
