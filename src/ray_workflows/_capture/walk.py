"""Walking a Ray DAG without recursion: a DAG of any depth, each node once, inputs first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import ray
from ray.dag import DAGNode, FunctionNode, InputAttributeNode, InputNode

from ray_workflows._capture.pickling import Direct, Pickled, pickle_plain, pickle_value
from ray_workflows._codec.placeholders import CONSTANT, UPSTREAM_REF, UPSTREAM_VALUE

#: Gives a DAG input an index.
InputHook = Callable[["InputNode | InputAttributeNode"], int]


class Arguments:
    """The pickled arguments of a node. Placeholders index ``children``, the nodes they came from.

    ``direct`` are the positions of children that are arguments themselves, not inside containers.
    """

    __slots__ = ("children", "direct", "pickled")

    pickled: Pickled

    def __init__(self, node: FunctionNode, *, where: str, input_hook: InputHook) -> None:
        self.children: list[FunctionNode] = []
        self.direct: set[int] = set()
        plain = pickle_plain((node.get_args(), node.get_kwargs()))
        if plain is not None:
            self.pickled = plain
            return
        positions: dict[str, int] = {}

        def node_hook(child: DAGNode, direct: bool) -> tuple[str, int]:
            if isinstance(child, (InputNode, InputAttributeNode)):
                return CONSTANT, input_hook(child)
            if not isinstance(child, FunctionNode):
                raise TypeError(
                    f"Unsupported DAG node: {type(child).__name__}. Currently workflow does not "
                    f"support classes as DAG inputs; use tasks (func.bind), and get actors by "
                    f"name inside them."
                )
            key = child.get_stable_uuid()
            if key not in positions:
                positions[key] = len(positions)
                self.children.append(child)
            if not direct:
                return UPSTREAM_REF, positions[key]
            self.direct.add(positions[key])
            return UPSTREAM_VALUE, positions[key]

        args = tuple(map(direct_argument, node.get_args()))
        kwargs = {name: direct_argument(arg) for name, arg in node.get_kwargs().items()}
        self.pickled = pickle_value((args, kwargs), where=where, node_hook=node_hook)


def direct_argument(arg: Any) -> Any:
    return Direct(arg) if isinstance(arg, (DAGNode, ray.ObjectRef)) else arg


class Visited(Protocol):
    """What a visit returns: it names the nodes to visit before this one is done."""

    @property
    def children(self) -> list[FunctionNode]: ...


V = TypeVar("V", bound=Visited)


def postorder(root: FunctionNode, visit: Callable[[FunctionNode], V]) -> dict[str, V]:
    """Visit each node once; the results by the node's stable uuid, inputs before their takers."""
    visited: dict[str, V] = {}
    done: dict[str, V] = {}
    stack: list[tuple[FunctionNode, bool]] = [(root, False)]
    while stack:
        node, children_done = stack.pop()
        key = node.get_stable_uuid()
        if children_done:
            done[key] = visited[key]
        elif key not in visited:
            visited[key] = visit(node)
            stack.append((node, True))
            stack.extend((child, False) for child in reversed(visited[key].children))
    return done
