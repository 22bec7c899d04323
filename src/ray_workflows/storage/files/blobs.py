"""Blobs as files, one directory per incarnation: durable, put-if-absent, verified when read.
Knows nothing of journals and catalog: callers decide what may be deleted.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import mmap
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from ray_workflows._model.values import Blob
from ray_workflows.exceptions import StorageCorruptError, StorageUnavailableError
from ray_workflows.storage.checksums import Checksum
from ray_workflows.storage.files.direct_io import FileWriter
from ray_workflows.storage.files.fsync import sync, sync_directory
from ray_workflows.storage.files.location import is_local
from ray_workflows.storage.parts import BlobStore, Home
from ray_workflows.storage.validation import (
    SLICE_BYTES,
    check,
    check_name,
    checked,
    describe_blob,
    is_name,
    slices,
)

#: No blob key starts with a dot, so a temporary name is never a blob's.
TEMPORARY_PREFIX = ".tmp-"

#: Smaller blobs are read, not mapped: before Python 3.13 every mapping holds a file descriptor.
MAP_FROM_BYTES = 1024 * 1024

#: Bytes that are read at once to compute a checksum.
BUFFER_BYTES = 1024 * 1024

#: The most directories in `BlobFiles.named`.
NAMED = 1000

#: How often to try again when a writer and a deletion collide in one directory.
ATTEMPTS = 10


class BlobFiles(BlobStore):
    """The blobs below one directory, as ``<root>/<incarnation>/<key>``.

    Args:
        root: the directory. It must exist: it is never created here, so that nothing is written
            beside a storage that was moved away or unmounted.
        home: the home of this part.
        mapped: whether large blobs are mapped into memory to read them. Only local files stay
            readable when they are deleted.
        clock: the clock of the file dates, in seconds since 1970.
    """

    def __init__(
        self,
        root: str,
        home: Home,
        *,
        mapped: bool = True,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.root = root
        self.home = home
        self.mapped = mapped
        self.clock = clock
        #: Directories of incarnations whose names are known to be on the disk.
        self.named: set[str] = set()

    def __reduce__(self) -> tuple[Any, ...]:
        make = partial(type(self), mapped=self.mapped, clock=self.clock)
        return make, (self.root, self.home)

    def directory(self, incarnation: str) -> str:
        """Where the blobs of an incarnation are."""
        return os.path.join(self.root, check_name("incarnation", incarnation))

    def path(self, incarnation: str, key: str) -> str:
        """The file of a blob."""
        return os.path.join(self.directory(incarnation), check_name("blob key", key))

    def write_blob(self, incarnation: str, key: str, chunks: Iterable[bytes | memoryview]) -> Blob:
        """Write a blob durably unless the key exists; return the description of what is stored."""
        path = self.path(incarnation, key)
        blob = self.find_blob(incarnation, key)
        if blob is None:
            blob = self.write_new(path, key, chunks)
        if blob is None:
            blob = self.find_blob(incarnation, key)
        if blob is None:
            raise StorageUnavailableError(
                f"{path} was deleted while it was written. Write it again if it is still needed."
            )
        # Also for an existing blob: its writer may not have synced the names yet.
        with io_errors(path):
            self.sync_names(os.path.dirname(path))
        return blob

    def sync_names(self, directory: str) -> None:
        """Sync the names in the directory of an incarnation, and the directory's own name."""
        sync_directory(directory)
        if directory not in self.named:
            sync_directory(self.root)
            if len(self.named) >= NAMED:
                self.named.clear()
            self.named.add(directory)

    def write_new(self, path: str, key: str, chunks: Iterable[bytes | memoryview]) -> Blob | None:
        """Write a blob, or return None if another writer was faster."""
        with io_errors(path):
            temporary, descriptor = self.create_temporary(os.path.dirname(path))
        try:
            with FileWriter(descriptor, direct=self.local) as writer:
                for data in writer.filled(slices(chunks)):
                    # Translate only our own I/O errors, not an OSError of the caller's chunks.
                    with io_errors(path):
                        writer.write(data)
            with io_errors(path):
                sync(descriptor)
                try:
                    # Unlike a rename, a link never replaces what is there.
                    os.link(temporary, path)
                except FileExistsError:
                    return None
            return Blob(key, writer.size, str(writer.checksum))
        finally:
            with contextlib.suppress(OSError):
                os.close(descriptor)
            with contextlib.suppress(OSError):
                os.unlink(temporary)

    @functools.cached_property
    def local(self) -> bool:
        """Whether the disk is local. Direct writes to a file server would wait for each answer,
        while the page cache sends many at once."""
        return is_local(self.root)

    def create_temporary(self, directory: str) -> tuple[str, int]:
        """A new file in the directory of an incarnation, which is created if it is missing."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        path = os.path.join(directory, TEMPORARY_PREFIX + uuid.uuid4().hex)
        for attempt in range(ATTEMPTS):
            try:
                # Read-only from the start: a blob never changes.
                return path, os.open(path, flags, 0o400)
            except FileNotFoundError:
                # Not yet there, or a deletion removed it in between.
                if attempt == ATTEMPTS - 1:
                    raise
            self.named.discard(directory)
            with contextlib.suppress(FileExistsError):
                os.mkdir(directory, 0o700)
        raise AssertionError("unreachable")

    def read_blob(self, incarnation: str, blob: Blob) -> memoryview:
        """The bytes of a blob, checked against its size and checksum; read-only."""
        path = self.path(incarnation, blob.key)
        what = f"{describe_blob(incarnation, blob)} ({path})"
        with io_errors(path):
            try:
                file = io.FileIO(path)
            except (FileNotFoundError, NotADirectoryError):
                if not os.path.isdir(self.root):
                    raise
                raise StorageCorruptError(f"The {what} is missing.") from None
            with file:
                size = os.fstat(file.fileno()).st_size
                if size != blob.size:
                    raise StorageCorruptError(
                        f"The {what} has {size} bytes, expected {blob.size}: it was truncated or "
                        f"overwritten."
                    )
                large = self.mapped and size >= MAP_FROM_BYTES
                view = map_all(file, size) if large else read_all(file)
        check(view, blob, what)
        return view

    def stream_blob(self, incarnation: str, blob: Blob) -> Iterator[memoryview]:
        """The bytes of a blob piece by piece, checked at the end."""
        path = self.path(incarnation, blob.key)
        what = f"{describe_blob(incarnation, blob)} ({path})"
        return checked(self.pieces(path, what), blob, what)

    def pieces(self, path: str, what: str) -> Iterator[memoryview]:
        """The bytes of a file piece by piece, unchecked."""
        with io_errors(path):
            try:
                file = io.FileIO(path)
            except (FileNotFoundError, NotADirectoryError):
                if not os.path.isdir(self.root):
                    raise
                raise StorageCorruptError(f"The {what} is missing.") from None
        with file:
            while True:
                # A new buffer for each piece: the caller may keep it.
                with io_errors(path):
                    data = file.read(SLICE_BYTES)
                if not data:
                    return
                yield memoryview(data)

    def find_blob(self, incarnation: str, key: str) -> Blob | None:
        """The description of a stored blob, or None."""
        path = self.path(incarnation, key)
        checksum = Checksum()
        size = 0
        with io_errors(path):
            try:
                file = io.FileIO(path)
            except FileNotFoundError:
                return None
            with file:
                buffer = memoryview(bytearray(BUFFER_BYTES))
                while count := file.readinto(buffer):
                    checksum.update(buffer[:count])
                    size += count
        return Blob(key, size, str(checksum))

    def exists(self, incarnation: str) -> bool:
        """Whether an incarnation has, or had, blobs."""
        return os.path.isdir(self.directory(incarnation))

    def delete_blobs(self, incarnation: str) -> None:
        """Delete all blobs of an incarnation. Values mapped before stay readable.

        Foreign files in the directory are deleted too if possible; else they and it stay.
        """
        directory = self.directory(incarnation)
        self.named.discard(directory)
        with io_errors(directory):
            for attempt in range(ATTEMPTS):
                try:
                    for name in os.listdir(directory):
                        gone = FileNotFoundError if is_ours(name) else OSError
                        with contextlib.suppress(gone):
                            os.unlink(os.path.join(directory, name))
                    os.rmdir(directory)
                except FileNotFoundError:
                    break
                except OSError as error:
                    # A writer added a file after the listing.
                    again = error.errno in (errno.ENOTEMPTY, errno.EEXIST)
                    if again and not any(map(is_ours, os.listdir(directory))):
                        break
                    if not again or attempt == ATTEMPTS - 1:
                        raise
                else:
                    break
            sync_directory(self.root)

    def incarnations(self) -> list[str]:
        """All incarnations that have blobs, in order."""
        with io_errors(self.root), os.scandir(self.root) as entries:
            return sorted(
                entry.name
                for entry in entries
                if is_name(entry.name) and entry.is_dir(follow_symlinks=False)
            )

    def old_blobs(self, grace_seconds: float) -> list[str]:
        """Incarnations whose newest blob is older than the grace period."""
        before = self.clock() - grace_seconds
        newest = ((name, self.newest(name)) for name in self.incarnations())
        return [name for name, time in newest if time is not None and time <= before]

    def newest(self, incarnation: str) -> float | None:
        """When the newest file of an incarnation was written, in seconds since 1970."""
        directory = self.directory(incarnation)
        with io_errors(directory):
            try:
                times = [os.stat(directory).st_mtime]
                with os.scandir(directory) as entries:
                    times += [entry.stat(follow_symlinks=False).st_mtime for entry in entries]
            except FileNotFoundError:
                return None
        return max(times)

    def remove_temporaries(self, incarnation: str, before: float) -> None:
        """Remove temporary files of writers that were killed before a time."""
        remove_temporaries(self.directory(incarnation), before)


def is_ours(name: str) -> bool:
    """Whether a file in the directory of an incarnation is a blob or a temporary file of ours."""
    return is_name(name) or name.startswith(TEMPORARY_PREFIX)


def remove_temporaries(directory: str, before: float) -> None:
    """Remove temporary files last written before that time, in seconds since 1970."""
    with io_errors(directory), contextlib.suppress(FileNotFoundError):
        with os.scandir(directory) as entries:
            temporaries = [entry for entry in entries if entry.name.startswith(TEMPORARY_PREFIX)]
        for entry in temporaries:
            if entry.stat(follow_symlinks=False).st_mtime <= before:
                os.unlink(entry.path)


def read_all(file: io.FileIO) -> memoryview:
    """The bytes of a small file."""
    return memoryview(file.readall())


def map_all(file: io.FileIO, size: int) -> memoryview:
    """The bytes of a file, mapped. The mapping lives as long as the view or a slice of it."""
    if sys.version_info >= (3, 13):
        return memoryview(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ, trackfd=False))
    return memoryview(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ))


@contextlib.contextmanager
def io_errors(path: str) -> Iterator[None]:
    """Turn an OSError into `StorageUnavailableError` that names the path and the remedy."""
    try:
        yield
    except OSError as error:
        remedy = "The operation can be repeated when the cause is mended."
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            remedy = "Free some space; the operation can then be repeated."
        raise StorageUnavailableError(
            f"{path} can't be used now: {error.strerror or error}. {remedy}"
        ) from error
