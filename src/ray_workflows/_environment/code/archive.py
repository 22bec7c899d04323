"""Packs code into zip files: selects files, and limits their size.

The same files give the same bytes, wherever and whenever they are packed.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from tempfile import SpooledTemporaryFile

from ray_workflows._ray.private import (
    default_excludes,
    git_matcher,
    largest_package,
)
from ray_workflows.exceptions import PackageTooLargeError

logger = logging.getLogger(__name__)

#: Names that are never the user's code.
NEVER = ("__pycache__/", "*.pyc", ".git/", ".hg/", ".svn/", ".venv/", "venv/", "node_modules/")

#: Files with patterns of files to leave out, as for Ray.
IGNORE_FILES = (".gitignore", ".rayignore")
IGNORE_GITIGNORE = "RAY_RUNTIME_ENV_IGNORE_GITIGNORE"

#: The variable for another limit of a package, in bytes of its files.
LIMIT_VARIABLE = "RAY_WORKFLOWS_MAX_PACKAGE_BYTES"

#: The default limit for local modules. They are found automatically, so a low limit catches
#: mistakes.
MAX_CODE_BYTES = 64 * 1024 * 1024

#: Archives of up to this many bytes are built in memory.
SPOOL_BYTES = 8 * 1024 * 1024
CHUNK_BYTES = 1024 * 1024

#: The date of all files: the earliest one in a zip file.
TIME = (1980, 1, 1, 0, 0, 0)

#: Files by their names in an archive.
Files = Mapping[str, str]


def limit(default: int) -> int:
    """The most bytes of a package's files."""
    given = os.environ.get(LIMIT_VARIABLE)
    return int(given) if given else default


def walk(
    top: str,
    excludes: Iterable[str] = (),
    *,
    inside: str = "",
    follows: Callable[[str], bool] = bool,
) -> Iterator[tuple[str, str]]:
    """The files of a directory for a package: their relative and their real paths.

    Leaves out files named by the ignore files of each directory, by Ray's defaults, and by
    ``excludes``.

    Args:
        top: the directory.
        excludes: patterns as in a ``.gitignore``.
        inside: a directory below ``top``: only its files are listed, and the directories above it
            contribute only ignore files.
        follows: whether to follow a link to a directory; by default all, as Ray does.
    """
    walking = Walk(top, follows)
    matchers: Matchers = []
    above = ""
    for part in filter(None, inside.split("/")):
        matchers += ignored(top, above)
        above = f"{above}/{part}" if above else part
        if any(excluded(above, kind, matcher) for matcher in matchers for kind in (True, False)):
            # ``inside`` is wanted even if an ignore file above names it.
            matchers = []
    matchers.append((inside, git_matcher([*NEVER, *default_excludes(), *excludes])))
    start = len(inside) + 1 if inside else 0
    real = os.path.realpath(os.path.join(top, inside))
    for name, path in walking.below(inside, matchers, (real,)):
        yield name[start:], path


Matchers = list[tuple[str, Callable[[str], bool]]]


def ignored(top: str, inner: str) -> Matchers:
    """Matchers for the ignore files of a directory."""
    directory = os.path.join(top, inner)
    lines: list[str] = []
    for name in IGNORE_FILES:
        if name == ".gitignore" and os.environ.get(IGNORE_GITIGNORE, "0") == "1":
            continue
        try:
            with open(os.path.join(directory, name), encoding="utf-8", errors="replace") as file:
                lines += file.read().splitlines()
        except OSError:
            continue
    return [(inner, git_matcher(lines))] if lines else []


