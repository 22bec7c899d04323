"""``--filter``: what it lists, and what is done to each of many workflows."""

from __future__ import annotations

import pytest

from ray_workflows._client import bulk
from ray_workflows._client.reader import Reader
from ray_workflows._model.filters import parse_filter
from ray_workflows.exceptions import StorageUnavailableError, WorkflowStillActiveError
from ray_workflows.testing.builders import list_ids
from tests.cli.conftest import Cli
from tests.cli.store import Store


@pytest.fixture
def orders(store: Store) -> Store:
    """Two that failed, one that did not, one that runs."""
    for name in ("order-1", "order-2", "other-3"):
        store.failed(name)
    store.successful("order-4")
    store.running("order-5")
    store.hold()
    return store


def names(output: str) -> list[str]:
    return [line.split("\t")[0] for line in output.splitlines()]


def test_a_listing_of_what_a_filter_means(orders: Store, cli: Cli) -> None:
    assert names(cli("list", "--filter", "id=order-* status=FAILED").stdout) == [
        "order-2",
        "order-1",
    ]
    found = cli.json("list", "--filter", "name=f* id=order-5")
    assert [(each["workflow_id"], each["status"]) for each in found] == [("order-5", "RUNNING")]
    assert names(cli("list", "--filter", "id=order-*", "--status", "running").stdout) == ["order-5"]
    assert cli("list", "--filter", "tag.team=vision").stdout == ""


def test_a_filter_that_cant_be_read(orders: Store, cli: Cli) -> None:
    for command in ("list", "delete", "cancel", "resume"):
        error = cli(command, "--filter", "status=FAILED team=vision", code=2).stderr
        assert "position 14, 'team=vision': there is no column 'team'" in error
    error = cli("list", "--filter", "status=FAILED", "--status", "failed", code=2).stderr
    assert "--status or in --filter" in error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("delete",), "Name a workflow by its ID, or many by --filter."),
        (("delete", "w", "--filter", "id=w"), "Name a workflow by its ID, or many by --filter."),
        (("delete", "w", "--dry-run"), "go with --filter"),
        (("delete", "--filter", " ", "--yes"), "Write id=* for all"),
        (("delete", "--filter", "id=order-*"), "say --yes, or --dry-run"),
        (("signal", "go"), "Give an ID and the NAME"),
        (("signal", "w", "go", "--filter", "id=w"), "Give an ID and the NAME"),
        (("fork", "--filter", "id=w", "--from-task", "f", "--new-id", "n"), "names one workflow"),
        (("resume", "--filter", "id=w", "--local"), "runs one workflow"),
    ],
)
def test_what_does_not_go_together(
    orders: Store, cli: Cli, words: tuple[str, ...], message: str
) -> None:
    assert message in cli(*words, code=2).stderr
    assert len(list_ids(orders.storage)) == 5


def test_many_are_deleted(orders: Store, cli: Cli) -> None:
    meant = ("delete", "--filter", "id=order-*")
    result = cli(*meant, "--dry-run")
    assert names(result.stdout) == ["order-1", "order-2", "order-4"]
    assert "3 workflows to be deleted." in result.stderr
    assert len(list_ids(orders.storage)) == 5
    assert cli.json(*meant, "--yes") == [
        {"workflow_id": name, "value": None, "error": None}
        for name in ("order-1", "order-2", "order-4")
    ]
    assert sorted(list_ids(orders.storage)) == ["order-5", "other-3"]


def test_one_that_fails_keeps_no_other_from_it(orders: Store, cli: Cli) -> None:
    """A filter that names a status means it, and says what can't be done."""
    result = cli("delete", "--filter", "status=FAILED,RUNNING", "--yes", code=1)
    assert names(result.stdout) == ["order-1", "order-2", "other-3"]
    assert "order-5: Workflow[id=order-5] can't be deleted" in result.stderr.replace("\n", " ") or (
        "order-5: " in result.stderr
    )
    assert "1 workflow could not be deleted." in result.stderr
    assert sorted(list_ids(orders.storage)) == ["order-4", "order-5"]


def test_a_storage_that_is_away_ends_it(orders: Store) -> None:
    """No other could be done either."""
    targets = bulk.find_targets(Reader(orders.storage), parse_filter("id=*"), bulk.TO_DELETE)
    asked = []

    def away(row: object) -> None:
        asked.append(row)
        raise StorageUnavailableError("It is away.")

    with pytest.raises(StorageUnavailableError):
        bulk.do_each(targets, bulk.Verb((), away, threads=1))
    assert len(asked) == 1
    refused = WorkflowStillActiveError("DELETE", "w")

    def refuse(row: object) -> None:
        raise refused

    results = bulk.do_each(targets, bulk.Verb((), refuse))
    assert [each.error for each in results] == [refused] * len(targets)
    assert [each.workflow_id for each in results] == [row.workflow_id for row in targets]
