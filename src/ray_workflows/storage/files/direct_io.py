"""`FileWriter`: the bytes of a new file, past the page cache where that is cheaper.

The page cache copies a large value page by page, and from there to the disk: on a fast disk this
copy takes most of the time. So large files are written by direct I/O, from two buffers that are
aligned as the disk needs. The value is copied into them piece by piece, and hashed while a piece is
in the processor's cache. One buffer is filled while the other is written.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import mmap
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from ray_workflows.storage.checksums import Checksum

#: Bytes written at once. Half or twice as much is not faster. Smaller files go through the page
#: cache: the copy costs little, and they may be read again soon.
BUFFER_BYTES = 4 * 1024 * 1024

#: The alignment of direct I/O, in the file and in memory, in bytes. A disk with larger blocks
#: refuses, and the page cache is used.
BLOCK_BYTES = 4096

#: The flag of direct I/O; 0 on systems without it.
DIRECT: int = getattr(os, "O_DIRECT", 0)

#: Unused buffers, kept because a new one costs as much as writing some megabytes.
spare: list[memoryview] = []
MAX_SPARE = 2


class FileWriter:
    """Writes a file from its beginning to its end. A context manager.

    Args:
        descriptor: of the file, open for writing. Not closed.
        direct: whether to bypass the page cache if the file is large and its file system allows it.
    """

    def __init__(self, descriptor: int, *, direct: bool) -> None:
        self.descriptor = descriptor
        self.direct = direct and bool(DIRECT)
        #: Of the bytes taken from the pieces so far.
        self.checksum = Checksum()
        self.size = 0
        self.buffers: list[memoryview] = []
        self.thread: ThreadPoolExecutor | None = None
        #: The bytes that did not fit into the last buffer.
        self.rest = memoryview(b"")

    def __enter__(self) -> FileWriter:
        return self

    def __exit__(self, *_: object) -> None:
        if self.thread is not None:
            self.thread.shutdown()
        while self.buffers and len(spare) < MAX_SPARE:
            spare.append(self.buffers.pop())
        self.buffers.clear()

    def filled(self, pieces: Iterator[memoryview]) -> Iterator[memoryview]:
        """The bytes of the pieces, for `write`: in full buffers, but for the last one.

        While one buffer is written, another thread takes pieces and fills the next one.
        """
        data = self.fill(self.buffer(0), pieces)
        if len(data) < BUFFER_BYTES:
            self.direct = False
            yield data
            return
        self.thread = ThreadPoolExecutor(1)
        for number in itertools.count(1):
            # The thread copies, and does not write: copying holds the interpreter lock, waiting for
            # the disk does not.
            ahead = self.thread.submit(self.fill, self.buffer(number % 2), pieces)
            yield data
            data = ahead.result()
            if len(data) < BUFFER_BYTES:
                yield data
                return

    def buffer(self, number: int) -> memoryview:
        """The first or the second buffer."""
        if number == len(self.buffers):
            try:
                self.buffers.append(spare.pop())
            except IndexError:
                self.buffers.append(new_buffer())
        return self.buffers[number]

    def fill(self, buffer: memoryview, pieces: Iterator[memoryview]) -> memoryview:
        """Copy the next bytes into a buffer, and return its filled part."""
        filled = 0
        rest = self.rest
        while filled < BUFFER_BYTES:
            if not rest:
                try:
                    rest = next(pieces)
                except StopIteration:
                    break
            count = min(len(rest), BUFFER_BYTES - filled)
            buffer[filled : filled + count] = rest[:count]
            filled += count
            rest = rest[count:]
        self.rest = rest
        data = buffer[:filled]
        self.checksum.update(data)
        self.size += filled
        return data

    def write(self, data: memoryview) -> None:
        """Write data from `filled`: whole blocks directly, the rest through the page cache."""
        if self.direct and self.switch(True):
            blocks = len(data) - len(data) % BLOCK_BYTES
            self.write_all(data[:blocks])
            data = data[blocks:]
            if data:
                self.switch(False)
        self.write_all(data)

    def switch(self, direct: bool) -> bool:
        """Turn direct I/O on or off. Returns whether it is on."""
        flags = fcntl.fcntl(self.descriptor, fcntl.F_GETFL)
        wanted = flags | DIRECT if direct else flags & ~DIRECT
        if wanted != flags:
            try:
                fcntl.fcntl(self.descriptor, fcntl.F_SETFL, wanted)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                self.direct = False
                return False
        return direct

    def write_all(self, data: memoryview) -> None:
        """Write bytes at the end of the file."""
        while data:
            try:
                data = data[os.write(self.descriptor, data) :]
            except OSError as error:
                if error.errno != errno.EINVAL or not self.direct:
                    raise
                # The disk has larger blocks, or the last write was short and broke the alignment.
                self.direct = self.switch(False)


def new_buffer() -> memoryview:
    """Page-aligned memory, of large pages if possible: a disk takes few pieces of memory at once,
    and each small page is one piece."""
    # Private: a forked process has its own.
    memory = mmap.mmap(-1, BUFFER_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        try:
            memory.madvise(mmap.MADV_HUGEPAGE)
        except OSError as error:
            # The kernel has no large pages.
            if error.errno != errno.EINVAL:
                raise
    return memoryview(memory)
