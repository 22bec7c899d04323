"""Values that do harm when they are unpickled, in a driver's other work and in nobody else's."""

from __future__ import annotations

import os
import threading

import ray

import ray_workflows as workflow


def only_in(pid: int, otherwise: str) -> str:
    """Unpickled in this process it is a text; elsewhere it ends the process, or hangs."""
    if os.getpid() == pid:
        return "opened"
    if otherwise == "exit":
        os._exit(1)
    threading.Event().wait()
    return "never"


class Poison:
    def __init__(self, pid: int, otherwise: str, size: int = 0) -> None:
        self.args = (pid, otherwise)
        self.padding = b"x" * size

    def __reduce__(self):
        return (only_in, self.args) if not self.padding else (join, (self.padding, *self.args))


def join(padding: bytes, pid: int, otherwise: str) -> str:
    return only_in(pid, otherwise)


@ray.remote
def poison(pid, otherwise, size):
    return Poison(pid, otherwise, size)


@ray.remote
def healthy(n):
    return n


def test_a_value_that_harms_who_unpickles_it_holds_up_no_other_ref(wid: str) -> None:
    """One driver has one waiter for all of its refs."""
    pid = os.getpid()
    harmful = [
        workflow.run_async(poison.bind(pid, how, size), workflow_id=f"{wid}-{how}-{size}")
        for how in ("exit", "hang")
        for size in (0, 100_000)
    ]
    others = [workflow.run_async(healthy.bind(n), workflow_id=f"{wid}-{n}") for n in range(5)]
    assert ray.get(others, timeout=60) == list(range(5))
    assert ray.get(harmful, timeout=60) == ["opened"] * 4
    again = [workflow.get_output_async(f"{wid}-{how}-0") for how in ("exit", "hang")]
    assert ray.get(again, timeout=60) == ["opened"] * 2
