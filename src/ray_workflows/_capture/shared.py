"""Large parts of arguments: stored once for all tasks of a plan that take them.

Such a part is pickled separately, and the arguments refer to it as to an object behind an
ObjectRef. Each task gets its own copy, as if passed by value.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Callable, Sequence
from typing import Any

from ray_workflows._capture.parts import Direct
from ray_workflows._capture.pickling import NodeHook, Part, Pickled, ValuePickler, pickle_value
from ray_workflows._codec.placeholders import OBJECT_VALUE, placeholder
from ray_workflows._model.values import INLINE_LIMIT

#: Arrays inside of an argument of at least this many bytes are parts of their own. A table may have
#: thousands of smaller ones, and each part is a blob.
INNER_LIMIT = 1024 * 1024

#: Containers that are searched for arrays, and are not parts as a whole.
CONTAINERS = (list, tuple, dict, set)


class SplittingPickler(ValuePickler):
    """Pickles a value without its parts, which ``part_of`` returns."""

    def __init__(
        self, file: io.BytesIO, node_hook: NodeHook, part_of: Callable[[Any], Part | None]
    ) -> None:
        super().__init__(file, node_hook)
        self.part_of = part_of

    def reducer_override(self, obj: Any) -> Any:
        part = self.part_of(obj)
        if part is not None:
            return placeholder, (OBJECT_VALUE, self.ref_index(part))
        return super().reducer_override(obj)


class SharedParts:
    """The large parts of the arguments in one plan.

    ``prefix`` makes the keys of their blobs unique in the workflow.
    """

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        #: By the identity of the value, which is kept alive for that; None if it is small.
        self.parts: dict[int, tuple[Any, Part | None]] = {}
        #: By size, with a digest of the contents. The digest is computed only for several of one
        #: size, because it takes as long as writing them.
        self.alike: dict[int, list[tuple[Part, str]]] = {}
        self.count = 0

    def known(self, argument: Any) -> Any:
        """The stand-in for an argument: its part if it is large and another task takes it too."""
        part = self.parts.get(id(argument), (None, None))[1]
        return argument if part is None else Direct(part)

    def split(
        self, args: Sequence[Any], kwargs: dict[str, Any], *, where: str, node_hook: NodeHook
    ) -> Pickled:
        """Pickle arguments without their large parts."""
        args = tuple([self.whole(arg) for arg in args])
        kwargs = {name: self.whole(arg) for name, arg in kwargs.items()}
        return pickle_value((args, kwargs), where=where, node_hook=node_hook, kind=self.splitting)

    def splitting(self, file: io.BytesIO, node_hook: NodeHook) -> ValuePickler:
        """A pickler that leaves out large arrays."""
        return SplittingPickler(file, node_hook, self.array)

    def whole(self, argument: Any) -> Any:
        """The stand-in for an argument: the whole of it as a part, or itself."""
        if type(argument) is Direct:
            return argument
        part = self.part(argument, INLINE_LIMIT)
        return argument if part is None else Direct(part)

    def array(self, value: Any) -> Part | None:
        """The part for a value inside of an argument if it is a large buffer; else None."""
        try:
            with memoryview(value) as view:
                large = view.nbytes > INNER_LIMIT
        except Exception:
            return None  # It has no buffer.
        return self.part(value, INNER_LIMIT) if large else None

    def part(self, value: Any, limit: int) -> Part | None:
        """A value as a part; None if it is small, or takes results of other tasks."""
        found = self.parts.get(id(value))
        if found is None:
            kind = self.splitting if isinstance(value, CONTAINERS) else ValuePickler
            part = None
            # Values with DAG nodes fail here; all others were pickled before.
            with contextlib.suppress(Exception):
                pickled = pickle_value(value, where="argument", kind=kind)
                part = self.named(pickled) if pickled.nbytes > limit else None
            found = self.parts[id(value)] = (value, part)
        return found[1]

    def named(self, pickled: Pickled) -> Part:
        """The part with these contents: an existing or a new one."""
        alike = self.alike.setdefault(pickled.nbytes, [])
        digest = contents_of(pickled) if alike else ""
        for index, (part, known) in enumerate(alike):
            alike[index] = part, known or contents_of(part)
            if alike[index][1] == digest:
                return part
        part = Part(pickled, f"{self.prefix}-part-{self.count}")
        self.count += 1
        alike.append((part, digest))
        return part


def contents_of(pickled: Pickled) -> str:
    """A digest of the contents, for comparison within one plan."""
    sha = hashlib.sha256()
    for chunk in (pickled.data, *pickled.buffers):
        # With its size: the same bytes can be split into other buffers.
        sha.update(memoryview(chunk).nbytes.to_bytes(8, "big"))
        sha.update(chunk)
    for ref in pickled.refs:
        sha.update(contents_of(ref).encode() if isinstance(ref, Part) else ref.binary())
    return sha.hexdigest()
