"""The cache of code packages in the memory of Ray's head. A small Ray task copies a package there
from the storage when an attempt needs it.

Nothing in the cluster refers to such a package, so Ray never deletes it. This module removes
packages that no attempt has needed for long.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Collection, Iterable
from functools import partial
from typing import Any

import ray

from ray_workflows._environment.code.packages import bring, drop
from ray_workflows._executor.failures import refused_package
from ray_workflows._model.plan import Package
from ray_workflows.storage.base import Storage

logger = logging.getLogger(__name__)

#: How long an unused package stays in the cluster, and how often this is checked, in seconds.
UNUSED_SECONDS = 1800.0
CHECK_SECONDS = 60.0

#: For how many seconds failures of attempts count as caused by a package that was found missing:
#: they were in transit then.
REMEMBERED_SECONDS = 30.0

#: A variable that counts repeated uploads of a package: a node remembers that it could not set up a
#: runtime_env, so the next runtime_env has to differ.
AGAIN_VARIABLE = "RAY_WORKFLOWS_BROUGHT_AGAIN"


class PackageCache:
    """The packages in the cluster. Any thread may call its methods.

    Args:
        storage: has the packages.
    """

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        #: Not the executor's lock, for which Ray's threads would have to wait.
        self.lock = threading.RLock()
        #: By URI, the Ray task that uploads a package, or None when it is there.
        self.brought: dict[str, ray.ObjectRef | None] = {}
        self.used_at: dict[str, float] = {}
        #: When a package was found missing.
        self.missed_at: dict[str, float] = {}
        self.again: dict[str, int] = {}
        #: Why a package can't be uploaded, if that is permanent.
        self.refused: dict[str, Exception] = {}
        self.looked_at = time.monotonic()

    def need(self, packages: Iterable[Package]) -> list[ray.ObjectRef]:
        """Have packages copied into the cluster, unless they are there.

        Returns:
            The Ray tasks that an attempt has to wait for.
        """
        waits = []
        now = time.monotonic()
        with self.lock:
            for package in packages:
                uri = package.uri
                self.used_at[uri] = now
                if uri not in self.brought:
                    ref = bring.remote(self.storage, package)
                    self.brought[uri] = ref
                    ref.future().add_done_callback(partial(self.settle, uri, ref))
                wait = self.brought.get(uri)
                if wait is not None:
                    waits.append(wait)
        return waits

    def settle(self, uri: str, ref: ray.ObjectRef, future: Any) -> None:
        """Process the end of an upload: the package is there, or the next need uploads it again.
        Ignores the end of an upload whose package was found missing since."""
        error: Exception | None = None
        try:
            future.result()
        except Exception as raised:
            error = raised
            logger.warning("The package %s could not be brought: %s", uri, error)
        with self.lock:
            if self.brought.get(uri) is not ref:
                return
            if error is None:
                self.refused.pop(uri, None)
                self.brought[uri] = None
            else:
                refusal = refused_package(error)
                if refusal is not None:
                    self.refused[uri] = refusal
                del self.brought[uri]

    def why_missing(
        self, packages: Iterable[Package], missing: Collection[str]
    ) -> Exception | None:
        """Why one of the missing packages can't be uploaded; None if all can, or were not tried."""
        with self.lock:
            for package in packages:
                refused = self.refused.get(package.uri)
                if refused is not None and package.uri in missing:
                    return refused
        return None

    def varied(self, runtime_env: dict[str, Any], packages: Iterable[Package]) -> dict[str, Any]:
        """A runtime_env that differs from those that nodes could not set up."""
        with self.lock:
            times = sum(self.again.get(package.uri, 0) for package in packages)
        if not times:
            return runtime_env
        env_vars = runtime_env.get("env_vars") or {}
        return {**runtime_env, "env_vars": {**env_vars, AGAIN_VARIABLE: str(times)}}

    def lacked(self, packages: Iterable[Package], missing: Collection[str]) -> bool:
        """Whether a package is missing in the cluster, or was a moment ago; then it will be
        uploaded again."""
        now = time.monotonic()
        found = False
        with self.lock:
            for package in packages:
                uri = package.uri
                if uri in missing:
                    self.brought.pop(uri, None)
                    self.missed_at[uri] = now
                    self.again[uri] = self.again.get(uri, 0) + 1
                found |= now - self.missed_at.get(uri, float("-inf")) < REMEMBERED_SECONDS
        return found

    def tidy(self) -> None:
        """Remove packages that were unused for long. Called while nothing runs."""
        now = time.monotonic()
        with self.lock:
            if now - self.looked_at < CHECK_SECONDS:
                return
            self.looked_at = now
            used = self.used_at.items()
            unused = [uri for uri, used_at in used if now - used_at >= UNUSED_SECONDS]
            for uri in unused:
                del self.used_at[uri]
                self.brought.pop(uri, None)
        if unused:
            drop.remote(unused)
