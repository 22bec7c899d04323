"""Checksums of blobs: the kinds, and the one that new blobs get.

They detect damage by disks, networks and programs. They don't protect from an attacker, who can
change the checksum with the blob.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import xxhash

from ray_workflows.exceptions import StorageCorruptError

#: Constructors of digests with the interface of `hashlib`, by the word before the colon. No kind is
#: ever removed, because old blobs keep theirs.
KINDS: dict[str, Callable[[], Any]] = {"sha256": hashlib.sha256, "xxh3-128": xxhash.xxh3_128}

#: XXH3 hashes 30 GB/s; SHA-256 is no faster than a fast disk writes.
NEW = "xxh3-128"


class Checksum:
    """The checksum of bytes that come in pieces; ``str`` gives it in the form of `Blob.checksum`.

    Args:
        data: the first bytes, or all.
        like: a checksum of the wanted kind, so that the two can be compared. By default the kind is
            that of new blobs.

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
