"""Stores and reads Python values, with their envelopes, blobs and ObjectRefs.

`ValueWriter` turns a Python value into a `Value`, `ValueReader` turns it back.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import ray

from ray_workflows._capture.classes import OWN, Classes
from ray_workflows._capture.objects import (
    LOST_OBJECT_ERRORS,
    ObjectWriter,
    remember_restored,
)
from ray_workflows._capture.pickling import NodeHook, Pickled, pickle_value, refuse_node
from ray_workflows._capture.unpickling import unpickle_plain, unpickle_value
from ray_workflows._codec.envelope import Envelope, plain_head, seal, unseal
from ray_workflows._codec.placeholders import OBJECT_REF, OBJECT_VALUE, placeholder
from ray_workflows._model.blobs import BlobStore
from ray_workflows._model.errors import error_info, name_of, text_of
from ray_workflows._model.values import INLINE_LIMIT, Blob, ErrorInfo, Outcome, Value
from ray_workflows.codec import PayloadCodec
from ray_workflows.exceptions import (
    SerializationError,
    SignalTimeoutError,
    StorageCorruptError,
    is_transient,
)

#: Python's header of a traceback. Ray replaces it by one with the process that prints it.
HEADER = re.compile(r"^Traceback \(most recent call last\):$", re.MULTILINE)


class Brought:
    """A live value that Ray has brought into this process. The value may itself be an ObjectRef."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


class ValueWriter:
    """Writes values of one workflow. Blobs are durable on return."""

    def __init__(self, storage: BlobStore, incarnation: str) -> None:
        self.storage = storage
        self.incarnation = incarnation

    @cached_property
    def objects(self) -> ObjectWriter:
        """Writes the objects that values refer to. Made on first use: most refer to none."""
        return ObjectWriter(self.storage, self.incarnation)

    @property
    def codec(self) -> PayloadCodec | None:
        """The codec that encodes new values, or None."""
        codecs = self.storage.codecs
        return codecs[0] if codecs else None

    def write(
        self, value: Any, *, key: str, where: str, node_hook: NodeHook = refuse_node
    ) -> Value:
        """Store a value: inline if it is small, else as the blob ``key``."""
        return self.write_pickled(
            pickle_value(value, where=where, node_hook=node_hook), key=key, where=where
        )

    def write_plain(self, pickled: Pickled) -> Value | None:
        """Store a pickled value if it is inline and has no ObjectRefs; else None."""
        data = pickled.data
        if len(data) > INLINE_LIMIT or pickled.buffers or pickled.refs or self.storage.codecs:
            return None
        return Value(plain_head(len(data)) + data)

    def write_pickled(self, pickled: Pickled, *, key: str, where: str) -> Value:
        """Store a pickled value."""
        plain = self.write_plain(pickled)
        if plain is not None:
            return plain
        objects = self.write_objects(pickled, where=where)
        chunks = seal(pickled.data, pickled.buffers, objects, self.codec)
        if pickled.nbytes <= INLINE_LIMIT:
            return Value(b"".join(chunks), objects)
        return Value(self.storage.write_blob(self.incarnation, key, chunks), objects)

    def write_objects(self, pickled: Pickled, *, where: str) -> tuple[Blob, ...]:
        """Checkpoint the objects of the ObjectRefs in a value."""
        return self.objects.write_all(pickled, where=where) if pickled.refs else ()

    def write_error(self, error: BaseException, *, key: str, traceback: str = "") -> ErrorInfo:
        """Store an exception; one that can't be pickled keeps its type name and message.

        Raises:
            StorageUnavailableError: it is large, and the storage does not answer now.
        """
        name = name_of(error)
        try:
            value: Value | None = self.write(error, key=key, where=f"exception {name}")
            # An exception whose constructor takes other arguments pickles but does not unpickle.
            ValueReader(self.storage, self.incarnation).read(value, where=name)  # type: ignore[arg-type]
        except BaseException as failure:
            # The user's pickling and unpickling code may raise anything.
            if is_transient(failure):
                raise
            value = None
        return error_info(name, text_of(error), traceback, value)


