"""Ray DAG to plan: iteratively and in linear time, with all that tasks need to run elsewhere."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from typing import Any

import msgspec
from ray.dag import DAGNode, FunctionNode, InputAttributeNode, InputNode

import ray
from ray_workflows._capture.options import task_options
from ray_workflows._capture.pickling import Direct, Pickled, pickle_value
from ray_workflows._capture.values import ValueWriter
from ray_workflows._codec.placeholders import CONSTANT, UPSTREAM_REF, UPSTREAM_VALUE
from ray_workflows._model.plan import (
    TIMER,
    Environment,
    Function,
    Plan,
    TaskOptions,
    TaskSpec,
)
from ray_workflows._model.values import Blob, Value


class DAGInput:
    """The arguments of ``run(dag, *args, **kwargs)``, as tasks get them that take a bare InputNode
    of a DAG with several inputs: ``input[0]``, ``input["x"]``, ``input.x``."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.args = args
        self.kwargs = kwargs

    def __getitem__(self, key: int | str) -> Any:
        return self.args[key] if isinstance(key, int) else self.kwargs[key]

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["kwargs"][name]
        except KeyError:
            raise AttributeError(name) from None


def slugify(name: str) -> str:
    """Keep letters, digits, ``_``, ``.`` and ``-`` of a qualified name."""
    ascii_name = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode("ascii")
    return re.sub(r"[^\w.\-]", "", ascii_name)


def function_name(body: Any) -> str:
    """The default task id: ``module.qualname``."""
    module = getattr(body, "__module__", None) or "__anonymous_module__"
    qualname = getattr(body, "__qualname__", None) or "__anonymous_func__"
    return f"{module}.{slugify(qualname)}"


def check_root(dag: object) -> FunctionNode:
    """Raise unless it is a DAG that can be a workflow."""
    if isinstance(dag, FunctionNode):
        return dag
    if isinstance(dag, DAGNode):
        raise TypeError(
            f"Currently workflow does not support classes as DAG inputs: {type(dag).__name__} "
            f"is not a task. Make the last node a task: func.bind(...)."
        )
    hint = ""
    if isinstance(dag, ray.ObjectRef):
        hint = " It is an ObjectRef: use .bind(...) where you wrote .remote(...)."
    elif isinstance(dag, ray.remote_function.RemoteFunction):
        hint = " It is a remote function: call .bind(...) on it."
    elif callable(dag):
        hint = " Decorate the function with @ray.remote and pass func.bind(...)."
    raise TypeError(f"Input should be a DAG, not {type(dag).__name__}.{hint}")


class Node:
    """What one FunctionNode contributes to the plan."""

    __slots__ = ("arguments", "children", "direct", "index", "node", "task_id", "where")

    def __init__(self, node: FunctionNode, where: str, task_id: str) -> None:
        self.node = node
        self.where = where
        self.task_id = task_id
        self.arguments: Pickled | None = None
        self.children: list[FunctionNode] = []
        #: Positions of children whose values the task takes, not only references to them.
        self.direct: set[int] = set()
        self.index = -1


