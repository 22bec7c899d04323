"""`PayloadCodec`: the hook through which users compress or encrypt what is stored of their values.
Only its shape is here, and how one is checked; `_codec.envelope` applies it.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from ray_workflows.exceptions import PayloadCodecError

NAME = re.compile(r"[A-Za-z0-9_.:/-]{1,100}")

#: What a codec is tried with: nothing, a little, and all bytes there are.
SAMPLES = (b"", b"ray-workflows", bytes(range(256)) * 64)


class PayloadCodec(ABC):
    """Turns the bytes of values into what is stored, and back. Subclass it.

    Give an instance to ``init(codec=...)``. It travels to workers and coordinators by pickle, and
    is called there from several threads, with up to 4 MiB at a time: a large value is encoded piece
    by piece, each for itself. Encoding may give other bytes each time.

    The name is stored with each value, so that reading it without the codec says which is missing:
    give a codec that can't read what an older one wrote another name.

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

    #: What it is called, for ever: up to 100 ASCII letters, digits and ``_.:/-``.
    name: str = ""

    @abstractmethod
    def encode(self, data: bytes) -> bytes:
        """What is stored in place of these bytes."""

    @abstractmethod
    def decode(self, data: bytes) -> bytes:
        """The bytes that were encoded; raises if they can't be had."""


def check_codecs(codec: PayloadCodec | Sequence[PayloadCodec] | None) -> tuple[PayloadCodec, ...]:
    """The codecs that ``codec=`` names, each of which was tried.

    Raises:
        TypeError: something else was given.
        ValueError: two have the same name, or one has none.
        PayloadCodecError: one does not give back what it was given.
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
    """How messages call what is no codec."""
    if isinstance(value, type) and issubclass(value, PayloadCodec):
        return f"the class {value.__name__} (call it: {value.__name__}())"
    return type(value).__name__


def try_codec(codec: PayloadCodec) -> None:
    """Raise unless it gives back what it was given, as bytes."""
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
