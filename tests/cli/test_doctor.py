from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ray_workflows.cli import checks, clusters
from ray_workflows.exceptions import StorageUnavailableError
from ray_workflows.storage.sqlite.directory import SqliteDirectory
from ray_workflows.testing.builders import make_holder
from tests.cli.conftest import Cli
from tests.cli.store import Store


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Ray finds none: this machine may have some of others."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(clusters, "local_clusters", list)


def problems(cli: Cli, *options: str) -> dict[str, dict[str, str]]:
    """What is wrong, by the name of the check; each with a remedy."""
    found = cli.json("doctor", *options, code=1)
    assert found["ok"] is False
    wrong = {check["name"]: check for check in found["checks"] if check["level"] == "problem"}
    assert all(check["message"] and check["remedy"] for check in wrong.values())
    return wrong


def findings(checked: Any) -> dict[str, str]:
    return {finding.name: finding.level.value for finding in checked}


def test_health(store: Store, cli: Cli) -> None:
    store.successful("done", bytes(200_000))
    store.running("held")
    store.hold()
    found = cli.json("doctor", "--deep")
    assert found["ok"] is True
    names = [check["name"] for check in found["checks"]]
    assert {"ray", "storage", "writable", "space", "clock", "workflows", "journals"} <= set(names)
    text = cli("doctor").stdout
    assert "1 are running, 0 pending, 0 interrupted." in text
    assert "journals" not in text


def test_a_storage_that_is_not_there(cli: Cli, tmp_path: Path) -> None:
    where = str(tmp_path / "none")
    found = cli.json("doctor", "--storage", where, storage=False, code=1)
    wrong = [check for check in found["checks"] if check["level"] == "problem"]
    assert [check["name"] for check in wrong] == ["storage"]
    assert "does not exist" in wrong[0]["message"]
    assert not (tmp_path / "none").exists()


def test_interrupted_workflows_come_with_their_command(store: Store, cli: Cli) -> None:
    store.running("it's cut")
    wrong = problems(cli)
    command = f"""ray-workflows resume --storage {store.directory} 'it'"'"'s cut'"""
    assert wrong["workflow"]["remedy"] == command
    for number in range(25):
        store.running(f"w{number}")
    checked = cli.json("doctor", code=1)["checks"]
    assert sum(check["name"] == "workflow" for check in checked) == checks.NAMED
    assert "26 interrupted. The first 20" in problems(cli)["workflows"]["message"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("UPDATE journal SET entry = x'00' WHERE seq = 2", "2 of workflow 'w' is not a journal"),
        ("UPDATE journal SET entry = substr(entry, 1, 30) WHERE seq = 2", "checksum"),
        ("DELETE FROM journal WHERE seq = 2", "entry 2 of workflow 'w'.* is missing"),
        ("DELETE FROM journal WHERE seq > 2", "ends with entry 2, but the catalog"),
        ("DELETE FROM journal", "is missing, but the catalog"),
        (
            "UPDATE catalog SET status = 'FAILED', digest = ''",
            "catalog says FAILED, its journal SUCCESSFUL",
        ),
    ],
)
def test_damaged_journals(store: Store, cli: Cli, damage: str, message: str) -> None:
    store.successful("w")
    with store.storage.journals.home.writer.transaction() as connection:
        connection.execute(damage)
    assert cli.json("doctor")["ok"] is True
    wrong = problems(cli, "--deep")
    assert list(wrong) == ["journal"]
    assert re.search(message, wrong["journal"]["message"]), wrong


def test_a_damaged_row(store: Store, cli: Cli) -> None:
    store.successful("w")
    store.successful("v")
    with store.storage.journals.home.writer.transaction() as connection:
        connection.execute("UPDATE catalog SET status = 'FAILED' WHERE workflow_id = 'w'")
    wrong = problems(cli, "--deep")
    assert list(wrong) == ["catalog"]
    assert "row of 'w' " in wrong["catalog"]["message"]


@pytest.mark.parametrize("how", ["changed", "missing"])
def test_damaged_blobs(store: Store, cli: Cli, how: str) -> None:
    store.successful("w", bytes(200_000))
    (path,) = store.directory.glob("blobs/*/*")
    path.chmod(0o600)
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes(b"x" * path.stat().st_size)
    assert "blob" in problems(cli, "--deep")["journal"]["message"]


def test_a_running_workflow_that_grows_is_not_damaged(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row was read before the journal: it may be behind."""
    story = store.story("w")
    store.give(story, "fetch", 1)
    behind = msgspec.structs.replace(store.save(story), seq=1)
    assert checks.check_journal(store.storage, behind, checks.Shared(store.storage)) == ""


def test_a_workflow_that_is_deleted_meanwhile_is_not_damaged(store: Store) -> None:
    row = store.successful("w")
    store.storage.delete("w", row.incarnation, row.seq)
    assert checks.check_journal(store.storage, row, checks.Shared(store.storage)) == ""


def test_a_storage_that_can_not_be_written(
    store: Store, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: SqliteDirectory) -> None:
        raise StorageUnavailableError("attempt to write a readonly database")

    monkeypatch.setattr(SqliteDirectory, "check_writable", refuse)
    assert "readonly" in problems(cli)["writable"]["message"]


def test_a_full_disk(store: Store, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "FREE_BYTES", 10**18)
    assert "prune" in problems(cli)["space"]["remedy"]


def test_clocks(store: Store, cli: Cli) -> None:
    here = time.time()
    assert findings(checks.check_clock(store.storage, here)) == {"clock": "ok"}
    assert findings(checks.check_clock(store.storage, here + 60)) == {"clock": "problem"}
    store.storage.renew_holder(make_holder("h9"), 3600.0)
    assert "in the future" in problems(cli)["clock"]["message"]


@pytest.mark.parametrize(
    ("version", "level"),
    [("2.47.1", "problem"), ("2.48.0", "ok"), ("2.60.0", "ok"), ("3.0.0rc1", "ok")],
)
def test_releases_of_ray(version: str, level: str) -> None:
    assert findings(checks.check_ray(version)) == {"ray": level}


def description(**fields: Any) -> dict[str, Any]:
    fine = {"version": checks.__version__, "storage_error": None, "unexpected_error": None}
    return {**fine, "workflows": 3, **fields}


@pytest.mark.parametrize(
    ("said", "level"),
    [
        ({}, "ok"),
        ({"version": "0.0.1"}, "problem"),
        ({"storage_error": OSError("away")}, "problem"),
        ({"unexpected_error": "KeyError(1)"}, "problem"),
    ],
)
def test_what_a_coordinator_says(store: Store, said: dict[str, Any], level: str) -> None:
    from ray_workflows._client.reader import Reader

    found = checks.check_coordinator(Reader(store.storage), description(**said))
    assert findings(found) == {"coordinator": level}
