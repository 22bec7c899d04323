"""What many workflows share in a storage: packages of code, and the documents about environments.

Each such item is an incarnation of its own: its bytes are a blob, and a journal with a catalog row
keeps the sweep from deleting them. The row has the status NONE, which no listing asks for. Using an
item appends to its journal, unless a recent entry is there. Removing it is conditional on the
journal's last entry, so the removal fails if the item was used meanwhile.

References are in the catalog: a workflow's incarnation is named after the document about its
environment, and the document's row names the packages.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import msgspec

from ray_workflows._codec.journal import encode_entry
from ray_workflows._model.blobs import BlobStore
from ray_workflows._model.catalog import Append, CatalogQuery, CatalogRow, Page
from ray_workflows._model.ids import RESERVED_PREFIX
from ray_workflows._model.status import WorkflowStatus
from ray_workflows._model.values import Blob
from ray_workflows.exceptions import StorageCorruptError, StorageError, StorageUnavailableError

#: The prefix of the ids of rows; the item's name follows: its kind and its digest.
PREFIX = RESERVED_PREFIX
PACKAGE, DOCUMENT = "package", "environment"

#: The kind of items that list packages of a workflow that the document about its environment does
#: not name. Each is named after the incarnation of its workflow. So a package's row does not grow
#: with its users, and they don't all write to it.
USES = "uses"

#: The key of the blob of an item.
KEY = "content"

#: A use appends to an item's journal if the last entry is older than the first, in seconds. An
#: unused item is removed when its last entry is older than the second. A submission takes less than
#: the difference.
USED_SECONDS = 600.0
UNUSED_SECONDS = 3600.0

#: How often to try again when others change an item at the same time.
ATTEMPTS = 20


class SharedStorage(BlobStore, Protocol):
    """The part of a storage that shared items need; `storage.Storage` has it."""

    def commit(self, appends: Sequence[Append]) -> Sequence[str]:
        """Append to journals if they end where the caller believes."""

    def read_catalog(self, workflow_id: str) -> CatalogRow | None:
        """The row of this id."""

    def list_catalog(self, query: CatalogQuery) -> Page:
        """A page of rows."""

    def delete(self, workflow_id: str, incarnation: str, expected_seq: int) -> str:
        """Delete a workflow if its journal ends where the caller believes."""

    def delete_blobs(self, incarnation: str) -> None:
        """Delete the blobs of an incarnation."""

    def now(self) -> float:
        """The storage's clock."""


#: The key in a row's metadata that marks an item whose bytes were found damaged.
DAMAGED = "damaged"


class Item(msgspec.Struct, frozen=True):
    """A shared item. ``mentions`` are names of items that it needs. ``damaged``: its bytes were
    found to be damaged or missing; the next submission with the same bytes stores them again."""

    name: str
    incarnation: str
    blob: Blob
    mentions: tuple[str, ...] = ()
    damaged: bool = False


def workflow_incarnation(record: str) -> str:
    """A new incarnation for a workflow whose environment is described by a document."""
    return f"{uuid.uuid4().hex}-{record}" if record else uuid.uuid4().hex


def name_of_document(incarnation: str) -> str:
    """The name of the document about a workflow's environment."""
    return f"{DOCUMENT}/{incarnation.partition('-')[2]}"


def item_of(row: CatalogRow) -> Item:
    """The item of a row."""
    about = row.metadata
    blob = Blob(KEY, about["size"], about["checksum"])
    return Item(
        row.workflow_id.removeprefix(PREFIX),
        row.incarnation,
        blob,
        tuple(about["mentions"]),
        DAMAGED in about,
    )


def first_row(item: Item, now: float, user: tuple[str, str] | None = None) -> CatalogRow:
    """The first row of an item. ``user``: id and incarnation of the only workflow that needs it."""
    return CatalogRow(
        workflow_id=PREFIX + item.name,
        incarnation=item.incarnation,
        seq=1,
        status=WorkflowStatus.NONE,
        holder="",
        submitted_at=now,
        ended_at=now,
        metadata={
            "size": item.blob.size,
            "checksum": item.blob.checksum,
            "mentions": list(item.mentions),
            "users": {user[1]: user[0]} if user else {},
        },
    )


def find(storage: SharedStorage, name: str) -> Item | None:
    """An item, or None."""
    row = storage.read_catalog(PREFIX + name)
    return None if row is None else item_of(row)


