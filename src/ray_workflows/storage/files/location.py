"""Checks and creates the directory of a storage.
A failure leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator

from ray_workflows.exceptions import StorageConfigError, StorageError, StorageUnavailableError
from ray_workflows.storage.files.fsync import sync_directory

#: File systems shared between machines. SQLite's write-ahead log needs memory shared between all
#: its users, which these can't give: two machines would corrupt the database.
NETWORK_FILESYSTEMS = frozenset(
    (
        "afs",
        "beegfs",
        "ceph",
        "cifs",
        "cvmfs",
        "gfs2",
        "glusterfs",
        "gpfs",
        "lustre",
        "ncp",
        "ncpfs",
        "nfs",
        "nfs4",
        "ocfs2",
        "orangefs",
        "pvfs2",
        "smb",
        "smb2",
        "smb3",
        "smbfs",
        "wekafs",
    )
)

#: The same behind FUSE, where the type is ``fuse.<program>``.
NETWORK_FUSE = re.compile(
    r"fuse\.(.*s3.*|.*gcs.*|blobfuse.*|ceph.*|davfs.*|glusterfs|goofys|juicefs.*|moosefs|mfs.*"
    r"|rclone.*|seaweedfs|sshfs|.*smb.*|.*nfs.*)\Z"
)

REMEDY = (
    "Choose a directory on a local disk that this user can write to, with init(storage=...) or "
    "$RAY_WORKFLOW_STORAGE."
)

#: Transient errors, which need no other configuration.
PASSING_ERRORS = frozenset(
    (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR)
)


def open_error(path: str, error: OSError) -> StorageError:
    """The error to raise if the storage at ``path`` can't be opened for this reason."""
    what = f"The storage directory {path} can't be used: {error.strerror or error}"
    if error.filename and os.fspath(error.filename) != path:
        what += f" ({os.fsdecode(error.filename)})"
    if error.errno in PASSING_ERRORS:
        return StorageUnavailableError(f"{what}. The operation can be repeated.")
    return StorageConfigError(f"{what}. {REMEDY}")


def network_filesystem(path: str, mounts: str) -> str | None:
    """The type of the network file system a path is on, or None if it is not on one.

    Args:
        path: an absolute path without symbolic links.
        mounts: the text of ``/proc/mounts``.
    """
    best, kind = -1, ""
    for line in mounts.splitlines():
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        # Blanks and backslashes in names are written as octal escapes.
        point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[1])
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        # A later mount on the same point hides the earlier one.
        if inside and len(point) >= best:
            best, kind = len(point), fields[2]
    if kind in NETWORK_FILESYSTEMS or NETWORK_FUSE.match(kind):
        return kind
    return None


def read_mounts() -> str:
    """The text of ``/proc/mounts``; empty on systems without it."""
    try:
        with open("/proc/mounts", encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except OSError:
        return ""


def is_local(path: str) -> bool:
    """Whether a path is on a disk of this machine."""
    return network_filesystem(os.path.realpath(path), read_mounts()) is None


def check_local(path: str) -> None:
    """Raise if an existing directory is on a network file system."""
    kind = network_filesystem(os.path.realpath(path), read_mounts())
    if kind is not None:
        raise StorageConfigError(
            f"{path} is on a network file system ({kind}), where an SQLite database is not safe. "
            f"Use shared://{path} for a directory shared between machines, or choose a directory "
            f"on a local disk."
        )


def check_existing(path: str) -> None:
    """Raise unless there is a database file at ``path``, on a local disk.

    Raises:
        StorageConfigError: there is none, or this user may not read it.
        StorageUnavailableError: the disk is broken.
    """
    directory = os.path.dirname(path)
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        found = f"it has no {os.path.basename(path)}"
        if not os.path.isdir(directory):
            found = "it is no directory" if os.path.lexists(directory) else "it does not exist"
        raise StorageConfigError(
            f"{directory} is not a storage of workflows: {found}. Nothing was created. Name the "
            f"directory that was given to init(storage=...), with --storage or "
            f"$RAY_WORKFLOW_STORAGE."
        ) from None
    except OSError as error:
        raise open_error(directory, error) from error
    check_local(path)


@contextlib.contextmanager
def prepared_directory(path: str, *, shared: bool = False) -> Iterator[None]:
    """Create a directory (mode 0700) and its parents, and remove them if the body raises.

    ``shared``: it may be on a network file system.

    Raises:
        StorageConfigError: the path can't become a directory, or is on a network file system.
        StorageUnavailableError: the disk is full or broken.
    """
    missing: list[str] = []
    existing = path
    while not os.path.lexists(existing):
        missing.append(existing)
        existing = os.path.dirname(existing)
    if not os.path.isdir(existing):
        raise StorageConfigError(
            f"The storage directory {path} can't be used: {existing} is not a directory. {REMEDY}"
        )
    if not shared:
        check_local(existing)
    created: list[str] = []
    try:
        for directory in reversed(missing):
            # Another process may be creating the same one.
            with contextlib.suppress(FileExistsError):
                os.mkdir(directory, 0o700)
                created.append(directory)
                sync_directory(os.path.dirname(directory))
        yield
    except BaseException as error:
        for directory in reversed(created):
            # Not empty: another process uses it by now.
            with contextlib.suppress(OSError):
                os.rmdir(directory)
        if isinstance(error, OSError):
            raise open_error(path, error) from error
        raise


def real_path(directory: str | os.PathLike[str]) -> str:
    """The absolute path of a directory without ``~`` and symbolic links."""
    name = os.fspath(directory)
    if isinstance(name, bytes):
        name = os.fsdecode(name)
    if not name or "\0" in name:
        raise StorageConfigError(
            f"{name!r} is not the path of a directory. Give one with init(storage=...)."
        )
    expanded = os.path.expanduser(name)
    if expanded.startswith("~"):
        raise StorageConfigError(
            f"The home directory in {name!r} is unknown. Give an absolute path; ./{name} is the "
            f"directory of that name."
        )
    return os.path.realpath(expanded)
