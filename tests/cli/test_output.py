from __future__ import annotations

import json
import math
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import ray

from tests.cli.conftest import Cli
from tests.cli.store import Store


@pytest.fixture(autouse=True)
def without_a_cluster() -> Any:
    """Nothing here starts Ray, or connects to it."""
    before = ray.is_initialized()
    yield
    assert ray.is_initialized() == before


def test_as_python_and_as_json(store: Store, cli: Cli) -> None:
    store.successful("w", {"sum": 18, "parts": (1, None)})
    assert cli("output", "w").stdout == "{'sum': 18, 'parts': (1, None)}\n"
    assert cli.json("output", "w") == {"sum": 18, "parts": [1, None]}


class Noisy(dict):
    """Prints as it is unpickled: as a module may as it is imported, and Ray at any moment."""

    def __reduce__(self) -> Any:
        return noisy, (dict(self),)


def noisy(value: dict[str, int]) -> Noisy:
    print("WARNING: noise")
    return Noisy(value)


def test_what_others_print_is_not_in_the_result(store: Store, cli: Cli) -> None:
    store.successful("w", Noisy(sum=18))
    result = cli("output", "w", "--json")
    assert json.loads(result.stdout) == {"sum": 18}
    assert result.stderr == "WARNING: noise\n"
    to_stdout = cli("output", "w", "--to", "-")
    assert pickle.loads(to_stdout.stdout_bytes) == {"sum": 18}
    assert cli("output", "--help").stdout.startswith("Usage")


def test_of_a_task(store: Store, cli: Cli) -> None:
    store.failed("w")
    assert cli("output", "w", "--task-id", "fetch").stdout == "[1, 2, 3]\n"
    assert "it failed" in cli("output", "w", "--task-id", "total", code=1).stderr
    assert "no such task" in cli("output", "w", "--task-id", "nobody", code=1).stderr


def test_what_is_not_there(store: Store, cli: Cli) -> None:
    store.failed("broken")
    store.canceled("stopped")
    store.running("cut off")
    assert "ValueError: boom" in cli("output", "broken", code=1).stderr
    assert "canceled" in cli("output", "stopped", code=1).stderr
    assert "resume" in cli("output", "cut off", code=1).stderr
    store.hold()
    result = cli("output", "cut off", code=1)
    assert "not there yet: the workflow is RUNNING" in result.stderr
    assert result.stdout == ""


def test_to_a_file(store: Store, cli: Cli, tmp_path: Path) -> None:
    value = {"a": bytes(200_000)}
    store.successful("w", value)
    path = tmp_path / "output.pickle"
    assert cli("output", "w", "--to", str(path)).stdout == ""
    assert pickle.loads(path.read_bytes()) == value
    assert pickle.loads(cli("output", "w", "--to", "-").stdout_bytes) == value
    assert "leave --json out" in cli("output", "w", "--to", str(path), "--json", code=2).stderr
    missing = str(tmp_path / "no" / "file")
    assert "No such file" in cli("output", "w", "--to", missing, code=1).stderr


def test_a_failure_leaves_the_file_as_it_was(store: Store, cli: Cli, tmp_path: Path) -> None:
    store.failed("w")
    path = tmp_path / "output.pickle"
    path.write_text("before")
    cli("output", "w", "--to", str(path), code=1)
    assert path.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["output.pickle"]


@pytest.mark.parametrize("value", [{1, 2}, object, math.nan, {"a": {(1, 2): 3}}, b"bytes"])
def test_what_json_can_not_represent(store: Store, cli: Cli, value: Any) -> None:
    store.successful("w", value)
    result = cli("output", "w", "--json", code=1)
    assert "can't be represented as JSON" in result.stderr
    assert "--to FILE" in result.stderr
    assert result.stdout == ""
    assert cli("output", "w").stdout


MODULE = """
class Report:
    def __init__(self, total):
        self.total = total

    def __repr__(self):
        return f"Report({self.total})"

class Moody(Report):
    def __repr__(self):
        raise RuntimeError("not today")
"""


@pytest.fixture
def their_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module of the user's, importable only until the test forgets it."""
    directory = tmp_path / "code"
    directory.mkdir()
    (directory / "their_report.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(directory))
    import their_report

    def forget() -> None:
        sys.path.remove(str(directory))
        del sys.modules["their_report"]

    yield directory, their_report, forget
    sys.modules.pop("their_report", None)


def test_classes_are_found_where_the_driver_had_them(
    store: Store, cli: Cli, their_module: Any
) -> None:
    directory, module, forget = their_module
    store.successful("w", module.Report(7), directory=str(directory))
    forget()
    before = list(sys.path)
    assert cli("output", "w").stdout == "Report(7)\n"
    assert sys.path == before


def test_classes_that_are_gone(store: Store, cli: Cli, their_module: Any) -> None:
    _, module, forget = their_module
    store.successful("w", module.Report(7))
    forget()
    error = cli("output", "w", code=1).stderr
    assert "No module named 'their_report'" in error
    assert "PYTHONPATH" in error


def test_a_repr_that_raises(store: Store, cli: Cli, their_module: Any) -> None:
    _, module, _ = their_module
    store.successful("w", module.Moody(7))
    error = cli("output", "w", code=1).stderr
    assert "RuntimeError: not today" in error
    assert "--to FILE" in error


def test_a_damaged_blob_is_named(store: Store, cli: Cli) -> None:
    store.successful("w", bytes(200_000))
    (path,) = store.directory.glob("blobs/*/*")
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert "checksum" in cli("output", "w", code=1).stderr
