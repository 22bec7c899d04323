"""Small plans for engine tests, without Ray."""

from __future__ import annotations

from typing import Any

from ray_workflows._model.plan import Function, Plan, TaskOptions, TaskSpec
from ray_workflows._model.values import Value


def plan(*tasks: tuple[str, tuple[int, ...]] | tuple[str, tuple[int, ...], dict[str, Any]]) -> Plan:
    """A plan from ``(name, upstream indices[, options])`` in topological order."""
    specs, options = [], []
    for index, task in enumerate(tasks):
        name, upstream = task[0], task[1]
        options.append(TaskOptions(**(task[2] if len(task) > 2 else {})))
        specs.append(
            TaskSpec(
                name=name,
                function=0,
                options=index,
                arguments=Value(name.encode()),
                upstream=tuple(upstream),
            )
        )
    return Plan(
        functions=(Function(digest="f", name="f", data=b"f"),),
        options=tuple(options),
        tasks=tuple(specs),
        digest=repr(tasks),
    )
