"""Plain Ray: nothing is stored, and what dies with its driver is gone."""

from __future__ import annotations

import ray
from workloads import LEAVES, durations

from peers.clusters import start_cluster
from peers.serving import Round, Runner, serve, timed
from peers.tasks import array, identity, increment, large_array, nap, read_arrays, total


def fan_out(size: int) -> Round:
    with timed() as clock:
        result = ray.get(total.remote(*[identity.remote(i) for i in range(size)]))
    return Round(clock.seconds, result)


def tree(size: int) -> Round:
    groups = [range(i, min(i + LEAVES, size)) for i in range(0, size, LEAVES)]
    with timed() as clock:
        totals = [total.remote(*[identity.remote(i) for i in group]) for group in groups]
        result = ray.get(total.remote(*totals))
    return Round(clock.seconds, result)


def naps(seconds: float) -> Runner:
    return lambda size: sleep_all([seconds] * size)


def mixed(size: int) -> Round:
    return sleep_all(durations(size))


def sleep_all(seconds: list[float]) -> Round:
    with timed() as clock:
        naps = [nap.remote(each, i) for i, each in enumerate(seconds)]
        result = ray.get(total.remote(*naps))
    return Round(clock.seconds, result, {"slots": sum(seconds) / clock.seconds})


def gathered(size: int) -> Round:
    """All at once, and all results in the driver."""
    with timed() as clock:
        result = sum(ray.get([identity.remote(i) for i in range(size)]))
    return Round(clock.seconds, result)


def chain(size: int) -> Round:
    """One after the other, each seen to be done: what a commit before the next start is."""
    value = 0
    with timed() as clock:
        for _ in range(size):
            value = ray.get(increment.remote(value))
    return Round(clock.seconds, value)


def chain_of_refs(size: int) -> Round:
    """The fastest that plain Ray has, where nothing needs to be seen in between."""
    with timed() as clock:
        ref = increment.remote(0)
        for _ in range(size - 1):
            ref = increment.remote(ref)
        value = ray.get(ref)
    return Round(clock.seconds, value)


def chain_unstored(size: int) -> Round:
    refs = chain_of_refs(size)
    done = chain(size)
    return Round(done.seconds, done.result, {"chain_of_refs_seconds": refs.seconds})


def one_task(size: int) -> Round:
    with timed() as clock:
        result = sum(ray.get(identity.remote(i)) for i in range(size))
    return Round(clock.seconds, result)


def pipelined(size: int) -> Round:
    with timed() as clock:
        result = sum(ray.get([identity.remote(i) for i in range(size)]))
    return Round(clock.seconds, result)


def arrays(size: int) -> Round:
    with timed() as clock:
        result, shared = ray.get(read_arrays.remote([array.remote(i) for i in range(size)]))
    return Round(clock.seconds, result, {"zero_copy": shared})


def one_large_array(size: int) -> Round:
    with timed() as clock:
        result, shared = ray.get(read_arrays.remote([large_array.remote(size)]))
    return Round(clock.seconds, result, {"zero_copy": shared})


if __name__ == "__main__":
    start_cluster()
    serve(
        {"ray": ray.__version__},
        {
            "fan_out": fan_out,
            "naps_10ms": naps(0.01),
            "naps_100ms": naps(0.1),
            "chain": chain,
            "ray_steps": chain,
            "gathered_steps": gathered,
            "chain_unstored": chain_unstored,
            "one_task": one_task,
            "submit_loop": pipelined,
            "submit_many": pipelined,
            "arrays": arrays,
            "large_array": one_large_array,
            "mixed": mixed,
            **{f"scale_{10**power}": tree for power in range(2, 7)},
        },
    )
    ray.shutdown()
