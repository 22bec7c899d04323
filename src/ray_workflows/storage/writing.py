"""`FileWriter`: the bytes of a new file, past the page cache where that is cheaper.

A large value that goes through the page cache is copied there, page by page, and from there to
the disk: on a fast disk this copy is what takes the time. So large files are written by direct
I/O: from a buffer that lies as the disk wants it, which a value is copied into piece by piece,
while it stays in the processor's cache and is hashed there.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os

from ray_workflows.storage.checksums import Checksum
from ray_workflows.storage.syncing import sync

#: What is written at once. On an idle machine half as much is as fast; where all processors are
#: busy, each write waits for one when the disk is done with it.
BUFFER_BYTES = 8 * 1024 * 1024

#: Smaller files go through the page cache: the copy costs little, and they may be read again soon.
DIRECT_BYTES = 4 * 1024 * 1024

#: What direct I/O can write starts, ends and lies in memory at multiples of this. Where a disk
#: wants more, it refuses, and the page cache is used.
BLOCK_BYTES = 4096

#: The flag of direct I/O; 0 on systems that have none.
DIRECT: int = getattr(os, "O_DIRECT", 0)

#: A buffer that nobody uses now: a new one costs as much as writing some megabytes.
spare: list[memoryview] = []


class FileWriter:
    """Writes a file from its beginning to its end. Used as a context.

    Args:
        descriptor: of the file, open for writing. Not closed.
        direct: whether to write past the page cache once the file is seen to be large. Where the
            file system does not take that, it is written as any other.
    """

    def __init__(self, descriptor: int, *, direct: bool) -> None:
        self.descriptor = descriptor
        self.direct = direct and bool(DIRECT)
        self.checksum = Checksum()
        #: Bytes so far.
        self.size = 0
        self.filled = 0

    def __enter__(self) -> FileWriter:
        try:
            self.buffer = spare.pop()
        except IndexError:
            self.buffer = new_buffer()
        return self

    def __exit__(self, *_: object) -> None:
        if not spare:
            spare.append(self.buffer)
        del self.buffer

    def write(self, data: memoryview) -> None:
        """Add bytes."""
        while data:
            count = min(len(data), BUFFER_BYTES - self.filled)
            self.buffer[self.filled : self.filled + count] = data[:count]
            self.filled += count
            data = data[count:]
            if self.filled == BUFFER_BYTES:
                self.empty()

    def empty(self) -> None:
        """Write what is in the buffer."""
        data = self.buffer[: self.filled]
        self.filled = 0
        self.checksum.update(data)
        self.size += len(data)
        if self.direct and self.switch(True):
            blocks = len(data) - len(data) % BLOCK_BYTES
            self.write_all(data[:blocks])
            data = data[blocks:]
            if data:
                self.switch(False)
        self.write_all(data)

    def finish(self) -> None:
        """Write the rest, and wait until all is on the disk."""
        self.direct = self.direct and self.size + self.filled >= DIRECT_BYTES
        self.empty()
        sync(self.descriptor)

    def switch(self, direct: bool) -> bool:
        """Write directly from now on, or not; whether that is so."""
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
                # Said only now: this disk has larger blocks, or less was written than asked for.
                self.direct = self.switch(False)


def new_buffer() -> memoryview:
    """Memory that starts at a page, and is of large pages if possible: a disk takes few pieces of
    memory at once, and small pages are one piece each."""
    # Private: a process that is forked has its own.
    memory = mmap.mmap(-1, BUFFER_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        try:
            memory.madvise(mmap.MADV_HUGEPAGE)
        except OSError as error:
            # A kernel without them.
            if error.errno != errno.EINVAL:
                raise
    return memoryview(memory)
