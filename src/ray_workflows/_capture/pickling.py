"""Pickling of user values: ObjectRefs and DAG nodes become placeholders, large buffers stay out.

The only module that pickles or unpickles values of users.
"""

from __future__ import annotations

import io
import pickle
import re
import reprlib
from collections import deque
from collections.abc import Callable, Sequence
from types import CellType, CodeType, FunctionType
from typing import Any, TypeAlias

import ray
from ray import cloudpickle
from ray.dag import DAGNode, FunctionNode

from ray_workflows._capture.classes import OWN, Classes, bring_along, identity_in, own_class
from ray_workflows._capture.depth import DEEP_LIMIT, deepest, deeply, find, is_too_deep
from ray_workflows._capture.handles import is_handle, reduce_handle
from ray_workflows._capture.source_lines import lines_of, nested, restored_code
from ray_workflows._codec.envelope import plain_head_in
from ray_workflows._codec.placeholders import OBJECT_REF, OBJECT_VALUE, placeholder
from ray_workflows._model.errors import name_of, text_of
from ray_workflows._ray.private import (
    CLASS_ID,
    ENUM_ID,
    FILL_CLASS,
    MAKE_CLASS,
    MAKE_ENUM,
    SKELETON,
    know_class,
    node_function,
    tracked_class,
)
from ray_workflows.exceptions import InvalidResultError, SerializationError, WorkflowError

#: Types whose values are pickled by any pickler in the same way, and refer to nothing.
ATOMS = frozenset((type(None), bool, int, float, complex, str, bytes))

#: Containers with more in them, or with containers so deep in them, are not searched for others.
MAX_SEARCHED, MAX_DEPTH = 16, 3

#: Steps of the way to a part that is too deep that an error shows.
SHOWN_STEPS = 5

#: Buffers of at least this many bytes are kept out of the pickle, to be written and read in place.
OUT_OF_BAND_LIMIT = 4096


#: The name that is in every pickle with a placeholder in it.
PLACEHOLDER = placeholder.__name__.encode()

#: Finds what is in every pickle that brings a class along.
find_skeleton = re.compile(re.escape(SKELETON)).search

#: No pickle of so few bytes brings a class along: most results have fewer, and are not searched.
SMALLEST_CLASS = 128


class Direct:
    """Marks a direct argument: the task gets the value behind it, not a reference to it."""

    __slots__ = ("target",)

    def __init__(self, target: Any) -> None:
        self.target = target


