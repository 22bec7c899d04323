"""What earlier releases stored is read for ever, and read as they read it."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from ray_workflows._client.copies import Copying
from ray_workflows._client.repairs import repair
from ray_workflows._codec import journal
from ray_workflows._codec.journal import Chain, decode_entries
from ray_workflows._coordinator.recovery import recover
from ray_workflows._engine.decide import decide
from ray_workflows._engine.decision import Surroundings
from ray_workflows._engine.evolve import evolve
from ray_workflows._engine.invariants import check
from ray_workflows._engine.lifecycle import evolve_lifecycle
from ray_workflows._engine.snapshots import SavedFrame, SavedTask, SavedTasks, restore
from ray_workflows._engine.state import Body, Lifecycle, WorkflowState
from ray_workflows._engine.summary import catalog_row, is_row_of
from ray_workflows._model import events as ev
from ray_workflows._model import messages as msg
from ray_workflows._model.plan import Environment, Function, Plan, TaskOptions, TaskSpec
from ray_workflows._model.status import WorkflowStatus
from ray_workflows._model.steps import CanceledStep, EndedStep, Step, StepOutcome, StepRecord
from ray_workflows._model.values import Blob, ErrorInfo, Outcome, Value
from ray_workflows.exceptions import StorageCorruptError
from ray_workflows.storage import MemoryStorage, SqliteStorage
from ray_workflows.testing.builders import OK, make_append
from tests.journals.golden import DIRECTORY, load, look, look_as_then, unpack
from tests.support.states import (
    check_same,
    check_same_lifecycle,
    check_saved_lifecycle,
    check_snapshot,
)

FILES = sorted(DIRECTORY.glob("*/*.json"))
NAMES = [str(path.relative_to(DIRECTORY)) for path in FILES]

#: Records inside of events; they follow the same rule.
PARTS = (
    *(Plan, Function, TaskSpec, TaskOptions, Environment),
    *(Value, Blob, ErrorInfo, Outcome),
    *(Lifecycle, SavedTasks, SavedFrame, SavedTask),
    *(Step, StepRecord, StepOutcome, CanceledStep, EndedStep, Body),
)


def test_there_are_some() -> None:
    assert len(FILES) >= 30


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_a_journal_is_read_as_it_was(path: Path) -> None:
    """Status, output, error, metadata, catalog, tasks and their outputs, and what would be next."""
    storage = MemoryStorage()
    golden = load(path, storage)
    workflow_id = golden["row"]["workflow_id"]
    seen = look_as_then(storage, golden)
    for part, expected in golden["seen"].items():
        assert seen[part] == expected, part
    # The row that was stored then is the one that the journal gives today.
    found = recover(storage, workflow_id)
    assert found is not None
    then = storage.read_catalog(workflow_id)
    assert all(getattr(found.row, name) == getattr(then, name) for name in golden["row"])
    assert found.row.name
    assert seen["catalog"] == json.loads(json.dumps(golden["row"]))


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_a_row_that_is_right_is_not_repaired(path: Path) -> None:
    """Earlier releases knew less than the journal says today."""
    storage = MemoryStorage()
    workflow_id = load(path, storage)["row"]["workflow_id"]
    row = storage.read_catalog(workflow_id)
    assert row is not None
    found = recover(storage, workflow_id)
    assert found is not None
    # The one whose row was written without the number of its snapshot gets it.
    right = path.stem != "snapshots"
    assert is_row_of(row, found.row) is right
    assert (repair(storage, workflow_id) is None) is right
    assert not is_row_of(msgspec.structs.replace(row, holder="another"), found.row)


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_a_journal_goes_on(path: Path) -> None:
    """It can be claimed or resumed, and canceled: today's engine accepts where it stands."""
    storage = MemoryStorage()
    workflow_id = load(path, storage)["row"]["workflow_id"]
    found = recover(storage, workflow_id)
    assert found is not None
    if found.row.status is WorkflowStatus.SUCCESSFUL:
        return
    resume = msg.Resume(canceled=True)
    inputs: list[msg.Message] = [resume, msg.Wake(), msg.Cancel(), resume]
    if found.row.status in WorkflowStatus.non_terminating_status():
        inputs = [msg.Claim(), msg.Start(), *inputs[1:]]
    state = found.state
    for input in inputs:
        for event in decide(state, input, 2_000_000_000.0, Surroundings("h-new")).events:
            evolve(state, event)
            check(state)
    assert catalog_row(state, 1).status in (WorkflowStatus.RUNNING, WorkflowStatus.FAILED)
    assert catalog_row(state, 1).holder == "h-new"


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_a_snapshot_and_the_rest_are_the_journal(path: Path) -> None:
    """A state that was restored after any of the events becomes the same as one that never was; and
    the lifecycle alone becomes what it is in both."""
    storage = MemoryStorage()
    row = load(path, storage)["row"]
    where = row["workflow_id"], row["incarnation"]
    states = [WorkflowState(*where)]
    lifecycle = Lifecycle(*where)
    for event in decode_entries(storage.read_journal(where[1]), *where):
        for state in states:
            evolve(state, event)
            check_same(state, states[0])
        evolve_lifecycle(lifecycle, event)
        check_same_lifecycle(lifecycle, states[0])
        states.append(check_snapshot(states[0]))
        lifecycle = check_saved_lifecycle(states[0])
        if isinstance(event, ev.StateSaved) and event.tasks is not None:
            check_same(restore(event), states[0])


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_a_journal_is_copied(path: Path, tmp_path: Path) -> None:
    storage = MemoryStorage()
    golden = load(path, storage)
    target = SqliteStorage(tmp_path)
    target.open()
    workflow_id = golden["row"]["workflow_id"]
    assert Copying(storage, target).copy(workflow_id)
    assert look_as_then(target, golden) == golden["seen"]
    entries = target.read_journal(golden["row"]["incarnation"])
    assert [entry.entry for entry in entries] == [unpack(data) for _, data in golden["entries"]]
    target.close()