class DAGCapture:
    """One capture: walks a DAG and collects the parts of its plan.

    ``prefix`` makes the keys of its blobs unique in the workflow.
    """

    def __init__(
        self, writer: ValueWriter, prefix: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self.writer = writer
        self.prefix = prefix
        self.args = args
        self.kwargs = kwargs
        self.input_node: str | None = None
        self.functions: dict[int, int] = {}
        self.function_list: list[Function] = []
        # Function bodies are kept alive so that their ids stay theirs.
        self.bodies: list[Any] = []
        self.options: dict[bytes, int] = {}
        self.option_list: list[TaskOptions] = []
        self.constants: dict[tuple[str, Any], int] = {}
        self.constant_values: list[Any] = []
        self.nodes: dict[str, Node] = {}
        self.order: list[Node] = []
        self.task_options: dict[str, int] = {}

    def capture(self, root: FunctionNode) -> None:
        """Visit every node, inputs before the tasks that take them."""
        stack: list[tuple[FunctionNode, bool]] = [(root, False)]
        while stack:
            node, children_done = stack.pop()
            key = node.get_stable_uuid()
            if children_done:
                found = self.nodes[key]
                if found.index < 0:
                    found.index = len(self.order)
                    self.order.append(found)
                continue
            if key in self.nodes:
                continue
            found = self.visit(node)
            self.nodes[key] = found
            stack.append((node, True))
            stack.extend((child, False) for child in reversed(found.children))

    def visit(self, node: FunctionNode) -> Node:
        body = node._body  # FunctionNode has no public name for its function.
        name = function_name(body)
        bound = node.get_options()
        options, task_id = task_options(bound, where=f"task '{name}'")
        found = Node(node, f"arguments of task '{task_id or name}'", task_id or name)
        self.register_function(body, name)
        self.register_options(node, options)
        positions: dict[str, int] = {}

        def node_hook(child: DAGNode, direct: bool) -> tuple[str, int]:
            if isinstance(child, (InputNode, InputAttributeNode)):
                return CONSTANT, self.register_constant(child)
            if not isinstance(child, FunctionNode):
                raise TypeError(
                    f"Unsupported DAG node: {child}. Currently workflow does not support classes "
                    f"as DAG inputs; use tasks (func.bind), and actors by name inside them."
                )
            key = child.get_stable_uuid()
            if key not in positions:
                positions[key] = len(positions)
                found.children.append(child)
            if not direct:
                return UPSTREAM_REF, positions[key]
            found.direct.add(positions[key])
            return UPSTREAM_VALUE, positions[key]

        if options.kind == TIMER:
            found.arguments = pickle_value(None, where=found.where)
            return found
        args = tuple(direct_argument(arg) for arg in node.get_args())
        kwargs = {name: direct_argument(arg) for name, arg in node.get_kwargs().items()}
        found.arguments = pickle_value((args, kwargs), where=found.where, node_hook=node_hook)
        return found

    def register_function(self, body: Any, name: str) -> None:
        if id(body) in self.functions:
            return
        pickled = pickle_value(body, where=f"function of task '{name}'")
        digest = hashlib.sha256(pickled.data)
        for buffer in pickled.buffers:
            digest.update(buffer)
        value = self.writer.write_pickled(
            pickled, key=f"function-{digest.hexdigest()}", where=f"function of task '{name}'"
        )
        self.functions[id(body)] = len(self.function_list)
        self.bodies.append(body)
        self.function_list.append(
            Function(digest=digest.hexdigest(), name=name, data=value.data, objects=value.objects)
        )

    def register_options(self, node: FunctionNode, options: TaskOptions) -> None:
        encoded = msgspec.msgpack.encode(options)
        if encoded not in self.options:
            self.options[encoded] = len(self.option_list)
            self.option_list.append(options)
        self.task_options[node.get_stable_uuid()] = self.options[encoded]

    def register_constant(self, node: InputNode | InputAttributeNode) -> int:
        if isinstance(node, InputNode):
            owner, key, value = node, ("input", None), self.input_value()
        else:
            owner = node._dag_input_node
            key = ("attribute", node.key)
            value = self.input_attribute(node)
        uuid = owner.get_stable_uuid()
        if self.input_node not in (None, uuid):
            raise ValueError("Each DAG should only have one unique InputNode.")
        self.input_node = uuid
        if key not in self.constants:
            self.constants[key] = len(self.constant_values)
            self.constant_values.append(value)
        return self.constants[key]

    def input_value(self) -> Any:
        if len(self.args) == 1 and not self.kwargs:
            return self.args[0]
        return DAGInput(self.args, self.kwargs)

    def input_attribute(self, node: InputAttributeNode) -> Any:
        key = node.key
        if isinstance(key, int):
            if 0 <= key < len(self.args):
                return self.args[key]
            raise ValueError(
                f"The DAG takes input[{key}], but {len(self.args)} positional inputs were given. "
                f"Pass them to run: run(dag, value, ...)."
            )
        if key in self.kwargs:
            return self.kwargs[key]
        if len(self.args) == 1 and not self.kwargs:
            # As in Ray: the parts of a single input object.
            try:
                if node._accessor_method == "__getitem__":
                    return self.args[0][key]
                return getattr(self.args[0], key)
            except (KeyError, AttributeError, TypeError):
                pass
        raise ValueError(
            f"The DAG takes the input '{key}', which was not given. Pass it to run: "
            f"run(dag, {key}=...)."
        )

    def plan(self, environment: Environment) -> Plan:
        """The plan of what was captured. Blobs are durable when it returns."""
        digest = hashlib.sha256()
        constants = []
        for index, value in enumerate(self.constant_values):
            direct = Direct(value) if isinstance(value, ray.ObjectRef) else value
            constants.append(
                self.writer.write(
                    direct, key=f"{self.prefix}-constant-{index}", where="input of the DAG"
                )
            )
            digest_value(digest, constants[-1])
        specs = []
        for found in self.order:
            assert found.arguments is not None
            arguments = self.writer.write_pickled(
                found.arguments,
                key=f"{self.prefix}-arguments-{found.index}",
                where=found.where,
            )
            upstream = tuple(self.nodes[c.get_stable_uuid()].index for c in found.children)
            specs.append(
                TaskSpec(
                    name=found.task_id,
                    function=self.functions[id(found.node._body)],
                    options=self.task_options[found.node.get_stable_uuid()],
                    arguments=arguments,
                    upstream=upstream,
                    nested=tuple(set(range(len(upstream))) - found.direct),
                )
            )
            digest.update(repr((found.task_id, upstream)).encode())
            digest_value(digest, arguments)
        return Plan(
            functions=tuple(self.function_list),
            options=tuple(self.option_list),
            tasks=tuple(specs),
            constants=tuple(constants),
            environment=environment,
            digest=digest.hexdigest(),
        )


def direct_argument(arg: Any) -> Any:
    return Direct(arg) if isinstance(arg, (DAGNode, ray.ObjectRef)) else arg


def digest_value(digest: Any, value: Value) -> None:
    data = value.data
    digest.update(data.checksum.encode() if isinstance(data, Blob) else data)


def capture_plan(
    dag: DAGNode,
    *,
    writer: ValueWriter,
    environment: Environment,
    prefix: str,
    args: tuple[Any, ...] = (),
    kwargs: dict[str, Any] | None = None,
) -> Plan:
    """Capture a DAG as a plan.

    Args:
        dag: the output node of the DAG.
        writer: where arguments go that are too large for the journal.
        environment: where the code of the tasks is found.
        prefix: makes the keys of blobs unique in the workflow.
        args: positional DAG inputs.
        kwargs: named DAG inputs.

    Raises:
        TypeError: not a DAG of tasks, or (SerializationError) an argument that can't be stored.
        ValueError: an input that was not given, or an option that no workflow task can have.
    """
    capture = DAGCapture(writer, prefix, args, kwargs or {})
    capture.capture(check_root(dag))
    return capture.plan(environment)
