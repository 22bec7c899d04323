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

#: How many connections a process has at most.
LIMIT = 4

#: How long to wait for one of them, in seconds.
TURN_SECONDS = 30.0

#: How long a connection is kept for the next use, and how old it gets, in seconds.
IDLE_SECONDS = 20.0
LIFE_SECONDS = 3600.0

#: How long a server may be silent while it is waited for, in seconds. A dead one is noticed
#: earlier, by TCP; this is for one that hangs and for networks that swallow packets.
SILENCE_SECONDS = 10.0

#: The same where it has much to do: migrations, deletions of many blobs.
PATIENT_SECONDS = 300.0

#: For how long it is remembered that a server was silent for too long, in seconds.
SILENT_SECONDS = 600.0

#: How long to ask a server again that has no connection to spare, in seconds.
FULL_SECONDS = 20.0

#: What the wait functions of psycopg call the events of a socket.
EVENTS = {
    Wait.R: select.POLLIN,
    Wait.W: select.POLLOUT,
    Wait.RW: select.POLLIN | select.POLLOUT,
}


class Connection(psycopg.Connection[Any]):
    """A connection that waits for its server for a limited time."""

    silence_seconds = SILENCE_SECONDS
    #: When it was made, by the monotonic clock; whether it was used before; whether its server
    #: did not answer in time.
    born = 0.0
    was_kept = False
    is_silent = False

    def wait(self, gen: Any, interval: float = 0.0, timeout: float | None = None) -> Any:
        """Let a protocol generator come to its end. An interrupted one leaves it closed."""
        limit = self.silence_seconds if timeout is None else timeout
        poll = select.poll()
        number = self.pgconn.socket
        try:
            wanted = next(gen)
            poll.register(number, EVENTS[wanted])
            while True:
                # Every byte of progress starts the time anew: a slow network is no dead one.
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
            # What the server does with it is not known; nobody must read the rest as an answer.
            self.pgconn.finish()
            raise

    def first(self, query: str, parameters: dict[str, Any] | None = None) -> Any:
        """The first row that a query gives; None if there is none."""
        return self.execute(query, parameters).fetchone()

    @contextlib.contextmanager
    def patient(self) -> Iterator[None]:
        """For statements that may take long."""
        self.silence_seconds = PATIENT_SECONDS
        try:
            yield
        finally:
            self.__dict__.pop("silence_seconds", None)


class Patience:
    """How long a server may be silent over a write: each time that was not enough, the next write
    waits twice as long, up to `PATIENT_SECONDS`.

    A large write to a slow disk would otherwise be given up and sent again for ever. A server that
    hangs is still noticed soon, at first.
    """

    def __init__(self) -> None:
        self.factor = 1.0
        self.silent_at = float("-inf")

    @contextlib.contextmanager
    def over(self, connection: Connection) -> Iterator[None]:
        """For the statements of one write."""
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
        """Begin anew, knowing of no connection."""
        self.lock = threading.Lock()
        self.turns = threading.BoundedSemaphore(LIMIT)
        #: The one used last is at the end, and used next: the others grow idle.
        self.idle: list[tuple[Connection, float]] = []
        self.reaper: threading.Timer | None = None

    @contextlib.contextmanager
    def use(self) -> Iterator[Connection]:
        """A connection in autocommit mode, for this thread alone.

        Raises:
            StorageUnavailableError: nothing is known about what was sent.
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
        """Do something that changes nothing; once more if a kept connection turns out dead."""
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
        """A connection that is open and still alive as far as can be seen from here."""
        while True:
            with self.lock:
                if not self.idle:
                    return None
                connection, _ = self.idle.pop()
            if is_quiet(connection):
                return connection
            connection.close()

    def connect(self) -> Connection:
        """A new connection. Waits its turn if the server has none to spare."""
        deadline = time.monotonic() + FULL_SECONDS
        while True:
            try:
                connection = Connection.connect(
                    **self.target.connect_parameters(), autocommit=True, prepare_threshold=None
                )
            except psycopg.Error as error:
                if not is_full(error) or time.monotonic() > deadline:
                    raise connect_error(error, self.target.url) from None
                # A thousand workers must not come back at once.
                time.sleep(random.uniform(0.05, 0.5))
            else:
                connection.born = time.monotonic()
                # Where a transaction waits for a lock, its next statement has to see what others
                # have committed meanwhile, whatever the server's default is.
                connection.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
                return connection

    def give_back(self, connection: Connection) -> None:
        """Keep a connection for the next use, if it is as good as new."""
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
        """See to it that what grows idle is closed; the caller has the lock."""
        if self.reaper is None and self.idle:
            self.reaper = threading.Timer(IDLE_SECONDS, self.reap)
            self.reaper.name = "ray-workflows-postgres"
            self.reaper.daemon = True
            self.reaper.start()

    def reap(self) -> None:
        """Close what was not used for a while."""
        before = time.monotonic() - IDLE_SECONDS * 0.99
        with self.lock:
            old = [connection for connection, since in self.idle if since <= before]
            self.idle = [pair for pair in self.idle if pair[1] > before]
            self.reaper = None
            self.arm()
        for connection in old:
            connection.close()

    def drop_idle(self) -> None:
        """Close what is not in use."""
        with self.lock:
            idle, self.idle = self.idle, []
            reaper, self.reaper = self.reaper, None
        if reaper is not None:
            reaper.cancel()
        for connection, _ in idle:
            connection.close()


def is_quiet(connection: Connection) -> bool:
    """Whether a connection is open and its server has nothing to say: a farewell, mostly."""
    if connection.closed:
        return False
    poll = select.poll()
    poll.register(connection.pgconn.socket, select.POLLIN)
    return not poll.poll(0)


# -- one pool per process and target ----------------------------------------------------------

POOLS: weakref.WeakValueDictionary[str, Pool] = weakref.WeakValueDictionary()
POOLS_LOCK = threading.Lock()

#: Connections of the process that this one was forked from: never used, never closed here, which
#: would end the parent's session.
INHERITED: list[Any] = []


def pool_of(target: Target) -> Pool:
    """The pool that all storages of this target share in this process.

    Every task brings a storage of its own with it; they must not each have connections.
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
