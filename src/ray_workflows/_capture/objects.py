"""Stores what values refer to: objects behind ObjectRefs, and parts of values.

Each is written once, before the value, to any depth. No recursion: thousands of objects may be
nested.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import ray

from ray_workflows._capture.depth import find
from ray_workflows._capture.parts import children
from ray_workflows._capture.pickling import Part, Pickled, Reference, pickle_value
from ray_workflows._capture.unpickling import unpickle_value
from ray_workflows._codec.envelope import objects_in, seal
from ray_workflows._codec.placeholders import OBJECT_REF, OBJECT_VALUE
from ray_workflows._model.blobs import BlobStore
from ray_workflows._model.values import Blob
from ray_workflows._ray.cluster import call_inside, is_outside
from ray_workflows._ray.private import owner_address
from ray_workflows.exceptions import SerializationError

#: Ray's errors for an object that is lost with its owner or its node.
LOST_OBJECT_ERRORS = (
    ray.exceptions.ObjectLostError,
    ray.exceptions.ObjectFetchTimedOutError,
    ray.exceptions.OwnerDiedError,
    ray.exceptions.ReferenceCountingAssertionError,
    ray.exceptions.ObjectReconstructionFailedError,
)

#: The blobs behind ObjectRefs that this process restored: if returned again, they are not stored
#: again. The oldest are dropped over the limit, and then stored once more.
restored_objects: OrderedDict[str, tuple[str, Blob]] = OrderedDict()
RESTORED_OBJECTS_LIMIT = 10_000


def identity_of(ref: ray.ObjectRef) -> str:
    """The unique identity of an object: its id in hex and, after a dash, a digest of its owner.

    The id alone is not unique, because Ray counts ids anew in each cluster: a workflow that resumes
    in another one would confuse a new object with the one stored under that id.
    """
    if is_outside():
        return str(ref.hex())  # Only compared within this process.
    return f"{ref.hex()}-{hashlib.sha256(owner_address(ref)).hexdigest()[:16]}"


def remember_restored(ref: ray.ObjectRef, incarnation: str, blob: Blob) -> None:
    """Remember that an ObjectRef was restored from a blob."""
    restored_objects[identity_of(ref)] = (incarnation, blob)
    while len(restored_objects) > RESTORED_OBJECTS_LIMIT:
        restored_objects.popitem(last=False)


def key_of(ref: Reference) -> str:
    """The key of the blob of a reference."""
    return ref.key if isinstance(ref, Part) else f"object-{identity_of(ref)}"


def refers_to(
    storage: BlobStore, incarnation: str, blobs: Iterable[Blob], ref_hex: str, where: str
) -> bool:
    """Whether one of these blobs, or a blob that they refer to, is that of the object with this
    id."""
    pending, seen = list(blobs), set[str]()
    while pending:
        blob = pending.pop()
        if blob.key.startswith(f"object-{ref_hex}-"):
            return True
        if blob.key not in seen:
            seen.add(blob.key)
            pending += objects_in(storage.read_blob(incarnation, blob), where=where) or ()
    return False


class Found:
    """A reference in a value, to be written under its key.

    ``within`` is the value and ``index`` the reference's index in it; ``holder`` is the reference
    to that value, or None. Without ``within``, its place is not known.
    """

    __slots__ = ("holder", "index", "key", "pickled", "ref", "within")

    def __init__(
        self,
        ref: Reference,
        key: str,
        within: Pickled | None = None,
        index: int = 0,
        holder: Found | None = None,
    ) -> None:
        self.ref = ref
        self.key = key
        self.within = within
        self.index = index
        self.holder = holder
        #: The pickled object, while the objects that it refers to are written.
        self.pickled: Pickled | None = None

    @property
    def path(self) -> str:
        """The path to it from the outermost value, as an expression."""
        above: list[Found] = [self]
        while (holder := above[-1].holder) is not None:
            above.append(holder)
        path = "value"
        for found in reversed(above):
            if found.holder is not None and not isinstance(found.holder.ref, Part):
                path = f"ray.get({path})"
            if found.within is not None:
                path += path_to_ref(found.within, found.index)
        return path


class ObjectWriter:
    """Writes the objects and parts that values of one workflow refer to.

    ``written``: the live ObjectRefs of the objects that it wrote or found, by the keys of their
    blobs.
    """

    def __init__(self, storage: BlobStore, incarnation: str) -> None:
        self.storage = storage
        self.incarnation = incarnation
        self.blobs: dict[str, Blob] = {}
        self.written: dict[str, ray.ObjectRef] = {}

    def write_all(self, pickled: Pickled, *, where: str) -> tuple[Blob, ...]:
        """Write all that a value refers to. Returns the blobs in the order of its references.

        Args:
            pickled: the value.
            where: names the value in errors.

        Raises:
            SerializationError: an object is lost, refers to itself, or can't be stored; says where
                in the value it is.
            Exception: the error of an object's task, as ``ray.get`` raises it.
        """
        found = self.found_in(pickled, None)
        for each in found:
            self.write(each, where)
        return tuple([self.blobs[each.key] for each in found])

    def write(self, found: Found, where: str) -> Blob:
        """Write a reference, and before it the references in it."""
        pending, opened = [found], set[str]()
        while pending:
            current = pending[-1]
            if self.is_known(current):
                pending.pop()
            elif current.pickled is not None:
                self.keep(current, self.seal(current, current.pickled))
                opened.remove(current.key)
            elif (blob := self.stored(current, where)) is not None:
                self.keep(current, blob)
            else:
                current.pickled = pickled = self.fetch(current, where)
                opened.add(current.key)
                inner = [
                    each for each in self.found_in(pickled, current) if not self.is_known(each)
                ]
                if any(each.key in opened for each in inner):
                    raise SerializationError(
                        f"The {where} can't be stored: the object behind its ObjectRef "
                        f"{current.path} refers to itself."
                    )
                pending += reversed(inner)
        return self.blobs[found.key]

    def found_in(self, pickled: Pickled, holder: Found | None) -> list[Found]:
        """The references in a value."""
        return [
            Found(ref, key_of(ref), pickled, index, holder)
            for index, ref in enumerate(pickled.refs)
        ]

    def is_known(self, found: Found) -> bool:
        """Whether this writer or this process knows a blob of it."""
        if found.key in self.blobs:
            return True
        if isinstance(found.ref, Part):
            return False
        incarnation, blob = restored_objects.get(identity_of(found.ref), ("", None))
        if blob is None or incarnation != self.incarnation:
            return False
        self.blobs[found.key] = blob
        return True

    def stored(self, found: Found, where: str) -> Blob | None:
        """The blob of an object that is stored already, or that the cluster stores now."""
        if isinstance(found.ref, Part):
            return None  # `write_blob` skips an existing key.
        if is_outside():
            # Store it inside the cluster: its value may be large, or can't be unpickled out here.
            blob: Blob = call_inside(
                write_object, self.storage, self.incarnation, [found.ref], where
            )
            return blob
        return self.storage.find_blob(self.incarnation, found.key)

    def keep(self, found: Found, blob: Blob) -> None:
        self.blobs[found.key] = blob
        if not isinstance(found.ref, Part):
            self.written[blob.key] = found.ref

    def fetch(self, found: Found, where: str) -> Pickled:
        """The pickled object behind an ObjectRef, or a part."""
        if isinstance(found.ref, Part):
            return found.ref
        try:
            value = ray.get(found.ref)
        except LOST_OBJECT_ERRORS as error:
            raise SerializationError(
                f"The {where} can't be stored: the object behind its ObjectRef {found.path} is "
                f"lost ({type(error).__name__}). An object goes with the process that made it: let "
                f"a process make it that lives on, or pass the value itself."
            ) from error
        return pickle_value(value, where=f"object that the {where} refers to")

    def seal(self, found: Found, pickled: Pickled) -> Blob:
        """Write an object whose references are all written."""
        found.pickled = None
        inner = [self.blobs[key_of(ref)] for ref in pickled.refs]
        codec = self.storage.codecs[0] if self.storage.codecs else None
        chunks = seal(pickled.data, pickled.buffers, inner, codec)
        return self.storage.write_blob(self.incarnation, found.key, chunks)


def write_object(
    storage: BlobStore, incarnation: str, refs: list[ray.ObjectRef], where: str
) -> Blob:
    """As `ObjectWriter.write`, for the one ref in a list: Ray would pass a bare one as its
    value."""
    (ref,) = refs
    writer = ObjectWriter(storage, incarnation)
    return writer.write(Found(ref, key_of(ref)), where)


def path_to_ref(pickled: Pickled, index: int) -> str:
    """The path from a value to the ObjectRef with this index; empty if it is not found."""
    mark = object()

    def resolve(kind: str, at: int) -> Any:
        return mark if at == index and kind in (OBJECT_REF, OBJECT_VALUE) else None

    try:
        value = unpickle_value(pickled.data, pickled.buffers, resolve)
    except Exception:
        return ""  # The value's own code may need the real ObjectRef.
    return "".join(find(value, lambda part: part is mark, children) or ())