class Pickled:
    """A pickled value and what stayed out of it: large buffers, and ObjectRefs and parts of it that
    are pickled for themselves, to which its placeholders refer.

    Pickled again, by Ray on the way to another process, it becomes the value where it arrives, and
    user code runs there alone. Live copies are put into the object store so: whoever takes one gets
    what the storage would give. Of some values Ray would make others (of a bytearray, bytes).
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
        """What `open_pickled` takes. What is large is no copy: Ray writes it from where it lies."""
        data = self.data
        large = len(data) >= OUT_OF_BAND_LIMIT
        return (
            pickle.PickleBuffer(data) if large else bytes(data),
            [pickle.PickleBuffer(each) for each in self.buffers],
            list(self.refs),
        )

    def open(self) -> Any:
        """The value: another one each time, but for its large buffers, which are read-only."""
        return open_pickled(self.data, self.buffers, self.refs)

    @property
    def nbytes(self) -> int:
        """Size in bytes without the envelope."""
        size = len(self.data)
        for buffer in self.buffers:
            size += buffer.nbytes
        return size


class Part(Pickled):
    """A part of a value, to be stored as the blob ``key``."""

    __slots__ = ("key",)

    def __init__(self, pickled: Pickled, key: str) -> None:
        super().__init__(pickled.data, pickled.buffers, pickled.refs)
        self.key = key


#: What placeholders refer to.
Reference: TypeAlias = ray.ObjectRef | Part

#: Turns a DAG node into the kind and index of its placeholder; ``direct`` as for `Direct`.
NodeHook = Callable[[DAGNode, bool], tuple[str, int]]


def describe_node(node: DAGNode) -> str:
    kind = type(node).__name__
    return (
        f"{kind} of {node_function(node).__qualname__}" if isinstance(node, FunctionNode) else kind
    )


def refuse_node(node: DAGNode, direct: bool) -> tuple[str, int]:
    """The hook for results: a node among other things was meant to go on, and would not."""
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
        #: What the hook raised: not a failure of pickling.
        self.hook_error: Exception | None = None

        # No method: the pickler would then refer to itself, and keep what it pickled, gigabytes,
        # until the garbage collector comes by.
        def keep_in_band(buffer: pickle.PickleBuffer) -> bool:
            raw = buffer.raw()
            if raw.nbytes < OUT_OF_BAND_LIMIT:
                return True
            buffers.append(raw)
            return False

        super().__init__(file, protocol=5, buffer_callback=keep_in_band)

    def reducer_override(self, obj: Any) -> Any:
        # The first, because thousands of them come together.
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
    """Pickles the function of a task; what of it is stored as code, with the lines of that code."""

    def __init__(self, file: io.BytesIO, node_hook: NodeHook) -> None:
        super().__init__(file, node_hook)
        #: Code objects within others, whose lines they share, by identity.
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
        value: anything cloudpickle takes; ObjectRefs stay out of it, and actor handles are as
            `handles` has them.
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
            raise refused from None  # About an input of the DAG, not about what is pickled.
        if refused is not None:
            path, _ = find_culprit(value, node_hook)
            text = f"The {where} can't be stored{f' (at {path})' if path else ''}: {refused}"
            raise type(refused)(text) from None
        if is_too_deep(error):
            raise SerializationError(describe_depth(value, where)) from None
        raise SerializationError(describe_failure(value, where, error)) from error
    return Pickled(file.getvalue(), pickler.buffers, pickler.refs)


def pickle_plain(value: Any) -> Pickled | None:
    """A value pickled without a pickler of ours, which costs ten times as much, if it needs none:
    None if it may."""
    return Pickled(pickle.dumps(value, 5)) if is_plain(value) else None


def pickle_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Pickled | None:
    """As `pickle_plain`, of the arguments of a call."""
    if not is_plain(args) or (kwargs and not is_plain(kwargs)):
        return None
    return Pickled(pickle.dumps((args, kwargs), 5))


def is_plain(value: Any, depth: int = MAX_DEPTH) -> bool:
    """Whether there is nothing in a value, for certain, that needs a pickler of ours."""
    kind = type(value)
    if kind in ATOMS:
        return True
    if (kind is not tuple and kind is not dict) or not depth or len(value) > MAX_SEARCHED:
        return False
    if kind is dict:
        value = (*value, *value.values())
    # First without a step of Python for each: most of capturing a small task would be that.
    if ATOMS.issuperset(map(type, value)):
        return True
    return all(is_plain(part, depth - 1) for part in value)


class ValueUnpickler(pickle.Unpickler):
    """Unpickles one value; ``resolve`` says what stands behind each placeholder, ``classes`` what
    takes the place of the classes that the pickle brings along."""

    def __init__(
        self,
        file: io.BytesIO,
        buffers: Sequence[memoryview],
        resolve: Callable[[str, int], Any],
        classes: Classes,
    ) -> None:
        super().__init__(file, buffers=buffers)
        self.resolve = resolve
        self.classes = classes
        #: What took the place of a class.
        self.taken: set[type] = set()

    def find_class(self, module: str, name: str) -> Any:
        if module == placeholder.__module__ and name == placeholder.__name__:
            return self.resolve
        found = super().find_class(module, name)
        if found is MAKE_CLASS:
            return lambda *args: self.make_class(MAKE_CLASS, args, args[CLASS_ID])
        if found is MAKE_ENUM:
            return lambda *args: self.make_class(MAKE_ENUM, args, args[ENUM_ID])
        return self.fill_class if found is FILL_CLASS else found

    def make_class(self, make: Callable[..., type], args: tuple[Any, ...], tracker_id: Any) -> type:
        identity = identity_in(tracker_id)
        if identity is None:
            return make(*args)
        cls = self.classes.find(identity) or tracked_class(identity.before)
        found = cls is not None
        if cls is None:
            # One that this process has pickled before is found again.
            cls = make(*args)
            know_class(cls, identity.before)
        if found or cls is own_class(*identity.name):
            self.taken.add(cls)
        self.classes.made(identity, cls)
        return cls

    def fill_class(self, cls: type, state: Any) -> type:
        # One that took the place of a class has its own contents.
        return cls if cls in self.taken else FILL_CLASS(cls, state)


def unpickle_value(
    data: bytes | memoryview,
    buffers: Sequence[memoryview],
    resolve: Callable[[str, int], Any] = placeholder,
    classes: Classes = OWN,
) -> Any:
    """The value behind a pickle; errors of user code (imports, ``__setstate__``) come through."""
    if resolve is placeholder and not brings_classes(data):
        return pickle.loads(data, buffers=buffers)
    data = bytes(data)
    if PLACEHOLDER not in data and not brings_classes(data):
        # Nothing to put into it.
        return pickle.loads(data, buffers=buffers)
    return ValueUnpickler(io.BytesIO(data), buffers, resolve, classes).load()


def brings_classes(pickled: bytes | memoryview) -> bool:
    """Whether a pickle may bring classes along."""
    if type(pickled) is bytes:
        return SKELETON in pickled
    # Without a copy of what may be large.
    return find_skeleton(pickled) is not None


def open_pickled(data: bytes | memoryview, buffers: Sequence[Any], refs: Sequence[Any]) -> Any:
    """The value of a `Pickled` that has arrived, and its parts before it."""

    def resolve(kind: str, index: int) -> Any:
        ref = refs[index]
        if kind == OBJECT_REF:
            return ref
        if isinstance(ref, Part):
            return ref.open()
        return ray.get(ref) if isinstance(ref, ray.ObjectRef) else ref

    # As the storage would give them.
    views = [memoryview(each).toreadonly() for each in buffers]
    return unpickle_value(data, views, resolve if refs else placeholder)


def unpickle_plain(sealed: bytes) -> Any:
    """The value in an envelope that holds a pickle and nothing else, of which nothing was left out;
    None if it is another one.

    It takes half the time of the long way, and most values are small and plain.
    """
    head = plain_head_in(len(sealed))
    if head is None or not sealed.startswith(head) or PLACEHOLDER in sealed:
        return None
    if len(sealed) > SMALLEST_CLASS and brings_classes(sealed):
        return None
    return pickle.loads(sealed[len(head) :])


def describe_depth(value: Any, where: str) -> str:
    """Say how deep a value is that is too deep, and where."""
    steps = deepest(value, children)
    begin = "".join(steps[:SHOWN_STEPS])
    return (
        f"The {where}, of type {type(value).__name__}, can't be stored: it is nested too deep, "
        f"{len(steps)} levels at {begin}... and Python pickles no more than about "
        f"{DEEP_LIMIT // 2}. Put the parts into a list beside each other."
    )


def describe_failure(value: Any, where: str, error: Exception) -> str:
    """Name the type at fault and the way to it."""
    reason = text_of(error)
    if not isinstance(error, WorkflowError):
        reason = f"{name_of(error)}: {reason}"
    path, culprit = find_culprit(value)
    location = f" (at {path}, of type {type(culprit).__name__})" if path else ""
    return (
        f"The {where}, of type {type(value).__name__}, can't be stored{location}: {reason}. "
        f"Give it a __reduce__, leave out what can't be pickled, or create it inside the task."
    )


def take_node(node: DAGNode, direct: bool) -> tuple[str, int]:
    """The hook that takes all nodes."""
    return "", 0


def can_pickle(value: Any, node_hook: NodeHook) -> bool:
    try:
        ValuePickler(io.BytesIO(), node_hook).dump(value)
    except Exception:
        return False
    return True


def children(value: Any) -> list[tuple[str, Any]]:
    """The parts of a value, each with the way to it; a DAG node is taken as a whole. Empty where
    code of the value's raises when it is looked at."""
    try:
        return parts_of(value)
    except Exception:
        return []


