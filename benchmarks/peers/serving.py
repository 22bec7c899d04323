"""The process of a peer: a request a line on stdin, an answer a line on stdout. No dependencies."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Round:
    """What one round took, what came out of it (the parent knows what is right), and the rest."""

    seconds: float
    result: Any
    details: dict[str, Any] = field(default_factory=dict)


#: Runs a workload of a size.
Runner = Callable[[int], Round]


@dataclass
class Clock:
    """Seconds of a block."""

    seconds: float = 0.0


@contextlib.contextmanager
def timed() -> Iterator[Clock]:
    clock = Clock()
    started = time.perf_counter()
    yield clock
    clock.seconds = time.perf_counter() - started


def answer_to(runners: dict[str, Runner], request: dict[str, Any]) -> dict[str, Any]:
    try:
        done = runners[request["workload"]](request["size"])
    except Exception:
        return {"error": traceback.format_exc()}
    return {"seconds": done.seconds, "result": done.result, "details": done.details}


def serve(versions: dict[str, str], runners: dict[str, Runner]) -> None:
    """Say what is here, then run rounds until stdin ends."""
    # Whatever else prints must not come between the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    about = {"versions": {"python": platform.python_version(), **versions}}
    print(json.dumps({**about, "workloads": sorted(runners)}), file=answers)
    for line in sys.stdin:
        print(json.dumps(answer_to(runners, json.loads(line))), file=answers)
