"""`ObjectsHome`: the home of parts on any store that can create an object only if it is not there.

Object stores and shared directories are the two kinds. The parts share its journals, holders and
index, with their caches.
"""

from __future__ import annotations

from collections.abc import Callable

from ray_workflows._elapsed import elapsed
from ray_workflows._model.catalog import CatalogQuery
from ray_workflows._model.status import WorkflowStatus
from ray_workflows.exceptions import StorageConfigError
from ray_workflows.storage.objects.client import Crew, Operations
from ray_workflows.storage.objects.index import Index, quietly
from ray_workflows.storage.objects.journals import Journals
from ray_workflows.storage.objects.leases import Holders
from ray_workflows.storage.objects.records import Layout, decode, encode, new_nonce
from ray_workflows.storage.parts import Home

LAYOUT_KEY = "layout"
LAYOUT_VERSION = 1


class ObjectsHome(Home):
    """Journals, index and holders as objects. Subclasses are the kinds of stores.

    Args:
        operations: the store.
        crew: what runs independent requests at once.
        clock: for durations.
    """

    def __init__(
        self,
        operations: Operations,
        *,
        crew: Crew | None = None,
        clock: Callable[[], float] = elapsed,
    ) -> None:
        self.operations = operations
        self.crew = crew or Crew()
        self.clock = clock
        self.journals = Journals(operations, self.crew, clock)
        self.holders = Holders(operations, self.crew, clock)
        self.index = Index(self.journals, self.holders.is_alive)

    def open(self) -> None:
        """Create what is needed, and check that the store keeps what it promises.

        Raises:
            StorageConfigError: it can't be used; the message names the remedy.
        """
        first = Layout(new_nonce(), LAYOUT_VERSION)
        self.operations.put_if_absent(LAYOUT_KEY, encode(first, LAYOUT_KEY))
        self.open_existing()
        again = Layout(new_nonce(), LAYOUT_VERSION)
        if self.operations.put_if_absent(LAYOUT_KEY, encode(again, LAYOUT_KEY)):
            raise StorageConfigError(
                f"{self.url} does not support conditional writes: an object that existed was "
                f"created again, so that nothing would keep two coordinators apart. Use a store "
                f"that honours If-None-Match on PUT (Amazon S3, Google Cloud Storage, Azure Blob "
                f"Storage, recent MinIO, Ceph and R2 do), or another kind of storage."
            )

    def open_existing(self) -> None:
        """Check that there is a storage here that can be read; creates nothing.

        Raises:
            StorageConfigError: there is none, it can't be read, or a newer release wrote it.
        """
        found = self.operations.get(LAYOUT_KEY)
        if found is None:
            raise StorageConfigError(
                f"{self.url} is not a storage of workflows: it has no object {LAYOUT_KEY!r}. "
                f"Nothing was created. Name what was given to init(storage=...), with --storage "
                f"or $RAY_WORKFLOW_STORAGE."
            )
        layout = decode(Layout, found.data, LAYOUT_KEY)
        if layout.layout > LAYOUT_VERSION:
            raise StorageConfigError(
                f"{self.url} was written by a newer release of ray-workflows (layout "
                f"{layout.layout}; this one knows up to {LAYOUT_VERSION}). Upgrade ray-workflows "
                f"here."
            )

    def close(self) -> None:
        """Give back threads and connections; the next use takes them anew."""
        quietly(self.index.pay)
        quietly(self.holders.forget_clock)
        self.crew.close()
        self.operations.close()

    def fresh_now(self) -> float:
        """The store's clock, asked now."""
        return self.holders.fresh_now()

    def has_workflows(self) -> bool:
        """Whether the index has a row."""
        return bool(self.index.page(CatalogQuery(statuses=tuple(WorkflowStatus), limit=1)).rows)