def parts_of(value: Any) -> list[tuple[str, Any]]:
    """As `children`."""
    if isinstance(value, DAGNode):
        return []
    if type(value) is Direct:
        return [("", value.target)]
    if isinstance(value, dict):
        return [(f"[{reprlib.repr(key)}]", item) for key, item in value.items()]
    if isinstance(value, (list, tuple, set, frozenset, deque)):
        return [(f"[{index}]", item) for index, item in enumerate(value)]
    found: list[tuple[str, Any]] = []
    if getattr(value, "__closure__", None):
        names = value.__code__.co_freevars
        cells = zip(names, map(content, value.__closure__), strict=True)
        found += [(f".<closure>.{name}", part) for name, part in cells]
    defaults = getattr(value, "__defaults__", None) or ()
    found += [(f".__defaults__[{index}]", item) for index, item in enumerate(defaults)]
    if hasattr(value, "__code__") and hasattr(value, "__globals__"):
        used = [name for name in value.__code__.co_names if name in value.__globals__]
        found += [(f".<globals>.{name}", value.__globals__[name]) for name in used]
    if not isinstance(value, type):
        attributes = getattr(value, "__dict__", None) or {}
        found += [(f".{name}", item) for name, item in attributes.items()]
        slots = [name for kind in type(value).__mro__ for name in slots_of(kind)]
        found += [(f".{name}", getattr(value, name)) for name in slots if hasattr(value, name)]
    return found


def content(cell: CellType) -> Any:
    """What a variable of a closure has; None if it has nothing yet."""
    try:
        return cell.cell_contents
    except ValueError:
        return None


def slots_of(kind: type) -> list[str]:
    """The slots that a class declares."""
    slots = kind.__dict__.get("__slots__", ())
    names = [slots] if isinstance(slots, str) else slots
    return [name for name in names if name not in ("__dict__", "__weakref__")]


def path_to_ref(pickled: Pickled, index: int) -> str:
    """The way from a value to the ObjectRef of this index; empty if it is not found."""
    mark = object()

    def resolve(kind: str, at: int) -> Any:
        return mark if at == index and kind in (OBJECT_REF, OBJECT_VALUE) else None

    try:
        value = unpickle_value(pickled.data, pickled.buffers, resolve)
    except Exception:
        return ""  # Code of the value's may want the ObjectRef itself.
    return "".join(find(value, lambda part: part is mark, children) or ())


def find_culprit(value: Any, node_hook: NodeHook = take_node) -> tuple[str, Any]:
    """Follow the parts that can't be pickled to the innermost; its path and itself."""
    path = ""
    seen: set[int] = set()
    while id(value) not in seen:
        seen.add(id(value))
        try:
            parts = children(value)
        except Exception:
            break  # It is of a user's class, which may raise when it is looked at.
        for step, part in parts:
            if not can_pickle(part, node_hook):
                path += step
                value = part
                break
    return path, value
