"""One workflow that can't be decoded, folded, encoded, committed or claimed stops itself alone: all
others go on, whatever it brings."""

from __future__ import annotations

from typing import Any

import pytest

from ray_workflows._codec.journal import decode_entries
from ray_workflows._coordinator import loop as loop_module
from ray_workflows._coordinator import recovery as recovery_module
from ray_workflows._coordinator.activation import Activation
from ray_workflows._coordinator.active import ActiveWorkflows
from ray_workflows._coordinator.deletion import Deletion
from ray_workflows._coordinator.loop import Loop
from ray_workflows._engine.state import WorkflowState
from ray_workflows._model import events as ev
from ray_workflows._model import messages as msg
from ray_workflows._model.answers import Accepted, Received
from ray_workflows._model.catalog import Append, CatalogRow, JournalEntry
from ray_workflows._model.status import WorkflowStatus
from ray_workflows._model.values import Value
from ray_workflows.exceptions import (
    StorageConfigError,
    StorageCorruptError,
    StorageError,
    StorageUnavailableError,
)
from ray_workflows.storage.base import CommitOutcome
from ray_workflows.storage.memory import MemoryStorage
from ray_workflows.storage.objects.journals import segment_key
from tests.support.put_once import MemoryObjectStorage, MemoryOperations
from tests.unit.coordinator.test_failover import Coordinator, World
from tests.unit.plans import plan

CANCELED, RUNNING = WorkflowStatus.CANCELED, WorkflowStatus.RUNNING

BAD, GOOD = "bad", ("a", "b")

READS = ("read_journal", "read_catalog", "list_catalog", "read_holders")


class Bug(Exception):
    """What nobody expects; with a text that UTF-8 can't hold."""

    def __init__(self) -> None:
        super().__init__("a bug \udce9")


@pytest.fixture
def world() -> World:
    return World()


def ask(coordinator: Coordinator, workflow_id: str, input: msg.Asked) -> Any:
    """What is answered within a second."""
    answers: list[Any] = []
    coordinator.loop.ask(workflow_id, input, answers.append)
    coordinator.step()
    coordinator.world.pass_time(1.0)
    assert answers, f"no answer to {input} about {workflow_id}"
    return answers[0]


def delete(coordinator: Coordinator, workflow_id: str) -> Any:
    """What is answered within a second."""
    answers: list[Any] = []
    Deletion(coordinator.loop, workflow_id, "", answers.append).begin()
    coordinator.step()
    coordinator.world.pass_time(1.0)
    assert answers
    return answers[0]


def submit(coordinator: Coordinator, workflow_id: str) -> Any:
    submit = msg.Submit(plan(("f", ())), {}, f"i-{workflow_id}", workflow_id)
    return ask(coordinator, workflow_id, submit)


def row_of(world: World, workflow_id: str) -> CatalogRow:
    row = world.storage.read_catalog(workflow_id)
    assert row is not None
    return row


def others_go_on(coordinator: Coordinator) -> None:
    """Every verb is answered about others, old and new ones."""
    world = coordinator.world
    for workflow_id in GOOD:
        assert ask(coordinator, workflow_id, msg.Signal("s", "1", Value(b"v"))) == Received()
        assert row_of(world, workflow_id).seq > 1
    assert isinstance(submit(coordinator, "new"), Accepted)
    assert ask(coordinator, GOOD[0], msg.Cancel()) is None
    assert row_of(world, GOOD[0]).status is CANCELED
    assert delete(coordinator, GOOD[0]) is None
    assert coordinator.loop.lease_until > world.clock.now


def second_life(world: World) -> Coordinator:
    """Three workflows, one of which is bad, whose coordinator died; the next life of it."""
    first = Coordinator(world, "first", auto_resume=False)
    for workflow_id in (GOOD[0], BAD, GOOD[1]):
        submit(first, workflow_id)
    first.die()
    second = Coordinator(world, "second", auto_resume=False, actor="first")
    world.pass_time(1.0)
    return second


