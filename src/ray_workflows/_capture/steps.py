"""Captures the steps of a body. Most are calls of few functions with plain arguments: what such
calls have in common is captured once."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from ray.dag import DAGNode, FunctionNode

from ray_workflows._capture.dag import check_arguments, check_root, function_name, slugify
from ray_workflows._capture.digests import digest_of
from ray_workflows._capture.options import task_options
from ray_workflows._capture.pickling import pickle_call
from ray_workflows._capture.values import ValueWriter
from ray_workflows._model.plan import ENGINE_KINDS, Plan, TaskSpec
from ray_workflows._ray.private import node_function


def own_name(function: Any) -> str:
    """The name of a function without its module and what it is defined in."""
    while isinstance(function, functools.partial):
        function = function.func
    qualname = getattr(function, "__qualname__", None) or type(function).__qualname__
    return slugify(qualname.rpartition(".")[2])


class Call:
    """A call of a function as a step: a node, which is made only when it is needed."""

    __slots__ = ("args", "kwargs", "made", "target")

    def __init__(
        self,
        target: StepTarget,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        made: FunctionNode | None = None,
    ) -> None:
        self.target = target
        self.args = args
        self.kwargs = kwargs
        self.made = made

    @property
    def digest(self) -> str:
        """The digest of its arguments."""
        return digest_of(self.args, self.kwargs)

    @property
    def node(self) -> FunctionNode:
        """Its node."""
        return self.made or self.target.bound.bind(*self.args, **self.kwargs)


class StepTarget:
    """What all calls of a function with the same options have in common.

    Args:
        bound: what has the method ``bind``; kept, so that its identity stays its own.
        node: one of its nodes.
    """

    def __init__(self, bound: Any, node: FunctionNode) -> None:
        self.bound = bound
        self.body = node_function(node)
        self.options, task_id = task_options(node.get_options(), where="step")
        #: Its name in the paths of steps, and the base of its task ids.
        self.name = task_id or own_name(self.body)
        self.task_name = task_id or function_name(self.body)
        #: The plan of its first call.
        self.plan: Plan | None = None
        #: The checked forms of calls, see `dag.Kind.called`.
        self.called: set[tuple[int | str, ...]] = set()

    def check(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raise TypeError unless the function takes these arguments."""
        form: tuple[int | str, ...] = (len(args), *kwargs)
        if form not in self.called:
            check_arguments(self.body, args, kwargs, task=self.task_name)
            self.called.add(form)


class StepCapture:
    """Captures steps.

    Args:
        writer: stores arguments.
        capture: captures any node.
    """

    def __init__(self, writer: ValueWriter, capture: Callable[[DAGNode], Plan]) -> None:
        self.writer = writer
        self.capture = capture
        self.targets: dict[int, StepTarget] = {}

    def call(
        self, bound: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *, once: bool
    ) -> Call:
        """A call of what has the method ``bind``; ``once``: nobody else will call it."""
        known = self.targets.get(id(bound))
        if known is not None:
            return Call(known, args, kwargs)
        node = check_root(bound.bind(*args, **kwargs))
        target = StepTarget(bound, node)
        if not once:
            self.targets[id(bound)] = target
        return Call(target, args, kwargs, node)

    def of_node(self, node: DAGNode) -> Call:
        """A call from a DAG node."""
        root = check_root(node)
        return Call(StepTarget(None, root), tuple(root.get_args()), root.get_kwargs(), root)

    def plan(self, call: Call) -> Plan:
        """The plan of a call. Its large parts are stored."""
        target, like = call.target, call.target.plan
        if like is not None:
            target.check(call.args, call.kwargs)
            pickled = pickle_call(call.args, call.kwargs)
            arguments = None if pickled is None else self.writer.write_plain(pickled)
            if arguments is not None:
                spec = TaskSpec(target.task_name, 0, 0, arguments)
                return Plan(like.functions, like.options, (spec,), environment=like.environment)
        plan = self.capture(call.node)
        if len(plan.tasks) == 1 and target.options.kind not in ENGINE_KINDS:
            target.plan = plan
        return plan
