"""`PayloadCodec`: the hook by which users compress or encrypt stored values.
This module defines and checks codecs; `_codec.envelope` applies them.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from ray_workflows.exceptions import PayloadCodecError

NAME = re.compile(r"[A-Za-z0-9_.:/-]{1,100}")

#: The bytes that a codec is tried with: none, a few, and every byte value.
SAMPLES = (b"", b"ray-workflows", bytes(range(256)) * 64)


class PayloadCodec(ABC):
    """Turns the bytes of values into the bytes to store, and back. Subclass it.

    Give an instance to ``init(codec=...)``. It travels to workers and coordinators by pickle, and
    is called there from several threads, with up to 4 MiB at a time: a large value is encoded piece
    by piece, each separately. Encoding may give other bytes each time.

    The name is stored with each value, so that the error of a missing codec names it. A codec that
    can't read the output of an older one needs another name.

    Example:
        >>> import zlib
        >>> class Deflate(PayloadCodec):
        ...     name = "deflate"
        ...     def encode(self, data):
        ...         return zlib.compress(data, 1)
        ...     def decode(self, data):
        ...         return zlib.decompress(data)
        >>> codec = Deflate()
        >>> codec.decode(codec.encode(b"value"))
        b'value'
    """

    #: Its permanent name: up to 100 ASCII letters, digits and ``_.:/-``.
    name: str = ""

    @abstractmethod
    def encode(self, data: bytes) -> bytes:
        """The bytes to store in place of these."""

    @abstractmethod
    def decode(self, data: bytes) -> bytes:
        """The original bytes; raises if they can't be restored."""


def check_codecs(codec: PayloadCodec | Sequence[PayloadCodec] | None) -> tuple[PayloadCodec, ...]:
    """The codecs that ``codec=`` names, after a trial of each.

    Raises:
        TypeError: something else was given.
        ValueError: two have the same name, or one has none.
        PayloadCodecError: one does not return the bytes that it was given.
    """
    if codec is None:
        return ()
    codecs = (codec,) if isinstance(codec, PayloadCodec) else codec
    if isinstance(codecs, (str, bytes)) or not isinstance(codecs, Sequence):
        raise TypeError(
            f"'codec' must be an instance of a subclass of PayloadCodec, or a list of such, not "
            f"{described(codec)}."
        )
    for each in codecs:
        if not isinstance(each, PayloadCodec):
            raise TypeError(
                f"'codec' has {described(each)}, which is no instance of a subclass of "
                f"PayloadCodec."
            )
        if not isinstance(each.name, str) or not NAME.fullmatch(each.name):
            raise ValueError(
                f"The codec {type(each).__name__} has the name {each.name!r}. Give it one of up to "
                f"100 ASCII letters, digits and '_.:/-', which it keeps for ever."
            )
        try_codec(each)
    names = [each.name for each in codecs]
    if len(set(names)) != len(names):
        raise ValueError(f"'codec' has several of one name: {', '.join(names)}.")
    return tuple(codecs)


def described(value: Any) -> str:
    """The description, in messages, of a value that is not a codec."""
    if isinstance(value, type) and issubclass(value, PayloadCodec):
        return f"the class {value.__name__} (call it: {value.__name__}())"
    return type(value).__name__


def try_codec(codec: PayloadCodec) -> None:
    """Raise unless the codec returns what it was given, as bytes."""
    for sample in SAMPLES:
        try:
            found: Any = codec.decode(codec.encode(sample))
        except Exception as error:
            raise PayloadCodecError(
                codec.name,
                f"The codec {codec.name!r} failed when it was tried with {len(sample)} bytes: "
                f"{type(error).__name__}: {error}. Mend its encode() or decode().",
            ) from error
        if found != sample:
            raise PayloadCodecError(
                codec.name,
                f"The codec {codec.name!r} did not give back {len(sample)} bytes that it had "
                f"encoded. Mend its encode() or decode().",
            )
