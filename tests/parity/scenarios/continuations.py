"""Continuations: nested, recursive, in loops, outside of workflows, and what they inherit."""

from __future__ import annotations

import ray

from tests.parity.kit import caught, scenario, seen, workflow
from tests.parity.tasks import add, continue_with, describe, identity, mark


@scenario
def a_continuation(workflow, scratch):
    def more(value):
        return add.bind(value, identity.bind(10))

    return {
        "value": workflow.run(
            continue_with.bind(more, identity.bind(1)), workflow_id=scratch.id("1")
        ),
        "upstream": workflow.run(
            add.bind(continue_with.bind(more, 1), 100), workflow_id=scratch.id("2")
        ),
    }


@ray.remote
def factorial(n):
    return 1 if n == 1 else workflow.continuation(multiply.bind(n, factorial.bind(n - 1)))


@ray.remote
def multiply(a, b):
    return a * b


@ray.remote
def count_down(marks, n):
    marks.add("turn")
    return n if n == 0 else workflow.continuation(count_down.bind(marks, n - 1))


@scenario
def recursion(workflow, scratch):
    return {"value": workflow.run(factorial.bind(6), workflow_id=scratch.id())}


@scenario
def a_loop(workflow, scratch):
    value = workflow.run(count_down.bind(scratch.marks, 12), workflow_id=scratch.id())
    base = "tests.parity.scenarios.continuations.count_down"
    return {
        "value": value,
        "ran": scratch.marks.counts(),
        "first": caught(workflow.get_output, scratch.id(), task_id=base),
        "middle": caught(workflow.get_output, scratch.id(), task_id=f"{base}_6"),
        "last": caught(workflow.get_output, scratch.id(), task_id=f"{base}_12"),
    }


@scenario
def continuations_within_continuations(workflow, scratch):
    def outer(value):
        return add.bind(continue_with.bind(middle, value), "-outer")

    def middle(value):
        return continue_with.bind(inner, value)

    def inner(value):
        return add.bind(value, "-inner")

    dag = add.bind(continue_with.bind(outer, "start"), "-end")
    return {"value": workflow.run(dag, workflow_id=scratch.id())}


@scenario
def a_continuation_outside_of_workflows(workflow, scratch):
    dag = add.bind(identity.bind(1), 2)

    @ray.remote
    def elsewhere():
        from tests.parity.kit import workflow as library

        return library.continuation(add.bind(identity.bind(1), 2))

    return {
        "driver": caught(workflow.continuation, dag),
        "ray_task": caught(ray.get, elsewhere.remote()),
        "nested": caught(lambda: workflow.continuation(factorial.bind(4))),
    }


@scenario
def a_dag_returned_without_continuation(workflow, scratch):
    @ray.remote
    def plain():
        return add.bind(1, 2)

    return {"value": caught(workflow.run, plain.bind(), workflow_id=scratch.id())}


@scenario
def a_continuation_of_something_else(workflow, scratch):
    @ray.remote
    def wrong(value):
        from tests.parity.kit import workflow as library

        return library.continuation(value)

    return {
        "driver": caught(workflow.continuation, 5),
        "task": caught(workflow.run, wrong.bind(5), workflow_id=scratch.id()),
    }


@scenario
def a_dag_in_a_container_returned(workflow, scratch):
    @ray.remote
    def boxed():
        return [add.bind(1, 2)]

    value = caught(workflow.run, boxed.bind(), workflow_id=scratch.id())
    return {"value": value}


@scenario
def an_actor_returned_as_continuation(workflow, scratch):
    @ray.remote
    class Actor:
        def method(self):
            return 1

    @ray.remote
    def wrong():
        return Actor.bind().method.bind()

    return {"value": caught(workflow.run, wrong.bind(), workflow_id=scratch.id())}


@scenario
def arguments_of_continuations(workflow, scratch):
    """Refs and values made inside the task."""

    def more():
        return describe.bind(ray.put(1), [ray.put(2)], identity.bind(3), [identity.bind(4)], k=5)

    return {"value": workflow.run(continue_with.bind(more), workflow_id=scratch.id())}


def checkpoints(workflow, scratch, task_ids):
    def checkpoint(task_id):
        return workflow.get_metadata(scratch.id(), task_id)["task_options"]["checkpoint"]

    return {i: caught(checkpoint, i) for i in task_ids}


def named(workflow, function, task_id, **options):
    return function.options(**workflow.options(task_id=task_id, **options))


@scenario
def continuations_inherit_checkpoint(workflow, scratch):
    def more():
        inner = named(workflow, identity, "inner").bind(1)
        stored = named(workflow, identity, "stored", checkpoint=True).bind(inner)
        return named(workflow, identity, "root").bind(stored)

    outer = named(workflow, continue_with, "outer", checkpoint=False).bind(more)
    value = workflow.run(named(workflow, identity, "last").bind(outer), workflow_id=scratch.id())
    ids = ("outer", "root", "stored", "inner", "last")
    return {
        "value": value,
        "outputs": {i: caught(workflow.get_output, scratch.id(), task_id=i) for i in ids},
    }


@scenario
def inherited_checkpoint_in_metadata(workflow, scratch):
    def more():
        return named(workflow, identity, "root").bind(named(workflow, identity, "inner").bind(1))

    outer = named(workflow, continue_with, "outer", checkpoint=False).bind(more)
    workflow.run(named(workflow, identity, "last").bind(outer), workflow_id=scratch.id())
    return checkpoints(workflow, scratch, ("last", "outer", "root", "inner"))


@scenario
def a_continuation_of_an_unstored_task(workflow, scratch):
    """The continuation itself may store what its parent does not."""

    def more():
        return named(workflow, mark, "root", checkpoint=True).bind(scratch.marks, "root")

    outer = named(workflow, continue_with, "outer", checkpoint=False).bind(more)
    value = workflow.run(outer, workflow_id=scratch.id())
    return {"value": value, "output": caught(workflow.get_output, scratch.id())}


@scenario
def a_continuation_through_a_helper(workflow, scratch):
    @ray.remote
    def through():
        from tests.parity.kit import workflow as library

        def helper():
            return library.continuation(identity.bind("helped"))

        return helper()

    return {"value": workflow.run(through.bind(), workflow_id=scratch.id())}


@scenario
def a_continuation_is_a_dag_inside_of_tasks(workflow, scratch):
    @ray.remote
    def inside():
        from ray.dag import DAGNode

        from tests.parity.kit import workflow as library

        return isinstance(library.continuation(identity.bind(1)), DAGNode)

    return {"value": workflow.run(inside.bind(), workflow_id=scratch.id())}


@scenario
def consumers_of_a_continuing_task(workflow, scratch):
    """Each gets the final value; the continuation runs once."""

    def more():
        return mark.bind(scratch.marks, "inner")

    outer = continue_with.bind(more)
    value = workflow.run(
        describe.bind(outer, outer, add.bind(outer, "!")), workflow_id=scratch.id()
    )
    return {"value": seen(value), "ran": scratch.marks.counts()}