def is_released(world: World, reason: str) -> None:
    row = row_of(world, BAD)
    assert row.released
    assert reason in (row.error or "")


# -- decode, evolve ------------------------------------------------------------------------


@pytest.mark.parametrize("auto", [True, False], ids=["orphan", "earlier life"])
def test_a_journal_that_cant_be_decoded(world: World, auto: bool) -> None:
    owner = Coordinator(world, "owner", auto_resume=False, host="here")
    for workflow_id in (GOOD[0], BAD, GOOD[1]):
        submit(owner, workflow_id)
    world.storage.journals.home.journals[f"i-{BAD}"][0] = JournalEntry(1, "c", b"damaged")
    owner.die()
    other = Coordinator(
        world, "other", auto_resume=auto, host="here", actor=None if auto else "owner"
    )
    world.pass_time(2.5)
    assert set(other.loop.active) == set(GOOD)
    others_go_on(other)


def broken_evolve(monkeypatch: pytest.MonkeyPatch, error: type[Exception]) -> None:
    """A release with a bug that only one journal meets."""

    def evolve(state: WorkflowState, event: Any) -> Any:
        if state.workflow_id == BAD:
            raise error
        return original(state, event)

    original = recovery_module.evolve
    monkeypatch.setattr(recovery_module, "evolve", evolve)
    monkeypatch.setattr(loop_module, "evolve", evolve)