def use(
    storage: SharedStorage,
    name: str,
    user: tuple[str, str] | None = None,
) -> Item | None:
    """Use an item: it stays at least as long as a submission takes. None if there is none.

    ``user``: id and incarnation of a workflow that uses it and is not named after it.
    """
    for _ in range(ATTEMPTS):
        row = storage.read_catalog(PREFIX + name)
        if row is None:
            return None
        if row.ended_at is None or storage.now() - row.ended_at >= USED_SECONDS:
            row = grown(storage, row)
            if not append(storage, row):
                continue
        if user is not None:
            note_use(storage, name, user)
        return item_of(row)
    raise busy(name)


def note_use(storage: SharedStorage, name: str, user: tuple[str, str]) -> None:
    """Note that a workflow uses an item."""
    about = f"{USES}/{user[1]}"
    for _ in range(ATTEMPTS):
        row = storage.read_catalog(PREFIX + about)
        if row is None:
            incarnation = uuid.uuid4().hex
            blob = storage.write_blob(incarnation, KEY, [b""])
            item = Item(about, incarnation, blob, (name,))
            if append(storage, first_row(item, storage.now(), user)):
                return
            storage.delete_blobs(incarnation)
            continue
        mentions = row.metadata["mentions"]
        if name in mentions:
            return
        if append(storage, grown(storage, row, {**row.metadata, "mentions": [*mentions, name]})):
            return
    raise busy(about)


def keep(
    storage: SharedStorage,
    name: str,
    chunks: Callable[[], Iterable[bytes | memoryview]],
    mentions: Iterable[str] = (),
    user: tuple[str, str] | None = None,
) -> Item:
    """As `use`, but store the item if there is none, or if it was found damaged."""
    for _ in range(ATTEMPTS):
        item = use(storage, name, user)
        if item is not None and not item.damaged:
            return item
        if item is not None:
            mend(storage, name, chunks)
            continue
        incarnation = uuid.uuid4().hex
        blob = storage.write_blob(incarnation, KEY, chunks())
        row = first_row(Item(name, incarnation, blob, tuple(mentions)), storage.now())
        if append(storage, row):
            if user is not None:
                note_use(storage, name, user)
            return item_of(row)
        storage.delete_blobs(incarnation)
    raise busy(name)


def copy_item(
    source: SharedStorage,
    target: SharedStorage,
    item: Item,
    user: tuple[str, str],
) -> None:
    """Copy an item from another storage under the same incarnation, which journals name, unless it
    is there. ``user``: the workflow that it is copied for."""
    for name in (item.name, f"{item.name}.{item.incarnation}"):
        row = target.read_catalog(PREFIX + name)
        if row is not None and row.incarnation == item.incarnation:
            use(target, name, user)
            if item_of(row).damaged:
                mend(target, name, lambda: source.stream_blob(item.incarnation, item.blob))
            return
        if row is not None:
            continue  # The target has an item with the same contents already.
        pieces = source.stream_blob(item.incarnation, item.blob)
        target.write_blob(item.incarnation, item.blob.key, pieces)
        copied = msgspec.structs.replace(item, name=name)
        if append(target, first_row(copied, target.now())):
            note_use(target, name, user)
            return
    raise busy(item.name)


# -- damage --------------------------------------------------------------------------------


@contextlib.contextmanager
def noting_damage(storage: SharedStorage, name: str, incarnation: str) -> Iterator[None]:
    """Scope in which the bytes of an item are read. Notes damage in its row, so that the next
    submission with the same bytes stores them again.

    Raises:
        StorageCorruptError: they are damaged; names item and key.
    """
    try:
        yield
    except StorageCorruptError as error:
        with contextlib.suppress(StorageError):
            note_damage(storage, name, incarnation)
        raise StorageCorruptError(f"'{PREFIX}{name}' is damaged: {error}") from error


def note_damage(storage: SharedStorage, name: str, incarnation: str) -> None:
    """Note that the bytes of an item are damaged."""
    for candidate in (name, f"{name}.{incarnation}"):
        row = storage.read_catalog(PREFIX + candidate)
        if row is not None and row.incarnation == incarnation and DAMAGED not in row.metadata:
            append(storage, grown(storage, row, {**row.metadata, DAMAGED: True}))


