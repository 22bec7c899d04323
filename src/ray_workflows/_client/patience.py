"""Long calls of the coordinator that survive its death and that of its cluster.

Ray does not repeat these calls: while the head of the cluster is away, it would print that on the
terminal every few seconds. This module notices a lost call, logs it once, and looks for the
workflow in the storage.
"""

from __future__ import annotations

import logging
import queue
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

import ray

from ray_workflows._client.connection import CALL_SECONDS, Connection, find_coordinator
from ray_workflows._client.reader import ACTIVE, Reader
from ray_workflows._coordinator.protocol import decode_watched
from ray_workflows._coordinator.requests import Watched
from ray_workflows._executor.node_storage import NodeStorage
from ray_workflows._model.catalog import CatalogRow
from ray_workflows.exceptions import CoordinatorUnavailableError, StorageUnavailableError

logger = logging.getLogger(__name__)

#: How often to ping a coordinator that has not answered yet, and the timeout of a ping, in seconds.
ASK_SECONDS = 10.0
PING_SECONDS = 10.0
#: How often to look for a lost coordinator, and into the storage, in seconds.
CHECK_SECONDS = 1.0
#: How long to wait for a workflow that no coordinator drives, in seconds.
GONE_SECONDS = 180.0

#: Ray's errors when a cluster is away; the second is a Ray Client's.
AWAY = (ray.exceptions.RayError, ConnectionError)

#: Whether the catalog row of a workflow, or None, is enough to stop waiting.
Enough = Callable[[CatalogRow | None], bool]


class Found(Protocol):
    """A search for a coordinator in the background."""

    def look(self) -> Any | None:
        """The found coordinator, or None."""


class Surroundings(Protocol):
    """The clock and calls that waiting needs. A simulation has its own."""

    def monotonic(self) -> float:
        """A monotonic clock, in seconds."""

    def sleep(self, seconds: float) -> None:
        """Let the calling thread wait."""

    def wait(self, ref: Any, seconds: float) -> bool:
        """Wait for an answer; whether it is there."""

    def ping(self, coordinator: Any) -> None:
        """Raise one of `AWAY` unless a coordinator answers."""

    def search(self) -> Found:
        """Start a search for the coordinator of the cluster."""


class Patience:
    """Waits for the answer to a call about a workflow.

    Args:
        connection: switches to another coordinator if there is one.
        workflow_id: the workflow.
        enough: whether to stop waiting, once the coordinator is away.
        tick: called meanwhile; returns the seconds until the next call.
        here: this process.
    """

    def __init__(
        self,
        connection: Connection,
        workflow_id: str,
        enough: Enough,
        tick: Callable[[], float] | None = None,
        here: Surroundings | None = None,
    ) -> None:
        self.connection = connection
        self.workflow_id = workflow_id
        self.enough = enough
        self.tick = tick
        self.here: Surroundings = here or HERE

    def answer(self, method: str, *args: Any) -> Any | None:
        """The coordinator's answer. None: the call is lost, and now there is a coordinator again,
        or the row in the storage is `enough`.

        Raises:
            CoordinatorUnavailableError: no coordinator drives the workflow for `GONE_SECONDS`.
        """
        try:
            ref = getattr(self.connection.coordinator, method).remote(*args)
            while not self.ready(ref):
                if not self.is_there():
                    break
            else:
                return self.connection.take(ref, CALL_SECONDS)
        except ray.exceptions.RayTaskError:
            raise  # A bug, which a repetition would not fix.
        except (CoordinatorUnavailableError, *AWAY) as error:
            logger.debug("A call of the coordinator is lost: %s", error)
        self.outlast()
        return None

    def ready(self, ref: ray.ObjectRef) -> bool:
        """Wait a while for an answer; whether it is there."""
        here = self.here
        end = here.monotonic() + ASK_SECONDS
        while here.monotonic() < end:
            left = end - here.monotonic()
            seconds = left if self.tick is None else min(left, self.tick())
            if here.wait(ref, max(0.0, seconds)):
                return True
        return False

    def is_there(self) -> bool:
        """Whether the coordinator answers."""
        try:
            self.here.ping(self.connection.coordinator)
        except AWAY:
            return False
        return True

    # -- while it is away ------------------------------------------------------------------

    def outlast(self) -> None:
        """Return when there is a coordinator again, or the row in the storage is `enough`."""
        connection, here = self.connection, self.here
        began = driven_at = here.monotonic()
        search = here.search()
        while True:
            readable, row = self.row()
            if readable and self.enough(row):
                return
            now = here.monotonic()
            if row is not None and self.is_driven(row):
                driven_at = now
            found = search.look()
            if found is not None and connection.adopt(found):
                return
            if now > began + CHECK_SECONDS:
                connection.say_away(self.workflow_id)
            if now > driven_at + GONE_SECONDS:
                raise CoordinatorUnavailableError(
                    f"The coordinator is gone, and nobody has driven workflow "
                    f"'{self.workflow_id}' for {GONE_SECONDS:.0f} s. What is stored is safe: go "
                    f"on with resume({self.workflow_id!r}) when there is a cluster again."
                )
            if self.tick is not None and readable:
                self.tick()
            here.sleep(CHECK_SECONDS)

    def row(self) -> tuple[bool, CatalogRow | None]:
        """Whether the storage can be read now, and the workflow's catalog row."""
        storage = self.connection.storage
        if isinstance(storage, NodeStorage) and not storage.is_here:
            return False, None  # Reading it needs the cluster.
        try:
            return True, storage.read_catalog(self.workflow_id)
        except StorageUnavailableError:
            return False, None

    def is_driven(self, row: CatalogRow) -> bool:
        """Whether a coordinator drives a workflow, by leases alone: it is unknown whether our own
        cluster's coordinator will return."""
        try:
            return Reader(self.connection.storage).status(row) in ACTIVE
        except StorageUnavailableError:
            return False


