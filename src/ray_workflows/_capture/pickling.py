"""Pickles user values: ObjectRefs and DAG nodes become placeholders, large buffers stay out of
band.

No other module pickles values of users; `unpickling` unpickles them.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Sequence
from types import CodeType, FunctionType
from typing import Any, TypeAlias

import ray
from ray import cloudpickle
from ray.dag import DAGNode, FunctionNode

from ray_workflows._capture.classes import bring_along
from ray_workflows._capture.culprits import describe_depth, describe_failure, find_culprit
from ray_workflows._capture.depth import deeply, is_too_deep
from ray_workflows._capture.handles import is_handle, reduce_handle
from ray_workflows._capture.parts import Direct
from ray_workflows._capture.source_lines import lines_of, nested, restored_code
from ray_workflows._capture.unpickling import unpickle_value
from ray_workflows._codec.placeholders import OBJECT_REF, OBJECT_VALUE, placeholder
from ray_workflows._ray.private import node_function
from ray_workflows.exceptions import InvalidResultError, SerializationError

#: Types whose values every pickler pickles in the same way, and that refer to nothing.
ATOMS = frozenset((type(None), bool, int, float, complex, str, bytes))

#: Larger or deeper containers are not searched: they count as not plain.
MAX_SEARCHED, MAX_DEPTH = 16, 3

#: Buffers of at least this many bytes stay out of the pickle, to be written and read in place.
OUT_OF_BAND_LIMIT = 4096


class Pickled:
    """A pickled value, its large buffers, and the ObjectRefs and separately pickled parts that its
    placeholders refer to.

    When Ray pickles it again and sends it to another process, it unpickles there to the value, and
    user code runs only there. Live copies are in the object store in this form, so that consumers
    get the same value as from the storage. Ray itself would change some values (bytearray to
    bytes).
    """

    __slots__ = ("buffers", "data", "refs")

    def __init__(
        self,
        data: bytes | memoryview,
        buffers: Sequence[memoryview] = (),
        refs: Sequence[Reference] = (),
    ) -> None:
        self.data = data
        self.buffers = buffers
        self.refs = refs

    def __reduce__(self) -> tuple[Any, ...]:
        return open_pickled, self.parts

    @property
    def parts(self) -> tuple[Any, list[pickle.PickleBuffer], list[Reference]]:
        """The arguments of `open_pickled`. Large buffers are not copied: Ray writes them in
        place."""
        data = self.data
        large = len(data) >= OUT_OF_BAND_LIMIT
        return (
            pickle.PickleBuffer(data) if large else bytes(data),
            [pickle.PickleBuffer(each) for each in self.buffers],
            list(self.refs),
        )

    def open(self) -> Any:
        """The value: a new object each time, with the same read-only large buffers."""
        return open_pickled(self.data, self.buffers, self.refs)

    @property
    def nbytes(self) -> int:
        """Size in bytes without the envelope."""
        size = len(self.data)
        for buffer in self.buffers:
            size += buffer.nbytes
        return size


class Part(Pickled):
    """A separately pickled part of a value, to be stored as the blob ``key``."""

    __slots__ = ("key",)

    def __init__(self, pickled: Pickled, key: str) -> None:
        super().__init__(pickled.data, pickled.buffers, pickled.refs)
        self.key = key


#: The target of a placeholder.
Reference: TypeAlias = ray.ObjectRef | Part

#: Turns a DAG node into the kind and index of its placeholder; ``direct`` as for `Direct`.
NodeHook = Callable[[DAGNode, bool], tuple[str, int]]


def describe_node(node: DAGNode) -> str:
    kind = type(node).__name__
    return (
        f"{kind} of {node_function(node).__qualname__}" if isinstance(node, FunctionNode) else kind
    )


def refuse_node(node: DAGNode, direct: bool) -> tuple[str, int]:
    """The hook for results: refuses a DAG node inside of another value, which would not run."""
    raise InvalidResultError(
        f"it contains a DAG node ({describe_node(node)}) inside a container. Return the node "
        f"itself, through workflow.continuation(node); to combine several, bind them to one more "
        f"task."
    )


def refuse_node_in_function(node: DAGNode, direct: bool) -> tuple[str, int]:
    """The hook for functions of tasks."""
    raise SerializationError(
        f"it holds a DAG node ({describe_node(node)}), which is a task of a DAG and no value. Bind "
        f"the node as an argument of the task: task.bind(node)"
    )


class ValuePickler(cloudpickle.CloudPickler):  # type: ignore[misc]
    """Pickles one value; collects its ObjectRefs and parts by identity."""

    def __init__(self, file: io.BytesIO, node_hook: NodeHook) -> None:
        buffers: list[memoryview] = []
        self.buffers = buffers
        self.refs: list[Reference] = []
        self.ref_indices: dict[bytes | str, int] = {}
        self.node_hook = node_hook
        #: The error of the hook, which is not a failure of pickling.
        self.hook_error: Exception | None = None

        # Not a method: a cycle would keep the pickler, with gigabytes, until the next garbage
        # collection.
        def keep_in_band(buffer: pickle.PickleBuffer) -> bool:
            raw = buffer.raw()
            if raw.nbytes < OUT_OF_BAND_LIMIT:
                return True
            buffers.append(raw)
            return False

        super().__init__(file, protocol=5, buffer_callback=keep_in_band)

    def reducer_override(self, obj: Any) -> Any:
        # First, because there may be thousands.
        if type(obj) is Direct:
            target = obj.target
            if isinstance(target, (ray.ObjectRef, Part)):
                return placeholder, (OBJECT_VALUE, self.ref_index(target))
            return placeholder, self.call_hook(target, True)
        if isinstance(obj, ray.ObjectRef):
            return placeholder, (OBJECT_REF, self.ref_index(obj))
        if isinstance(obj, DAGNode):
            return placeholder, self.call_hook(obj, False)
        if is_handle(obj):
            return reduce_handle(obj)
        if issubclass(type(obj), (type, FunctionType)):
            bring_along(obj)
        return super().reducer_override(obj)

    def call_hook(self, node: DAGNode, direct: bool) -> tuple[str, int]:
        try:
            return self.node_hook(node, direct)
        except Exception as error:
            self.hook_error = error
            raise

    def ref_index(self, ref: Reference) -> int:
        key = ref.key if isinstance(ref, Part) else ref.binary()
        index = self.ref_indices.get(key)
        if index is None:
            index = self.ref_indices[key] = len(self.refs)
            self.refs.append(ref)
        return index


class FunctionPickler(ValuePickler):
    """Pickles the function of a task. Functions stored by value keep their source lines."""

    def __init__(self, file: io.BytesIO, node_hook: NodeHook) -> None:
        super().__init__(file, node_hook)
        #: Identities of code objects within others, whose source lines they share.
        self.inner: set[int] = set()

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is CodeType and id(obj) not in self.inner:
            lines = lines_of(obj)
            if lines is not None:
                self.inner.update(map(id, nested(obj)))
                _, args = self.dispatch_table[CodeType](obj)
                return restored_code, (lines, *args)
        return super().reducer_override(obj)


def pickle_value(
    value: Any,
    *,
    where: str,
    node_hook: NodeHook = refuse_node,
    kind: Callable[[io.BytesIO, NodeHook], ValuePickler] = ValuePickler,
) -> Pickled:
    """Pickle a value.

    Args:
        value: anything cloudpickle takes; ObjectRefs become placeholders, and `handles` reduces
            actor handles.
        where: names the value in errors ("argument 'x' of task 'f'").
        node_hook: what to do with DAG nodes; by default they are refused.
        kind: makes the pickler.

    Raises:
        SerializationError: it can't be pickled; names the type and the attribute at fault.
        InvalidResultError: it contains a DAG node that does not belong there.
    """
    plain = pickle_plain(value)
    if plain is not None:
        return plain
    file = io.BytesIO()
    pickler = kind(file, node_hook)
    try:
        try:
            pickler.dump(value)
        except Exception as error:
            if not is_too_deep(error):
                raise
            file = io.BytesIO()
            pickler = kind(file, node_hook)
            deeply(lambda: pickler.dump(value))
    except Exception as error:
        refused = pickler.hook_error
        if isinstance(refused, ValueError):
            raise refused from None  # About an input of the DAG, not about pickling.
        if refused is not None:
            path, _ = find_culprit(value, lambda part: can_pickle(part, node_hook))
            text = f"The {where} can't be stored{f' (at {path})' if path else ''}: {refused}"
            raise type(refused)(text) from None
        if is_too_deep(error):
            raise SerializationError(describe_depth(value, where)) from None
        raise SerializationError(describe_failure(value, where, error, can_pickle)) from error
    return Pickled(file.getvalue(), pickler.buffers, pickler.refs)


def pickle_plain(value: Any) -> Pickled | None:
    """Pickle a value that needs no `ValuePickler`, which takes ten times as long; None if it may
    need one."""
    return Pickled(pickle.dumps(value, 5)) if is_plain(value) else None


def pickle_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Pickled | None:
    """As `pickle_plain`, for the arguments of a call."""
    if not is_plain(args) or (kwargs and not is_plain(kwargs)):
        return None
    return Pickled(pickle.dumps((args, kwargs), 5))


def copied(value: Any) -> Any:
    """A copy of a value, as a task would be given it; the value itself if it can't be pickled."""
    try:
        return pickle.loads(cloudpickle.dumps(value))
    except Exception:
        return value


