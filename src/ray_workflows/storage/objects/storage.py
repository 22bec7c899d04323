"""`ObjectStorage` and `SharedStorage`, composed of parts that work on any store of objects."""

from __future__ import annotations

import os
from typing import Any

from ray_workflows._model.catalog import Holder
from ray_workflows.storage.base import Storage
from ray_workflows.storage.files.blobs import BlobFiles
from ray_workflows.storage.objects.blobs import ObjectBlobs
from ray_workflows.storage.objects.bucket import Bucket
from ray_workflows.storage.objects.directory import SharedDirectory
from ray_workflows.storage.objects.home import ObjectsHome
from ray_workflows.storage.objects.index import quietly
from ray_workflows.storage.objects.journal_store import ObjectsJournals
from ray_workflows.storage.parts import LeaseStore


class ObjectsLeases(LeaseStore):
    """Holders as objects, on the store's clock."""

    home: ObjectsHome

    def __init__(self, home: ObjectsHome) -> None:
        self.home = home

    def renew_holder(self, holder: Holder, lease_seconds: float) -> None:
        """Insert or renew the holder's row; the lease runs from when the store wrote it."""
        self.home.holders.renew(holder, lease_seconds)
        quietly(self.home.index.pay)

    def remove_holder(self, holder_id: str) -> None:
        """Remove the holder's row, if there is one."""
        self.home.holders.remove(holder_id)

    def read_holders(self) -> list[Holder]:
        """All holders, by id."""
        return self.home.holders.read()

    def now(self) -> float:
        """The store's clock, at most a second late."""
        return self.home.holders.now()


class PutOnceStorage(Storage):
    """Workflows on a store of objects. Users name its subclasses, one for each kind of store.

    Args:
        home: the store.
        blobs: the blobs in it.
    """

    def __init__(self, home: ObjectsHome, blobs: BlobFiles | ObjectBlobs) -> None:
        super().__init__(
            journals=ObjectsJournals(home, blobs), blobs=blobs, leases=ObjectsLeases(home)
        )


class ObjectStorage(PutOnceStorage):
    """Workflows in a bucket, below a prefix.

    Credentials are those of the provider's usual environment (``$AWS_ACCESS_KEY_ID`` and so on,
    or the role of the machine) of each process; they are in no URL, message or pickle.

    Args:
        url: ``s3://bucket/prefix``, ``gs://bucket/prefix`` or ``az://container/prefix``, with
            options as a query: ``?endpoint=http://127.0.0.1:9000&allow_http=true&region=...``.

    Raises:
        StorageConfigError: the URL has no bucket, an unknown option, or a secret.

    Example:
        >>> ObjectStorage("s3://bucket/team/workflows?region=eu-west-1")
        ObjectStorage('s3://bucket/team/workflows?region=eu-west-1')
    """

    def __init__(self, url: str) -> None:
        home = Bucket(url)
        self.full_url: str = home.full_url(tuple(home.options))
        super().__init__(home, ObjectBlobs(home))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.full_url,)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.full_url!r})"


class SharedStorage(PutOnceStorage):
    """Workflows in a directory that every node of every cluster sees under the same path.

    Args:
        directory: where it is; ``~`` is expanded. Created by `open`, with mode 0700.

    Raises:
        StorageConfigError: the directory's name can't be a path.

    Example:
        >>> import tempfile
        >>> directory = tempfile.TemporaryDirectory()
        >>> storage = SharedStorage(directory.name)
        >>> storage.open()
        >>> storage.read_catalog("none") is None
        True
        >>> storage.close()
        >>> directory.cleanup()
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        home = SharedDirectory(directory)
        self.directory: str = home.directory
        # Not mapped: if another machine deletes a mapped file, its readers crash.
        blobs = BlobFiles(home.blobs_directory, home, mapped=False, clock=home.fresh_now)
        super().__init__(home, blobs)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.directory,)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.directory!r})"
