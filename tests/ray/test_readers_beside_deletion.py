"""Verbs on an id whose workflow is deleted and made anew all the time: they see one of its runs, or
none. Nothing looks damaged."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import ray

import ray_workflows as workflow

#: Verbs run beside so many deletions, or for so many seconds if they take longer.
DELETIONS, SECONDS = 5, 60.0

#: The verb that others run beside.
MAKES = "make and delete"

#: What a verb may say of a workflow that is not there, or not in the right state.
MAY_BE_RAISED = (
    workflow.WorkflowNotFoundError,
    workflow.WorkflowAlreadyRunningError,
    workflow.WorkflowNotResumableError,
    workflow.WorkflowStillActiveError,
    workflow.OutputNotAvailableError,
    workflow.SignalRefusedError,
)


@ray.remote
def value(size: int) -> Any:
    return np.full(size, 7)


@pytest.mark.parametrize("size", [10, 50_000], ids=["in the journal", "a blob"])
def test_they_see_a_run_or_none(wid: str, size: int) -> None:
    node = value.options(**workflow.options(task_id="t"))
    verbs: dict[str, Callable[[], Any]] = {
        "run": lambda: workflow.run(node.bind(size), workflow_id=wid),
        "resume": lambda: workflow.resume(wid),
        "get_output": lambda: workflow.get_output(wid),
        "get_output of a task": lambda: workflow.get_output(wid, task_id="t"),
        "get_output_async": lambda: ray.get(workflow.get_output_async(wid), timeout=60),
        "get_status": lambda: workflow.get_status(wid),
        "get_tasks": lambda: workflow.get_tasks(wid),
        "get_metadata": lambda: workflow.get_metadata(wid, "t"),
        "get_environment": lambda: workflow.get_environment(wid),
        "list_all": workflow.list_all,
        "signal": lambda: workflow.signal(wid, "s", np.zeros(size)),
        "set_tags": lambda: workflow.set_tags(wid, {"a": 1}),
    }
    until = time.monotonic() + SECONDS
    counts: Counter[str] = Counter()
    wrong: list[str] = []

    def repeat(name: str, verb: Callable[[], Any]) -> None:
        while counts[MAKES] < DELETIONS and time.monotonic() < until:
            try:
                found = verb()
            except MAY_BE_RAISED:
                continue
            except Exception as error:
                wrong.append(f"{name}: {type(error).__name__}: {error}")
                continue
            counts[name] += 1
            if isinstance(found, np.ndarray):
                assert found[0] == 7

    def make_and_delete() -> None:
        with contextlib.suppress(MAY_BE_RAISED):
            ray.get(workflow.run_async(node.bind(size), workflow_id=wid), timeout=60)
        workflow.delete(wid)

    verbs[MAKES] = make_and_delete
    threads = [threading.Thread(target=repeat, args=each) for each in verbs.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS + 120.0)
    assert not any(thread.is_alive() for thread in threads)
    assert wrong == []
    assert counts[MAKES] >= DELETIONS