class Search:
    """Looks for the coordinator of a cluster on separate threads, because Ray's call may hang
    without a head."""

    def __init__(self) -> None:
        host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
        self.head = (host.strip("[]"), int(port))
        self.found: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.start()

    def start(self) -> None:
        threading.Thread(target=self.run, name="ray-workflows-search", daemon=True).start()

    def run(self) -> None:
        try:
            # Check that the head answers: Ray would wait very long for a dead one.
            socket.create_connection(self.head, PING_SECONDS).close()
            coordinator = find_coordinator()
            if coordinator is not None:
                ping(coordinator)
        except Exception:
            coordinator = None
        self.found.put(coordinator)

    def look(self) -> Any | None:
        """The found coordinator, or None. Starts the next search when one has ended."""
        try:
            coordinator = self.found.get_nowait()
        except queue.Empty:
            return None
        self.start()
        return coordinator


def ping(coordinator: Any) -> None:
    """Raise unless a coordinator answers."""
    # A coordinator of 0.1.0 has no `ping`.
    method = getattr(coordinator, "ping", coordinator.describe)
    ray.get(method.remote(), timeout=PING_SECONDS)


class RaySurroundings:
    """This process, which is connected to a cluster of Ray."""

    monotonic = staticmethod(time.monotonic)
    sleep = staticmethod(time.sleep)
    ping = staticmethod(ping)
    search = Search

    def wait(self, ref: ray.ObjectRef, seconds: float) -> bool:
        """Wait for an answer; whether it is there."""
        return bool(ray.wait([ref], timeout=seconds)[0])


#: This process.
HERE: Surroundings = RaySurroundings()


def watch(
    connection: Connection,
    workflow_id: str,
    after: int | None,
    tick: Callable[[], float] | None = None,
    here: Surroundings | None = None,
) -> Watched | None:
    """Long-poll until a workflow's journal has grown beyond ``after``, or, if that is None, until
    it is settled; or until another coordinator drives it. None after a timeout, if the
    coordinator's limit of long polls is reached, or if the coordinator was away meanwhile.

    ``tick`` is called meanwhile, and returns the seconds until its next call.
    """

    def enough(row: CatalogRow | None) -> bool:
        return row is None or row.status not in ACTIVE or (after is not None and row.seq > after)

    patience = Patience(connection, workflow_id, enough, tick, here)
    answer = patience.answer("watch_one", workflow_id, after)
    return None if answer is None else decode_watched(answer)
