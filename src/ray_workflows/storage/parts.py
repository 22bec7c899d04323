"""The three parts of a storage, `JournalStore`, `BlobStore` and `LeaseStore`, and their `Home`.

One primitive carries the correctness of everything above: `JournalStore.commit` appends to a
journal only if the journal ends where the caller believes it ends.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import Enum, unique
from typing import TYPE_CHECKING, Any

import msgspec

from ray_workflows._model.catalog import (
    Append,
    CatalogQuery,
    CatalogRow,
    Holder,
    JournalEntry,
    Page,
)
from ray_workflows._model.values import Blob
from ray_workflows.exceptions import StorageConfigError
from ray_workflows.storage.validation import slices

if TYPE_CHECKING:
    from typing_extensions import Self


@unique
class CommitOutcome(str, Enum):
    """The outcome of one append."""

    #: The entry is durable and is the end of the journal.
    OK = "ok"
    #: The journal ends elsewhere (or the incarnation is gone): nothing was written.
    STALE = "stale"
    #: The storage can't say. Read the journal and look for the commit id.
    AMBIGUOUS = "ambiguous"


class Home(ABC):
    """Where parts of a storage are: a directory, a database, a bucket.

    It owns what its parts share, such as connections and threads, and opens them lazily, once per
    process. A part may be its own home.
    """

    @property
    @abstractmethod
    def url(self) -> str:
        """Identity of the place: two homes with equal URLs are the same. No credentials."""

    @property
    def node_bound(self) -> bool:
        """Whether only processes on the machine that opened it can use it directly."""
        return False

    @abstractmethod
    def open(self) -> None:
        """Check that it can be used, and create what it needs. Idempotent.

        Raises:
            StorageConfigError: it can't be used as configured; the message names the remedy.
        """

    def open_existing(self) -> None:
        """Check that it is there and can be read. Creates and changes nothing.

        For readers, such as the command line. The default checks nothing: errors show at the first
        read.

        Raises:
            StorageConfigError: there is none, or it can't be read; the message names the remedy.
        """
        return

    @abstractmethod
    def close(self) -> None:
        """Give back connections and threads of this process. Using it again reopens it."""

    def has_workflows(self) -> bool:
        """Whether it has the journals of workflows. Then another storage can't keep its blobs here:
        each sweep would delete the other's blobs."""
        return False


class Part(ABC):
    """Base class of the three parts.

    Instances are picklable, and all methods may be called from several threads. Every method may
    raise `StorageUnavailableError` when the home does not answer (the caller repeats) and
    `StorageCorruptError` when stored bytes are not what was written. `StorageConfigError` is only
    for what is wrong with the whole storage: while it is raised, all workflows wait.

    Raises:
        StorageConfigError: an instance is made of a class that lacks a method; names it.
    """

    #: Where the part is. Parts with the same home share the object.
    home: Home

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """An instance, of a class that has all methods."""
        missing = sorted(getattr(cls, "__abstractmethods__", ()))
        if missing:
            part = next(base.__name__ for base in cls.__mro__ if Part in base.__bases__)
            raise StorageConfigError(
                f"{cls.__name__} can't be a {part}: it lacks {', '.join(missing)}. Write what "
                f"ray_workflows.storage.{part} describes under that name, and let "
                f"ray_workflows.testing.{part}Contract check it."
            )
        return super().__new__(cls)