@pytest.mark.parametrize("error", [KeyError, AssertionError, RecursionError, Bug])
def test_a_journal_that_cant_be_folded(
    world: World, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    first = Coordinator(world, "first", auto_resume=False)
    for workflow_id in (GOOD[0], BAD, GOOD[1]):
        submit(first, workflow_id)
    first.die()
    broken_evolve(monkeypatch, error)
    second = Coordinator(world, "second", auto_resume=False, actor="first")
    world.pass_time(1.0)
    assert set(second.loop.active) == set(GOOD)
    is_released(world, error.__name__)
    others_go_on(second)
    # A request about it is answered at once with what is wrong.
    answer = ask(second, BAD, msg.Resume("again"))
    assert isinstance(answer, StorageCorruptError)
    assert f"entry 1 of workflow '{BAD}'" in str(answer)


def test_a_journal_that_cant_be_folded_any_more_while_it_is_driven(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = second_life(world)
    other = Coordinator(world, "other", auto_resume=False)
    other.loop.ask(BAD, msg.Signal("s", "id", Value(b"value")), lambda answer: None)
    other.step()
    broken_evolve(monkeypatch, KeyError)
    second.loop.activation.verify(second.loop.active[BAD])
    world.pass_time(1.0)
    is_released(world, "KeyError")
    others_go_on(second)


# -- encode --------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["encode_entry", "catalog_row", "evolve"])
def test_events_that_cant_be_encoded(
    world: World, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Nothing is ever written that was decided on a state which no journal has."""
    second = second_life(world)
    original = getattr(loop_module, where)

    def failing(first: Any, *arguments: Any) -> Any:
        named = first.workflow_id if hasattr(first, "workflow_id") else arguments[0]
        if named == BAD:
            raise Bug
        return original(first, *arguments)

    monkeypatch.setattr(loop_module, where, failing)
    answer = ask(second, BAD, msg.Signal("s", "1", Value(b"v")))
    assert isinstance(answer, Bug)
    assert BAD not in second.loop.active
    is_released(world, "Bug")
    others_go_on(second)


def test_a_submission_that_cant_be_encoded_is_refused_at_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    coordinator = Coordinator(world, "one", auto_resume=False)
    for workflow_id in GOOD:
        submit(coordinator, workflow_id)
    original = loop_module.encode_entry

    def encode_entry(events: Any, workflow_id: str, *arguments: Any) -> bytes:
        if workflow_id == BAD:
            raise Bug
        return original(events, workflow_id, *arguments)

    monkeypatch.setattr(loop_module, "encode_entry", encode_entry)
    assert isinstance(submit(coordinator, BAD), Bug)
    assert world.storage.read_catalog(BAD) is None
    others_go_on(coordinator)


# -- commit --------------------------------------------------------------------------------


def refuse(world: World, monkeypatch: pytest.MonkeyPatch, error: Exception) -> list[int]:
    """A storage that can't take what one workflow brings; notes the size of each commit."""
    sizes: list[int] = []
    commit = world.storage.commit

    def refusing(appends: list[Append]) -> list[CommitOutcome]:
        sizes.append(len(appends))
        large = [a for a in appends if a.workflow_id == BAD and not a.catalog.released]
        if large:
            raise error
        return commit(appends)

    monkeypatch.setattr(world.storage, "commit", refusing)
    return sizes


REFUSALS = [
    StorageError("can't take a value this large"),
    StorageCorruptError("journal/i-bad/0000000001 is damaged"),
    StorageConfigError("made by a storage of somebody's own"),
    RecursionError(),
    ValueError("no"),
]


@pytest.mark.parametrize("error", REFUSALS, ids=lambda error: type(error).__name__)
def test_a_submission_that_the_storage_refuses(
    world: World, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    coordinator = Coordinator(world, "one", auto_resume=False)
    world.pass_time(1.0)
    sizes = refuse(world, monkeypatch, error)
    answers: dict[str, Any] = {}
    for workflow_id in (GOOD[0], BAD, GOOD[1]):
        coordinator.loop.ask(
            workflow_id,
            msg.Submit(plan(("f", ())), {}, f"i-{workflow_id}", workflow_id),
            lambda answer, workflow_id=workflow_id: answers.update({workflow_id: answer}),
        )
    coordinator.step()
    world.pass_time(1.0)
    assert 3 in sizes
    assert answers[BAD] is error
    assert all(isinstance(answers[workflow_id], Accepted) for workflow_id in GOOD)
    assert world.storage.read_catalog(BAD) is None
    others_go_on(coordinator)


@pytest.mark.parametrize("error", REFUSALS, ids=lambda error: type(error).__name__)
def test_a_workflow_whose_progress_the_storage_refuses(
    world: World, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    second = second_life(world)
    refuse(world, monkeypatch, error)
    answers: list[Any] = []
    second.loop.ask(BAD, msg.Signal("s", "1", Value(b"v")), answers.append)
    others_go_on(second)
    world.pass_time(10.0)
    assert answers == [error]
    is_released(world, type(error).__name__)


def test_a_storage_that_is_away_refuses_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = second_life(world)
    monkeypatch.setattr(
        world.storage, "commit", lambda appends: (_ for _ in ()).throw(StorageUnavailableError("x"))
    )
    answers: list[Any] = []
    second.loop.ask(BAD, msg.Signal("s", "1", Value(b"v")), answers.append)
    world.pass_time(60.0)
    assert answers == []
    monkeypatch.setattr(world.storage, "commit", lambda a: MemoryStorage.commit(world.storage, a))
    world.pass_time(5.0)
    assert answers == [Received()]
    assert set(second.loop.active) == {BAD, *GOOD}


WHOLE = [StorageCorruptError("the database is malformed"), StorageConfigError("no database")]


@pytest.mark.parametrize("error", WHOLE, ids=lambda error: type(error).__name__)
def test_a_workflow_that_the_storage_refuses_while_nothing_else_goes_on(
    world: World, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """The renewal of the lease shows that it is this workflow, and not the storage."""
    coordinator = Coordinator(world, "one", auto_resume=False)
    submit(coordinator, BAD)
    sizes = refuse(world, monkeypatch, error)
    answers: list[Any] = []
    coordinator.loop.ask(BAD, msg.Signal("s", "1", Value(b"v")), answers.append)
    world.pass_time(10.0)
    assert answers == [error]
    is_released(world, type(error).__name__)
    assert len(sizes) < 12


@pytest.mark.parametrize("error", WHOLE, ids=lambda error: type(error).__name__)
def test_a_storage_that_refuses_everything_stops_nothing(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    """Until somebody has repaired it, all workflows wait: at little cost, and with few words."""
    second = second_life(world)
    sizes: list[int] = []

    def refused(*arguments: Any) -> Any:
        sizes.append(1)
        raise error

    with monkeypatch.context() as patch:
        for name in ("commit", "renew_holder", *READS):
            if name not in READS or isinstance(error, StorageConfigError):
                patch.setattr(world.storage, name, refused)
        answers: list[Any] = []
        for workflow_id in (BAD, *GOOD):
            second.loop.ask(workflow_id, msg.Signal("s", "1", Value(b"v")), answers.append)
        world.pass_time(120.0)
        assert answers == []
        assert error in (second.loop.store.error, second.loop.store.commit_error)
    # Each second one commit of all and one of each; every three seconds the lease.
    assert len(sizes) < 120 * 5
    assert len(caplog.records) < 20
    world.pass_time(5.0)
    assert answers == [Received()] * 3
    assert set(second.loop.active) == {BAD, *GOOD}
    assert not any(row_of(world, workflow_id).released for workflow_id in (BAD, *GOOD))


@pytest.mark.parametrize("error", WHOLE, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("damaged", [20, 100])
def test_many_workflows_that_the_storage_refuses(
    world: World, monkeypatch: pytest.MonkeyPatch, error: Exception, damaged: int
) -> None:
    """Some of them or all: no commit of each is tried while nothing shows that others can be."""
    coordinator = Coordinator(world, "one", auto_resume=False)
    names = [f"w{number:03d}" for number in range(100)]
    for workflow_id in names:
        submit(coordinator, workflow_id)
    commit, sizes = world.storage.commit, []

    def refusing(appends: list[Append]) -> list[CommitOutcome]:
        sizes.append(len(appends))
        wrong = [a for a in appends if a.workflow_id in names[:damaged] and not a.catalog.released]
        if wrong:
            raise error
        return commit(appends)

    def renewing(*arguments: Any) -> None:
        raise error

    answers: dict[str, Any] = {}
    with monkeypatch.context() as patch:
        patch.setattr(world.storage, "commit", refusing)
        if damaged == len(names):
            patch.setattr(world.storage, "renew_holder", renewing)
        for workflow_id in names:
            coordinator.loop.ask(
                workflow_id,
                msg.Signal("s", "1", Value(b"v")),
                lambda answer, workflow_id=workflow_id: answers.update({workflow_id: answer}),
            )
        world.pass_time(1.0)
        assert answers == dict.fromkeys(names[damaged:], Received())
        world.pass_time(59.0)
    if damaged < len(names):
        assert answers == {**dict.fromkeys(names[:damaged], error), **answers}
        released = [row_of(world, workflow_id).released for workflow_id in names]
        assert released == [True] * damaged + [False] * (len(names) - damaged)
    else:
        assert answers == {}
        assert len(sizes) < 60 * 4 * (1 + 8)
        world.pass_time(5.0)
        assert answers == dict.fromkeys(names, Received())


@pytest.mark.parametrize("error", REFUSALS, ids=lambda error: type(error).__name__)
def test_a_workflow_that_can_not_even_be_released(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    """As if the storage were damaged where its journal ends. It is read again now and then."""
    second = second_life(world)
    commit, sizes = world.storage.commit, []

    def refusing(appends: list[Append]) -> list[CommitOutcome]:
        sizes.append(len(appends))
        if any(append.workflow_id == BAD for append in appends):
            raise error
        return commit(appends)

    with monkeypatch.context() as patch:
        patch.setattr(world.storage, "commit", refusing)
        answers: list[Any] = []
        second.loop.ask(BAD, msg.Signal("s", "1", Value(b"v")), answers.append)
        others_go_on(second)
        world.pass_time(10.0)
        assert answers == [error]
        sizes.clear()
        world.pass_time(300.0)
        assert len(sizes) < 60
        assert len(caplog.records) < 60
        others = [id for id in (GOOD[1], "new") if id not in second.loop.active]
        assert others == []
    world.pass_time(70.0)
    assert BAD in second.loop.active
    assert ask(second, BAD, msg.Signal("s", "2", Value(b"v"))) == Received()


def test_one_damaged_end_of_a_journal_in_an_object_store(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The store can't append after it, and refuses the whole commit. The others of that commit are
    durable, and are not taken for those of another coordinator."""
    operations = MemoryOperations(world.clock)
    storage = MemoryObjectStorage(operations, world.clock)
    storage.open()
    world.storage = storage  # type: ignore[assignment]
    second = second_life(world)
    key = segment_key(f"i-{BAD}", row_of(world, BAD).seq)
    data = operations.objects[key].data
    operations.put(key, data[:-1] + bytes((data[-1] ^ 1,)))
    # As if so many others had been read since.
    storage.journals.home.journals.forget_all(f"i-{BAD}")
    overtaken: list[str] = []
    original = second.loop.commits.overtaken
    monkeypatch.setattr(
        second.loop.commits,
        "overtaken",
        lambda workflow: (overtaken.append(workflow.workflow_id), original(workflow)),
    )
    answers: dict[str, Any] = {}
    for workflow_id in (GOOD[0], BAD, GOOD[1]):
        second.loop.ask(
            workflow_id,
            msg.Signal("s", "mine", Value(b"v")),
            lambda answer, workflow_id=workflow_id: answers.update({workflow_id: answer}),
        )
    second.step()
    world.pass_time(1.0)
    assert answers == dict.fromkeys(GOOD, Received())
    assert not {*overtaken}.intersection(GOOD)
    others_go_on(second)
    world.pass_time(10.0)
    assert isinstance(answers[BAD], StorageCorruptError)
    assert key in str(answers[BAD])
    entries = storage.read_journal(f"i-{GOOD[1]}")
    events = decode_entries(entries, GOOD[1], f"i-{GOOD[1]}")
    received = [each.signal_id for each in events if isinstance(each, ev.SignalReceived)]
    assert received == ["mine", "1"]
    caplog.clear()
    world.pass_time(300.0)
    # Once a minute it is tried again.
    assert sum("is not taken over" in record.message for record in caplog.records) in (4, 5)
    assert len(caplog.records) < 5 * 8


# -- claim, ask ----------------------------------------------------------------------------


@pytest.mark.parametrize(("of", "name"), [(Activation, "take"), (ActiveWorkflows, "may_take")])
def test_one_that_cant_be_taken_over(
    world: World, monkeypatch: pytest.MonkeyPatch, of: type, name: str
) -> None:
    original = getattr(of, name)

    def failing(self: Any, about: Any, *arguments: Any) -> Any:
        if getattr(about, "state", about).workflow_id == BAD:
            raise Bug
        return original(self, about, *arguments)

    monkeypatch.setattr(of, name, failing)
    second = second_life(world)
    assert set(second.loop.active) == set(GOOD)
    is_released(world, "Bug")
    monkeypatch.setattr(of, name, original)
    others_go_on(second)


@pytest.mark.parametrize(
    ("of", "name"),
    [(Loop, "open"), (Loop, "around"), (Activation, "activate"), (Activation, "activated")],
)
def test_one_request_that_meets_a_bug(
    world: World, monkeypatch: pytest.MonkeyPatch, of: Any, name: str
) -> None:
    coordinator = Coordinator(world, "one", auto_resume=False)
    for workflow_id in (*GOOD, "known"):
        submit(coordinator, workflow_id)
    coordinator.loop.drop(coordinator.loop.active["known"])
    original = getattr(of, name)

    def failing(self: Any, about: Any, *arguments: Any) -> Any:
        if getattr(about, "workflow_id", about) in (BAD, "known"):
            raise Bug
        return original(self, about, *arguments)

    monkeypatch.setattr(of, name, failing)
    if name in ("activate", "activated"):
        assert isinstance(ask(coordinator, "known", msg.Resume("r")), Bug)
    else:
        assert isinstance(submit(coordinator, BAD), Bug)
    assert BAD not in coordinator.loop.active
    others_go_on(coordinator)
