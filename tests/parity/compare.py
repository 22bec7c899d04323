"""Compares the outcomes of a scenario. An error is the same if old `except` clauses catch it."""

from __future__ import annotations

from typing import Any

#: Outcomes of scenarios that did not get to their end.
BROKEN = ("hangs", "dies", "fails")

ABSENT = "<no such key>"


def equal(old: Any, new: Any) -> bool:
    """Whether code that relies on the old outcome can rely on the new one."""
    if isinstance(old, dict) and isinstance(new, dict):
        if old.keys() != new.keys():
            return False
        return all(
            set(old[key]) <= set(new[key])
            if key in ("raises", "error")
            else equal(old[key], new[key])
            for key in old
        )
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(map(equal, old, new))
    return type(old) is type(new) and old == new


def broken(outcome: dict[str, Any]) -> bool:
    """Whether the scenario did not get to its end."""
    return any(kind in outcome for kind in BROKEN)


def differing(old: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """For each key of an outcome whose value differs, both values."""
    keys = dict.fromkeys((*new, *old)) if not broken(old) or broken(new) else dict.fromkeys(new)
    pairs = {key: (old.get(key, ABSENT), new.get(key, ABSENT)) for key in keys}
    return {key: pair for key, pair in pairs.items() if not equal(*pair)}
