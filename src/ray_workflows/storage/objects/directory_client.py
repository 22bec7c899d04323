"""`DirectoryOperations`: named objects as files of a directory that several machines may see.

Objects are written under a temporary name, synced, and linked to their own name: a link, unlike a
rename, never replaces an existing file, also on a network file system.
"""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence

from ray_workflows.exceptions import StorageConfigError, StorageUnavailableError
from ray_workflows.storage.files.blobs import (
    TEMPORARY_PREFIX,
    io_errors,
    remove_temporaries,
)
from ray_workflows.storage.files.fsync import sync, sync_directory
from ray_workflows.storage.objects.client import Found, Listed, Operations

#: The directory of temporary files. Only `prepare` creates it. If it is missing, the file system is
#: not mounted, and nothing may be written below the mount point.
TEMPORARY = "tmp"

#: How often to try again when another process removes an empty directory meanwhile.
ATTEMPTS = 10

#: The errors of a file system without hard links.
NO_LINKS = frozenset((errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK))


class DirectoryOperations(Operations):
    """Objects as files below ``root``, which has to exist."""

    def __init__(self, root: str) -> None:
        self.root = root

    def path(self, key: str) -> str:
        """The file of an object."""
        parts = key.split("/")
        if any(part in ("", ".", "..") for part in parts):
            raise ValueError(f"{key!r} can't be the name of an object.")
        return os.path.join(self.root, *parts)

    def prepare(self) -> None:
        """Create the directory of temporary files."""
        path = os.path.join(self.root, TEMPORARY)
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)
            sync_directory(self.root)

    def write_temporary(self, data: bytes) -> str:
        """Write a temporary file, and return its path."""
        path = os.path.join(self.root, TEMPORARY, TEMPORARY_PREFIX + uuid.uuid4().hex)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        descriptor = os.open(path, flags, 0o600)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            sync(descriptor)
        except BaseException:
            os.unlink(path)
            raise
        finally:
            os.close(descriptor)
        return path

    def create(self, key: str, data: bytes) -> bool:
        """Write an object durably unless the key exists."""
        path = self.path(key)
        with io_errors(path):
            temporary = self.write_temporary(data)
            try:
                return self.name(temporary, path, os.link)
            except FileExistsError:
                # On a network file system the link may exist although its answer was lost.
                if os.stat(temporary).st_nlink != 2:
                    return False
                sync_directory(os.path.dirname(path))
                return True
            except OSError as error:
                if error.errno not in NO_LINKS:
                    raise
                raise StorageConfigError(
                    f"{self.root} is on a file system without hard links ({error.strerror}), "
                    f"which shared:// needs to keep two coordinators apart. Use NFS, Lustre, "
                    f"CephFS or another file system that has them, or an object store."
                ) from error
            finally:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)

    def put(self, key: str, data: bytes) -> None:
        """Write an object durably; replaces an existing one."""
        path = self.path(key)
        with io_errors(path):
            temporary = self.write_temporary(data)
            try:
                self.name(temporary, path, os.replace)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
                raise

    def name(self, temporary: str, path: str, move: Callable[[str, str], None]) -> bool:
        """Give a file its name, durably."""
        directory = os.path.dirname(path)
        for attempt in range(ATTEMPTS):
            try:
                move(temporary, path)
                sync_directory(directory)
            except FileNotFoundError:
                if attempt == ATTEMPTS - 1:
                    raise
                self.make_directory(directory)
            else:
                return True
        raise AssertionError("unreachable")

    def make_directory(self, path: str) -> None:
        """Create a directory below the root durably."""
        missing = []
        while path != self.root and not os.path.isdir(path):
            missing.append(path)
            path = os.path.dirname(path)
        for directory in reversed(missing):
            # Another may create it, or remove an empty parent: the caller tries again.
            with contextlib.suppress(FileExistsError, FileNotFoundError):
                os.mkdir(directory, 0o700)
                sync_directory(os.path.dirname(directory))

    def get(self, key: str) -> Found | None:
        """An object, or None if there is none."""
        path = self.path(key)
        with io_errors(path):
            for _ in range(ATTEMPTS):
                try:
                    with open(path, "rb") as file:
                        data = file.read()
                        return Found(data, os.fstat(file.fileno()).st_mtime)
                except FileNotFoundError:
                    self.check_mounted()
                    return None
                except OSError as error:
                    # Another machine replaced it while it was opened.
                    if error.errno != errno.ESTALE:
                        raise
        raise StorageUnavailableError(f"{path} is replaced all the time.")

    def list(self, prefix: str, after: str = "") -> Iterator[Listed]:
        """The objects directly below a prefix, by name."""
        path = self.path(prefix)
        found: dict[str, float] = {}
        with io_errors(path):
            # One reading may miss a file that is renamed meanwhile.
            for _ in range(2):
                try:
                    with os.scandir(path) as entries:
                        for entry in entries:
                            if entry.name > after and entry.name not in found:
                                with contextlib.suppress(FileNotFoundError):
                                    found[entry.name] = self.modified(entry)
                except FileNotFoundError:
                    self.check_mounted()
        return iter([Listed(name, found[name]) for name in sorted(found) if found[name] >= 0])

    def modified(self, entry: os.DirEntry[str]) -> float:
        """When a file was written; -1 for a directory."""
        if entry.is_dir(follow_symlinks=False):
            return -1.0
        return entry.stat(follow_symlinks=False).st_mtime

    def list_prefixes(self, prefix: str) -> Sequence[str]:
        """The names of the directories directly below a prefix, in order."""
        path = self.path(prefix)
        with io_errors(path):
            try:
                with os.scandir(path) as entries:
                    return sorted(e.name for e in entries if e.is_dir(follow_symlinks=False))
            except FileNotFoundError:
                self.check_mounted()
                return []

    def check_mounted(self) -> None:
        """Raise if the directory seems empty because it is not mounted."""
        if not os.path.isdir(os.path.join(self.root, TEMPORARY)):
            raise StorageUnavailableError(
                f"{self.root} is not there, or not the storage that was opened: it has no "
                f"directory {TEMPORARY!r}. Mount it; the operation can then be repeated."
            )

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects, and directories that are empty then."""
        directories = set()
        for key in keys:
            path = self.path(key)
            with io_errors(path), contextlib.suppress(FileNotFoundError):
                os.unlink(path)
                directories.add(os.path.dirname(path))
        for directory in directories:
            with contextlib.suppress(OSError):
                sync_directory(directory)
                if os.path.dirname(directory) != self.root:
                    os.rmdir(directory)

    def now(self, key: str) -> float:
        """The clock of the file server: the date that it gives a new file."""
        with io_errors(self.root):
            path = self.write_temporary(b"now")
            try:
                return os.stat(path).st_mtime
            finally:
                os.unlink(path)

    def sweep(self, before: float) -> None:
        """Remove temporary files that killed writers left."""
        remove_temporaries(os.path.join(self.root, TEMPORARY), before)
