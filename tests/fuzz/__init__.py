"""Tests that make up their own input. The same input in each run; ``FUZZ_EXAMPLES=10000`` for more
of it, which then differs from run to run."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

from hypothesis import HealthCheck, settings

more = int(os.environ.get("FUZZ_EXAMPLES", "0"))

#: For each test of this package.
fuzz = settings(
    max_examples=more or 200,
    derandomize=not more,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)

T = TypeVar("T")


def attempt(call: Callable[[], T], *errors: type[Exception]) -> tuple[T | None, str | None]:
    """What a call returns, or what it says if it refuses its arguments with one of these errors."""
    try:
        return call(), None
    except errors as error:
        return None, str(error)
