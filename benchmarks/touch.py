"""A process that touches so many bytes of memory and ends: then they are free, and at hand.

A virtual machine gets a page from its host when it is first touched, and gives back what is free
for some seconds. Whoever takes 2 GB first waits 2 to 4 s for them, and who takes them again 0.2.
`compare.py` has this done before every turn of a workload with arrays, whoever's turn it is.
In large pages, of which NumPy makes arrays, and in small ones, of which are page cache and object
stores, because the kernel prefers for each what was of its kind; twice as much of the large ones,
because the host may take some of them back before they are used.

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