def is_text(name: str) -> bool:
    """Whether a name can be stored in an archive: file names may be any bytes."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


class Walk:
    """One walk through a directory; see `walk`."""

    def __init__(self, top: str, follows: Callable[[str], bool]) -> None:
        self.top = top
        self.follows = follows

    def below(
        self, inner: str, matchers: Matchers, within: tuple[str, ...]
    ) -> Iterator[tuple[str, str]]:
        """The files in one directory. ``within``: the real paths of it and of its parents."""
        matchers = [*matchers, *ignored(self.top, inner)]
        try:
            with os.scandir(os.path.join(self.top, inner)) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError:
            if not inner:
                raise
            # The caller will fail to read it too, and report that.
            yield inner, os.path.join(self.top, inner)
            return
        for entry in found:
            path = f"{inner}/{entry.name}" if inner else entry.name
            is_directory = entry.is_dir()
            if any(excluded(path, is_directory, matcher) for matcher in matchers):
                continue
            if not is_text(entry.name):
                logger.warning("%r is left out: its name is no text.", entry.path)
                continue
            if not is_directory:
                if entry.is_file():
                    yield path, entry.path
                continue
            real = within[-1] + os.sep + entry.name
            if entry.is_symlink():
                real = os.path.realpath(entry.path)
                # Following a link to a parent would never end.
                if real in within or not self.follows(entry.path):
                    continue
            yield from self.below(path, matchers, (*within, real))


def excluded(path: str, is_directory: bool, matcher: tuple[str, Callable[[str], bool]]) -> bool:
    """Whether an ignore file of the directory ``matcher[0]`` names a path below it."""
    inner, matches = matcher
    relative = path[len(inner) + 1 :] if inner else path
    return matches(f"{relative}/" if is_directory else relative)


def digest_of(files: Files, *, what: str, most: int) -> str:
    """The digest of the names and contents of files.

    Raises:
        PackageTooLargeError: they are too large; names the largest.
    """
    sizes = {name: os.stat(path).st_size for name, path in files.items()}
    most = limit(most)
    if sum(sizes.values()) > most:
        largest = sorted(sizes, key=lambda name: -sizes[name])[:3]
        raise PackageTooLargeError(what, sum(sizes.values()), most, largest)
    digest = Digest()
    for name in sorted(files):
        digest.add(name, files[name], file_digest(files[name]))
    return digest.text()


class Digest:
    """A digest of files, added in the order of their names."""

    def __init__(self) -> None:
        self.hash = hashlib.sha256()

    def add(self, name: str, path: str, digest: str) -> None:
        self.hash.update(f"{name}\0{is_executable(path)}\0{digest}\n".encode())

    def text(self) -> str:
        return self.hash.hexdigest()[:32]


class ChangedMeanwhileError(Exception):
    """Files changed while they were packed, so that they no longer match their digest."""


def file_digest(path: str) -> str:
    """The SHA-256 of a file, in hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def is_executable(path: str) -> bool:
    return bool(os.stat(path).st_mode & stat.S_IXUSR)


def pack(files: Files, digest: str | None = None) -> Iterator[bytes]:
    """The bytes of an archive, a chunk at a time. A large archive is built on the disk.

    Raises:
        ChangedMeanwhileError: before the first chunk, if the files don't have this digest.
    """
    packed = Digest()
    with SpooledTemporaryFile(SPOOL_BYTES) as spool:
        with zipfile.ZipFile(spool, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for name in sorted(files):
                about = zipfile.ZipInfo(name, TIME)
                about.compress_type = zipfile.ZIP_DEFLATED
                about.external_attr = (0o755 if is_executable(files[name]) else 0o644) << 16
                content = hashlib.sha256()
                with open(files[name], "rb") as source, archive.open(about, "w") as target:
                    while chunk := source.read(CHUNK_BYTES):
                        target.write(chunk)
                        content.update(chunk)
                packed.add(name, files[name], content.hexdigest())
        if digest not in (None, packed.text()):
            raise ChangedMeanwhileError
        spool.seek(0, os.SEEK_END)
        size = spool.tell()
        if size > largest_package():
            raise PackageTooLargeError("A package", size, largest_package(), [])
        spool.seek(0)
        while chunk := spool.read(CHUNK_BYTES):
            yield chunk
