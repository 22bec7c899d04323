"""Envelopes: a pickle and its out-of-band buffers as one run of bytes, read without copying.

Layout: ``MAGIC``, a version byte, the header's length (4 bytes, big-endian), the header
(MessagePack), the pickle, then each buffer at the next multiple of `ALIGNMENT`. That is version 1.

In version 2 the codec that the header names encodes all that follows the header: it is cut into
pieces of `PIECE_BYTES`, each encoded separately, and written after its length (8 bytes,
big-endian). The header stays readable: it names the blobs that belong to the value.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

import msgspec

from ray_workflows._model.values import Blob
from ray_workflows.codec import PayloadCodec
from ray_workflows.exceptions import PayloadCodecError, StorageCorruptError

MAGIC = b"RV"
PLAIN, ENCODED = 1, 2
#: The beginning of an envelope: magic, version, the length of the header.
PREFIX = struct.Struct(">2sBI")
PREFIX_SIZE = PREFIX.size

#: Arrays restored from a mapped blob start at cache line boundaries.
ALIGNMENT = 64

#: The bytes that a codec gets at once, which memory holds beside the value.
PIECE_BYTES = 4 * 1024 * 1024
LENGTH_BYTES = 8


class Header(msgspec.Struct, frozen=True, array_like=True):
    """Sizes in bytes before they are encoded, the blobs of the ObjectRefs inside, and the name of
    the codec."""

    pickle_size: int
    buffer_sizes: tuple[int, ...] = ()
    objects: tuple[Blob, ...] = ()
    codec: str = ""


class Envelope(msgspec.Struct, frozen=True):
    """An opened envelope: views into the bytes it was read from."""

    pickle: memoryview
    buffers: list[memoryview]
    objects: tuple[Blob, ...]


ENCODER = msgspec.msgpack.Encoder()
HEADER_DECODER = msgspec.msgpack.Decoder(Header)


def padding(position: int) -> int:
    return -position % ALIGNMENT


@functools.lru_cache(maxsize=1024)
def plain_head(pickle_size: int) -> bytes:
    """The bytes before the pickle in an envelope that has nothing else."""
    header = ENCODER.encode(Header(pickle_size))
    return PREFIX.pack(MAGIC, PLAIN, len(header)) + header


@functools.lru_cache(maxsize=1024)
def plain_head_in(size: int) -> bytes | None:
    """The head of such an envelope with a total of ``size`` bytes; None if none has that size."""
    shortest, longest = len(plain_head(0)), len(plain_head(size))
    for length in range(shortest, min(size, longest + 1)):
        head = plain_head(size - length)
        if len(head) == length:
            return head
    return None


def seal(
    pickled: bytes | memoryview,
    buffers: Sequence[memoryview],
    objects: Iterable[Blob] = (),
    codec: PayloadCodec | None = None,
) -> Iterable[bytes | memoryview]:
    """The chunks of an envelope, to be iterated once; ``b"".join`` makes them one.

    Without a codec no buffer is copied. With one, pieces are encoded as they are taken.

    Raises:
        PayloadCodecError: the codec fails, while chunks are taken.
    """
    objects = tuple(objects)
    if codec is None and not buffers and not objects:
        return [plain_head(len(pickled)), pickled]
    sizes = tuple(buffer.nbytes for buffer in buffers)
    name = codec.name if codec is not None else ""
    header = ENCODER.encode(Header(len(pickled), sizes, objects, name))
    version = ENCODED if codec is not None else PLAIN
    prefix = PREFIX.pack(MAGIC, version, len(header))
    if codec is not None:
        return chain((prefix, header), encoded(laid_out(pickled, buffers, 0), codec))
    return [prefix, header, *laid_out(pickled, buffers, len(prefix) + len(header))]


def laid_out(
    pickled: bytes | memoryview, buffers: Sequence[memoryview], position: int
) -> Iterator[bytes | memoryview]:
    """The pickle, which starts at ``position``, and the buffers with the padding before them."""
    yield pickled
    position += len(pickled)
    for buffer in buffers:
        gap = padding(position)
        if gap:
            yield bytes(gap)
        yield buffer
        position += gap + buffer.nbytes


def encoded(chunks: Iterable[bytes | memoryview], codec: PayloadCodec) -> Iterator[bytes]:
    """The chunks encoded piece by piece, each piece after its length."""
    for piece in pieces(chunks):
        try:
            data = bytes(codec.encode(piece))
        except Exception as error:
            raise PayloadCodecError(
                codec.name,
                f"The codec {codec.name!r} failed to encode {len(piece)} bytes: "
                f"{type(error).__name__}: {error}. Mend it, then resume the workflow.",
            ) from error
        yield len(data).to_bytes(LENGTH_BYTES, "big")
        yield data


def pieces(chunks: Iterable[bytes | memoryview]) -> Iterator[bytes]:
    """The same bytes in pieces of `PIECE_BYTES`; the last one is shorter."""
    pending = bytearray()
    for chunk in chunks:
        view = memoryview(chunk)
        flat = view.cast("B") if view.c_contiguous else memoryview(view.tobytes())
        start = 0
        while start < flat.nbytes:
            end = start + PIECE_BYTES - len(pending)
            pending += flat[start:end]
            start = end
            if len(pending) == PIECE_BYTES:
                yield bytes(pending)
                pending.clear()
    if pending:
        yield bytes(pending)


def unseal(
    data: bytes | memoryview, *, where: str, codecs: Sequence[PayloadCodec] = ()
) -> Envelope:
    """Open an envelope: without copying, unless it is encoded.

    Args:
        data: the envelope.
        where: names it in errors.
        codecs: the codecs that it may be encoded with.

    Raises:
        StorageCorruptError: the bytes are no envelope, or a newer release wrote them.
        PayloadCodecError: its codec is missing, or fails.
    """
    view = memoryview(data)
    header, end = read_header(view, where=where)
    if header.codec:
        view, end = decoded(view[end:], header, where=where, codecs=codecs), 0
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


def decoded(
    view: memoryview, header: Header, *, where: str, codecs: Sequence[PayloadCodec]
) -> memoryview:
    """The decoded body of an envelope, in new memory; read-only."""
    codec = next((each for each in codecs if each.name == header.codec), None)
    if codec is None:
        known = ", ".join(repr(each.name) for each in codecs) or "none"
        raise PayloadCodecError(
            header.codec,
            f"The stored value of {where} is encoded by the codec {header.codec!r}, which is not "
            f"at hand here (there is {known}). Give it to init(codec=...) when the cluster's "
            f"coordinator is started, or to the command line with --codec module:object.",
        )
    size = body_size(header)
    if size > PIECE_BYTES * count_pieces(view):
        # Don't allocate the size that a damaged header names.
        raise StorageCorruptError(
            f"The stored value of {where} is damaged: it has too few pieces for the {size} bytes "
            f"that its header says."
        )
    found = bytearray(size)
    start = end = 0
    while start < view.nbytes:
        length = int.from_bytes(view[start : start + LENGTH_BYTES], "big")
        start += LENGTH_BYTES
        try:
            piece = codec.decode(bytes(view[start : start + length]))
        except Exception as error:
            raise PayloadCodecError(
                header.codec,
                f"The codec {header.codec!r} failed to decode the stored value of {where}: "
                f"{type(error).__name__}: {error}. Its bytes are what was stored: is it the codec, "
                f"with the key, that they were encoded with?",
            ) from error
        start += length
        # Cut: assigning a longer slice would grow the buffer.
        found[end : end + len(piece)] = piece[: len(found) - end]
        end += len(piece)
    if end != len(found) or start != view.nbytes:
        raise PayloadCodecError(
            header.codec,
            f"The codec {header.codec!r} made {end} bytes of the stored value of {where}, its "
            f"header says {len(found)}. Is it the codec that they were encoded with?",
        )
    return memoryview(found).toreadonly()


def count_pieces(view: memoryview) -> int:
    """How many encoded pieces there are."""
    count = start = 0
    while start < view.nbytes:
        start += LENGTH_BYTES + int.from_bytes(view[start : start + LENGTH_BYTES], "big")
        count += 1
    return count


def body_size(header: Header) -> int:
    """The bytes after the header, before they are encoded."""
    end = header.pickle_size
    for size in header.buffer_sizes:
        end += padding(end) + size
    return end


def read_header(view: memoryview, *, where: str) -> tuple[Header, int]:
    """The header of an envelope, and where it ends."""
    magic, version, size = PREFIX.unpack_from(view) if view.nbytes >= PREFIX_SIZE else (b"", 0, 0)
    if magic != MAGIC:
        raise StorageCorruptError(f"The stored value of {where} is not a value envelope.")
    if version > ENCODED:
        raise StorageCorruptError(
            f"The stored value of {where} has format version {version}, newer than the {ENCODED} "
            f"that this release reads. Upgrade ray-workflows."
        )
    end = PREFIX_SIZE + size
    try:
        header = HEADER_DECODER.decode(view[PREFIX_SIZE:end])
        if min((header.pickle_size, *header.buffer_sizes)) < 0:
            raise ValueError("a size in its header is negative")
        return header, end
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        # Text that is not UTF-8 is a ValueError.
        raise StorageCorruptError(f"The stored value of {where} is damaged: {error}") from error


def header_end(view: memoryview) -> int:
    """The end of the header, from the beginning of an envelope."""
    size: int = PREFIX.unpack_from(view)[2]
    return PREFIX_SIZE + size


def objects_in(
    beginning: bytes | memoryview, *, where: str, partial: bool = False
) -> tuple[Blob, ...] | None:
    """The blobs of the ObjectRefs in an envelope, from its beginning.

    ``partial``: ``beginning`` may be too short; None if it is.
    """
    view = memoryview(beginning)
    if partial and bytes(view[:2]) != MAGIC[: view.nbytes]:
        return ()  # Not an envelope: more bytes would not help.
    if partial and (view.nbytes < PREFIX_SIZE or view.nbytes < header_end(view)):
        return None
    return read_header(view, where=where)[0].objects
