"""Checksums of blobs: which kinds there are, and which one new blobs get.

They tell damage, by disks, networks and programs, from what was written. They are no protection
from somebody who changes a blob on purpose: who can do that can change its checksum too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import xxhash

from ray_workflows.exceptions import StorageCorruptError

#: What makes a digest as `hashlib` has them, by the word before the colon. Nothing is ever
#: removed: blobs are as old as their workflows.
KINDS: dict[str, Callable[[], Any]] = {"sha256": hashlib.sha256, "xxh3-128": xxhash.xxh3_128}

#: Hashed at 30 GB/s, where SHA-256 takes as long as a fast disk.
NEW = "xxh3-128"


class Checksum:
    """The checksum of bytes that come in pieces; ``str`` gives it as `Blob` has it.

    Args:
        data: the first bytes, or all.
        like: a checksum whose kind this one is to be, so that the two can be compared. By default
            it is of the kind that new blobs get.

    Raises:
        StorageCorruptError: ``like`` is of a kind that this release does not know.

    Example:
        >>> checksum = Checksum()
        >>> checksum.update(b"some ")
        >>> checksum.update(b"bytes")
        >>> str(checksum)
        'xxh3-128:99736577b441a1bbd3ec197fe371e984'
        >>> str(Checksum(b"some bytes", like=str(checksum))) == str(checksum)
        True
    """

    __slots__ = ("digest", "kind")

    def __init__(self, data: bytes | bytearray | memoryview = b"", *, like: str = "") -> None:
        self.kind = like.partition(":")[0] if like else NEW
        if self.kind not in KINDS:
            raise StorageCorruptError(
                f"The checksum {like!r} is of a kind that this release does not know: a newer one "
                f"wrote it, or it is damaged. Known are {', '.join(sorted(KINDS))}. Upgrade "
                f"ray-workflows."
            )
        self.digest = KINDS[self.kind]()
        self.digest.update(data)

    def update(self, data: bytes | bytearray | memoryview) -> None:
        """Add bytes; memory has to be contiguous."""
        self.digest.update(data)

    def __str__(self) -> str:
        return f"{self.kind}:{self.digest.hexdigest()}"
