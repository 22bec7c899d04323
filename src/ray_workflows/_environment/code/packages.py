"""Stores the packages of a runtime_env, from a cluster or from directories, and uploads them again.

Ray keeps ``gcs://`` packages in the memory of the cluster, and deletes them minutes after their
driver has ended. Ours have names of their own, which Ray does not delete.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import partial
from io import BytesIO
from typing import Any

import ray

from ray_workflows._environment import shared_items
from ray_workflows._environment.code.archive import (
    MAX_CODE_BYTES,
    ChangedMeanwhileError,
    digest_of,
    pack,
    walk,
)
from ray_workflows._environment.shared_items import PACKAGE, Item, SharedStorage
from ray_workflows._model.plan import Package
from ray_workflows._model.values import Blob
from ray_workflows._ray import private
from ray_workflows._ray.cluster import call_inside
from ray_workflows.exceptions import (
    PackageTooLargeError,
    is_transient,
)

CLUSTER = "gcs://"

#: The prefix of our packages, before a digest of the names and contents of their files.
OURS = "ray_workflows_"
#: Names with a digest, ours and Ray's. Other names are kept: a wheel is installed by its name.
NAMED = re.compile(rf"{CLUSTER}(?:{private.PACKAGE_PREFIX}|{OURS})(\w+)\.zip")

CHUNK_BYTES = 4 * 1024 * 1024

#: How often packing is tried if files change meanwhile.
PACKING_TRIES = 5

#: Pause before a storage that is away is tried again, in seconds.
AGAIN_SECONDS = 1.0

User = tuple[str, str]


def package_of(item: Item) -> Package:
    """The package of a shared item."""
    digest = item.name.partition("/")[2]
    return Package(f"{CLUSTER}{OURS}{digest}.zip", item.incarnation, item.blob)


def from_cluster(storage: SharedStorage, uri: str, user: User | None = None) -> Package:
    """The package behind a ``gcs://`` URI of this cluster. Stores it if needed.

    Raises:
        ValueError: the cluster no longer has it.
    """
    digest = digest_in(uri)
    if digest is not None:
        item = shared_items.use(storage, f"{PACKAGE}/{digest}", user)
        if item is not None and not item.damaged:
            return package_of(item)
    # Only processes of the cluster get the package, so call inside from a Ray Client.
    package: Package = call_inside(fetch, storage, uri, digest, user)
    return package


def digest_in(uri: str) -> str | None:
    """The digest in a package's name, or None."""
    match = NAMED.fullmatch(uri)
    return None if match is None else match[1]


def fetch(storage: SharedStorage, uri: str, digest: str | None, user: User | None) -> Package:
    """Store a package of the cluster. Called in the cluster."""
    data = private.get_key(uri)
    if data is None:
        raise ValueError(
            f"The runtime_env names the package {uri}, which the cluster does not have any more. "
            f"Call ray.init() with the directory again."
        )
    own = hashlib.sha256(data).hexdigest()
    name = digest or own[:32]
    item = shared_items.keep(storage, f"{PACKAGE}/{name}", lambda: chunks_of(data), (), user)
    if digest is not None:
        return package_of(item)
    # Its URI has no digest, so the item's name comes from the checksum, which must be SHA-256.
    return Package(uri, item.incarnation, Blob(item.blob.key, item.blob.size, f"sha256:{own}"))


def chunks_of(data: bytes) -> Iterator[memoryview]:
    view = memoryview(data)
    return (view[start : start + CHUNK_BYTES] for start in range(0, len(view), CHUNK_BYTES))


def from_files(
    storage: SharedStorage,
    files: Mapping[str, str],
    *,
    what: str,
    most: int = MAX_CODE_BYTES,
) -> Package:
    """A package of files, by their names in it. Stores it if needed.

    Raises:
        PackageTooLargeError: they are too large.
    """
    for _ in range(PACKING_TRIES):
        digest = digest_of(files, what=what, most=most)
        name = f"{PACKAGE}/{digest}"
        try:
            return package_of(shared_items.keep(storage, name, partial(pack, files, digest)))
        except ChangedMeanwhileError:
            continue
    raise ValueError(
        f"{what} was written to each time that it was packed. Submit again when that is over, or "
        f"name the files that are written to in a .rayignore."
    )


