"""Plans made without a DAG: of other plans, of a timer, of a task that is begun anew."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from ray.dag import InputAttributeNode, InputNode

from ray_workflows._capture.pickling import pickle_value
from ray_workflows._capture.shared import SharedParts
from ray_workflows._capture.values import ValueWriter
from ray_workflows._capture.walk import Arguments
from ray_workflows._codec.envelope import plain_head
from ray_workflows._model.plan import (
    EMPTY_PLAN,
    TIMER,
    Environment,
    Function,
    Plan,
    TaskOptions,
    TaskSpec,
)
from ray_workflows._model.values import Value

#: The function of timers, which the engine completes: nobody calls it.
TIMER_FUNCTION = Function("timer", "timer", b"")


def timer_plan(name: str, seconds: float) -> Plan:
    """The plan of a timer, which produces None.

    Args:
        name: the base of its task id.
        seconds: how long it waits.
    """
    nothing = pickle_value(None, where=name).data
    arguments = Value(plain_head(len(nothing)) + nothing)
    return Plan(
        functions=(TIMER_FUNCTION,),
        options=(TaskOptions(kind=TIMER, duration=seconds),),
        tasks=(TaskSpec(name, 0, 0, arguments),),
    )


def with_output_name(plan: Plan, name: str) -> Plan:
    """A plan whose output task has another name."""
    *others, output = plan.tasks
    return msgspec.structs.replace(
        plan, tasks=(*others, msgspec.structs.replace(output, name=name))
    )


def same_task_plan(
    function: Function,
    options: TaskOptions,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    writer: ValueWriter,
    prefix: str,
    task: str,
) -> Plan:
    """The plan of a task like one that runs, with other arguments. It has no name.

    Args:
        function: that of the task.
        options: those of the task.
        args: its positional arguments.
        kwargs: its named arguments.
        writer: stores large arguments.
        prefix: makes the keys of blobs unique in the workflow.
        task: names the task in errors.

    Raises:
        TypeError: a node of a DAG, or (SerializationError) an argument that can't be stored.
    """
    shared = SharedParts(prefix)
    found = Arguments(args, kwargs, task=task, input_hook=refuse_input, shared=shared)
    if found.children:
        raise TypeError(f"The arguments of {task} can't be tasks (DAG nodes): run them as steps.")
    key = f"{prefix}-arguments"
    arguments = writer.write_pickled(found.pickled, key=key, where=f"arguments of {task}")
    return Plan(functions=(function,), options=(options,), tasks=(TaskSpec("", 0, 0, arguments),))


def refuse_input(node: InputNode | InputAttributeNode) -> int:
    """Refuse the input of a DAG."""
    raise TypeError("Only DAGs have inputs (InputNode).")


def joined(plans: Sequence[Plan]) -> tuple[Plan, tuple[int, ...]]:
    """One plan with the tasks of several ones, in their order, and how many tasks each has.

    Functions and options that several plans have are in it once. Indices of upstream tasks stay
    those in the single plan. The plans have no constants.
    """
    if not plans:
        return EMPTY_PLAN, ()
    functions: dict[Function, int] = {}
    options: dict[bytes, int] = {}
    kept: list[TaskOptions] = []
    tasks: list[TaskSpec] = []
    for plan in plans:
        assert not plan.constants, plan.constants
        function_at = [functions.setdefault(each, len(functions)) for each in plan.functions]
        option_at = []
        for each in plan.options:
            index = options.setdefault(msgspec.msgpack.encode(each), len(kept))
            if index == len(kept):
                kept.append(each)
            option_at.append(index)
        tasks += [
            TaskSpec(
                task.name,
                function_at[task.function],
                option_at[task.options],
                task.arguments,
                task.upstream,
                task.nested,
            )
            for task in plan.tasks
        ]
    packages = {each.uri: each for plan in plans for each in plan.environment.packages}
    environment = Environment(packages=tuple(packages.values()))
    plan = Plan(tuple(functions), tuple(kept), tuple(tasks), environment=environment)
    return plan, tuple(len(each.tasks) for each in plans)
