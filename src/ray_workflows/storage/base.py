"""`Storage`: where workflows live, composed of a journal store, a blob store and a lease store.

A whole storage can stand in for each of its parts: each method passes the call to the part that
does it. Only opening, deletion and the sweep, which concern several parts, are done here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from ray_workflows._model.catalog import (
    Append,
    CatalogQuery,
    CatalogRow,
    Holder,
    JournalEntry,
    Page,
)
from ray_workflows._model.values import Blob
from ray_workflows.codec import PayloadCodec
from ray_workflows.exceptions import StorageConfigError, StorageUnavailableError
from ray_workflows.storage.orphans import MARK_INCARNATION, MARK_KEY, sweep_blobs
from ray_workflows.storage.parts import (
    BlobStore,
    CommitOutcome,
    Home,
    JournalStore,
    LeaseStore,
    Part,
)

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["BlobStore", "CommitOutcome", "Home", "JournalStore", "LeaseStore", "Part", "Storage"]


class Storage(JournalStore, BlobStore, LeaseStore, Home):
    """Home of journals, catalog, blobs and holders, composed of three parts.

    Args:
        journals: has the journals and the catalog.
        blobs: has the blobs. If its home is not that of the journals, it is for the blobs
            of this storage alone: `open` marks it, and `sweep` removes blobs that belong to no
            workflow here.
        leases: has the holders.
        codecs: encode values before they are stored here: the first encodes, all of them decode.
            The process that makes a value applies them; the parts encode nothing.

    Raises:
        TypeError: a subclass overrides methods of the parts, as storages did before release 0.2.0.

    Example:
        >>> from ray_workflows.storage import MemoryStorage
        >>> rows, values = MemoryStorage(name="db"), MemoryStorage(name="bucket")
        >>> Storage(journals=rows.journals, blobs=values.blobs, leases=rows.leases).url
        'memory://db#blobs=memory%3A%2F%2Fbucket'
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """An instance, if the class overrides no methods of the parts."""
        check_composed(cls)
        return super().__new__(cls)

    def __init__(
        self,
        *,
        journals: JournalStore,
        blobs: BlobStore,
        leases: LeaseStore,
        codecs: Sequence[PayloadCodec] = (),
    ) -> None:
        self.journals: JournalStore = journals
        self.blobs: BlobStore = blobs
        self.leases: LeaseStore = leases
        self.codecs: tuple[PayloadCodec, ...] = tuple(codecs)

    def __repr__(self) -> str:
        names = "".join(f", {codec.name}" for codec in self.codecs)
        return f"{type(self).__name__}({self.url}{names})"

    def with_codecs(self, codecs: Sequence[PayloadCodec]) -> Storage:
        """The same storage, whose values these codecs encode and decode."""
        return Storage(journals=self.journals, blobs=self.blobs, leases=self.leases, codecs=codecs)

    # -- all parts -------------------------------------------------------------------------

    @property
    def home(self) -> Home:  # type: ignore[override]
        """The storage itself: as a part of another storage, it opens all of its own homes."""
        return self

    @property
    def homes(self) -> list[Home]:
        """The homes of the parts, each once, that of the journals first."""
        return list(dict.fromkeys(part.home for part in (self.journals, self.blobs, self.leases)))

    @property
    def url(self) -> str:
        """Identity of the storage: that of the journals' home, and behind a ``#`` the others."""
        url = self.journals.home.url
        others = {"blobs": self.blobs.home, "leases": self.leases.home}
        query = "&".join(
            f"{name}={quote(home.url, safe='')}"
            for name, home in others.items()
            if home is not self.journals.home
        )
        return f"{url}#{query}" if query else url

    @property
    def node_bound(self) -> bool:
        """Whether one of the homes is node-bound."""
        return any(home.node_bound for home in self.homes)

    @property
    def blobs_are_elsewhere(self) -> bool:
        """Whether the blobs have a home of their own."""
        return self.blobs.home is not self.journals.home

    def open(self) -> None:
        """Open the homes, and mark that of the blobs if it has no journals.

        Raises:
            StorageConfigError: one can't be used, or has the blobs of another storage.
        """
        for home in self.homes:
            home.open()
        if self.blobs_are_elsewhere:
            if self.blobs.home.has_workflows():
                raise StorageConfigError(
                    f"{self.blobs.home.url} has workflows of its own, whose values and ours would "
                    f"be taken for rubbish of each other. Give another directory or prefix as "
                    f"blobs=."
                )
            me = [self.journals.home.url.encode()]
            self.check_owner(self.blobs.write_blob(MARK_INCARNATION, MARK_KEY, me))

    def open_existing(self) -> None:
        """Check that the homes are there, and belong together."""
        for home in self.homes:
            home.open_existing()
        if self.blobs_are_elsewhere:
            self.check_owner(self.blobs.find_blob(MARK_INCARNATION, MARK_KEY))

    def check_owner(self, mark: Blob | None) -> None:
        """Raise unless the blobs are those of this storage."""
        mine, place = self.journals.home.url, self.blobs.home.url
        owner = None
        if mark is not None:
            owner = bytes(self.blobs.read_blob(MARK_INCARNATION, mark)).decode()
        if owner != mine:
            raise StorageConfigError(
                f"{place} has the blobs of {owner or 'nobody yet'}, not of {mine}. Give a "
                f"directory or prefix of its own as blobs=. If that is the same storage under a "
                f"new name, delete {MARK_KEY!r} of {MARK_INCARNATION!r} there, and call init()."
            )

    def close(self) -> None:
        """Close the homes."""
        for home in self.homes:
            home.close()

    def has_workflows(self) -> bool:
        """Whether one of the homes has the journals of workflows."""
        return any(home.has_workflows() for home in self.homes)

    def delete(self, workflow_id: str, incarnation: str, expected_seq: int) -> CommitOutcome:
        """Delete the workflow, and then its blobs if they have a home of their own. After an
        interruption `sweep` finds those."""
        outcome = self.journals.delete(workflow_id, incarnation, expected_seq)
        if outcome is CommitOutcome.OK and self.blobs_are_elsewhere:
            # The workflow is deleted already; the sweep can delete the blobs.
            with contextlib.suppress(StorageUnavailableError):
                self.blobs.delete_blobs(incarnation)
        return outcome

    def sweep(self, grace_seconds: float) -> int:
        """Finish interrupted deletions, and remove old blobs that belong to no workflow."""
        swept = 0
        if self.blobs_are_elsewhere:
            swept = len(sweep_blobs(self.journals, self.blobs, self.now(), grace_seconds))
        return swept + self.journals.sweep(grace_seconds)

    # -- journals --------------------------------------------------------------------------

    @property
    def commits_at_once(self) -> bool:
        """As the journals do."""
        return self.journals.commits_at_once

    @property
    def lists_current_rows(self) -> bool:
        """As the journals do."""
        return self.journals.lists_current_rows

    def commit(self, appends: Sequence[Append]) -> list[CommitOutcome]:
        """As the journals do."""
        return self.journals.commit(appends)

    def read_journal(self, incarnation: str, after: int = 0) -> list[JournalEntry]:
        """As the journals do."""
        return self.journals.read_journal(incarnation, after)

    def read_catalog(self, workflow_id: str) -> CatalogRow | None:
        """As the journals do."""
        return self.journals.read_catalog(workflow_id)

    def list_catalog(self, query: CatalogQuery) -> Page:
        """As the journals do."""
        return self.journals.list_catalog(query)

    def relist(self, workflow_id: str) -> bool:
        """As the journals do."""
        return self.journals.relist(workflow_id)

    def count_catalog(self, query: CatalogQuery) -> int:
        """As the journals do."""
        return self.journals.count_catalog(query)

    def listen(
        self, holder_id: str, on_news: Callable[[], None], lives: Sequence[str] = ()
    ) -> None:
        """As the journals do."""
        self.journals.listen(holder_id, on_news, lives)

    # -- blobs -----------------------------------------------------------------------------

    def write_blob(self, incarnation: str, key: str, chunks: Iterable[bytes | memoryview]) -> Blob:
        """As the blobs do."""
        return self.blobs.write_blob(incarnation, key, chunks)

    def read_blob(self, incarnation: str, blob: Blob) -> memoryview:
        """As the blobs do."""
        return self.blobs.read_blob(incarnation, blob)

    def stream_blob(self, incarnation: str, blob: Blob) -> Iterator[memoryview]:
        """As the blobs do."""
        return self.blobs.stream_blob(incarnation, blob)

    def find_blob(self, incarnation: str, key: str) -> Blob | None:
        """As the blobs do."""
        return self.blobs.find_blob(incarnation, key)

    def delete_blobs(self, incarnation: str) -> None:
        """As the blobs do."""
        self.blobs.delete_blobs(incarnation)

    def old_blobs(self, grace_seconds: float) -> list[str]:
        """As the blobs do, without the mark in them."""
        found = self.blobs.old_blobs(grace_seconds)
        return [name for name in found if name != MARK_INCARNATION]

    # -- leases ----------------------------------------------------------------------------

    def renew_holder(self, holder: Holder, lease_seconds: float) -> None:
        """As the leases do."""
        self.leases.renew_holder(holder, lease_seconds)

    def remove_holder(self, holder_id: str) -> None:
        """As the leases do."""
        self.leases.remove_holder(holder_id)

    def read_holders(self) -> list[Holder]:
        """As the leases do."""
        return self.leases.read_holders()

    def now(self) -> float:
        """As the leases do."""
        return self.leases.now()


#: Methods that subclasses must not override.
METHODS = sorted(
    name
    for name, value in vars(Storage).items()
    if not name.startswith("_") and (callable(value) or isinstance(value, property))
)


def check_composed(cls: type[Storage], storage: Storage | None = None) -> None:
    """Raise if a subclass is not composed of parts.

    Args:
        cls: the subclass.
        storage: an instance, which must have parts.

    Raises:
        TypeError: it is written as for releases before 0.2.0; says what to change.
    """
    own = [name for name in METHODS if getattr(cls, name) is not getattr(Storage, name)]
    if own or (storage is not None and "journals" not in vars(storage)):
        has = f" has {', '.join(own)}" if own else " does not call Storage.__init__"
        raise TypeError(
            f"The storage {cls.__name__}{has}, as storages did before release 0.2.0. A storage is "
            f"composed of three parts now: let subclasses of JournalStore, BlobStore and "
            f"LeaseStore (in ray_workflows.storage) have the methods, and give their instances to "
            f"Storage(journals=..., blobs=..., leases=...). See docs/storage-own.md."
        )
