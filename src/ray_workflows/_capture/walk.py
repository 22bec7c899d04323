"""Walks a Ray DAG of any depth without recursion: each node once, inputs first."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Protocol, TypeVar

import ray
from ray.dag import DAGNode, FunctionNode, InputAttributeNode, InputNode

from ray_workflows._capture.parts import Direct
from ray_workflows._capture.pickling import Pickled, pickle_call, pickle_value
from ray_workflows._capture.shared import SharedParts
from ray_workflows._codec.placeholders import CONSTANT, UPSTREAM_REF, UPSTREAM_VALUE
from ray_workflows._model.values import INLINE_LIMIT

#: Gives a DAG input an index.
InputHook = Callable[["InputNode | InputAttributeNode"], int]


#: No positions.
NONE: frozenset[int] = frozenset()


class Arguments:
    """The pickled arguments of a node. Placeholders are indices into ``children``, the input nodes,
    and ``keys``, their stable uuids.

    ``direct``: the positions of children that are arguments themselves, not inside containers.
    ``task`` names the task in errors; ``shared`` has the large parts of other nodes' arguments.
    """

    __slots__ = ("children", "direct", "keys", "pickled")

    children: Sequence[FunctionNode]
    keys: Collection[str]
    direct: AbstractSet[int]
    pickled: Pickled

    def __init__(
        self,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        *,
        task: str,
        input_hook: InputHook,
        shared: SharedParts | None = None,
    ) -> None:
        # Without arguments, Ray has a list here.
        args = tuple(args)
        plain = pickle_call(args, kwargs)
        if plain is not None and (shared is None or len(plain.data) <= INLINE_LIMIT):
            self.children, self.keys, self.direct, self.pickled = (), (), NONE, plain
            return
        children: list[FunctionNode] = []
        direct_ones: set[int] = set()
        positions: dict[str, int] = {}
        self.children, self.keys, self.direct = children, positions, direct_ones

        def node_hook(child: DAGNode, direct: bool) -> tuple[str, int]:
            if not isinstance(child, FunctionNode):
                if isinstance(child, (InputNode, InputAttributeNode)):
                    return CONSTANT, input_hook(child)
                raise TypeError(
                    f"Unsupported DAG node: {type(child).__name__}. Currently workflow does not "
                    f"support classes as DAG inputs; use tasks (func.bind), and get actors by "
                    f"name inside them."
                )
            key = child.get_stable_uuid()
            position = positions.setdefault(key, len(children))
            if position == len(children):
                children.append(child)
            if not direct:
                return UPSTREAM_REF, position
            direct_ones.add(position)
            return UPSTREAM_VALUE, position

        args = tuple([direct_argument(arg, shared) for arg in args])
        kwargs = {name: direct_argument(arg, shared) for name, arg in kwargs.items()}
        try:
            self.pickled = pickle_value((args, kwargs), where=task, node_hook=node_hook)
            if shared is not None and self.pickled.nbytes > INLINE_LIMIT:
                self.pickled = shared.split(args, kwargs, where=task, node_hook=node_hook)
        except TypeError:
            named = {str(index + 1): arg for index, arg in enumerate(args)}
            for name, arg in (named | {repr(name): arg for name, arg in kwargs.items()}).items():
                # The argument at fault raises an error that names it.
                pickle_value(arg, where=f"argument {name} of {task}", node_hook=node_hook)
            raise


def direct_argument(arg: Any, shared: SharedParts | None = None) -> Any:
    """The stand-in for an argument in a pickle."""
    if isinstance(arg, (DAGNode, ray.ObjectRef)):
        return Direct(arg)
    return arg if shared is None else shared.known(arg)


class Visited(Protocol):
    """The result of a visit: names the nodes to visit before this one is done."""

    @property
    def children(self) -> Sequence[FunctionNode]: ...


V = TypeVar("V", bound=Visited)


def postorder(root: FunctionNode, visit: Callable[[FunctionNode], V]) -> dict[str, V]:
    """Visit each node once; the results by the node's stable uuid, inputs before their takers."""
    visited: dict[str, V] = {}
    done: dict[str, V] = {}
    # Nodes to visit; and the uuid of a node, below its inputs.
    stack: list[FunctionNode | str] = [root]
    while stack:
        node = stack.pop()
        if isinstance(node, str):
            done[node] = visited[node]
            continue
        key = node.get_stable_uuid()
        if key in visited:
            continue
        found = visited[key] = visit(node)
        if found.children:
            stack.append(key)
            stack.extend(reversed(found.children))
        else:
            done[key] = found
    return done
