"""Envelopes: a pickle and its out-of-band buffers as one run of bytes, and back without copying.

Layout: ``MAGIC``, a version byte, the header's length (4 bytes, big-endian), the header
(MessagePack), the pickle, then each buffer at the next multiple of `ALIGNMENT`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from ray_workflows._model.values import Blob
from ray_workflows.exceptions import StorageCorruptError

MAGIC = b"RV"
VERSION = 1
PREFIX_SIZE = len(MAGIC) + 1 + 4

#: Arrays restored from a mapped blob start at cache line boundaries.
ALIGNMENT = 64


class Header(msgspec.Struct, frozen=True, array_like=True):
    """Sizes in bytes, and the blobs of the ObjectRefs inside."""

    pickle_size: int
    buffer_sizes: tuple[int, ...] = ()
    objects: tuple[Blob, ...] = ()


class Envelope(msgspec.Struct, frozen=True):
    """An opened envelope: views into the bytes it was read from."""

    pickle: memoryview
    buffers: list[memoryview]
    objects: tuple[Blob, ...]


ENCODER = msgspec.msgpack.Encoder()
HEADER_DECODER = msgspec.msgpack.Decoder(Header)


def padding(position: int) -> int:
    return -position % ALIGNMENT


def seal(
    pickled: bytes, buffers: Sequence[memoryview], objects: Iterable[Blob] = ()
) -> list[bytes | memoryview]:
    """The chunks of an envelope, buffers not copied. ``b"".join`` makes them one."""
    header = ENCODER.encode(
        Header(len(pickled), tuple(buffer.nbytes for buffer in buffers), tuple(objects))
    )
    prefix = MAGIC + bytes((VERSION,)) + len(header).to_bytes(4, "big")
    chunks: list[bytes | memoryview] = [prefix, header, pickled]
    position = len(prefix) + len(header) + len(pickled)
    for buffer in buffers:
        gap = padding(position)
        if gap:
            chunks.append(bytes(gap))
        chunks.append(buffer)
        position += gap + buffer.nbytes
    return chunks


def unseal(data: bytes | memoryview, *, where: str) -> Envelope:
    """Open an envelope without copying. ``where`` names it in errors.

    Raises:
        StorageCorruptError: the bytes are no envelope, or a newer release wrote them.
    """
    view = memoryview(data)
    header, end = read_header(view, where=where)
    start, end = end, end + header.pickle_size
    pickled = view[start:end]
    buffers = []
    for size in header.buffer_sizes:
        start = end + padding(end)
        end = start + size
        buffers.append(view[start:end])
    if end != view.nbytes:
        raise StorageCorruptError(
            f"The stored value of {where} has {view.nbytes} bytes, its header says {end}."
        )
    return Envelope(pickled, buffers, header.objects)


def read_header(view: memoryview, *, where: str) -> tuple[Header, int]:
    """The header of an envelope, and where it ends."""
    if view.nbytes < PREFIX_SIZE or bytes(view[:2]) != MAGIC:
        raise StorageCorruptError(f"The stored value of {where} is not a value envelope.")
    if view[2] > VERSION:
        raise StorageCorruptError(
            f"The stored value of {where} has format version {view[2]}, newer than the {VERSION} "
            f"that this release reads. Upgrade ray-workflows."
        )
    end = header_end(view)
    try:
        return HEADER_DECODER.decode(view[PREFIX_SIZE:end]), end
    except msgspec.MsgspecError as error:
        raise StorageCorruptError(f"The stored value of {where} is damaged: {error}") from error


def header_end(view: memoryview) -> int:
    """Where the header ends of an envelope that begins so."""
    return PREFIX_SIZE + int.from_bytes(view[3:PREFIX_SIZE], "big")


def objects_in(
    beginning: bytes | memoryview, *, where: str, partial: bool = False
) -> tuple[Blob, ...] | None:
    """The blobs of the ObjectRefs in an envelope that begins so.

    ``partial``: more of it may be needed to tell; None if so.
    """
    view = memoryview(beginning)
    if partial and bytes(view[:2]) != MAGIC[: view.nbytes]:
        return ()  # No envelope: more of it would not help.
    if partial and (view.nbytes < PREFIX_SIZE or view.nbytes < header_end(view)):
        return None
    return read_header(view, where=where)[0].objects
