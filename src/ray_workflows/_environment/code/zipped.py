"""Unpacks modules in archives (``python app.pyz``, a ``.zip`` on the path) into files."""

from __future__ import annotations

import functools
import os
import tempfile
import zipfile

from ray_workflows._environment.code.archive import MAX_CODE_BYTES, limit

#: Directories of unpacked archives, deleted when this process ends.
unpacked: list[tempfile.TemporaryDirectory[str]] = []


def unzipped(path: str) -> str:
    """The unpacked path of a file in an archive. Any other path is returned unchanged, and so is
    one in an archive that is damaged or too large to be stored."""
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
        return None  # Damaged, encrypted, or with an unknown compression.
    return directory.name
