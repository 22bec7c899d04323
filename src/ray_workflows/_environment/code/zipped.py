"""Modules in archives (``python app.pyz``, a ``.zip`` on the path): unpacked, found as files."""

from __future__ import annotations

import functools
import os
import tempfile
import zipfile

from ray_workflows._environment.code.archive import MAX_CODE_BYTES, limit

#: Directories of archives; they go with this process.
unpacked: list[tempfile.TemporaryDirectory[str]] = []


def unzipped(path: str) -> str:
    """Where a file lies that is in an archive, unpacked for this process. Any other path as it is,
    and so is one in an archive that is too large to be stored, or is damaged."""
    if not path or os.path.exists(path):
        return path
    top, inner = os.path.split(path)
    while not os.path.exists(top):
        above, name = os.path.split(top)
        if above == top:
            return path
        top, inner = above, os.path.join(name, inner)
    if not os.path.isfile(top) or not zipfile.is_zipfile(top):
        return path
    status = os.stat(top)
    directory = unpack(top, status.st_mtime_ns, status.st_size)
    return path if directory is None else os.path.join(directory, inner)


@functools.lru_cache(maxsize=64)
def unpack(archive: str, mtime: int, size: int) -> str | None:
    try:
        with zipfile.ZipFile(archive) as packed:
            if sum(member.file_size for member in packed.infolist()) > limit(MAX_CODE_BYTES):
                return None
            directory = tempfile.TemporaryDirectory(prefix="ray-workflows-")
            unpacked.append(directory)
            packed.extractall(directory.name)
    except (OSError, zipfile.BadZipFile, RuntimeError, NotImplementedError):
        return None  # Damaged, encrypted, or compressed in some other way.
    return directory.name
