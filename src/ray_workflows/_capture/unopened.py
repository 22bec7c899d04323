"""Values and errors of users that pass through a process without being unpickled there.

Unpickling runs code of the user's. In a process that serves many workflows, code that hangs or ends
the process would hold up all of them, so such a process hands the bytes on: pickled again, by Ray
on the way to whoever asked, they become the value itself where they arrive.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from typing import Any

import ray

from ray_workflows._capture.pickling import unpickle_value
from ray_workflows._capture.values import ValueReader, error_text, restored_error, with_header
from ray_workflows._codec.envelope import Envelope
from ray_workflows._codec.placeholders import OBJECT_VALUE
from ray_workflows._model.values import ErrorInfo, Value


class Unopened:
    """A value as it was stored: its pickle, and what was left out of that."""

    __slots__ = ("buffers", "pickled", "refs")

    def __init__(
        self,
        pickled: bytes,
        buffers: Sequence[memoryview] = (),
        refs: Sequence[ray.ObjectRef] = (),
    ) -> None:
        self.pickled = pickled
        self.buffers = buffers
        self.refs = refs

    @property
    def parts(self) -> tuple[bytes, list[pickle.PickleBuffer], list[ray.ObjectRef]]:
        """What `open_value` takes. Ray copies the buffers into the object store alone."""
        return self.pickled, [pickle.PickleBuffer(each) for each in self.buffers], list(self.refs)

    def __reduce__(self) -> tuple[Any, ...]:
        return open_value, self.parts


def open_value(pickled: bytes, buffers: Sequence[Any], refs: Sequence[ray.ObjectRef]) -> Any:
    """The value of an `Unopened` that has arrived."""

    def resolve(kind: str, index: int) -> Any:
        return ray.get(refs[index]) if kind == OBJECT_VALUE else refs[index]

    return unpickle_value(pickled, buffers, resolve)


class UnopenedError(Exception):
    """An error of a user's as it was stored. It can be raised, and chained as a cause.

    Args:
        where: whose error it is.
        info: all that is known of it but the exception.
        exception: the exception; None if it could not be stored.
    """

    def __init__(self, where: str, info: ErrorInfo, exception: Unopened | None) -> None:
        super().__init__(with_header(error_text(info), where))
        self.where = where
        self.info = info
        self.exception = exception

    def __reduce__(self) -> tuple[Any, ...]:
        parts = None if self.exception is None else self.exception.parts
        return open_error, (self.where, self.info, parts)


def open_error(where: str, info: ErrorInfo, parts: tuple[Any, ...] | None) -> BaseException:
    """The error of an `UnopenedError` that has arrived, as Ray raises it."""
    return restored_error(info, where, None if parts is None else lambda: open_value(*parts))


class UnopenedReader(ValueReader):
    """Reads values of one workflow, and unpickles none of them."""

    def read_plain(self, value: Value) -> Any:
        """None: also a plain value stays unopened."""
        return None

    def opened(
        self, envelope: Envelope, *, where: str, resolve: Callable[[str, int], Any]
    ) -> Unopened:
        """The value, which is opened where it arrives."""
        refs = [self.read_object(blob) for blob in envelope.objects]
        return Unopened(bytes(envelope.pickle), envelope.buffers, refs)

    def read_error(self, error: ErrorInfo, *, where: str) -> UnopenedError:
        """The error, which is opened where it arrives."""
        exception = None if error.exception is None else self.read(error.exception, where=where)
        info = ErrorInfo(error.type_name, error.message, error.traceback)
        return UnopenedError(where, info, exception)
