"""Source lines of functions that are stored by value, so that tracebacks show the lines that ran.

Python reads the lines of a traceback from the file of the code. For a function of a script or a
notebook that file may have been edited since, or be on another machine. So the pickle of such a
function contains its source lines; they are used for the text of tracebacks only.
"""

from __future__ import annotations

import builtins
import functools
import linecache
import os
import threading
import time
import traceback
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import CodeType, TracebackType

#: Functions with longer source than this, in characters, are stored without it.
TEXT_LIMIT = 32_768

#: The most code objects whose lines a process keeps; the oldest are dropped first.
KEPT_LIMIT = 4096

#: About when this process loaded its code, in seconds since 1970.
LOADED_AT = time.time()

#: A code object with its file: code objects of different files can be equal.
Key = tuple[str, CodeType]

#: The number of a first line, and that line and those below it, compressed.
Lines = tuple[int, bytes]

#: The lines of functions that this process has unpickled.
kept: OrderedDict[Key, Lines] = OrderedDict()

#: Guards ``kept``, and `linecache` while its lines differ from the files.
lock = threading.Lock()

#: The class of exception groups; none before Python 3.11.
GROUPS = getattr(builtins, "BaseExceptionGroup", ())


def nested(code: CodeType) -> Iterator[CodeType]:
    """A code object, and those of the functions and classes that it makes."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from nested(constant)


def restored_code(lines: Lines, *args: object) -> CodeType:
    """Restore a code object from a pickle, and keep its lines. Stored bytes name this function by
    the path of its module, so neither may ever move."""
    code = CodeType(*args)  # type: ignore[arg-type]
    with lock:
        for part in nested(code):
            kept[part.co_filename, part] = lines
        while len(kept) > KEPT_LIMIT:
            kept.popitem(last=False)
    return code


def lines_of(code: CodeType) -> Lines | None:
    """The lines of a code object; None if it comes from no file."""
    key = (code.co_filename, code)
    with lock:
        found = kept.get(key)
    return found or read_lines(key)


@functools.lru_cache(maxsize=KEPT_LIMIT)
def read_lines(key: Key) -> Lines | None:
    filename, code = key
    lines = linecache.getlines(filename)
    if not lines:
        return None
    first = code.co_firstlineno
    text = "".join(lines[first - 1 : last_line(code)])
    if len(text) > TEXT_LIMIT or not is_source(filename, "".join(lines), code):
        text = ""
    return first, zlib.compress(text.encode(errors="replace"))


def last_line(code: CodeType) -> int:
    """The number of the last line of a code object."""
    numbers = [code.co_firstlineno]
    for part in nested(code):
        numbers += [line for *_, line in part.co_lines() if line]
        if hasattr(part, "co_positions"):  # Python 3.11
            numbers += [end for _, end, *_ in part.co_positions() if end]
    return max(numbers)


def is_source(filename: str, text: str, code: CodeType) -> bool:
    """Whether a code object was compiled from this text, and not from an earlier version of the
    file."""
    try:
        if os.stat(filename).st_mtime < LOADED_AT:
            return True
    except OSError:
        return True  # A notebook cell, whose text this process has in memory.
    return code in compiled(text)


@functools.lru_cache(maxsize=8)
def compiled(text: str) -> frozenset[CodeType]:
    """All code objects of a source text; none if it has errors."""
    try:
        return frozenset(nested(compile(text, "", "exec", dont_inherit=True)))
    except (SyntaxError, ValueError):
        return frozenset()


def traceback_text(error: BaseException, trace: TracebackType | None) -> str:
    """As `traceback.format_exception`, with the lines of the code that ran. Unknown lines are left
    out, rather than wrong ones shown."""
    summary = traceback.TracebackException(
        type(error), error, trace, lookup_lines=False, compact=True
    )
    # Before taking the lock, because this runs user code.
    codes = list(codes_in(error, trace))
    with lock, shown(codes):
        look_up(summary)
    return "".join(summary.format())


def codes_in(error: BaseException, trace: TracebackType | None) -> Iterator[CodeType]:
    """The code objects in the tracebacks of an error, its causes and contexts."""
    pending: list[tuple[BaseException | None, TracebackType | None]] = [(error, trace)]
    seen: set[int] = set()
    while pending:
        each, where = pending.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        for frame, _ in traceback.walk_tb(where):
            yield frame.f_code
        inner = each.exceptions if isinstance(each, GROUPS) else ()
        others = (each.__cause__, each.__context__, *inner)
        pending += [(other, other and other.__traceback__) for other in others]


def look_up(summary: traceback.TracebackException) -> None:
    """Read the lines of all frames of an error, its causes and contexts."""
    pending: list[traceback.TracebackException | None] = [summary]
    while pending:
        each = pending.pop()
        if each is not None:
            for frame in each.stack:
                frame.line  # noqa: B018  It is read when it is looked at.
            inner = getattr(each, "exceptions", None)  # Python 3.11
            pending += [each.__cause__, each.__context__, *(inner or ())]


@contextmanager
def shown(codes: Iterable[CodeType]) -> Iterator[None]:
    """Scope in which `linecache` has the lines that were stored with code objects."""
    files: dict[str, dict[int, str]] = {}
    for code in codes:
        found = kept.get((code.co_filename, code))
        if found is not None:
            first, lines = found
            # Split as `linecache` does, not at form feeds and the like.
            numbered = enumerate(zlib.decompress(lines).decode().split("\n"), first)
            files.setdefault(code.co_filename, {}).update(numbered)
    before = {name: linecache.cache.get(name) for name in files}
    for name, numbers in files.items():
        listed = [numbers.get(number, "") + "\n" for number in range(1, max(numbers) + 1)]
        # An entry without a modification time is not compared with the file.
        linecache.cache[name] = (sum(map(len, listed)), None, listed, name)
    try:
        yield
    finally:
        for name, entry in before.items():
            if entry is None:
                linecache.cache.pop(name, None)
            else:
                linecache.cache[name] = entry