def test_every_kind_of_event_is_in_them() -> None:
    found = {name for path in FILES for name in json.loads(path.read_text())["seen"]["events"]}
    # They are in journals of this release; a kind that is added needs a story in generate.py.
    assert found == {kind.__name__ for kind in ev.AnyEvent.__args__}


def test_no_field_was_moved_or_removed() -> None:
    """`records.json` is what was there at the last release; only what is at the end may be new."""
    known = json.loads((DIRECTORY / "records.json").read_text())
    today = {kind.__name__: kind for kind in (*ev.AnyEvent.__args__, *PARTS)}
    for name, record in known.items():
        fields = list(today[name].__struct_fields__)
        assert fields[: len(record["fields"])] == record["fields"], name
        assert today[name].__struct_config__.tag == record["tag"], name
        new = fields[len(record["fields"]) :]
        defaults = today[name].__struct_defaults__
        assert len(defaults) >= len(new), f"{name}: {new} need defaults"
    assert set(today) == set(known), "add it with: python -m tests.journals.generate --records"


def test_the_versions_of_what_is_stored() -> None:
    versions = {unpack(data)[2] for path in FILES for _, data in entries_of(path)}
    assert versions == set(range(1, journal.VERSION + 1))


def entries_of(path: Path) -> list[list[str]]:
    entries: list[list[str]] = json.loads(path.read_text())["entries"]
    return entries


def test_a_mixed_journal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A workflow that one release began, and the next one goes on with."""
    path = DIRECTORY / "0.1.0" / "interrupted.json"
    storage = MemoryStorage()
    golden = load(path, storage)
    row = storage.read_catalog("interrupted")
    next_version = journal.VERSION + 1
    monkeypatch.setattr(journal, "VERSION", next_version)
    upcasters = dict.fromkeys(range(1, next_version), lambda events: events)
    monkeypatch.setattr(journal, "UPCASTERS", upcasters)
    monkeypatch.setattr(journal, "PREFIX", journal.MAGIC + bytes((next_version,)))
    chain = Chain("interrupted", row.incarnation)
    for entry in storage.read_journal(row.incarnation):
        chain.decode(entry)
    claimed = [ev.WorkflowClaimed(2_000_000_000.0, "h-new")]
    newer = journal.encode_entry(
        claimed, "interrupted", row.incarnation, row.seq + 1, chain.link or b""
    )
    assert newer[2] == next_version
    append = make_append("interrupted", row.seq, incarnation=row.incarnation, entry=newer)
    assert storage.commit([append]) == [OK]
    found = recover(storage, "interrupted")
    assert found is not None
    assert found.row.holder == "h-new"
    assert look(storage, "interrupted")["events"] == [*golden["seen"]["events"], "WorkflowClaimed"]
    entries = storage.read_journal(row.incarnation)
    assert [entry.entry[2] for entry in entries] == [1] * row.seq + [next_version]
    # The first linked entry vouches for all before it, also for those that have no links.
    entries[1] = msgspec.structs.replace(entries[1], entry=entries[2].entry)
    with pytest.raises(StorageCorruptError, match="does not follow"):
        decode_entries(entries, "interrupted", row.incarnation)
