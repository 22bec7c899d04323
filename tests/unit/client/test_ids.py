"""Ids that no workflow can have."""

from __future__ import annotations

import enum
from pathlib import Path

import numpy as np
import pytest

import ray_workflows as workflow
from ray_workflows._client import removal
from ray_workflows._client.reader import Reader
from ray_workflows._client.reads import get_metadata, get_status, list_all, stored_output
from ray_workflows._environment import shared_items
from ray_workflows._model.ids import validate_signal_text, validate_workflow_id
from ray_workflows._model.status import WorkflowStatus
from ray_workflows.cli.main import main
from ray_workflows.exceptions import InvalidWorkflowIdError
from ray_workflows.storage import MemoryStorage, SqliteStorage
from ray_workflows.storage.orphans import take
from ray_workflows.testing.builders import OK

ITEM = "ray_workflows/package/abc"


@pytest.fixture
def item(tmp_path: Path) -> SqliteStorage:
    """A storage with a package, as submissions store it."""
    storage = SqliteStorage(tmp_path)
    storage.open()
    shared_items.keep(storage, "package/abc", lambda: [b"code"])
    assert storage.commit([take("i-swept", storage.now())]) == [OK]
    return storage


def test_what_the_library_stores_is_no_workflow(item: SqliteStorage) -> None:
    reader = Reader(item)
    assert list_all(reader, set(WorkflowStatus) - {WorkflowStatus.NONE}) == []
    for verb in (
        lambda: validate_workflow_id(ITEM),
        lambda: get_status(reader, ITEM),
        lambda: get_metadata(reader, ITEM, None),
        lambda: stored_output(reader, ITEM, None),
        lambda: workflow.copy(ITEM, source=item, target=MemoryStorage()),
    ):
        with pytest.raises(InvalidWorkflowIdError, match="begins with 'ray_workflows/'"):
            verb()
    assert removal.prune(reader, 0.0, None, 0) == []
    assert shared_items.find(item, "package/abc") is not None
    item.close()


@pytest.mark.parametrize("command", ["delete", "show", "cancel", "resume", "copy", "output"])
def test_commands_refuse_it(
    item: SqliteStorage, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--to", f"{item.directory}-copy"] if command == "copy" else []
    where = ["--storage", item.directory] if command != "cancel" else []
    with pytest.raises(SystemExit) as ended:
        main([command, ITEM, *more, *where])
    assert ended.value.code != 0
    assert "begins with 'ray_workflows/'" in capsys.readouterr().err
    assert shared_items.find(item, "package/abc") is not None
    item.close()


class Colour(str, enum.Enum):
    RED = "red"


class Renamed(str):
    def __str__(self) -> str:
        return "another"


@pytest.mark.parametrize("text", [Colour.RED, Renamed("red"), np.str_("red")])
def test_a_text_of_a_subclass_is_taken_as_the_text_that_it_is(text: str) -> None:
    for taken in (validate_workflow_id(text), validate_signal_text("name", text)):
        assert type(taken) is str
        assert taken == "red"
