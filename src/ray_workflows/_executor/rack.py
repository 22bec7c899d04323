"""The packages of workflows in this cluster: brought from the storage when attempts need them.

Nothing in the cluster refers to them, so that Ray never deletes them; what nobody needs for long is
taken out of its memory here.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from functools import partial
from typing import Any

import ray

from ray_workflows._environment import ray_private
from ray_workflows._environment.packages import bring, drop
from ray_workflows._model.plan import Package
from ray_workflows.storage.base import Storage

logger = logging.getLogger(__name__)

#: How long a package that no attempt needs stays in the cluster, in seconds; how often to look.
UNUSED_SECONDS = 1800.0
LOOK_SECONDS = 60.0


class Rack:
    """Knows what was brought. Called with the executor's lock held.

    Args:
        storage: where packages come from.
    """

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        #: By URI, the Ray task that brings a package, or None when it is there.
        self.brought: dict[str, ray.ObjectRef | None] = {}
        self.used_at: dict[str, float] = {}
        self.looked_at = time.monotonic()

    def need(self, packages: Iterable[Package]) -> list[ray.ObjectRef]:
        """What an attempt has to wait for."""
        waits = []
        now = time.monotonic()
        for package in packages:
            uri = package.uri
            self.used_at[uri] = now
            if uri not in self.brought:
                ref = bring.remote(self.storage, package)
                self.brought[uri] = ref
                ref.future().add_done_callback(partial(self.settle, uri))
            wait = self.brought.get(uri)
            if wait is not None:
                waits.append(wait)
        return waits

    def settle(self, uri: str, future: Any) -> None:
        """Wait no longer for what is there; try again next time what could not be brought. Called
        from a thread of Ray's."""
        try:
            future.result()
        except Exception as error:
            logger.warning("The package %s could not be brought: %s", uri, error)
            self.brought.pop(uri, None)
        else:
            self.brought[uri] = None

    def missing(self, packages: Iterable[Package]) -> bool:
        """Whether one of them is not in the cluster after all; it will be brought again."""
        gone = [one.uri for one in packages if not ray_private.has_key(one.uri)]
        for uri in gone:
            self.brought.pop(uri, None)
        return bool(gone)

    def tidy(self) -> None:
        """Take out of the cluster what was not needed for long. Called while nothing runs."""
        now = time.monotonic()
        if now - self.looked_at < LOOK_SECONDS:
            return
        self.looked_at = now
        unused = [uri for uri, used_at in self.used_at.items() if now - used_at >= UNUSED_SECONDS]
        for uri in unused:
            del self.used_at[uri]
            self.brought.pop(uri, None)
        if unused:
            drop.remote(unused)
