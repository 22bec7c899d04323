"""When states are saved, what is read because of that, and what is wrong with a snapshot."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from ray_workflows._client.outputs import execution_error
from ray_workflows._client.reader import Reader
from ray_workflows._client.repairs import repair
from ray_workflows._codec.journal import NO_LINK, decode_entries, encode_entry, link_of
from ray_workflows._coordinator.recovery import recover
from ray_workflows._coordinator.snapshots import NOTHING, RULE, Unsaved, next_snapshot, saved_in
from ray_workflows._engine import snapshots
from ray_workflows._engine.replay import replay
from ray_workflows._engine.summary import catalog_row
from ray_workflows._model import messages as msg
from ray_workflows._model.answers import Received
from ray_workflows._model.catalog import Append
from ray_workflows._model.status import WorkflowStatus
from ray_workflows._model.values import Value
from ray_workflows.cli.checks import Shared, check_journal
from ray_workflows.exceptions import StorageCorruptError
from ray_workflows.storage import MemoryStorage
from ray_workflows.testing.builders import OK
from tests.support.states import check_same, check_same_lifecycle
from tests.unit.coordinator.test_failover import PLAN, Coordinator, World
from tests.unit.driver import BOOM, Driver
from tests.unit.plans import plan


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def read(world: World, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of entries that are read."""
    numbers: list[int] = []
    original = world.storage.journals.read_journal

    def read_journal(incarnation: str, after: int = 0) -> Any:
        found = original(incarnation, after)
        numbers.extend(entry.seq for entry in found)
        return found

    monkeypatch.setattr(world.storage.journals, "read_journal", read_journal)
    return numbers


def turn(coordinator: Coordinator, turns: int, *, of: int = 1, first: int = 0) -> None:
    """A loop of continuations goes on, each of which is a plan of this many tasks."""
    again = PLAN if of == 1 else plan(*((f"t{n}", ()) for n in range(of)))
    for number in range(turns):
        report = msg.AttemptReturnedPlan(
            task=first + number * of,
            epoch=0,
            attempt=1,
            started_at=1.0,
            ended_at=1.0,
            plan=again,
        )
        coordinator.loop.report("i-w", [report])
        coordinator.step()


def whole_journal(world: World) -> Any:
    return replay("w", "i-w", decode_entries(world.storage.read_journal("i-w"), "w", "i-w"))


def test_a_long_loop_is_read_from_its_last_snapshot(world: World, read: list[int]) -> None:
    owner = Coordinator(world, "owner", auto_resume=False)
    owner.submit("w")
    turn(owner, 2500)
    read.clear()
    found = recover(world.storage, "w")
    assert found is not None
    assert found.seq == 2501
    assert found.row == world.storage.read_catalog("w")
    assert found.row.snapshot == min(read)
    assert len(read) <= RULE.entries + 1
    check_same(found.state, whole_journal(world))
    # A coordinator that takes the workflow over reads no more either, and goes on.
    owner.die()
    read.clear()
    other = Coordinator(world, "other", auto_resume=False, actor="owner")
    world.pass_time(1.0)
    assert world.status("w") == (WorkflowStatus.RUNNING, "other")
    assert len(read) <= RULE.entries + 1
    assert other.loop.active["w"].unsaved.snapshot == found.row.snapshot


def test_a_signal_or_a_wish_to_cancel_needs_no_tasks(world: World, read: list[int]) -> None:
    """To a workflow of another coordinator, with more tasks than are saved."""
    owner = Coordinator(world, "owner", auto_resume=False)
    large = plan(*((f"t{n}", ()) for n in range(RULE.tasks + 1)))
    owner.loop.ask("w", msg.Submit(large, {}, "i-w", "w"), lambda answer: None)
    owner.step()
    for number in range(RULE.entries + 200):
        report = msg.AttemptReturned(number, 0, 1, 1.0, 1.0, value=Value(b"value"))
        owner.loop.report("i-w", [report])
        owner.step()
    row = world.storage.read_catalog("w")
    assert row is not None
    assert row.snapshot
    other = Coordinator(world, "other", auto_resume=False)
    read.clear()
    answers: list[Any] = []
    other.loop.ask("w", msg.Signal("s", "id", Value(b"signal")), answers.append)
    other.step()
    other.loop.ask("w", msg.Cancel(), answers.append)
    other.step()
    assert answers == [Received(), None]
    assert min(read) == row.snapshot
    read.clear()
    world.pass_time(2.0)
    assert world.status("w") == (WorkflowStatus.CANCELED, "owner")
    # Its owner has read nothing twice.
    assert min(read) == row.seq + 1
    lifecycle = recover(world.storage, "w", whole=False)
    assert lifecycle is not None
    assert not lifecycle.whole
    check_same_lifecycle(lifecycle.state, whole_journal(world))
    assert list(lifecycle.state.signals["s"]) == ["id"]
    whole = recover(world.storage, "w")
    assert whole is not None
    check_same(whole.state, whole_journal(world))


