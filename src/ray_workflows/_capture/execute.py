"""Executes a DAG as plain Ray tasks, outside of any workflow.

Ray's own ``DAGNode.execute`` is deprecated, and overflows the stack on deep DAGs.
"""

from __future__ import annotations

from typing import Any

import ray
from ray.dag import DAGNode, FunctionNode, InputAttributeNode, InputNode

from ray_workflows._capture.dag import check_root
from ray_workflows._capture.unpickling import unpickle_value
from ray_workflows._capture.walk import Arguments, postorder
from ray_workflows._codec.placeholders import OBJECT_REF, OBJECT_VALUE
from ray_workflows._ray.private import node_function


def no_inputs(node: InputNode | InputAttributeNode) -> int:
    raise ValueError("A DAG with inputs can't be a continuation: bind the values themselves.")


def execute_dag(dag: DAGNode) -> ray.ObjectRef:
    """Submit every task of a DAG to Ray; the ref of its output."""
    root = check_root(dag)
    nodes: dict[str, FunctionNode] = {}

    def visit(node: FunctionNode) -> Arguments:
        nodes[node.get_stable_uuid()] = node
        args, kwargs = node.get_args(), node.get_kwargs()
        return Arguments(args, kwargs, task="a task", input_hook=no_inputs)

    refs: dict[str, ray.ObjectRef] = {}
    for key, arguments in postorder(root, visit).items():

        def resolve(kind: str, index: int, arguments: Arguments = arguments) -> Any:
            if kind in (OBJECT_REF, OBJECT_VALUE):
                return arguments.pickled.refs[index]
            return refs[arguments.children[index].get_stable_uuid()]

        pickled = arguments.pickled
        args, kwargs = unpickle_value(pickled.data, pickled.buffers, resolve)
        node = nodes[key]
        remote = ray.remote(node_function(node)).options(**node.get_options())
        refs[key] = remote.remote(*args, **kwargs)
    return refs[root.get_stable_uuid()]
