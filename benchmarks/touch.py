"""Touches the given number of bytes of memory and ends, so that the guest has these pages free.

A virtual machine gets a page from its host when it first touches it, and returns pages that are
free for some seconds. The first process to take 2 GB waits 2 to 4 s for them, the next one 0.2 s.
`compare.py` runs this before every turn of a workload with arrays, so that no turn pays for it.
It touches large pages, which NumPy uses for arrays, and small ones, which page cache and object
stores use, because the kernel prefers pages that had the same kind of use. It touches twice as many
large ones, because the host may take some back before they are used.

    python benchmarks/touch.py 2000000000
"""

from __future__ import annotations

import mmap
import sys

PAGE_BYTES = 4096


def touch(size: int, *, large: bool) -> mmap.mmap:
    """Memory of which each page was written."""
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if large:
        memory.madvise(mmap.MADV_HUGEPAGE)
    memory[::PAGE_BYTES] = bytes(-(-size // PAGE_BYTES))
    return memory


if __name__ == "__main__":
    size = int(sys.argv[1])
    held = [touch(2 * size, large=True), touch(size, large=False)]
