"""What worker code uses of its process: clocks, a watchdog, a thread, Ray's object store.

A simulation gives the same code a `Process` with a clock of its own.
"""

from __future__ import annotations

import functools
import secrets
import time as system
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any, Protocol

import ray

from ray_workflows._executor.worker.watchdog import WATCHDOG, AnyWatchdog

#: How many digits of a node's id each attempt records: enough to tell nodes apart, and a fifth of
#: the size of a small result in the journal.
NODE_DIGITS = 8


class Pool(Protocol):
    """Threads that work beside the caller."""

    def submit(self, work: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Start ``work`` in a thread."""


class Process(Protocol):
    """A process in which attempts run."""

    @property
    def watch(self) -> AnyWatchdog:
        """The watchdog of the attempts that run here."""

    @property
    def node_id(self) -> str:
        """The first digits of the id of its node."""

    def time(self) -> float:
        """Seconds since 1970."""

    def monotonic(self) -> float:
        """Seconds of a monotonic clock."""

    def seed(self, of: str) -> int:
        """A seed for random numbers; ``of``: names what it is for."""

    def sleep(self, seconds: float) -> None:
        """Let the calling thread wait."""

    def put(self, value: Any) -> ray.ObjectRef:
        """Put a value into the object store."""

    def get(self, ref: ray.ObjectRef) -> Any:
        """Wait for a value in the object store."""

    def pool(self) -> AbstractContextManager[Pool]:
        """Scope of one more thread."""


class RayProcess:
    """This process, which is a worker of Ray's."""

    watch = WATCHDOG
    time = staticmethod(system.time)
    monotonic = staticmethod(system.monotonic)
    sleep = staticmethod(system.sleep)
    put = staticmethod(ray.put)
    get = staticmethod(ray.get)

    @functools.cached_property
    def node_id(self) -> str:
        """The first digits of the id of its node; empty if Ray is not connected, because asking Ray
        for the id would connect it."""
        if not ray.is_initialized():
            return ""
        whole: str = ray.get_runtime_context().get_node_id()
        return whole[:NODE_DIGITS]

    def seed(self, of: str) -> int:
        """Chance itself."""
        return secrets.randbits(64)

    def pool(self) -> AbstractContextManager[Pool]:
        """A `ThreadPoolExecutor` of one thread."""
        return ThreadPoolExecutor(1)


#: This process.
HERE: Process = RayProcess()
