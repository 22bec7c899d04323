"""References to stored bytes: the form of values for code that must not unpickle them.

Records that exist in thousands have ``gc=False``: they can't form cycles, and the garbage collector
is faster without them.
"""

from __future__ import annotations

import msgspec

#: A value of up to this many bytes is stored in the journal; a larger one becomes a blob.
INLINE_LIMIT = 64 * 1024


class Blob(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Bytes stored beside the journal, under a key that is unique in its workflow.

    ``size`` is in bytes; ``checksum`` is a word for its kind, a colon and the hex digest of the
    stored bytes (`storage.checksums`). An empty checksum marks a result that is not stored: the key
    then names a live value of the coordinator that started the attempt.
    """

    key: str
    size: int
    checksum: str

    @property
    def stored(self) -> bool:
        """Whether it survives a crash."""
        return bool(self.checksum)


class Value(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A serialized Python value: its envelope, or the blob that holds the envelope.

    ``objects`` are the blobs of the ObjectRefs inside, in the order of their placeholders.
    """

    data: bytes | Blob
    objects: tuple[Blob, ...] = ()

    @property
    def stored(self) -> bool:
        """Whether it survives a crash."""
        return isinstance(self.data, bytes) or self.data.stored

    @property
    def has_copies(self) -> bool:
        """Whether there may be live copies of it, or of objects inside it."""
        return bool(self.objects) or not isinstance(self.data, bytes)


class ErrorInfo(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The journal's record of an error, readable without unpickling.

    ``exception`` is the pickled exception, or None if it can't be pickled.
    """

    type_name: str
    message: str
    traceback: str = ""
    exception: Value | None = None


class Outcome(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The result of a finished task for its consumers: a value or an error, never both.

    ``wrapped``: ``catch_exceptions`` applies, consumers get ``(value, None)`` or ``(None, error)``.
    """

    value: Value | None = None
    error: ErrorInfo | None = None
    wrapped: bool = False

    @property
    def stored(self) -> bool:
        """Whether it survives a crash."""
        return self.value is None or self.value.stored

    def wrap_if(self, catches: bool) -> Outcome:
        """The outcome of an enclosing task that catches; nested catching tasks wrap it once."""
        if not catches or self.wrapped:
            return self
        return Outcome(value=self.value, error=self.error, wrapped=True)
