"""Makes a `Storage` from the ``storage=`` and ``blobs=`` that a user gives.
Nothing is opened or created here.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from urllib.parse import unquote_to_bytes

from ray_workflows.exceptions import StorageConfigError
from ray_workflows.storage.base import Storage, check_composed
from ray_workflows.storage.combined import combine
from ray_workflows.storage.sqlite import SqliteStorage

VARIABLE = "RAY_WORKFLOW_STORAGE"
#: Where the values are, for the storage that `VARIABLE` names.
BLOBS_VARIABLE = "RAY_WORKFLOW_BLOBS"

SUPPORTED = (
    "Supported are a directory path, file:///directory, shared:///directory, s3://, gs:// and "
    "az://bucket/prefix, postgresql://, and an instance of Storage."
)

SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def load_postgres(url: str) -> Storage:
    """The storage of a ``postgresql:`` URL."""
    try:
        from ray_workflows.storage.postgres import PostgresStorage
    except ImportError as error:
        raise missing_extra("PostgreSQL", "postgres", error) from None
    return PostgresStorage(url)


def load_objects(url: str) -> Storage:
    """The storage of a URL of an object store."""
    from ray_workflows.storage.objects import ObjectStorage

    return ObjectStorage(url)


def load_shared(url: str) -> Storage:
    """The storage of a ``shared:`` URL."""
    from ray_workflows.storage.objects import SharedStorage

    return SharedStorage(url_path(url, "shared"))


def missing_extra(what: str, extra: str, error: ImportError) -> StorageConfigError:
    """The error for a storage whose packages are not installed."""
    return StorageConfigError(
        f"{what} as storage needs packages that are not installed here ({error}). Install them on "
        f'every node: pip install "ray-workflows[{extra}]"'
    )


#: Functions that make a storage of a URL, by the scheme in lower case. Each imports its packages
#: itself, so that unused storages need none installed.
LOADERS: dict[str, Callable[[str], Storage]] = {
    "az": load_objects,
    "gs": load_objects,
    "s3": load_objects,
    "shared": load_shared,
    "postgres": load_postgres,
    "postgresql": load_postgres,
}


def storage_from_url(spec: str | os.PathLike[str] | Storage | None = None) -> Storage:
    """The storage that ``spec`` names. It is not opened.

    Args:
        spec: a path, a ``file:///directory`` URL (percent-decoded), a URL of a scheme in
            `LOADERS`, or a `Storage`, which is returned as it is. None: ``$RAY_WORKFLOW_STORAGE``
            if set, else `default_directory`.

    Raises:
        StorageConfigError: the URL can't be used; the message says what is supported.
        TypeError: ``spec`` is something else, or a `Storage` that is not composed of parts.

    Example:
        >>> storage_from_url("file:///var/lib/my%20workflows")
        SqliteStorage('/var/lib/my workflows')
    """
    if isinstance(spec, Storage):
        check_composed(type(spec), spec)
        return spec
    if spec is None:
        spec = os.environ.get(VARIABLE) or default_directory()
    if isinstance(spec, os.PathLike):
        return SqliteStorage(spec)
    if not isinstance(spec, str):
        raise TypeError(f"A storage can't be made from {type(spec).__name__} {spec!r}. {SUPPORTED}")
    if spec.lower().startswith("file:"):
        return SqliteStorage(url_path(spec, "file"))
    scheme = SCHEME.match(spec)
    if scheme and scheme[1].lower() in LOADERS:
        return LOADERS[scheme[1].lower()](spec)
    name = spec.partition(":")[0].lower()
    if ":" in spec and name in LOADERS:
        # As a directory's name it would appear in messages, and it may contain a password.
        raise StorageConfigError(
            f"A {name} URL begins with {name}://, and this one does not. {SUPPORTED} (A directory "
            f"that is called like this is ./{name}:...)"
        )
    if scheme:
        raise StorageConfigError(
            f"Storage URLs of scheme {scheme[1]!r} are not supported. {SUPPORTED}"
        )
    return SqliteStorage(spec)


def storage_from_urls(
    storage: str | os.PathLike[str] | Storage | None,
    blobs: str | os.PathLike[str] | Storage | None,
) -> Storage:
    """The storage that ``storage=`` and ``blobs=`` name together. It is not opened.

    Args:
        storage: as in `storage_from_url`.
        blobs: where the values are, in the same forms. None: in ``storage``; if that is None too,
            where ``$RAY_WORKFLOW_BLOBS`` says. The variable does not apply to a storage that the
            code names.

    Raises:
        StorageConfigError: one can't be used; the message says what is supported.

    Example:
        >>> storage_from_urls("/var/lib/workflows", "/mnt/values").url
        'file:///var/lib/workflows#blobs=file%3A%2F%2F%2Fmnt%2Fvalues'
    """
    if storage is None and blobs is None:
        blobs = os.environ.get(BLOBS_VARIABLE) or None
    found = storage_from_url(storage)
    return found if blobs is None else combine(found, storage_from_url(blobs))


def url_path(url: str, scheme: str) -> str:
    """The path of a ``file:`` or ``shared:`` URL."""
    rest = url[len(scheme) + 1 :]
    if "?" in rest or "#" in rest:
        raise StorageConfigError(
            f"The {scheme} URL has a query or a fragment, which one of ours has not. In a "
            f"directory's name, write %3F for '?' and %23 for '#'."
        )
    host = ""
    if rest.startswith("//"):
        host, slash, path = rest[2:].partition("/")
        rest = slash + path
    if host not in ("", "localhost"):
        # The part before an @ may be a password.
        host = host.rpartition("@")[2]
        raise StorageConfigError(
            f"The {scheme} URL names the host {host!r}, but it can only name a directory as this "
            f"machine sees it. Write {scheme}:///{host}{rest} if that is the path."
        )
    if not rest.startswith("/"):
        raise StorageConfigError(
            f"{url} has no absolute path. Write {scheme}:///directory"
            + (", or a plain path without file:." if scheme == "file" else ".")
        )
    return os.fsdecode(unquote_to_bytes(rest))


def default_directory() -> str:
    """The directory of this user's workflows if none is given: it outlives reboots."""
    if sys.platform == "darwin":
        parent = "~/Library/Application Support"
    else:
        parent = os.environ.get("XDG_DATA_HOME", "")
        # The specification says that relative paths are to be ignored.
        if not os.path.isabs(parent):
            parent = "~/.local/share"
    return os.path.join(parent, "ray_workflows")