def mend(
    storage: SharedStorage, name: str, chunks: Callable[[], Iterable[bytes | memoryview]]
) -> None:
    """Store the damaged bytes of an item again, unless they are intact by now.

    In their old place, so that all references to them can be read again.
    """
    row = storage.read_catalog(PREFIX + name)
    if row is None or DAMAGED not in row.metadata:
        return
    blob = item_of(row).blob
    if not is_whole(storage, row.incarnation, blob):
        storage.delete_blobs(row.incarnation)
        blob = storage.write_blob(row.incarnation, KEY, chunks())
    metadata = {**row.metadata, "size": blob.size, "checksum": blob.checksum}
    del metadata[DAMAGED]
    append(storage, grown(storage, row, metadata))


def is_whole(storage: SharedStorage, incarnation: str, blob: Blob) -> bool:
    """Whether a blob is intact."""
    try:
        for _ in storage.stream_blob(incarnation, blob):
            pass
    except StorageCorruptError:
        return False
    return True


# -- journals ------------------------------------------------------------------------------


def grown(
    storage: SharedStorage, row: CatalogRow, metadata: dict[str, Any] | None = None
) -> CatalogRow:
    """The row of an item after one more journal entry."""
    return msgspec.structs.replace(
        row,
        seq=row.seq + 1,
        ended_at=storage.now(),
        metadata=row.metadata if metadata is None else metadata,
    )


def append(storage: SharedStorage, row: CatalogRow) -> bool:
    """Append to the journal of an item; False if another process did, or the outcome is unknown."""
    commit_id = uuid.uuid4().hex
    entry = Append(
        workflow_id=row.workflow_id,
        incarnation=row.incarnation,
        expected_seq=row.seq - 1,
        commit_id=commit_id,
        entry=encode_entry([], row.workflow_id, row.incarnation, row.seq),
        catalog=row,
    )
    return [str(outcome.value) for outcome in storage.commit([entry])] == ["ok"]  # type: ignore[attr-defined]


def busy(name: str) -> StorageUnavailableError:
    return StorageUnavailableError(f"{name} changed each time that it was looked at. Try again.")


# -- removal -------------------------------------------------------------------------------


def collect(storage: SharedStorage, unused_seconds: float = UNUSED_SECONDS) -> list[str]:
    """Remove unused items. Returns their names.

    Removes nothing while there are unreadable workflows, because their uses are unknown.

    Args:
        storage: the storage.
        unused_seconds: keep items with a use within this time: its submission may be in progress.
    """
    rows: list[CatalogRow] = []
    for page in pages(storage, CatalogQuery(statuses=(WorkflowStatus.NONE,))):
        if page.damaged:
            return []
        rows += page.rows
    before = storage.now() - unused_seconds
    kinds = tuple(f"{PREFIX}{kind}/" for kind in (PACKAGE, DOCUMENT, USES))
    rows = [row for row in rows if row.workflow_id.startswith(kinds)]
    old = {row.workflow_id.removeprefix(PREFIX): row for row in rows if is_old(row, before)}
    if not old:
        return []
    unused = {name for name, row in old.items() if not has_user(storage, row)}
    uses = {name for name in unused if name.startswith(f"{USES}/")}
    documents = {name for name in unused if name.startswith(f"{DOCUMENT}/")}
    if documents:
        for page in pages(storage, CatalogQuery(newest_first=True)):
            if page.damaged:
                return []
            documents -= {name_of_document(row.incarnation) for row in page.rows}
            if not documents:
                break
    removed = [name for name in sorted(documents | uses) if remove(storage, old[name])]
    mentioned = {
        name
        for row in rows
        if row.workflow_id.removeprefix(PREFIX) not in removed
        for name in row.metadata["mentions"]
    }
    for name in sorted(unused - mentioned):
        if name.startswith(f"{PACKAGE}/") and remove(storage, old[name]):
            removed.append(name)
    return removed


def is_old(row: CatalogRow, before: float) -> bool:
    return row.ended_at is not None and row.ended_at <= before


def has_user(storage: SharedStorage, row: CatalogRow) -> bool:
    """Whether one of the workflows that its row names still exists. 0.1.0 named all users of a
    package in its row."""
    for incarnation, workflow_id in row.metadata["users"].items():
        found = storage.read_catalog(workflow_id)
        if found is not None and found.incarnation == incarnation:
            return True
    return False


def remove(storage: SharedStorage, row: CatalogRow) -> bool:
    outcome: Any = storage.delete(row.workflow_id, row.incarnation, row.seq)
    return str(outcome.value) == "ok"


def pages(storage: SharedStorage, query: CatalogQuery) -> Iterable[Page]:
    """All pages of a query."""
    while True:
        page = storage.list_catalog(query)
        yield page
        if page.cursor is None:
            return
        query = msgspec.structs.replace(query, cursor=page.cursor)
