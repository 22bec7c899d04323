"""Listeners that block, exit, raise what is no Exception, or end their process, beside healthy ones
of the same environment: these go on, and so do those that come later."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

import pytest
import ray

import ray_workflows as workflow
from tests.ray.marks import Gate, Marks


class Healthy(workflow.EventListener):
    async def poll_for_event(self, gate: Gate, number: int, marks: Marks):
        marks.add(f"waits {number}")
        while not gate.is_open():
            await asyncio.sleep(0.01)
        return number


class Unheard(BaseException):
    pass


class Poison(workflow.EventListener):
    async def poll_for_event(self, kind: str, end: Gate, marks: Marks):
        marks.add(kind)
        if kind == "blocks":
            while not end.is_open():
                time.sleep(0.05)
        elif kind == "raises":
            raise Unheard
        elif not end.is_open():
            if kind == "exits":
                sys.exit(1)
            os.kill(os.getpid(), signal.SIGKILL)
        return "poison"


@pytest.mark.parametrize("kind", ["blocks", "exits", "raises", "ends its process"])
def test_healthy_listeners_go_on(wid: str, marks: Marks, tmp_path: Path, kind: str) -> None:
    gate, end = Gate(str(tmp_path / "gate")), Gate(str(tmp_path / "end"))
    before = [
        workflow.run_async(
            workflow.wait_for_event(Healthy, gate, n, marks), workflow_id=f"{wid}-{n}"
        )
        for n in range(3)
    ]
    for n in range(3):
        marks.wait_for(f"waits {n}")
    poisoned = workflow.run_async(
        workflow.wait_for_event(Poison, kind, end, marks), workflow_id=f"{wid}-poison"
    )
    marks.wait_for(kind)
    gate.open()
    # The poison is there all the time.
    assert ray.get(before, timeout=60) == [0, 1, 2]
    later = workflow.wait_for_event(Healthy, gate, 3, marks)
    assert workflow.run(later, workflow_id=f"{wid}-later") == 3
    end.open()
    if kind == "raises":
        with pytest.raises(workflow.WorkflowExecutionError):
            ray.get(poisoned, timeout=60)
    else:
        assert ray.get(poisoned, timeout=60) == "poison"