class ValueReader:
    """Reads values of one workflow.

    ``live``: live copies by blob key: ObjectRefs, which ``get`` waits for, `Brought` values, or a
    `Pickled` of this process. Other values, and lost ones, are read from the storage.
    """

    def __init__(
        self,
        storage: BlobStore,
        incarnation: str,
        live: Mapping[str, Any] | None = None,
        get: Callable[[ray.ObjectRef], Any] = ray.get,
    ) -> None:
        self.storage = storage
        self.incarnation = incarnation
        self.live = live or {}
        self.get = get
        #: Replaces classes that values contain.
        self.classes: Classes = OWN

    def read_plain(self, value: Value) -> Any:
        """The Python value of an inline value with a plain pickle; None for any other. A fast path:
        most values are plain."""
        data = value.data
        return unpickle_plain(data) if type(data) is bytes else None

    def read(
        self,
        value: Value,
        *,
        where: str,
        resolve: Callable[[str, int], Any] = placeholder,
    ) -> Any:
        """The Python value. ``resolve`` stands for placeholders other than ObjectRefs."""
        plain = self.read_plain(value)
        if plain is not None:
            return plain
        data = value.data
        if isinstance(data, Blob) and data.key in self.live:
            try:
                return self.live_value(data.key)
            except LOST_OBJECT_ERRORS:
                if not data.stored:
                    raise
        return self.opened(self.envelope(value, where=where), where=where, resolve=resolve)

    def envelope(self, value: Value, *, where: str) -> Envelope:
        """The envelope of a value, from the journal or the storage."""
        data = value.data
        if isinstance(data, Blob):
            if not data.stored:
                raise ray.exceptions.ObjectLostError(data.key, "", "")
            try:
                view: bytes | memoryview = self.read_blob(data)
            except StorageCorruptError as error:
                # The storage knows only the key, so name the value too.
                raise StorageCorruptError(f"The {where} can't be read. {error}") from error
        else:
            view = data
        return unseal(view, where=where, codecs=self.storage.codecs)

    def unopened(self, envelope: Envelope) -> Pickled:
        """The value in an envelope, not unpickled: Ray unpickles it in the receiving process."""
        refs = [self.read_object(blob) for blob in envelope.objects]
        return Pickled(envelope.pickle, envelope.buffers, refs)

    def read_blob(self, blob: Blob) -> memoryview:
        """The bytes of a blob."""
        return self.storage.read_blob(self.incarnation, blob)

    def opened(self, envelope: Envelope, *, where: str, resolve: Callable[[str, int], Any]) -> Any:
        """The Python value in an envelope."""

        def resolve_objects(kind: str, index: int) -> Any:
            if kind == OBJECT_REF:
                return self.read_object(envelope.objects[index])
            if kind == OBJECT_VALUE:
                return self.read_object_value(envelope.objects[index], where=where)
            return resolve(kind, index)

        return unpickle_value(envelope.pickle, envelope.buffers, resolve_objects, self.classes)

    def live_value(self, key: str) -> Any:
        copy = self.live[key]
        if isinstance(copy, Brought):
            return copy.value
        return copy.open() if isinstance(copy, Pickled) else self.get(copy)

    def read_object(self, blob: Blob) -> ray.ObjectRef:
        """The ObjectRef of a checkpointed object: the live one, or one restored from its blob."""
        ref = self.live.get(blob.key)
        if not isinstance(ref, ray.ObjectRef):
            ref = restore_object.remote(self.storage, self.incarnation, blob)
            remember_restored(ref, self.incarnation, blob)
        return ref

    def read_object_value(self, blob: Blob, *, where: str) -> Any:
        """The value of a checkpointed object."""
        return self.read(Value(blob), where=where)

    def read_error(self, error: ErrorInfo, *, where: str) -> BaseException:
        """The exception, as Ray raises it: an instance of its own class and of RayTaskError.

        One that could not be stored, or whose class is not here, is a plain RayTaskError.
        """
        exception = error.exception
        read = None if exception is None else lambda: self.read(exception, where=where)
        return restored_error(error, where, read)

    def read_outcome(self, outcome: Outcome, *, where: str) -> Any:
        """What a consumer of a task gets."""
        if outcome.error is not None:
            error = self.read_error(outcome.error, where=where)
            return (None, error)
        assert outcome.value is not None
        value = self.read(outcome.value, where=where)
        return (value, None) if outcome.wrapped else value


