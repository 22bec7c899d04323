"""Passes values and errors of users through a process without unpickling them there.

Unpickling runs user code. In a process that serves many workflows, code that hangs or ends the
process would stop all of them. So such a process passes the bytes on; Ray pickles them again, and
they unpickle to the value itself in the receiving process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray_workflows._capture.pickling import Pickled, open_pickled
from ray_workflows._capture.values import ValueReader, error_text, restored_error, with_header
from ray_workflows._codec.envelope import Envelope
from ray_workflows._model.values import ErrorInfo, Value


class UnopenedError(Exception):
    """A user's error in its stored form. It can be raised, and chained as a cause.

    Args:
        where: names the task or workflow.
        info: the record of the error.
        exception: the exception; None if it could not be stored.
    """

    def __init__(self, where: str, info: ErrorInfo, exception: Pickled | None) -> None:
        super().__init__(with_header(error_text(info), where))
        self.where = where
        self.info = info
        self.exception = exception

    def __reduce__(self) -> tuple[Any, ...]:
        parts = None if self.exception is None else self.exception.parts
        return open_error, (self.where, self.info, parts)


def open_error(where: str, info: ErrorInfo, parts: tuple[Any, ...] | None) -> BaseException:
    """The error of an `UnopenedError` in the receiving process, as Ray raises it."""
    return restored_error(info, where, None if parts is None else lambda: open_pickled(*parts))


class UnopenedReader(ValueReader):
    """Reads values of one workflow, and unpickles none of them."""

    def read_plain(self, value: Value) -> Any:
        """None: plain values stay unopened too."""
        return None

    def opened(
        self, envelope: Envelope, *, where: str, resolve: Callable[[str, int], Any]
    ) -> Pickled:
        """The value, to be unpickled in the receiving process."""
        return self.unopened(envelope)

    def read_error(self, error: ErrorInfo, *, where: str) -> UnopenedError:
        """The error, to be unpickled in the receiving process."""
        exception = None if error.exception is None else self.read(error.exception, where=where)
        info = ErrorInfo(error.type_name, error.message, error.traceback)
        return UnopenedError(where, info, exception)
