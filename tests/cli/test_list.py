from __future__ import annotations

import pytest

from ray_workflows._model import messages as msg
from ray_workflows._model.catalog import CatalogQuery
from ray_workflows._model.values import ErrorInfo
from ray_workflows.storage.sqlite.journals import SqliteJournals
from ray_workflows.testing.builders import OK, fill, make_append
from tests.cli.conftest import Cli, without_cluster
from tests.cli.store import Store


def lines(text: str) -> list[list[str]]:
    return [line.split("\t") for line in text.splitlines()]


@pytest.fixture
def all_kinds(store: Store) -> Store:
    store.successful("done", ago=4000)
    store.failed("broken", ago=3000)
    store.canceled("stopped", ago=2000)
    store.running("cut off", ago=1000)
    return store


def test_all_the_newest_first(all_kinds: Store, cli: Cli) -> None:
    rows = lines(cli("list").stdout)
    assert [(row[0], row[1], row[3], row[4]) for row in rows] == [
        ("cut off", "RESUMABLE", "", ""),
        ("stopped", "CANCELED", "0 ms", ""),
        ("broken", "FAILED", "2.0 s", "ValueError: boom"),
        ("done", "SUCCESSFUL", "4.0 s", ""),
    ]


def test_a_held_workflow_is_running(all_kinds: Store, cli: Cli) -> None:
    all_kinds.hold()
    (found,) = cli.json("list", "--status", "RUNNING")
    assert found["workflow_id"] == "cut off"
    assert found["duration"] == pytest.approx(1000, abs=60)
    assert cli.json("list", "--status", "RESUMABLE") == []


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        (["FAILED"], ["broken"]),
        (["failed"], ["broken"]),
        (["RESUMABLE"], ["cut off"]),
        (["RUNNING"], []),
        (["SUCCESSFUL", "CANCELED"], ["stopped", "done"]),
        (["PENDING", "RESUMABLE", "RESUMABLE"], ["cut off"]),
    ],
)
def test_statuses(all_kinds: Store, cli: Cli, statuses: list[str], expected: list[str]) -> None:
    options = [part for status in statuses for part in ("--status", status)]
    assert [found["workflow_id"] for found in cli.json("list", *options)] == expected


def test_json_has_what_the_catalog_has(store: Store, cli: Cli) -> None:
    row = store.failed("broken")
    (found,) = cli.json("list")
    assert found == {
        "workflow_id": "broken",
        "status": "FAILED",
        "kind": "dag",
        "name": "f",
        "tags": {},
        "submitted_at": row.submitted_at,
        "started_at": row.started_at,
        "ended_at": row.ended_at,
        "duration": pytest.approx(2.0),
        "error": "ValueError: boom",
    }


def test_nothing(cli: Cli) -> None:
    assert cli("list").stdout == ""
    assert cli.json("list") == []


def test_limit_says_that_there_are_more(all_kinds: Store, cli: Cli) -> None:
    result = cli("list", "--limit", "3")
    assert [row[0] for row in lines(result.stdout)] == ["cut off", "stopped", "broken"]
    assert "more than these 3" in result.stderr
    assert "more" not in cli("list", "--limit", "4").stderr
    assert "more" not in cli("list", "--all").stderr
    assert len(cli.json("list", "--limit", "2")) == 2


def test_a_limit_reads_no_more_than_it_needs(
    store: Store, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    appends = [make_append(f"w{i:05}", 0, submitted_at=1e9 + i) for i in range(10_000)]
    assert store.storage.commit(appends) == [OK] * 10_000
    read = []
    real = SqliteJournals.list_catalog

    def counted(self: SqliteJournals, query: CatalogQuery) -> object:
        page = real(self, query)
        read.append(len(page.rows))
        return page

    monkeypatch.setattr(SqliteJournals, "list_catalog", counted)
    found = cli.json("list", "--limit", "20", "--status", "RESUMABLE")
    assert [row["workflow_id"] for row in found] == [f"w{9999 - i:05}" for i in range(20)]
    assert sum(read) <= 21
    assert len(cli.json("list", "--all")) == 10_000
    assert max(read) <= 1000


ODD_IDS = [
    "a b/../c",
    "[red]bold[/red]",
    "Größe 🦑",
    "'; DROP TABLE catalog; --",
    "--all",
    "w" * 512,
]


@pytest.mark.parametrize("workflow_id", ODD_IDS)
def test_odd_ids_come_whole(store: Store, cli: Cli, workflow_id: str) -> None:
    store.successful(workflow_id)
    assert lines(cli("list").stdout)[0][0] == workflow_id
    assert cli.json("list")[0]["workflow_id"] == workflow_id
    assert cli.json("show", "--", workflow_id)["workflow_id"] == workflow_id


def test_what_would_spoil_the_lines_is_escaped(store: Store, cli: Cli) -> None:
    fill(store.storage, "a\u202eb\u2028c", error="first\tpart\x1b[31m\nsecond")
    (row,) = lines(cli("list").stdout)
    assert row[0] == "a\\u202eb\\u2028c"
    assert row[4] == "first\\tpart\\x1b[31m"
    assert cli.json("list")[0]["workflow_id"] == "a\u202eb\u2028c"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--limit", "0"], "--limit"),
        (["--limit", "x"], "--limit"),
        (["--status", "DONE"], "DONE"),
        (["--status", "NONE"], "NONE"),
        (["--nonsense"], "--nonsense"),
        (["extra"], "extra"),
    ],
)
def test_wrong_usage(cli: Cli, options: list[str], message: str) -> None:
    result = cli("list", *options, code=2)
    assert message in result.stderr
    assert result.stdout == ""


def test_an_error_takes_one_line_whatever_its_length(store: Store, cli: Cli) -> None:
    story = store.story("long")
    error = ErrorInfo("ValueError", "x" * 2_000_000)
    story.report(msg.AttemptRaised, "fetch", error=error, retryable=False)
    store.save(story)
    (row,) = lines(cli("list").stdout)
    assert row[4].startswith("ValueError: xxx")
    assert len(row[4]) < 400
    (found,) = cli.json("list")
    assert len(found["error"]) < 400
    (_, *tasks) = lines(cli("show", "long").stdout.partition("\n\n")[2])
    assert all(len(cell) < 400 for task in tasks for cell in task)


def test_a_storage_that_was_not_named_is_said_to_be_the_default(
    store: Store, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a cluster runs, it is the cluster's."""
    without_cluster(monkeypatch)
    monkeypatch.setattr(
        "ray_workflows.storage.urls.default_directory", lambda: str(store.directory)
    )
    monkeypatch.delenv("RAY_WORKFLOW_STORAGE", raising=False)
    error = cli("show", "nobody", storage=False, code=1).stderr
    assert "It is the default, because there is no --storage and no running cluster" in error
    assert "not asked for its storage: The Ray cluster at 127.0.0.1:1 does not answer" in error
    assert "It is" not in cli("show", "nobody", code=1).stderr