def restored_error(
    error: ErrorInfo, where: str, read: Callable[[], BaseException] | None
) -> BaseException:
    """An error as Ray raises it, see `ValueReader.read_error`.

    Args:
        error: the record of the error.
        where: names the task or workflow.
        read: returns the exception; None if it was not stored.
    """
    cause: BaseException | None = None
    if read is not None:
        try:
            cause = read()
        except Exception as failure:
            cause = RuntimeError(
                f"{error.type_name}: {error.message} (it can't be restored here: {failure})"
            )
    if cause is None and error.type_name == SignalTimeoutError.__name__:
        # The engine made it, which pickles nothing.
        cause = SignalTimeoutError(error.message)
    if cause is None:
        cause = RuntimeError(f"{error.type_name}: {error.message}")
    if isinstance(cause, ray.exceptions.RayError) or not isinstance(cause, Exception):
        return cause
    return as_task_error(where, error_text(error), cause)


def error_text(error: ErrorInfo) -> str:
    """The traceback of an error, else its type and message."""
    return error.traceback or f"{error.type_name}: {error.message}"


def as_task_error(where: str, text: str, cause: Exception) -> BaseException:
    """An error in the form in which Ray raises that of a task: an instance of its own class and of
    RayTaskError. If such an error can't be made, the cause itself.

    Args:
        where: names the task or workflow.
        text: its ``str``, without Ray's own frames.
        cause: the error.
    """
    try:
        wrapped = ray.exceptions.RayTaskError(where, with_header(text, where), cause)
    except Exception:
        return cause
    return as_instance_of_cause(wrapped) if wrapped.cause is cause else cause


def as_instance_of_cause(wrapped: ray.exceptions.RayTaskError) -> BaseException:
    """Ray's error of a task as an instance also of the task's exception class. It pickles, and has
    the ``__cause__`` of the task's exception."""
    error: BaseException = wrapped.as_instanceof_cause()
    if error is not wrapped:
        # Ray makes a class for each such error, which pickle can't find by name.
        type(error).__reduce__ = lambda self: (as_instance_of_cause, (wrapped,))  # type: ignore
    if wrapped.cause.__cause__ is not None:
        error.__cause__ = wrapped.cause.__cause__
    return error


def with_header(traceback: str, header: str) -> str:
    """The text of a traceback, with each header ("Traceback (most recent call last):") replaced."""
    return HEADER.sub(lambda _: f"{header}:", traceback)


class DetachedReader(ValueReader):
    """Reads values without a cluster: replaces each ObjectRef by its value."""

    def read_object(self, blob: Blob) -> Any:
        """The value of a checkpointed object."""
        try:
            return self.read_object_value(blob, where=f"object {blob.key}")
        except RecursionError:
            raise SerializationError(
                f"The object {blob.key} is behind too many ObjectRefs in each other to stand in "
                f"the place of one. Read the value in a cluster, where ObjectRefs are ObjectRefs."
            ) from None


@ray.remote(num_cpus=0, max_retries=3)  # type: ignore[untyped-decorator]
def restore_object(storage: BlobStore, incarnation: str, blob: Blob) -> Any:
    """Put a checkpointed object back into the object store."""
    reader = ValueReader(storage, incarnation)
    return reader.unopened(reader.envelope(Value(blob), where=f"object {blob.key}"))
