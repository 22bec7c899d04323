"""ObjectRefs in values on their way to storage: what they refer to is checkpointed first, once
each, to any depth. No recursion: there may be thousands of objects in each other.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict

import ray

from ray_workflows._capture.pickling import Pickled, path_to_ref, pickle_value
from ray_workflows._codec.envelope import seal
from ray_workflows._environment.cluster import call_inside, is_outside
from ray_workflows._model.blobs import BlobStore
from ray_workflows._model.values import Blob
from ray_workflows.exceptions import SerializationError

#: What Ray raises when an object is gone with its owner or its node: nobody's fault.
LOST_OBJECT_ERRORS = (
    ray.exceptions.ObjectLostError,
    ray.exceptions.ObjectFetchTimedOutError,
    ray.exceptions.OwnerDiedError,
    ray.exceptions.ReferenceCountingAssertionError,
    ray.exceptions.ObjectReconstructionFailedError,
)

#: Blobs behind ObjectRefs that this process restored: returned again, they are not stored again.
#: The oldest leave first; who forgets one stores it once more.
restored_objects: OrderedDict[str, tuple[str, Blob]] = OrderedDict()
RESTORED_OBJECTS_LIMIT = 10_000


def identity_of(ref: ray.ObjectRef) -> str:
    """What tells an object from all others: its id in hex and, after a dash, a digest of its owner.

    Ray counts ids anew in each cluster. A workflow that resumes in another one would take the new
    object for the one that it has stored under that id.
    """
    if is_outside():
        return str(ref.hex())  # Compared in this process alone.
    return f"{ref.hex()}-{hashlib.sha256(ref.owner_address()).hexdigest()[:16]}"


def remember_restored(ref: ray.ObjectRef, incarnation: str, blob: Blob) -> None:
    """An ObjectRef was restored from a blob."""
    restored_objects[identity_of(ref)] = (incarnation, blob)
    while len(restored_objects) > RESTORED_OBJECTS_LIMIT:
        restored_objects.popitem(last=False)


class Reference:
    """An ObjectRef to be checkpointed, and the value that it stands in: ``holder`` is that of the
    object that the value is behind, or None, and ``index`` its place among the value's ObjectRefs.
    """

    __slots__ = ("holder", "identity", "index", "pickled", "ref", "within")

    def __init__(
        self, ref: ray.ObjectRef, within: Pickled | None, index: int, holder: Reference | None
    ) -> None:
        self.ref = ref
        self.identity = identity_of(ref)
        self.within = within
        self.index = index
        self.holder = holder
        #: Its object, while the objects that this one refers to are written.
        self.pickled: Pickled | None = None

    @property
    def path(self) -> str:
        """How one gets from the value to the ObjectRef, as an expression."""
        above: list[Reference] = [self]
        while (holder := above[-1].holder) is not None:
            above.append(holder)
        path = "value"
        for reference in reversed(above):
            if reference.holder is not None:
                path = f"ray.get({path})"
            if reference.within is not None:
                path += path_to_ref(reference.within, reference.index)
        return path


class ObjectWriter:
    """Writes what the ObjectRefs in values of one workflow refer to.

    ``written`` are the live ObjectRefs of the blobs that it wrote or found, by key.
    """

    def __init__(self, storage: BlobStore, incarnation: str) -> None:
        self.storage = storage
        self.incarnation = incarnation
        self.blobs: dict[str, Blob] = {}
        self.written: dict[str, ray.ObjectRef] = {}

    def write_all(self, pickled: Pickled, *, where: str) -> tuple[Blob, ...]:
        """Write the objects of a value; blobs in the order of its ObjectRefs.

        Args:
            pickled: the value.
            where: names the value in errors.

        Raises:
            SerializationError: one of them is lost, refers to itself, or can't be stored; says
                where in the value it is.
            Exception: what an object's task raised, as ``ray.get`` raises it.
        """
        references = [Reference(ref, pickled, i, None) for i, ref in enumerate(pickled.refs)]
        return tuple([self.write(reference, where) for reference in references])

    def write(self, reference: Reference, where: str) -> Blob:
        """Write an object, and those that it refers to."""
        if not self.is_known(reference) and is_outside():
            # The object stays in the cluster: its value may be large, or of no use out here.
            arguments = (self.storage, self.incarnation, [reference.ref], where)
            self.keep(reference, call_inside(write_object, *arguments))
        pending, opened = [reference], set[str]()
        while pending:
            current = pending[-1]
            if self.is_known(current):
                pending.pop()
            elif current.pickled is None and (blob := self.find(current)) is not None:
                self.keep(current, blob)
            elif current.pickled is None:
                current.pickled = self.fetch(current, where)
                opened.add(current.identity)
                inner = self.inner_of(current)
                if any(each.identity in opened for each in inner):
                    raise SerializationError(
                        f"The {where} can't be stored: the object behind its ObjectRef "
                        f"{current.path} refers to itself."
                    )
                pending += inner
            else:
                self.keep(current, self.seal(current))
                opened.remove(current.identity)
        return self.blobs[reference.identity]

    def is_known(self, reference: Reference) -> bool:
        """Whether there is a blob of an object."""
        identity = reference.identity
        if identity in self.blobs:
            return True
        incarnation, blob = restored_objects.get(identity, ("", None))
        if blob is None or incarnation != self.incarnation:
            return False
        self.blobs[identity] = blob
        return True

    def keep(self, reference: Reference, blob: Blob) -> None:
        self.blobs[reference.identity] = blob
        self.written[blob.key] = reference.ref

    def find(self, reference: Reference) -> Blob | None:
        return self.storage.find_blob(self.incarnation, f"object-{reference.identity}")

    def fetch(self, reference: Reference, where: str) -> Pickled:
        try:
            value = ray.get(reference.ref)
        except LOST_OBJECT_ERRORS as error:
            raise SerializationError(
                f"The {where} can't be stored: the object behind its ObjectRef {reference.path} is "
                f"lost ({type(error).__name__}). An object goes with the process that made it: let "
                f"a process make it that lives on, or pass the value itself."
            ) from error
        return pickle_value(value, where=f"object that the {where} refers to")

    def inner_of(self, reference: Reference) -> list[Reference]:
        """The objects that an object refers to and that are not written, the first one last."""
        pickled = reference.pickled
        assert pickled is not None
        inner = [Reference(ref, pickled, i, reference) for i, ref in enumerate(pickled.refs)]
        return [each for each in reversed(inner) if not self.is_known(each)]

    def seal(self, reference: Reference) -> Blob:
        """Write an object of which all that it refers to is written."""
        pickled = reference.pickled
        assert pickled is not None
        nested = [self.blobs[identity_of(ref)] for ref in pickled.refs]
        codec = self.storage.codecs[0] if self.storage.codecs else None
        chunks = seal(pickled.data, pickled.buffers, nested, codec)
        reference.pickled = None
        return self.storage.write_blob(self.incarnation, f"object-{reference.identity}", chunks)


def write_object(
    storage: BlobStore, incarnation: str, refs: list[ray.ObjectRef], where: str
) -> Blob:
    """As `ObjectWriter.write`, for the one ref in a list: a bare one would arrive as its value."""
    (ref,) = refs
    return ObjectWriter(storage, incarnation).write(Reference(ref, None, 0, None), where)
