"""Connections of this process to a PostgreSQL: few, opened on demand, closed when idle.

Not psycopg_pool: see docs/decisions/010-postgresql.md. Knows nothing of workflows.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.waiting import Ready, Wait

from ray_workflows.exceptions import StorageUnavailableError
from ray_workflows.storage.postgres.errors import connect_error, is_full, translate
from ray_workflows.storage.postgres.target import Target

T = TypeVar("T")

#: The most connections of a process.
LIMIT = 4

#: How long to wait for one of them, in seconds.
TURN_SECONDS = 30.0

#: How long an idle connection is kept, and the greatest age of a connection, in seconds.
IDLE_SECONDS = 20.0
LIFE_SECONDS = 3600.0

#: How long a server may be silent during a statement, in seconds. TCP notices a dead server
#: earlier; this limit is for a server that hangs and for networks that swallow packets.
SILENCE_SECONDS = 10.0

#: The same for long statements: migrations, deletions of many blobs.
PATIENT_SECONDS = 300.0

#: How long `Patience` remembers that a server was silent for too long, in seconds.
SILENT_SECONDS = 600.0

#: How long to try again when all connections of the server are in use, in seconds.
FULL_SECONDS = 20.0

#: The events of a socket, by psycopg's names for them.
EVENTS = {
    Wait.R: select.POLLIN,
    Wait.W: select.POLLOUT,
    Wait.RW: select.POLLIN | select.POLLOUT,
}


class Connection(psycopg.Connection[Any]):
    """A connection that waits for its server for a limited time."""

    silence_seconds = SILENCE_SECONDS
    #: When it was opened, on the monotonic clock; whether it was used before; whether its server
    #: failed to answer in time.
    born = 0.0
    was_kept = False
    is_silent = False

    def wait(self, gen: Any, interval: float = 0.0, timeout: float | None = None) -> Any:
        """Run a protocol generator to its end. An interruption closes the connection."""
        limit = self.silence_seconds if timeout is None else timeout
        poll = select.poll()
        number = self.pgconn.socket
        try:
            wanted = next(gen)
            poll.register(number, EVENTS[wanted])
            while True:
                # Every byte restarts the time: a slow network is not a dead one.
                found = poll.poll(limit * 1000.0)
                if not found:
                    self.is_silent = True
                    raise psycopg.OperationalError(f"the server is silent for {limit:g} s")
                happened = found[0][1]
                ready: int = Ready.NONE
                if happened & ~select.POLLOUT:
                    ready |= Ready.R if wanted & Wait.R else Ready.W
                if happened & select.POLLOUT:
                    ready |= Ready.W
                following = gen.send(ready)
                if following != wanted:
                    wanted = following
                    poll.modify(number, EVENTS[wanted])
        except StopIteration as end:
            return end.value
        except psycopg.Error:
            if self.is_silent:
                self.pgconn.finish()
            raise
        except BaseException:
            # The server's progress is unknown, and a later reader must not take the rest of this
            # answer for its own.
            self.pgconn.finish()
            raise

    def first(self, query: str, parameters: dict[str, Any] | None = None) -> Any:
        """The first row of a query; None without rows."""
        return self.execute(query, parameters).fetchone()

    @contextlib.contextmanager
    def patient(self) -> Iterator[None]:
        """Scope for statements that may take long."""
        self.silence_seconds = PATIENT_SECONDS
        try:
            yield
        finally:
            self.__dict__.pop("silence_seconds", None)


class Patience:
    """How long a server may be silent during a write: after each timeout the next write waits twice
    as long, up to `PATIENT_SECONDS`.

    Otherwise a large write to a slow disk would time out and be repeated for ever. The first write
    still notices a hanging server soon.
    """

    def __init__(self) -> None:
        self.factor = 1.0
        self.silent_at = float("-inf")

    @contextlib.contextmanager
    def over(self, connection: Connection) -> Iterator[None]:
        """Scope for the statements of one write."""
        if time.monotonic() - self.silent_at > SILENT_SECONDS:
            self.factor = 1.0
        factor = self.factor
        seconds = min(factor * connection.silence_seconds, PATIENT_SECONDS)
        connection.silence_seconds = seconds
        try:
            yield
        except psycopg.Error:
            if connection.is_silent:
                self.silent_at = time.monotonic()
                if seconds < PATIENT_SECONDS:
                    self.factor = 2.0 * factor
            raise
        finally:
            connection.__dict__.pop("silence_seconds", None)


class Pool:
    """The connections of this process to one target; threads take turns."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.reset()

    def reset(self) -> None:
        """Start without connections."""
        self.lock = threading.Lock()
        self.turns = threading.BoundedSemaphore(LIMIT)
        #: The connection used last is at the end, and used next, so that the others stay idle.
        self.idle: list[tuple[Connection, float]] = []
        self.reaper: threading.Timer | None = None

    @contextlib.contextmanager
    def use(self) -> Iterator[Connection]:
        """A connection in autocommit mode, for this thread alone.

        Raises:
            StorageUnavailableError: the outcome of the statements is unknown.
        """
        turns = self.turns
        if not turns.acquire(timeout=TURN_SECONDS):
            raise StorageUnavailableError(
                f"All {LIMIT} connections of this process to {self.target.url} are in use for more "
                f"than {TURN_SECONDS:.0f} s. The operation can be repeated."
            )
        try:
            connection = self.take() or self.connect()
            try:
                yield connection
            except psycopg.Error as error:
                translated = translate(error, self.target.url)
                if translated is None:
                    raise
                raise translated from None
            finally:
                self.give_back(connection)
        finally:
            turns.release()

    def read(self, work: Callable[[Connection], T]) -> T:
        """Run work that only reads; once more if a kept connection turns out to be dead."""
        was_kept = False
        try:
            with self.use() as connection:
                was_kept = connection.was_kept
                return work(connection)
        except StorageUnavailableError:
            if not was_kept or connection.is_silent:
                raise
        self.drop_idle()
        with self.use() as connection:
            return work(connection)

    def take(self) -> Connection | None:
        """An idle connection that still seems alive; None without one."""
        while True:
            with self.lock:
                if not self.idle:
                    return None
                connection, _ = self.idle.pop()
            if is_quiet(connection):
                return connection
            connection.close()

    def connect(self) -> Connection:
        """A new connection. Retries while all connections of the server are in use."""
        deadline = time.monotonic() + FULL_SECONDS
        while True:
            try:
                connection = Connection.connect(
                    **self.target.connect_parameters(), autocommit=True, prepare_threshold=None
                )
            except psycopg.Error as error:
                if not is_full(error) or time.monotonic() > deadline:
                    raise connect_error(error, self.target.url) from None
                # Random, so that a thousand workers do not retry at once.
                time.sleep(random.uniform(0.05, 0.5))
            else:
                connection.born = time.monotonic()
                # Whatever the server's default: after a transaction has waited for a lock, its next
                # statement has to see what others have committed meanwhile.
                connection.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
                return connection

    def give_back(self, connection: Connection) -> None:
        """Keep a connection for the next use if it is clean, else close it."""
        now = time.monotonic()
        state = connection.info.transaction_status
        if state is not TransactionStatus.IDLE or now - connection.born > LIFE_SECONDS:
            connection.close()
            return
        connection.was_kept = True
        with self.lock:
            self.idle.append((connection, now))
            self.arm()

    def arm(self) -> None:
        """Start the timer that closes idle connections; the caller has the lock."""
        if self.reaper is None and self.idle:
            self.reaper = threading.Timer(IDLE_SECONDS, self.reap)
            self.reaper.name = "ray-workflows-postgres"
            self.reaper.daemon = True
            self.reaper.start()

    def reap(self) -> None:
        """Close connections that were idle for too long."""
        before = time.monotonic() - IDLE_SECONDS * 0.99
        with self.lock:
            old = [connection for connection, since in self.idle if since <= before]
            self.idle = [pair for pair in self.idle if pair[1] > before]
            self.reaper = None
            self.arm()
        for connection in old:
            connection.close()

    def drop_idle(self) -> None:
        """Close all idle connections."""
        with self.lock:
            idle, self.idle = self.idle, []
            reaper, self.reaper = self.reaper, None
        if reaper is not None:
            reaper.cancel()
        for connection, _ in idle:
            connection.close()


