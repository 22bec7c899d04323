"""ObjectRefs without a cluster: this process keeps their values, pickled."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NoReturn
from unittest import mock

import ray

from ray_workflows._capture.objects import remember_restored
from ray_workflows._capture.pickling import Pickled, pickle_value
from ray_workflows._capture.values import ValueReader
from ray_workflows._model.blobs import BlobStore
from ray_workflows._model.values import Blob, Value

#: Length of an object id in bytes.
ID_SIZE = 28


class LocalObjects:
    """The object store of this process. Ray does not know its refs, which are `ray.ObjectRef`."""

    def __init__(self) -> None:
        self.values: dict[bytes, Pickled] = {}
        self.ray_get, self.ray_wait, self.ray_put = ray.get, ray.wait, ray.put

    @contextmanager
    def in_place_of_rays(self) -> Iterator[None]:
        """Scope in which ``ray.put``, ``ray.get`` and ``ray.wait`` use this store, and pass refs
        that it does not know to Ray. Ray does not start by itself in this scope."""
        functions: dict[str, Any] = {"put": self.put, "get": self.get, "wait": self.wait}
        if not ray.is_initialized():
            functions["init"] = refuse_to_start
        with ExitStack() as stack:
            for name, function in functions.items():
                stack.enter_context(mock.patch.object(ray, name, function))
            yield

    def keep(self, pickled: Pickled) -> ray.ObjectRef:
        """Store a pickled value: in Ray if this process is connected to a cluster, else here."""
        if ray.is_initialized():
            return self.ray_put(pickled)
        ref = ray.ObjectRef(os.urandom(ID_SIZE))
        self.values[ref.binary()] = pickled
        return ref

    def put(self, value: Any, **_: Any) -> ray.ObjectRef:
        """As ``ray.put``."""
        return self.keep(pickle_value(value, where="object of ray.put"))

    def get(self, refs: Any, **options: Any) -> Any:
        """As ``ray.get``; each call returns a new copy of the value."""
        if isinstance(refs, (list, tuple)):
            return [self.get(ref, **options) for ref in refs]
        found = self.values.get(refs.binary()) if isinstance(refs, ray.ObjectRef) else None
        return self.ray_get(refs, **options) if found is None else found.open()

    def wait(
        self, refs: Sequence[Any], *, num_returns: int = 1, **options: Any
    ) -> tuple[list[Any], list[Any]]:
        """As ``ray.wait``; refs of this store are ready."""
        if all(isinstance(ref, ray.ObjectRef) and ref.binary() in self.values for ref in refs):
            return list(refs[:num_returns]), list(refs[num_returns:])
        ready, others = self.ray_wait(refs, num_returns=num_returns, **options)
        return ready, others


def refuse_to_start(*_: Any, **__: Any) -> NoReturn:
    """Replaces ``ray.init``, which ``.remote()`` and other functions of Ray call implicitly."""
    raise RuntimeError(
        "A testing.Environment is entered, which has no Ray cluster, and this needs one "
        "(.remote(), an actor, an ObjectRef that was not made here). If you mean it, call "
        "ray.init() before you enter the environment."
    )


class LocalReader(ValueReader):
    """Reads values, with their ObjectRefs from `LocalObjects`."""

    def __init__(
        self,
        objects: LocalObjects,
        storage: BlobStore,
        incarnation: str,
        live: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(storage, incarnation, live, objects.get)
        self.objects = objects

    def read_object(self, blob: Blob) -> ray.ObjectRef:
        """The ObjectRef of a checkpointed object: the live one, or a new one of the stored
        value."""
        ref = self.live.get(blob.key)
        if not isinstance(ref, ray.ObjectRef):
            where = f"object {blob.key}"
            ref = self.objects.keep(self.unopened(self.envelope(Value(blob), where=where)))
            remember_restored(ref, self.incarnation, blob)
        return ref
