"""Captures a Ray DAG as a plan, without recursion and in linear time."""

from __future__ import annotations

import hashlib
import inspect
import re
import unicodedata
import weakref
from typing import Any

import msgspec
import ray
from ray.dag import DAGNode, FunctionNode, InputAttributeNode, InputNode

from ray_workflows._capture import garbage
from ray_workflows._capture.functions import write_function
from ray_workflows._capture.options import task_options
from ray_workflows._capture.pickling import Part, Pickled, pickle_value
from ray_workflows._capture.shared import SharedParts, contents_of
from ray_workflows._capture.values import ValueWriter
from ray_workflows._capture.walk import NONE, Arguments, InputHook, direct_argument, postorder
from ray_workflows._model.plan import (
    ENGINE_KINDS,
    Environment,
    Function,
    Plan,
    TaskOptions,
    TaskSpec,
)
from ray_workflows._model.values import Blob, Value
from ray_workflows._ray.private import node_function, node_input, node_options, takes_item


class DAGInput:
    """The arguments of ``run(dag, *args, **kwargs)`` for a task that takes a bare InputNode of a
    DAG with several inputs: ``input[0]``, ``input["x"]``, ``input.x``."""

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


#: The signatures of functions. Weak, because a function's closure may be large.
signatures: weakref.WeakKeyDictionary[Any, inspect.Signature | None] = weakref.WeakKeyDictionary()


def signature_of(body: Any) -> inspect.Signature | None:
    """The signature of a function; None if it has none (written in C)."""
    try:
        return signatures[body]
    except KeyError:
        pass
    try:
        found = inspect.signature(body)
    except (TypeError, ValueError):
        found = None
    signatures[body] = found
    return found


def check_arguments(body: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *, task: str) -> None:
    """Raise TypeError unless the function takes these arguments."""
    signature = signature_of(body)
    if signature is None:
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(f"Task '{task}' can't be called as it was bound: {error}.") from None


def check_root(dag: object) -> FunctionNode:
    """Raise unless the DAG can be a workflow."""
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


class Kind:
    """The common parts of nodes with one function and the same options, computed once."""

    __slots__ = (
        "body",
        "called",
        "first_digest",
        "function",
        "name",
        "option",
        "options",
        "runs",
    )

    def __init__(self, node: FunctionNode) -> None:
        self.body = node_function(node)
        default_name = function_name(self.body)
        self.options, task_id = task_options(node.get_options(), where=f"task '{default_name}'")
        self.name: str = task_id or default_name
        self.runs = self.options.kind not in ENGINE_KINDS
        #: The shape digest of nodes without upstream tasks, as most are.
        self.first_digest = shape_digest(self.name, ())
        #: The checked forms of calls: the number of positional arguments, and the names of others.
        self.called: set[tuple[int | str, ...]] = set()
        #: Indices into the plan's functions and options; -1 until these are in the plan.
        self.function = self.option = -1


def shape_digest(name: str, upstream: tuple[int, ...]) -> bytes:
    """The digest of a task without its arguments."""
    return repr((name, upstream)).encode()


