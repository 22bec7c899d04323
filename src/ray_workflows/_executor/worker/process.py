"""What the code in a worker needs of its process: clocks, a watch, a thread, Ray's object store.

A simulation gives the same code another process, with a clock of its own.
"""

from __future__ import annotations

import functools
import time as system
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any, Protocol

import ray

from ray_workflows._executor.worker.watchdog import WATCHDOG, AnyWatchdog

#: Digits of a node's id that are kept with each attempt: enough to tell nodes apart, and a fifth of
#: what a small result takes in the journal.
NODE_DIGITS = 8


class Pool(Protocol):
    """Threads that work beside the caller."""

    def submit(self, work: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Begin to do it."""


class Process(Protocol):
    """A process in which attempts run."""

    @property
    def watch(self) -> AnyWatchdog:
        """Looks at the attempts that run here."""

    @property
    def node_id(self) -> str:
        """The first digits of the id of its node."""

    def time(self) -> float:
        """Seconds since 1970."""

    def monotonic(self) -> float:
        """Seconds of a clock that nobody sets."""

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
        """The first digits of the id of its node; empty where Ray is not connected, which asking it
        would change."""
        if not ray.is_initialized():
            return ""
        whole: str = ray.get_runtime_context().get_node_id()
        return whole[:NODE_DIGITS]

    def pool(self) -> AbstractContextManager[Pool]:
        """A `ThreadPoolExecutor` of one thread."""
        return ThreadPoolExecutor(1)


#: The process that this is.
HERE: Process = RayProcess()
