"""The workloads as DAGs: the same for this project and for ray.workflow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from workloads import LEAVES, durations

from peers.tasks import (
    array,
    identity,
    increment,
    large_array,
    nap,
    now,
    read_arrays,
    total,
)


def fan_out(size: int) -> Any:
    return total.bind(*(identity.bind(i) for i in range(size)))


def tree(size: int) -> Any:
    """A fan-out that is reduced in groups."""
    groups = [range(i, min(i + LEAVES, size)) for i in range(0, size, LEAVES)]
    return total.bind(*(total.bind(*(identity.bind(i) for i in group)) for group in groups))


def naps(seconds: float) -> Callable[[int], Any]:
    return lambda size: total.bind(*(nap.bind(seconds, i) for i in range(size)))


def mixed(size: int) -> Any:
    return total.bind(*(nap.bind(seconds, i) for i, seconds in enumerate(durations(size))))


def chain(size: int) -> Any:
    node = increment.bind(0)
    for _ in range(size - 1):
        node = increment.bind(node)
    return node


def chain_unstored(workflow: Any) -> Callable[[int], Any]:
    unstored = increment.options(**workflow.options(checkpoint=False))

    def make(size: int) -> Any:
        node: Any = 0
        for _ in range(size - 1):
            node = unstored.bind(node)
        return increment.bind(node)

    return make


def arrays(size: int) -> Any:
    return read_arrays.bind([array.bind(i) for i in range(size)])


def one_large_array(size: int) -> Any:
    return read_arrays.bind([large_array.bind(size)])


def after_a_pause(workflow: Any, seconds: float) -> Any:
    """A task that says when it runs, behind a timer."""
    return now.bind(workflow.sleep(seconds))


def after_a_signal(workflow: Any) -> Any:
    """A task that says when it runs, behind the signal "go"."""
    return now.bind(workflow.wait_for_signal("go"))


def shapes(workflow: Any) -> dict[str, Callable[[int], Any]]:
    """What makes the DAG of each workload that is a single DAG."""
    return {
        "fan_out": fan_out,
        "naps_10ms": naps(0.01),
        "naps_100ms": naps(0.1),
        "mixed": mixed,
        "chain": chain,
        "chain_unstored": chain_unstored(workflow),
        "arrays": arrays,
        "large_array": one_large_array,
    }
