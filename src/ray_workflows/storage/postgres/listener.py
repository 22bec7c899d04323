"""Listens, by LISTEN and NOTIFY, for appends of other processes to journals of this holder.
Only a hint: the coordinator's periodic scan finds appends whose notification was lost.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import select
import threading
from collections.abc import Callable, Sequence

import psycopg

from ray_workflows.exceptions import StorageError
from ray_workflows.storage.postgres.pool import Connection, Pool

logger = logging.getLogger(__name__)

#: Seconds before a lost connection is opened again.
RETRY_SECONDS = 3.0

#: How often, in seconds, to check whether the thread shall stop, and after how many quiet checks to
#: ask whether the server still answers.
CHECK_SECONDS = 1.0
QUIET_LOOKS = 20


def channel_of(schema: str) -> str:
    """The channel of a schema: a hash, because a channel's name is limited in length."""
    return "ray_workflows_" + hashlib.sha256(schema.encode()).hexdigest()[:32]


class Listener:
    """A thread with a connection of its own that calls back when a holder has news."""

    def __init__(
        self, pool: Pool, holder_id: str, on_news: Callable[[], None], lives: Sequence[str]
    ) -> None:
        self.pool = pool
        self.channel = channel_of(pool.target.schema)
        self.holder_id = holder_id
        self.ours = {holder_id, *lives}
        self.on_news = on_news
        self.stopping = threading.Event()
        #: Whether a notification for this holder arrived.
        self.heard = False
        thread = threading.Thread(target=self.run, name="ray-workflows-listen", daemon=True)
        thread.start()

    def stop(self) -> None:
        """Make the thread end."""
        self.stopping.set()

    def run(self) -> None:
        """Listen, and reconnect when the connection is lost. Runs on the thread."""
        while not self.stopping.is_set():
            try:
                with contextlib.closing(self.pool.connect()) as connection:
                    self.listen(connection)
            except (StorageError, psycopg.Error):
                pass  # The renewal of the lease reports that the storage is away.
            except Exception:
                logger.exception("What listens for news met an unexpected error.")
            self.stopping.wait(RETRY_SECONDS)

    def listen(self, connection: Connection) -> None:
        """Call back for each notification, until the connection is lost or `stop` is called."""
        connection.add_notify_handler(self.hear)
        connection.execute(f"LISTEN {self.channel}")
        # A notification may have been lost before.
        self.on_news()
        poll = select.poll()
        poll.register(connection.pgconn.socket, select.POLLIN)
        quiet = 0
        while not self.stopping.is_set():
            spoke = poll.poll(CHECK_SECONDS * 1000.0)
            quiet = 0 if spoke else quiet + 1
            if spoke or quiet % QUIET_LOOKS == 0:
                # Receives notifications, or fails if the server is gone.
                connection.execute("SELECT 1")
            if self.heard:
                self.heard = False
                self.on_news()

    def hear(self, notify: psycopg.Notify) -> None:
        """Note a notification; called by the connection."""
        if notify.payload in self.ours:
            self.heard = True
