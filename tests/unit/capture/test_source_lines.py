"""Tracebacks of functions that are stored as code show the lines that ran."""

from __future__ import annotations

import importlib.util
import linecache
import os
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ray_workflows._capture import source_lines
from ray_workflows._capture.functions import write_function
from ray_workflows._capture.values import ValueReader, ValueWriter
from ray_workflows._model.messages import AttemptRaised
from ray_workflows._model.plan import Function
from ray_workflows._model.values import Value
from ray_workflows.storage.memory import MemoryStorage
from tests.unit.workers import INCARNATION, attempt, run

BROKEN = """
class Ledger:
    def add(self, amount):
        raise ValueError(amount)  # the first version


def helper(amount):
    def inner():
        Ledger().add(
            amount,
        )
    return inner()


def book(amount):
    try:
        helper(amount)
    except ValueError as error:
        raise RuntimeError("not booked") from error
"""

MENDED = "\n" * 3 + BROKEN.replace("first version", "second version").replace("amount", "sum")


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """What this process learned of lines is no help, as in another process."""
    forget()
    yield
    forget()


def load(path: Path, text: str) -> Any:
    """The script of a path, as Python runs it: its functions belong to no module that could be
    imported."""
    path.write_text(text)
    spec = importlib.util.spec_from_file_location("__main__", path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    exec(compile(text, str(path), "exec", dont_inherit=True), module.__dict__)
    return module


def written(function: Callable[..., Any]) -> Function:
    writer = ValueWriter(MemoryStorage(), INCARNATION)
    return write_function(writer, function, name="f", where="function")


def opened(function: Function) -> Callable[..., Any]:
    """A function as another process unpickles it."""
    forget()
    read: Callable[..., Any] = ValueReader(MemoryStorage(), INCARNATION).read(
        Value(function.data), where="function"
    )
    return read


def forget() -> None:
    source_lines.kept.clear()
    source_lines.read_lines.cache_clear()
    linecache.clearcache()


def text_of_failure(function: Callable[..., Any]) -> str:
    with pytest.raises(RuntimeError) as caught:
        function(7)
    trace = caught.value.__traceback__
    assert trace is not None
    return source_lines.traceback_text(caught.value, trace.tb_next)


def lines_shown(text: str) -> set[str]:
    return {line.strip() for line in text.splitlines() if line.startswith("    ")}


SHOWN = {
    "helper(amount)",
    "return inner()",
    "Ledger().add(",
    "raise ValueError(amount)  # the first version",
    'raise RuntimeError("not booked") from error',
}


@pytest.mark.parametrize("now", [MENDED, "", None], ids=["edited", "emptied", "gone"])
def test_the_lines_are_those_that_ran(tmp_path: Path, now: str | None) -> None:
    path = tmp_path / "script.py"
    function = written(load(path, BROKEN).book)
    if now is None:
        path.unlink()
    else:
        path.write_text(now)
    book = opened(function)
    here = linecache.getlines(str(path))
    assert lines_shown(text_of_failure(book)) >= SHOWN
    assert linecache.getlines(str(path)) == here
    # Elsewhere in this process, the file is what it is.
    assert path.exists() == (now is not None)
    assert "".join(linecache.getlines(str(path))) == (now or "")


def test_two_versions_of_a_script_in_one_process_each_show_their_own(tmp_path: Path) -> None:
    path = tmp_path / "script.py"
    first = written(load(path, BROKEN).book)
    forget()
    second = written(load(path, MENDED).book)
    old = opened(first)
    new = ValueReader(MemoryStorage(), INCARNATION).read(Value(second.data), where="function")
    for function, there, other in ((old, "first", "second"), (new, "second", "first")) * 2:
        text = text_of_failure(function)
        assert f"the {there} version" in text
        assert f"the {other} version" not in text


def test_a_report_has_them(tmp_path: Path) -> None:
    path = tmp_path / "script.py"
    request = attempt(len, 7)
    template = msgspec.structs.replace(request.template, function=written(load(path, BROKEN).book))
    path.write_text(MENDED)
    forget()
    (report,), _ = run(MemoryStorage(), msgspec.structs.replace(request, template=template))
    assert isinstance(report, AttemptRaised)
    assert lines_shown(report.error.traceback) >= SHOWN


def test_a_continuation_passes_them_on(tmp_path: Path) -> None:
    """A worker stores functions that it has unpickled itself, where the file may be another."""
    path = tmp_path / "script.py"
    function = written(load(path, BROKEN).book)
    path.write_text(MENDED)
    again = written(opened(function))
    assert lines_shown(text_of_failure(opened(again))) >= SHOWN


def test_no_line_is_shown_rather_than_a_wrong_one(tmp_path: Path) -> None:
    """The file was edited before the process that had loaded it stored the function."""
    path = tmp_path / "script.py"
    book = load(path, BROKEN).book
    path.write_text(MENDED)
    os.utime(path, (time.time() + 60, time.time() + 60))
    text = text_of_failure(opened(written(book)))
    assert "in book" in text
    assert not lines_shown(text)


def test_a_file_that_was_written_lately_is_believed_if_it_is_the_source(tmp_path: Path) -> None:
    path = tmp_path / "script.py"
    book = load(path, BROKEN).book
    os.utime(path, (time.time() + 60, time.time() + 60))
    assert lines_shown(text_of_failure(opened(written(book)))) >= SHOWN


def test_long_functions_are_stored_without(tmp_path: Path) -> None:
    long = BROKEN.replace("    try:", "    # long\n" * source_lines.TEXT_LIMIT + "    try:")
    function = written(load(tmp_path / "script.py", long).book)
    assert len(function.data) < source_lines.TEXT_LIMIT
    text = text_of_failure(opened(function))
    assert "return inner()" in text  # Of the helper, which is short.
    assert "helper(amount)" not in text


def test_what_a_process_keeps_has_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_lines, "KEPT_LIMIT", 3)
    opened(written(load(tmp_path / "script.py", BROKEN).book))
    assert len(source_lines.kept) == 3


def test_functions_of_modules_are_stored_by_name_and_without_lines() -> None:
    assert b"restored_code" not in written(traceback.format_exc).data


def test_known_lines_are_not_read_again(tmp_path: Path) -> None:
    path = tmp_path / "script.py"
    book = load(path, BROKEN).book
    first = written(book)
    misses = source_lines.read_lines.cache_info().misses
    assert written(book) == first
    assert source_lines.read_lines.cache_info().misses == misses


def test_other_texts_are_as_python_makes_them() -> None:
    def fail() -> None:
        try:
            [].pop()
        except IndexError:
            raise KeyError("x")  # noqa: B904

    with pytest.raises(KeyError) as caught:
        fail()
    trace = caught.value.__traceback__
    expected = "".join(traceback.format_exception(KeyError, caught.value, trace))
    assert source_lines.traceback_text(caught.value, trace) == expected


def test_the_name_that_journals_hold() -> None:
    """Every stored function of a script names it: it may never move."""
    found = source_lines.restored_code
    assert (found.__module__, found.__qualname__) == (
        "ray_workflows._capture.source_lines",
        "restored_code",
    )
