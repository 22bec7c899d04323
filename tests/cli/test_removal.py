"""``delete`` and ``prune``, which need no cluster."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ray_workflows._client import removal
from ray_workflows._client.reader import Reader
from ray_workflows._coordinator.liveness import LEASE_SECONDS, this_host
from ray_workflows._environment import shared_items
from ray_workflows._model.status import WorkflowStatus
from ray_workflows.cli.parameters import parse_duration
from ray_workflows.exceptions import StorageUnavailableError, WorkflowStillActiveError
from ray_workflows.testing.builders import OK, list_ids, make_append, make_holder
from tests.cli.conftest import Cli
from tests.cli.store import Store

DAY = 86400.0


def ids(store: Store) -> list[str]:
    return sorted(list_ids(store.storage))


# -- delete ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["successful", "failed", "canceled", "running"])
def test_delete_what_nobody_drives(store: Store, cli: Cli, kind: str) -> None:
    row = getattr(store, kind)("w")
    store.successful("other")
    assert cli("delete", "w").stdout == f"Deleted w from {store.storage.url}.\n"
    assert ids(store) == ["other"]
    assert store.storage.read_journal(row.incarnation) == []
    assert "no workflow 'w'" in cli("delete", "w", code=1).stderr


def test_delete_takes_blobs_along(store: Store, cli: Cli) -> None:
    store.successful("w", bytes(200_000))
    assert list(store.directory.glob("blobs/*"))
    assert cli.json("delete", "w") == {"workflow_id": "w", "deleted": True}
    assert not list(store.directory.glob("blobs/*"))


def test_what_is_driven_stays(store: Store, cli: Cli) -> None:
    store.running("w")
    store.hold()
    error = cli("delete", "w", code=1).stderr
    assert f"ray-workflows cancel --storage {store.directory} w" in error
    assert ids(store) == ["w"]


def test_a_coordinator_that_died_just_now_may_come_back(store: Store, cli: Cli) -> None:
    """Ray restarts it: its process is gone, its lease is not."""
    row = store.running("w")
    # Of this machine, and gone: a process of this id started at another time.
    gone = make_holder(row.holder, host=this_host(), pid=os.getpid(), started_ticks=1)
    store.storage.renew_holder(gone, LEASE_SECONDS)
    assert cli.json("list")[0]["status"] == "RESUMABLE"
    reader = Reader(store.storage)
    assert "is running or pending" in cli("delete", "w", code=1).stderr
    assert removal.find_prunable(reader, 0.0, {"RESUMABLE"}, 0) == []
    store.storage.renew_holder(gone, -1.0)
    cli("delete", "w")


def test_who_goes_on_meanwhile_wins(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look and the deletion the workflow was resumed by a coordinator that lives."""
    row = store.failed("w")
    reader = Reader(store.storage)
    real = type(store.storage.journals).delete

    def resumed_first(self, workflow_id: str, incarnation: str, expected_seq: int):
        if self.read_catalog("w") == row:
            resumed = make_append("w", row.seq, incarnation=row.incarnation)
            assert self.commit([resumed]) == [OK]
            store.hold()
        return real(self, workflow_id, incarnation, expected_seq)

    monkeypatch.setattr(type(store.storage.journals), "delete", resumed_first)
    with pytest.raises(WorkflowStillActiveError):
        removal.delete(reader, row)
    assert not removal.delete_row(reader, row)
    assert ids(store) == ["w"]