def from_directory(
    storage: SharedStorage, directory: str, excludes: Iterable[str], *, inside: str = ""
) -> Package:
    """A package of a directory, as Ray makes one. ``inside``: the top directory in the package, for
    a module."""
    top = os.path.abspath(os.path.expanduser(directory))
    if not os.path.isdir(top):
        raise ValueError(f"{directory!r} is not a directory, nor the URI of a package.")
    prefix = f"{inside}/" if inside else ""
    files = {f"{prefix}{name}": path for name, path in walk(top, excludes)}
    return from_files(storage, files, what=top, most=private.largest_package())


# -- in a runtime_env ----------------------------------------------------------------------


def localize(
    storage: SharedStorage,
    runtime_env: Mapping[str, Any],
    user: User | None = None,
    kept: Collection[str] = (),
) -> tuple[dict[str, Any], list[Package]]:
    """A runtime_env with stored packages of ours, and these packages.

    Other addresses (``s3://``, ``https://``, ``local://``) stay unchanged, and so do those in
    ``kept``.
    """
    changed = dict(runtime_env)
    packages: list[Package] = []
    excludes = changed.pop("excludes", None) or ()

    def stored(uri: str, *, module: bool) -> str:
        if uri in kept:
            return uri
        if uri.startswith(CLUSTER):
            packages.append(from_cluster(storage, uri, user))
        elif "://" not in uri:
            inside = os.path.basename(os.path.normpath(uri)) if module else ""
            packages.append(from_directory(storage, uri, excludes, inside=inside))
        else:
            return uri
        return packages[-1].uri

    if changed.get("working_dir"):
        changed["working_dir"] = stored(str(changed["working_dir"]), module=False)
    if changed.get("py_modules"):
        changed["py_modules"] = [stored(str(uri), module=True) for uri in changed["py_modules"]]
    return changed, packages


def item_name(package: Package) -> str:
    """The name of the shared item of a package."""
    digest = digest_in(package.uri) or package.blob.checksum.partition(":")[2][:32]
    return f"{PACKAGE}/{digest}"


def names(runtime_env: Mapping[str, Any]) -> list[str]:
    """The ``gcs://`` packages of a runtime_env."""
    found = [runtime_env.get("working_dir"), *(runtime_env.get("py_modules") or ())]
    return [uri for uri in found if isinstance(uri, str) and uri.startswith(CLUSTER)]


# -- back into a cluster -------------------------------------------------------------------


@ray.remote(num_cpus=0, max_retries=-1)  # type: ignore[untyped-decorator]
def bring(storage: SharedStorage, package: Package) -> None:
    """Upload a package to the cluster, unless it is there.

    A Ray task, because its ObjectRef can be an argument of another Ray task: Ray then gives that
    one no worker, which would need the package, before the upload has ended.

    Raises:
        StorageCorruptError: its bytes are damaged or missing.
        PackageTooLargeError: Ray accepts no package of this size here.
    """
    most = private.largest_package()
    if package.blob.size > most:
        raise PackageTooLargeError(f"The package {package.uri}", package.blob.size, most)
    while not private.has_key(package.uri):
        try:
            with shared_items.noting_damage(storage, item_name(package), package.incarnation):
                data = read_whole(storage, package)
        except Exception as error:
            if not is_transient(error):
                raise
            time.sleep(AGAIN_SECONDS)
        else:
            private.put_key(package.uri, data)


def read_whole(storage: SharedStorage, package: Package) -> bytes:
    """The bytes of a package in one piece, as Ray needs them, with no second copy."""
    buffer = BytesIO()
    for piece in storage.stream_blob(package.incarnation, package.blob):
        buffer.write(piece)
    return buffer.getvalue()


@ray.remote(num_cpus=0, max_retries=-1)  # type: ignore[untyped-decorator]
def drop(uris: list[str]) -> None:
    """Delete packages from the cluster's memory."""
    for uri in uris:
        private.delete_key(uri)
