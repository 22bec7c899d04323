"""The storage as one coordinator meets it: slow, absent, ambiguous; what it holds is never lost.

Each operation happens at one moment; between two operations of one piece of work others may come.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from ray_workflows._model.catalog import (
    Append,
    CatalogQuery,
    CatalogRow,
    Holder,
    JournalEntry,
    Page,
)
from ray_workflows._model.values import Blob
from ray_workflows.exceptions import StorageCorruptError, StorageUnavailableError
from ray_workflows.storage.base import Storage
from ray_workflows.storage.parts import BlobStore, CommitOutcome, Home, JournalStore, LeaseStore

if TYPE_CHECKING:
    from tests.simulation.life import Life
    from tests.simulation.world import World


class LateCommit:
    """A commit that its sender has given up on, and that is still on its way."""

    def __init__(self, journals: FaultyJournals, appends: list[Append]) -> None:
        self.journals = journals
        self.appends = appends

    def disturbs(self, life: Life, appends: Sequence[Append]) -> bool:
        """Whether it appends to what another one is about to append to."""
        mine = {append.incarnation for append in self.appends}
        return self.journals.home.life is not life and any(a.incarnation in mine for a in appends)

    def arrive(self) -> None:
        world = self.journals.home.world
        if self in world.late:
            world.late.remove(self)
            self.journals.apply(self.appends)


class FaultyHome(Home):
    """The way of one coordinator to the world's storage."""

    def __init__(self, world: World, life: Life) -> None:
        self.world = world
        self.life = life
        self.inner = world.open_storage()
        #: Until when this coordinator can't reach it.
        self.away_until = 0.0

    @property
    def url(self) -> str:
        return self.inner.url

    def open(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to give back."""

    def enter(self, what: str) -> None:
        """An operation begins."""
        world, faults = self.world, self.world.faults
        if faults.hit(faults.interleave):
            world.interleave()
        if world.clock.now < self.away_until:
            raise StorageUnavailableError(f"{what}: the storage is away")
        if faults.hit(faults.read_fails):
            if faults.hit(faults.outage):
                self.away_until = world.clock.now + world.rng.uniform(0.5, 25.0)
                world.trace("storage away from %s until %.3f", self.life.name, self.away_until)
            raise StorageUnavailableError(f"{what} failed")


class FaultyJournals(JournalStore):
    """Journals and catalog as one coordinator meets them."""

    home: FaultyHome

    def __init__(self, home: FaultyHome) -> None:
        self.home = home

    def commit(self, appends: Sequence[Append]) -> list[CommitOutcome]:
        world, faults = self.home.world, self.home.world.faults
        if faults.hit(faults.interleave):
            world.interleave()
        if world.clock.now < self.home.away_until or faults.hit(faults.commit_lost):
            world.trace("commit by %s lost", self.home.life.name)
            raise StorageUnavailableError("the commit failed")
        if faults.hit(faults.commit_late):
            # The request is on its way: it takes effect when the client has given up on it.
            late = LateCommit(self, list(appends))
            delay = world.rng.choice([0.02, 0.1, 0.1, 0.5, 3.0]) * world.rng.random()
            world.clock.after(delay, late.arrive)
            world.late.append(late)
            world.trace("commit by %s will be late", self.home.life.name)
            raise StorageUnavailableError("the commit timed out")
        if faults.hit(faults.commit_partial):
            cut = world.rng.randint(0, len(appends))
            self.apply(list(appends)[:cut])
            world.trace("commit by %s broke off after %d", self.home.life.name, cut)
            raise StorageUnavailableError("the commit broke off")
        for late in list(world.late):
            if late.disturbs(self.home.life, appends) and faults.hit(faults.late_at_worst):
                late.arrive()
        outcomes = self.apply(appends)
        if faults.hit(faults.commit_unsaid):
            world.trace("commit by %s: the answer is lost", self.home.life.name)
            raise StorageUnavailableError("the answer to the commit is lost")
        if faults.commit_ambiguous:
            outcomes = [
                CommitOutcome.AMBIGUOUS if faults.hit(faults.commit_ambiguous) else outcome
                for outcome in outcomes
            ]
        for append, outcome in zip(appends, outcomes, strict=True):
            if outcome is CommitOutcome.OK:
                world.learn(append.incarnation, append.expected_seq + 1)
        return outcomes

    def apply(self, appends: Sequence[Append]) -> list[CommitOutcome]:
        # Storages remember what was deleted for longer than a request can be late.
        journals = self.home.world.monitor.journals
        deleted = {incarnation for incarnation, journal in journals.items() if journal.deleted}
        fresh = [append for append in appends if append.incarnation not in deleted]
        said = iter(self.home.inner.commit(fresh))
        outcomes = [
            CommitOutcome.STALE if append.incarnation in deleted else next(said)
            for append in appends
        ]
        for append, outcome in zip(appends, outcomes, strict=True):
            self.home.world.committed(self.home.life, append, outcome)
        return outcomes

    def read_journal(self, incarnation: str, after: int = 0) -> list[JournalEntry]:
        self.home.enter("read_journal")
        faults = self.home.world.faults
        entries = self.home.inner.read_journal(incarnation, after)
        if entries and faults.hit(faults.corrupt):
            raise StorageCorruptError(f"entry {entries[0].seq} of {incarnation} is damaged")
        if entries:
            self.home.world.learn(incarnation, entries[-1].seq)
        return entries

    def read_catalog(self, workflow_id: str) -> CatalogRow | None:
        self.home.enter("read_catalog")
        return self.home.inner.read_catalog(workflow_id)

    def list_catalog(self, query: CatalogQuery) -> Page:
        self.home.enter("list_catalog")
        return self.home.inner.list_catalog(query)

    def delete(self, workflow_id: str, incarnation: str, expected_seq: int) -> CommitOutcome:
        world, faults = self.home.world, self.home.world.faults
        self.home.enter("delete")
        outcome = self.home.inner.delete(workflow_id, incarnation, expected_seq)
        world.trace("delete %s by %s: %s", workflow_id, self.home.life.name, outcome.value)
        if outcome is CommitOutcome.OK:
            world.monitor.deleted(incarnation)
        if faults.hit(faults.commit_unsaid):
            raise StorageUnavailableError("the answer to the deletion is lost")
        return outcome

    def sweep(self, grace_seconds: float) -> int:
        return self.home.inner.sweep(grace_seconds)


class FaultyBlobs(BlobStore):
    """Blobs as one coordinator meets them."""

    home: FaultyHome

    def __init__(self, home: FaultyHome) -> None:
        self.home = home

    def write_blob(self, incarnation: str, key: str, chunks: Iterable[bytes | memoryview]) -> Blob:
        self.home.enter("write_blob")
        return self.home.inner.write_blob(incarnation, key, chunks)

    def read_blob(self, incarnation: str, blob: Blob) -> memoryview:
        self.home.enter("read_blob")
        return self.home.inner.read_blob(incarnation, blob)

    def find_blob(self, incarnation: str, key: str) -> Blob | None:
        return self.home.inner.find_blob(incarnation, key)

    def delete_blobs(self, incarnation: str) -> None:
        self.home.inner.delete_blobs(incarnation)

    def old_blobs(self, grace_seconds: float) -> list[str]:
        return self.home.inner.old_blobs(grace_seconds)


class FaultyLeases(LeaseStore):
    """Holders as one coordinator meets them."""

    home: FaultyHome

    def __init__(self, home: FaultyHome) -> None:
        self.home = home

    def renew_holder(self, holder: Holder, lease_seconds: float) -> None:
        self.home.enter("renew_holder")
        self.home.inner.renew_holder(holder, lease_seconds)

    def remove_holder(self, holder_id: str) -> None:
        self.home.enter("remove_holder")
        self.home.inner.remove_holder(holder_id)

    def read_holders(self) -> list[Holder]:
        self.home.enter("read_holders")
        return self.home.inner.read_holders()

    def now(self) -> float:
        return self.home.inner.now()


class FaultyStorage(Storage):
    """What one coordinator sees of the world's storage."""

    def __init__(self, world: World, life: Life) -> None:
        self.way = FaultyHome(world, life)
        super().__init__(
            journals=FaultyJournals(self.way),
            blobs=FaultyBlobs(self.way),
            leases=FaultyLeases(self.way),
        )