def test_a_workflow_that_never_rests(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    row = store.failed("w")
    monkeypatch.setattr(removal, "delete_row", lambda reader, row: False)
    with pytest.raises(StorageUnavailableError, match="changed each time"):
        removal.delete(Reader(store.storage), row)


def test_one_that_has_grown_since_it_was_found(store: Store) -> None:
    """It is looked at again."""
    before = store.failed("w")
    grown = make_append(
        "w", before.seq, incarnation=before.incarnation, status=WorkflowStatus.FAILED
    )
    assert store.storage.commit([grown]) == [OK]
    removal.delete(Reader(store.storage), before)
    assert ids(store) == []
    # And one that is gone is deleted, as was wanted.
    removal.delete(Reader(store.storage), before)


def count_calls(monkeypatch: pytest.MonkeyPatch, part: type, name: str) -> list[object]:
    """What a method of a part of a storage is called with."""
    calls: list[object] = []
    real = getattr(part, name)

    def counted(self, *given: object) -> object:
        calls.append(given)
        return real(self, *given)

    monkeypatch.setattr(part, name, counted)
    return calls


@pytest.mark.parametrize("command", ["delete", "prune"])
def test_what_all_share_is_looked_at_once(
    store: Store, cli: Cli, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """To look for unused packages means to read the whole catalog: not once for each workflow."""
    listings = count_calls(monkeypatch, type(store.storage.journals), "list_catalog")
    holders = count_calls(monkeypatch, type(store.storage.leases), "read_holders")
    counts = set()
    for number in (1, 12):
        for each in range(number):
            store.successful(f"w{each}", ago=DAY)
            unused_package(store, f"package/{each}")
        given = ("--filter", "id=*") if command == "delete" else ("--older-than", "1h")
        listings.clear()
        holders.clear()
        assert len(cli.json(command, "--yes", *given)) == number
        assert list_ids(store.storage, statuses=(WorkflowStatus.NONE,)) == []
        counts.add((len(listings), len(holders)))
    assert len(counts) == 1


# -- packages --------------------------------------------------------------------------------


def unused_package(store: Store, name: str) -> None:
    """A package of code that was last used by a submission two hours ago."""
    storage = store.storage
    blob = storage.write_blob(f"i-{name[8:]}", shared_items.KEY, [b"code"])
    item = shared_items.Item(name, f"i-{name[8:]}", blob)
    assert shared_items.append(storage, shared_items.first_row(item, storage.now() - 7200.0))


@pytest.mark.parametrize(
    ("command", "few"),
    [
        (("prune", "--older-than", "1h", "--yes"), ("--older-than", "99d")),
        (("delete", "--filter", "id=old*", "--yes"), ("--filter", "id=nobody")),
        (("delete", "old-1"), None),
    ],
)
def test_packages_that_no_workflow_uses_go_too(
    store: Store, cli: Cli, command: tuple[str, ...], few: tuple[str, ...] | None
) -> None:
    for name in ("old-1", "old-2"):
        store.successful(name, ago=DAY)
    user = store.successful("young", ago=60.0)
    for name in ("package/a", "package/b", "package/used"):
        unused_package(store, name)
    shared_items.note_use(store.storage, "package/used", (user.workflow_id, user.incarnation))
    if len(command) > 2:
        dry = cli(*command, "--dry-run")
        assert "of code" not in dry.stderr
        assert shared_items.find(store.storage, "package/a") is not None
    assert "2 packages of code removed, which no workflow uses any more." in cli(*command).stderr
    left = list_ids(store.storage, statuses=(WorkflowStatus.NONE,))
    assert [name for name in left if "/package/" in name] == ["ray_workflows/package/used"]
    # Nor does it take a workflow to delete.
    if few is not None:
        unused_package(store, "package/a")
        assert "1 package of code removed" in cli(command[0], *few, "--yes").stderr
        assert "of code" not in cli(command[0], *few, "--yes").stderr


# -- prune -------------------------------------------------------------------------------------


@pytest.fixture
def old_and_new(store: Store) -> Store:
    store.successful("done-40d", ago=40 * DAY)
    store.failed("failed-35d", ago=35 * DAY)
    store.canceled("canceled-31d", ago=31 * DAY)
    store.running("cut-off-50d", ago=50 * DAY)
    store.successful("done-29d", ago=29 * DAY)
    store.successful("done-now", ago=10)
    return store


def test_what_ended_long_ago(old_and_new: Store, cli: Cli) -> None:
    dry = cli("prune", "--older-than", "30d", "--dry-run")
    assert dry.stdout.splitlines() == ["done-40d", "failed-35d", "canceled-31d"]
    assert "3 workflows to be deleted" in dry.stderr
    assert len(ids(old_and_new)) == 6
    done = cli("prune", "--older-than", "30d", "--yes")
    assert done.stdout == dry.stdout
    assert "3 workflows deleted" in done.stderr
    assert ids(old_and_new) == ["cut-off-50d", "done-29d", "done-now"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--older-than", "0s"], "done-40d failed-35d canceled-31d done-29d done-now"),
        (["--older-than", "28d"], "done-40d failed-35d canceled-31d done-29d"),
        (["--older-than", "1d", "--status", "SUCCESSFUL"], "done-40d done-29d"),
        (["--older-than", "1d", "--status", "successful", "--keep", "1"], "done-40d done-29d"),
        (["--older-than", "1d", "--status", "SUCCESSFUL", "--keep", "2"], "done-40d"),
        (["--older-than", "1d", "--keep", "9"], ""),
        (["--older-than", "1d", "--status", "RESUMABLE"], "cut-off-50d"),
        (["--older-than", "1d", "--status", "RESUMABLE", "--status", "FAILED"],
         "cut-off-50d failed-35d"),
        (["--older-than", "999d"], ""),
    ],
)  # fmt: skip
def test_selection(old_and_new: Store, cli: Cli, options: list[str], expected: str) -> None:
    assert cli.json("prune", "--yes", *options) == expected.split()
    assert len(ids(old_and_new)) == 6 - len(expected.split())


def test_running_ones_stay(store: Store, cli: Cli) -> None:
    store.running("held", ago=50 * DAY)
    store.hold()
    for status in ("RUNNING", "PENDING", "NONE"):
        cli("prune", "--older-than", "1d", "--yes", "--status", status, code=2)
    assert cli.json("prune", "--older-than", "1d", "--yes", "--status", "RESUMABLE") == []


def test_one_whose_coordinator_comes_back_stays(store: Store) -> None:
    """Somebody was asked whether to delete it, and took a minute."""
    store.running("w", ago=50 * DAY)
    store.failed("v", ago=50 * DAY)
    reader = Reader(store.storage)
    found = removal.find_prunable(reader, DAY, list(WorkflowStatus), 0)
    assert sorted(row.workflow_id for row in found) == ["v", "w"]
    store.hold()
    assert list(removal.prune_rows(reader, found)) == ["v"]
    assert ids(store) == ["w"]


def test_an_interrupted_one_is_as_old_as_its_last_sign_of_life(store: Store, cli: Cli) -> None:
    """It ran for 50 days, and its coordinator was lost yesterday."""
    row = store.running("w", ago=50 * DAY)
    store.storage.renew_holder(make_holder(row.holder), -DAY)
    options = ("--yes", "--status", "RESUMABLE")
    assert cli.json("prune", "--older-than", "2d", *options) == []
    assert cli.json("prune", "--older-than", "12h", *options) == ["w"]


def test_a_question_needs_somebody_to_answer(old_and_new: Store, cli: Cli) -> None:
    result = cli("prune", "--older-than", "30d", code=2, input="y\n")
    assert "--yes" in result.stderr
    assert len(ids(old_and_new)) == 6
    # Nothing to delete, nothing to ask.
    cli("prune", "--older-than", "999d")


@pytest.mark.parametrize("text", ["", "30", "d", "-1d", "1 d", "1y", "1d2h", "nan", "inf", "١d"])
def test_bad_durations(cli: Cli, text: str) -> None:
    result = cli("prune", "--older-than", text, "--yes", code=2)
    assert "is not a duration. Write a number and a unit" in result.stderr
    assert "--older-than" in result.stderr


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30d", 30 * DAY),
        ("12h", 43200),
        ("90m", 5400),
        ("45s", 45),
        ("2w", 14 * DAY),
        ("0.5h", 1800),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


def test_older_than_is_required(cli: Cli, tmp_path: Path) -> None:
    assert "--older-than" in cli("prune", code=2).stderr
    cli("prune", "--older-than", "1d", "--keep", "-1", code=2)


def test_a_damaged_row_is_repaired(store: Store, cli: Cli) -> None:
    """Then it can be deleted; before, nothing could be done about it."""
    store.successful("w", 42)
    assert "nothing was changed" in cli("repair", "w").stdout
    with store.storage.journals.home.writer.transaction() as connection:
        connection.execute("UPDATE catalog SET status = 'FAILED'")
    assert "ray-workflows repair" in cli("delete", "w", code=1).stderr
    assert cli.json("repair", "w") == {"workflow_id": "w", "repaired": True}
    assert cli("output", "w").stdout == "42\n"
    cli("delete", "w")
    assert "no workflow 'w'" in cli("repair", "w", code=1).stderr
