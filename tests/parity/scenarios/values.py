"""Values: ObjectRefs in arguments and results, nested nodes, large and odd objects."""

from __future__ import annotations

import threading
from typing import Any

import ray

from tests.parity.kit import caught, scenario, seen
from tests.parity.tasks import describe, fail_unless, identity


def run(workflow, scratch, dag, suffix=""):
    return caught(workflow.run, dag, workflow_id=scratch.id(suffix))


class Point:
    def __init__(self, x: Any) -> None:
        self.x = x


@scenario
def plain_values(workflow, scratch):
    values = [None, True, 1, 2.5, "ä", b"bytes".hex(), [1, [2]], {"k": (1, {2})}]
    return {repr(v): run(workflow, scratch, identity.bind(v), str(i)) for i, v in enumerate(values)}


@scenario
def values_of_own_classes(workflow, scratch):
    @ray.remote
    def move(point, by):
        return Point(point.x + by)

    found = workflow.run(move.bind(move.bind(Point(1), 2), 3), workflow_id=scratch.id())
    stored = workflow.get_output(scratch.id())
    return {"x": [found.x, stored.x], "type": type(stored).__name__}


@scenario
def functions_as_values(workflow, scratch):
    @ray.remote
    def make(by):
        return lambda x: x + by

    @ray.remote
    def use(function, x):
        return function(x)

    return {"value": run(workflow, scratch, use.bind(make.bind(10), 1))}


@scenario
def refs_as_arguments(workflow, scratch):
    """At the top level the value arrives, in containers the ref: as in plain Ray."""
    dag = describe.bind(ray.put(1), [ray.put(2)], {"k": ray.put(3)}, k=ray.put(4))
    return {"value": run(workflow, scratch, dag)}


@scenario
def refs_in_containers_are_usable(workflow, scratch):
    @ray.remote
    def total(refs):
        return sum(ray.get(refs))

    return {"value": run(workflow, scratch, total.bind([ray.put(1), ray.put(2)]))}


@scenario
def refs_in_results(workflow, scratch):
    @ray.remote
    def make():
        return [ray.put(1), {"k": ray.put(2)}]

    @ray.remote
    def take(made):
        return [ray.get(made[0]), ray.get(made[1]["k"])]

    workflow.run(make.bind(), workflow_id=scratch.id("2"))
    stored = workflow.get_output(scratch.id("2"))
    return {
        "passed_on": run(workflow, scratch, take.bind(make.bind()), "1"),
        "stored": seen(stored),
        "values": caught(lambda: [ray.get(stored[0]), ray.get(stored[1]["k"])]),
    }


@scenario
def a_ref_as_the_result(workflow, scratch):
    @ray.remote
    def make():
        return ray.put("inside")

    first = run(workflow, scratch, make.bind())
    return {"run": first, "then": run(workflow, scratch, describe.bind(make.bind()), "2")}


@scenario
def get_output_of_a_ref_as_the_result(workflow, scratch):
    @ray.remote
    def make():
        return ray.put("inside")

    caught(workflow.run, make.bind(), workflow_id=scratch.id())
    return {"output": caught(workflow.get_output, scratch.id())}


@scenario
def refs_of_refs_as_arguments(workflow, scratch):
    return {"value": run(workflow, scratch, describe.bind([ray.put([ray.put(1)])]))}


@scenario
def one_ref_used_twice(workflow, scratch):
    ref = ray.put([1])

    @ray.remote
    def compare(left, right):
        return left[0] == right[0], ray.get(left[0]) == ray.get(right[0])

    return {"equal": run(workflow, scratch, compare.bind([ref], [ref]))}


@scenario
def refs_after_a_failure(workflow, scratch):
    gate = scratch.gate()
    dag = describe.bind(ray.put(1), [ray.put(2)], fail_unless.bind(scratch.marks, "f", gate))
    caught(workflow.run, dag, workflow_id=scratch.id())
    gate.open()
    return {"resumed": caught(workflow.resume, scratch.id())}


@scenario
def nodes_in_containers(workflow, scratch):
    dag = describe.bind(
        [identity.bind(1)], {"k": identity.bind(2)}, (identity.bind(3),), identity.bind(4)
    )
    return {"value": run(workflow, scratch, dag)}


@scenario
def nodes_in_containers_are_usable(workflow, scratch):
    @ray.remote
    def join(parts):
        return "|".join(ray.get(parts))

    parts = [identity.bind("a"), identity.bind("b")]
    return {"value": run(workflow, scratch, join.bind(parts))}


@scenario
def nodes_in_objects(workflow, scratch):
    """Nodes are found inside objects of any class."""

    @ray.remote
    def look(point):
        return [seen(point.x), seen(ray.get(point.x))]

    return {"value": run(workflow, scratch, look.bind(Point(identity.bind(1))))}


@scenario
def one_node_in_two_containers(workflow, scratch):
    node = identity.bind("v")

    @ray.remote
    def look(left, right, plain):
        return [left[0] == right[0], ray.get(left[0]), plain]

    return {"value": run(workflow, scratch, look.bind([node], [node], node))}


@scenario
def large_values(workflow, scratch):
    """Beyond what travels inline, in both directions."""

    @ray.remote
    def grow(data):
        return data * 2

    data = bytes(range(256)) * 8_000
    found = workflow.run(grow.bind(grow.bind(data)), workflow_id=scratch.id())
    return {
        "size": len(found),
        "equal": found == data * 4,
        "stored": workflow.get_output(scratch.id()) == data * 4,
    }


@scenario
def arrays(workflow, scratch):
    import numpy

    @ray.remote
    def double(array):
        return array * 2

    array = numpy.arange(300_000)
    found = workflow.run(double.bind(double.bind(array)), workflow_id=scratch.id())
    return {"equal": bool((found == array * 4).all()), "type": type(found).__name__}


@scenario
def arguments_that_do_not_pickle(workflow, scratch):
    return {
        "run": caught(
            lambda: workflow.run(identity.bind(threading.Lock()), workflow_id=scratch.id())
        ),
        "listed": scratch.listed(),
    }


@scenario
def results_that_do_not_pickle(workflow, scratch):
    @ray.remote
    def lock():
        return threading.Lock()

    return {
        "run": run(workflow, scratch, lock.bind()),
        "status": caught(workflow.get_status, scratch.id()),
    }


@ray.remote
class Counter:
    def count(self):
        return 1


@scenario
def actor_handles_as_values(workflow, scratch):
    counter = Counter.options(num_cpus=0).remote()
    return {"run": run(workflow, scratch, describe.bind(counter))}


@scenario
def errors_as_values(workflow, scratch):
    return {"value": run(workflow, scratch, identity.bind(KeyError("k")))}


@scenario
def generators_as_results(workflow, scratch):
    @ray.remote
    def numbers():
        return (i for i in range(3))

    return {"run": run(workflow, scratch, numbers.bind())}


@scenario
def async_functions(workflow, scratch):
    def bind():
        @ray.remote
        async def later():
            return 1

        return later.bind()

    return {"run": caught(lambda: workflow.run(bind(), workflow_id=scratch.id()))}
