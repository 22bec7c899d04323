"""Values nested deeper than Python's recursion limit allows for pickling.

Pickling is recursive, and takes about two levels of the limit for each list in a list; unpickling
is not. Plain Ray takes lists 1,000 deep, and the usual limit is used up by 500.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

#: The recursion limit, in calls, for values that exceed the usual one, and the stack for it. Only
#: the used part of the stack takes memory.
DEEP_LIMIT = 10_000
STACK_BYTES = 512 * 1024 * 1024

#: The most parts of a value that are searched for the one to name in an error.
MAX_LOOKED_AT = 100_000

#: Recursion limit and stack size are settings of the process.
deep_lock = threading.Lock()

#: How deep dicts and lists may be nested in JSON data: metadata and options. Later readers recurse
#: into them, and would fail in unexpected places.
JSON_DEPTH = 100

Children = Callable[[Any], list[tuple[str, Any]]]


def is_too_deep(error: BaseException) -> bool:
    """Whether an error, or its cause (with cloudpickle), is that of Python's recursion limit."""
    return isinstance(error, RecursionError) or isinstance(error.__cause__, RecursionError)


def deeply(work: Callable[[], Any]) -> None:
    """Run work with room for deep recursion: on a thread with a large stack."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    with deep_lock:
        limit, stack = sys.getrecursionlimit(), threading.stack_size(STACK_BYTES)
        sys.setrecursionlimit(max(limit, DEEP_LIMIT))
        try:
            thread = threading.Thread(target=run, name="deep value")
            thread.start()
            thread.join()
        finally:
            sys.setrecursionlimit(limit)
            threading.stack_size(stack)
    if raised:
        raise raised[0]


def is_deeper_than(levels: int, value: Any) -> bool:
    """Whether dicts and lists are nested to more than ``levels`` levels."""
    level = [value]
    for _ in range(levels + 1):
        # Each once: containers may share parts.
        containers = {id(each): each for each in level if isinstance(each, (dict, list, tuple))}
        if not containers:
            return False
        level = []
        for each in containers.values():
            level += each.values() if isinstance(each, dict) else each
    return True


def find(value: Any, wanted: Callable[[Any], bool], children: Children) -> list[str] | None:
    """The steps from a value to the nearest wanted part of it; None without one."""
    steps, part = nearest_or_last(value, wanted, children)
    return steps if wanted(part) else None


def deepest(value: Any, children: Children) -> list[str]:
    """The steps from a value to its deepest part."""
    return nearest_or_last(value, lambda part: False, children)[0]


def nearest_or_last(
    value: Any, wanted: Callable[[Any], bool], children: Children
) -> tuple[list[str], Any]:
    """Visit the parts of a value, near ones first, up to a wanted one. Returns the steps to that
    part, or to the last one, and the part."""
    # Each with its parent: whole paths would take quadratic memory.
    first: tuple[Any, str, Any] = (None, "", value)
    last, pending, seen = first, deque([first]), set[int]()
    while pending and len(seen) < MAX_LOOKED_AT:
        last = pending.popleft()
        part = last[2]
        if wanted(part):
            break
        if id(part) not in seen:
            seen.add(id(part))
            pending += [(last, step, inner) for step, inner in children(part)]
    steps, above = [], last
    while above[0] is not None:
        steps.append(above[1])
        above = above[0]
    return steps[::-1], last[2]