class Node(Arguments):
    """One FunctionNode, captured for the plan."""

    __slots__ = ("kind",)

    def __init__(
        self, node: FunctionNode, kind: Kind, input_hook: InputHook, shared: SharedParts
    ) -> None:
        self.kind = kind
        if not kind.runs:
            # A timer's arguments are the value that it produces; other kinds have none.
            self.children, self.keys, self.direct = (), (), NONE
            self.pickled = pickle_value(None, where=f"task '{kind.name}'")
            return
        args, kwargs = node.get_args(), node.get_kwargs()
        call = (len(args), *kwargs)
        if call not in kind.called:
            check_arguments(kind.body, args, kwargs, task=kind.name)
            kind.called.add(call)
        task = f"task '{kind.name}'"
        super().__init__(args, kwargs, task=task, input_hook=input_hook, shared=shared)

    @property
    def nested(self) -> tuple[int, ...]:
        """Positions in ``children`` that are taken by reference only."""
        if len(self.direct) == len(self.children):
            return ()
        return tuple(set(range(len(self.children))) - self.direct)


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
        self.function_indices: dict[int, int] = {}
        self.functions: list[Function] = []
        self.option_indices: dict[bytes, int] = {}
        self.options: list[TaskOptions] = []
        self.constant_indices: dict[tuple[str, Any], int] = {}
        self.constant_values: list[Any] = []
        self.constant_names: list[str] = []
        self.kinds: dict[tuple[int, int], Kind] = {}
        self.nodes: dict[str, Node] = {}

    def capture(self, root: FunctionNode) -> None:
        """Visit every node, inputs before the tasks that take them."""
        kind_of, input_hook, shared = self.kind, self.constant_index, SharedParts(self.prefix)
        self.nodes = postorder(root, lambda node: Node(node, kind_of(node), input_hook, shared))

    def kind(self, node: FunctionNode) -> Kind:
        """The kind of a node. Identities are safe keys, because the DAG keeps the objects alive."""
        options = node_options(node)
        key = (id(node_function(node)), id(options) if options else 0)
        kind = self.kinds.get(key)
        if kind is None:
            kind = self.kinds[key] = Kind(node)
        return kind

    def function_index(self, kind: Kind) -> int:
        index = self.function_indices.get(id(kind.body))
        if index is None:
            name, where = function_name(kind.body), f"function of task '{kind.name}'"
            function = write_function(self.writer, kind.body, name=name, where=where)
            index = self.function_indices[id(kind.body)] = len(self.functions)
            self.functions.append(function)
        return index

    def option_index(self, options: TaskOptions) -> int:
        encoded = msgspec.msgpack.encode(options)
        index = self.option_indices.setdefault(encoded, len(self.options))
        if index == len(self.options):
            self.options.append(options)
        return index

    def constant_index(self, node: InputNode | InputAttributeNode) -> int:
        if isinstance(node, InputNode):
            owner, key, value = node, ("input", None), self.input_value()
        else:
            owner, key = node_input(node), ("attribute", node.key)
            value = self.input_attribute(node)
        uuid = owner.get_stable_uuid()
        if self.input_node not in (None, uuid):
            raise ValueError("Each DAG should only have one unique InputNode.")
        self.input_node = uuid
        index = self.constant_indices.setdefault(key, len(self.constant_values))
        if index == len(self.constant_values):
            self.constant_values.append(value)
            self.constant_names.append("input" if key[1] is None else f"input {key[1]!r}")
        return index

    def input_value(self) -> Any:
        if len(self.args) == 1 and not self.kwargs:
            return self.args[0]
        if not self.args and not self.kwargs:
            raise ValueError(
                "The DAG takes an input (InputNode), and none was given. Pass it to run: "
                "run(dag, value)."
            )
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
                if takes_item(node):
                    return self.args[0][key]
                return getattr(self.args[0], key)
            except (KeyError, AttributeError, TypeError):
                pass
        raise ValueError(
            f"The DAG takes the input '{key}', which was not given. Pass it to run: "
            f"run(dag, {key}=...)."
        )

    def digest_value(self, digest: Any, value: Value, pickled: Pickled) -> None:
        """Add a value to the digest of the plan."""
        encodes = self.writer.codec is not None
        if not encodes and not value.objects:
            data = value.data
            digest.update(data.checksum.encode() if isinstance(data, Blob) else data)
            return
        # Hash the pickle: encoded bytes may differ each time, and an envelope names its objects.
        for part in (pickled.data, *pickled.buffers):
            digest.update(part)
        for ref, blob in zip(pickled.refs, value.objects, strict=True):
            if not encodes:
                told = blob.checksum
            else:
                told = contents_of(ref) if isinstance(ref, Part) else blob.key
            digest.update(told.encode())

    def plan(self, environment: Environment) -> Plan:
        """The plan of the captured DAG. Its blobs are durable on return."""
        digest = hashlib.sha256()
        constants = []
        for index, value in enumerate(self.constant_values):
            key = f"{self.prefix}-constant-{index}"
            direct = direct_argument(value)
            where = f"{self.constant_names[index]} of the DAG"
            pickled = pickle_value(direct, where=where)
            constants.append(self.writer.write_pickled(pickled, key=key, where=where))
            self.digest_value(digest, constants[-1], pickled)
        indices = {key: index for index, key in enumerate(self.nodes)}
        write_plain = self.writer.write_plain
        specs = []
        for index, node in enumerate(self.nodes.values()):
            kind, pickled = node.kind, node.pickled
            if kind.function < 0:
                kind.function = self.function_index(kind)
                kind.option = self.option_index(kind.options)
            arguments = write_plain(pickled)
            if arguments is None:
                key = f"{self.prefix}-arguments-{index}"
                where = f"arguments (args, kwargs) of task '{kind.name}'"
                arguments = self.writer.write_pickled(pickled, key=key, where=where)
            shape = kind.first_digest
            upstream: tuple[int, ...] = ()
            nested: tuple[int, ...] = ()
            if node.keys:
                upstream, nested = tuple([indices[key] for key in node.keys]), node.nested
                shape = shape_digest(kind.name, upstream)
            # By position: keywords take a third more time, and thousands are made at once.
            specs.append(
                TaskSpec(kind.name, kind.function, kind.option, arguments, upstream, nested)
            )
            digest.update(shape)
            self.digest_value(digest, arguments, pickled)
        return Plan(
            functions=tuple(self.functions),
            options=tuple(self.options),
            tasks=tuple(specs),
            constants=tuple(constants),
            environment=environment,
            digest=digest.hexdigest(),
        )


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
        writer: stores arguments that are too large for the journal.
        environment: the environment of the tasks' code.
        prefix: makes the keys of blobs unique in the workflow.
        args: positional DAG inputs.
        kwargs: named DAG inputs.

    Raises:
        TypeError: not a DAG of tasks, or (SerializationError) an argument that can't be stored.
        ValueError: an input that was not given, or an option that no workflow task can have.
    """
    capture = DAGCapture(writer, prefix, args, kwargs or {})
    with garbage.seldom():
        capture.capture(check_root(dag))
        return capture.plan(environment)