class JournalStore(Part):
    """Journals and the catalog, which has a row for each journal."""

    @property
    def commits_at_once(self) -> bool:
        """Whether a small commit takes about as long as waking a thread, as on a local disk. The
        coordinator then commits on its own thread, and does nothing else meanwhile."""
        return False

    @property
    def lists_current_rows(self) -> bool:
        """Whether `list_catalog` gives each row as the last commit wrote it. If not, ``seq`` and
        ``due_at`` may be those of an earlier commit."""
        return True

    @abstractmethod
    def commit(self, appends: Sequence[Append]) -> list[CommitOutcome]:
        """Append to several journals at once, and return the outcome of each.

        Each append is atomic with its catalog row, and its outcome is independent of the others.
        Several appends to one workflow take effect in their order. When this returns OK, the entry
        survives power loss. If an exception is raised, nothing is known about any of them: all
        are ambiguous. Creating a workflow is stale if its id or its incarnation is in use.

        Raises:
            ValueError: an append and its catalog row contradict each other (their ids, or
                ``catalog.seq`` is not ``expected_seq + 1``), or the incarnation of a new workflow
                can't be a name (see `write_blob`); nothing was written.
        """

    @abstractmethod
    def read_journal(self, incarnation: str, after: int = 0) -> list[JournalEntry]:
        """Entries with ``seq > after``, in order; empty if there are none or it was deleted."""

    @abstractmethod
    def read_catalog(self, workflow_id: str) -> CatalogRow | None:
        """The row of a workflow, or None if there is none."""

    @abstractmethod
    def list_catalog(self, query: CatalogQuery) -> Page:
        """One page of rows, oldest submission first (equal times: by workflow id).

        With ``newest_first`` in exactly the reverse order. Only rows for which all conditions of
        the query hold (`matches`).

        Ids are ordered by their code points, as Python and the bytes of UTF-8 order them.

        A row that can't be read is left out, and ``damaged`` says what is wrong with it.

        Raises:
            ValueError: the cursor is none of this storage's, or the limit is below 1.
        """

    def count_catalog(self, query: CatalogQuery) -> int:
        """How many rows a query finds, on all of its pages. The default reads them."""
        count = 0
        page = self.list_catalog(query)
        while True:
            count += len(page.rows)
            if page.cursor is None:
                return count
            page = self.list_catalog(msgspec.structs.replace(query, cursor=page.cursor))

    @abstractmethod
    def delete(self, workflow_id: str, incarnation: str, expected_seq: int) -> CommitOutcome:
        """Delete journal and catalog row, if the journal still ends at ``expected_seq``, and the
        blobs of the incarnation that are in the same home.

        The id is free for a new workflow afterwards. After a crash in between, `sweep` removes the
        rest.
        """

    def relist(self, workflow_id: str) -> bool:
        """Rewrite damaged or missing objects that lead to a workflow's journal. Returns whether
        there were any. The default has no such objects.

        Raises:
            StorageCorruptError: the journal is damaged too; nothing was written.
        """
        return False

    def sweep(self, grace_seconds: float) -> int:
        """Finish interrupted deletions, and remove blobs in the same home of incarnations without
        a catalog row, older than the grace period. The default has nothing to remove.

        An incarnation is as old as its newest blob. Blobs are written before the workflow is
        created, so the grace period has to be longer than the longest submission.

        Returns how many incarnations were cleaned up.
        """
        return 0

    def listen(
        self, holder_id: str, on_news: Callable[[], None], lives: Sequence[str] = ()
    ) -> None:
        """Call back, on any thread, when another process may have appended to a journal of a
        holder. ``lives``: the coordinator's earlier holder ids, whose journals it drives too.

        This only saves time: the holder scans the ends of its journals every second anyhow. The
        default never calls back. The process drives workflows as ``holder_id`` from now on;
        `close` ends it.
        """
        return


class BlobStore(Part):
    """Blobs: values that are too large for a journal."""

    @abstractmethod
    def write_blob(self, incarnation: str, key: str, chunks: Iterable[bytes | memoryview]) -> Blob:
        """Write a blob durably unless the key exists; return the description of what is stored.

        ``key`` consists of up to 200 ASCII letters, digits, ``-``, ``_`` and ``.``, and does not
        start with ``.``; so does ``incarnation``. If ``chunks`` raises, nothing is stored.

        Raises:
            ValueError: the key or the incarnation can't be a name.
        """

    @abstractmethod
    def read_blob(self, incarnation: str, blob: Blob) -> memoryview:
        """The bytes of a blob, checked against its size and checksum; read-only.

        They stay readable when the blob is deleted.

        Raises:
            StorageCorruptError: the blob is missing or differs from its description.
        """

    def stream_blob(self, incarnation: str, blob: Blob) -> Iterator[memoryview]:
        """The bytes of a blob piece by piece, for copying. The check comes at the end: the bytes
        are intact only if the iteration ends without an error.

        The default reads the blob whole.

        Raises:
            StorageCorruptError: as `read_blob`, at the first piece or at the last.
        """
        yield from slices([self.read_blob(incarnation, blob)])

    @abstractmethod
    def find_blob(self, incarnation: str, key: str) -> Blob | None:
        """The description of a stored blob, or None. Reads it all to compute the checksum."""

    @abstractmethod
    def delete_blobs(self, incarnation: str) -> None:
        """Delete all blobs of an incarnation, which is deleted or was never created."""

    @abstractmethod
    def old_blobs(self, grace_seconds: float) -> list[str]:
        """Incarnations, with or without a workflow, whose newest blob is older than the grace
        period."""


class LeaseStore(Part):
    """Holders, their leases, and the clock that the leases run on."""

    @abstractmethod
    def renew_holder(self, holder: Holder, lease_seconds: float) -> None:
        """Insert or renew the holder's row; the lease runs from now on the storage's clock."""

    @abstractmethod
    def remove_holder(self, holder_id: str) -> None:
        """Remove the row of a holder that shut down in good order."""

    @abstractmethod
    def read_holders(self) -> list[Holder]:
        """All holders, with their ``lease_until`` on the storage's clock."""

    @abstractmethod
    def now(self) -> float:
        """The storage's clock, in seconds since 1970: leases are measured on it."""
