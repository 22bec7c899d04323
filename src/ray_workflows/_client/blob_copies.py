"""Copies blobs from one incarnation or storage to another, in pieces."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain

from ray_workflows._codec.envelope import objects_in
from ray_workflows._model.blobs import BlobStore
from ray_workflows._model.values import Blob
from ray_workflows.exceptions import StorageCorruptError


def copy_blobs(
    source: BlobStore, origin: str, target: BlobStore, incarnation: str, blobs: Iterable[Blob]
) -> None:
    """Copy blobs under their keys, and the blobs of the ObjectRefs inside of them.

    Raises:
        StorageCorruptError: one is damaged or missing, or the target has another one under its key.
    """
    copied: set[str] = set()
    pending = list(blobs)
    while pending:
        blob = pending.pop()
        if blob.key in copied:
            continue
        copied.add(blob.key)
        begun, pieces = begin(source.stream_blob(origin, blob))
        write_copy(target, incarnation, blob, chain(begun, pieces))
        pending += objects_in(joined(begun), where=f"blob {blob.key}") or ()


def write_copy(
    target: BlobStore, incarnation: str, blob: Blob, pieces: Iterable[memoryview]
) -> None:
    """Write the bytes of a blob under its key. Errors are those of `copy_blobs`."""
    written = target.write_blob(incarnation, blob.key, pieces)
    # The checksums may be of different kinds; then compare the bytes.
    if written != blob and not is_stored(target, incarnation, blob):
        raise StorageCorruptError(
            f"There is another blob {blob.key!r} of workflow incarnation {incarnation!r} "
            f"where it is to be copied to: {written.size} bytes with checksum "
            f"{written.checksum}, expected {blob.size} with {blob.checksum}. Delete the "
            f"workflow there, and copy it again."
        )


def is_stored(storage: BlobStore, incarnation: str, blob: Blob) -> bool:
    """Whether the stored bytes under the key of a blob are its own."""
    try:
        for _ in storage.stream_blob(incarnation, blob):
            pass
    except StorageCorruptError:
        return False
    return True


def begin(pieces: Iterator[memoryview]) -> tuple[list[memoryview], Iterator[memoryview]]:
    """The first pieces, up to the end of the header, which names the objects; and the other
    pieces."""
    begun: list[memoryview] = []
    for piece in pieces:
        begun.append(piece)
        try:
            if objects_in(joined(begun), where="", partial=True) is not None:
                break
        except StorageCorruptError:
            # Nothing is checked yet: the checksum at the end of the blob says what is wrong.
            break
    return begun, pieces


def joined(pieces: list[memoryview]) -> bytes | memoryview:
    """Join pieces; nearly always there is one, which is not copied."""
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