def is_plain(value: Any, depth: int = MAX_DEPTH) -> bool:
    """Whether a value certainly needs no `ValuePickler`."""
    kind = type(value)
    if kind in ATOMS:
        return True
    if (kind is not tuple and kind is not dict) or not depth or len(value) > MAX_SEARCHED:
        return False
    if kind is dict:
        value = (*value, *value.values())
    # First without a Python step per item, which would dominate capturing a small task.
    if ATOMS.issuperset(map(type, value)):
        return True
    return all(is_plain(part, depth - 1) for part in value)


def open_pickled(data: bytes | memoryview, buffers: Sequence[Any], refs: Sequence[Any]) -> Any:
    """The value of a `Pickled` in the receiving process. Opens its parts first."""

    def resolve(kind: str, index: int) -> Any:
        ref = refs[index]
        if kind == OBJECT_REF:
            return ref
        if isinstance(ref, Part):
            return ref.open()
        return ray.get(ref) if isinstance(ref, ray.ObjectRef) else ref

    # Read-only, as from the storage.
    views = [memoryview(each).toreadonly() for each in buffers]
    return unpickle_value(data, views, resolve if refs else placeholder)


def take_node(node: DAGNode, direct: bool) -> tuple[str, int]:
    """The hook that takes all nodes."""
    return "", 0


def can_pickle(value: Any, node_hook: NodeHook = take_node) -> bool:
    try:
        ValuePickler(io.BytesIO(), node_hook).dump(value)
    except Exception:
        return False
    return True