def is_quiet(connection: Connection) -> bool:
    """Whether a connection is open and has no pending input, which would mostly be a shutdown."""
    if connection.closed:
        return False
    poll = select.poll()
    poll.register(connection.pgconn.socket, select.POLLIN)
    return not poll.poll(0)


# -- one pool per process and target ----------------------------------------------------------

POOLS: weakref.WeakValueDictionary[str, Pool] = weakref.WeakValueDictionary()
POOLS_LOCK = threading.Lock()

#: Connections of the parent of this forked process. They are never used or closed here: closing
#: would end the parent's session.
INHERITED: list[Any] = []


def pool_of(target: Target) -> Pool:
    """The pool that all storages of this target share in this process.

    Every task unpickles a storage of its own, and they must not each have connections.
    """
    key = repr((target.schema, sorted(target.connect_parameters().items())))
    with POOLS_LOCK:
        pool = POOLS.get(key)
        if pool is None:
            pool = POOLS[key] = Pool(target)
        return pool


def after_fork_in_child() -> None:
    """Forget the parent's connections, and the locks that its other threads had."""
    global POOLS_LOCK
    POOLS_LOCK = threading.Lock()
    for pool in list(POOLS.values()):
        INHERITED.append(pool.idle)
        pool.reset()


os.register_at_fork(after_in_child=after_fork_in_child)