def test_the_error_of_a_failed_workflow_needs_no_tasks(world: World, read: list[int]) -> None:
    owner = Coordinator(world, "owner", auto_resume=False)
    large = plan(*((f"t{n}", ()) for n in range(RULE.tasks + 1)))
    owner.loop.ask("w", msg.Submit(large, {}, "i-w", "w"), lambda answer: None)
    owner.step()
    for number in range(3):
        report = msg.AttemptReturned(number, 0, 1, 1.0, 1.0, value=Value(b"value"))
        owner.loop.report("i-w", [report])
        owner.step()
    owner.loop.report("i-w", [msg.AttemptRaised(3, 0, 1, 1.0, 1.0, error=BOOM, retryable=False)])
    owner.step()
    row = world.storage.read_catalog("w")
    assert row is not None
    assert row.snapshot
    read.clear()
    error = execution_error(Reader(world.storage), row)
    assert min(read) == row.snapshot
    assert "t3" in str(error)
    assert "boom" in str(error)


def test_a_lifecycle_is_not_enough_for_who_takes_over(world: World) -> None:
    owner = Coordinator(world, "owner", auto_resume=False)
    owner.submit("w")
    turn(owner, 3, of=RULE.tasks)
    turn(owner, RULE.entries, first=3 * RULE.tasks, of=1)
    row = world.storage.read_catalog("w")
    assert row is not None
    assert row.snapshot
    owner.die()
    world.pass_time(30.0)
    other = Coordinator(world, "other", auto_resume=False)
    answers: list[Any] = []
    other.loop.ask("w", msg.Cancel(), answers.append)
    other.loop.ask("w", msg.Resume("again", canceled=True), answers.append)
    other.step()
    assert answers[0] is None
    assert not isinstance(answers[1], Exception)
    check_same(other.loop.active["w"].state, whole_journal(world))


def test_snapshots_are_a_small_part_of_a_journal(world: World) -> None:
    owner = Coordinator(world, "owner", auto_resume=False)
    owner.submit("w")
    turn(owner, 40, of=500)
    entries = world.storage.read_journal("i-w")
    saved = [saved_in(decode_entries([e], "w", "i-w", e.seq - 1)) for e in entries]
    written = sum(len(each.lifecycle) + len(each.tasks or b"") for each in saved if each)
    assert written
    assert written * RULE.share <= sum(len(entry.entry) for entry in entries)


def test_a_large_state_is_not_saved_when_little_was_appended() -> None:
    """Its plan is an entry: a snapshot would be as large."""
    state = Driver(plan(*((f"t{n}", ()) for n in range(1000)))).state
    unsaved = NOTHING.after(1, 10_000_000, None)
    saved = next_snapshot(RULE, unsaved, state, 1.0)
    assert saved is not None
    assert saved.tasks is None
    unsaved = unsaved.after(2, 1000, saved)
    for seq in range(3, 3 + RULE.entries - 1):
        unsaved = unsaved.after(seq, 100, None)
        assert next_snapshot(RULE, unsaved, state, 1.0) is None
    grown = Unsaved(entries=RULE.entries, whole_size=40_000_000, largest=10_000_000)
    saved = next_snapshot(RULE, grown, state, 1.0)
    assert saved is not None
    assert saved.tasks is not None


def test_a_row_that_names_an_entry_without_a_snapshot(world: World) -> None:
    owner = Coordinator(world, "owner", auto_resume=False)
    owner.submit("w")
    turn(owner, 3)
    home = world.storage.journals.home
    row = world.storage.read_catalog("w")
    assert row is not None
    for number in (2, 9):
        home.rows["w"] = msgspec.structs.replace(row, snapshot=number)
        wrong = f"entry {number} in the journal of workflow 'w' has a"
        with pytest.raises(StorageCorruptError, match=wrong):
            recover(world.storage, "w")
    # The journal says better.
    repaired = repair(world.storage, "w")
    assert repaired is not None
    assert repaired.snapshot == 0
    assert recover(world.storage, "w") is not None


def test_a_snapshot_of_a_newer_release(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = Coordinator(world, "owner", auto_resume=False)
    owner.submit("w")
    turn(owner, RULE.entries + 1)
    monkeypatch.setattr(snapshots, "VERSION", snapshots.VERSION - 1)
    with pytest.raises(StorageCorruptError, match="newer than the 0 that this release reads"):
        recover(world.storage, "w")


def test_doctor_finds_a_snapshot_that_is_not_what_the_entries_say() -> None:
    """It reads every entry, also those that nobody needs."""
    story = Driver(plan(("a", ()), ("b", (0,))), workflow_id="w", incarnation="i-w")
    story.succeed("a")
    right = snapshots.save(story.state, 5.0, None)
    story.state.tasks[1].attempts = 1
    for saved, answer in (
        (right, ""),
        (snapshots.save(story.state, 5.0, None), "Its snapshots, the last one in entry 4, do not"),
    ):
        storage, link = MemoryStorage(), NO_LINK
        events = [*story.journal, saved]
        for seq, event in enumerate(events, 1):
            entry = encode_entry([event], "w", "i-w", seq, link)
            link = link_of(entry)
            row = catalog_row(story.state, seq, seq if event is saved else 0)
            append = Append("w", "i-w", seq - 1, f"c{seq}", entry, row)
            assert storage.commit([append]) == [OK]
        row = storage.read_catalog("w")
        assert row is not None
        found = check_journal(storage, row, Shared(storage))
        assert found.startswith(answer)
        assert bool(found) == bool(answer)
