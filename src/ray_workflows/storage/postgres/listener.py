"""Being told, by LISTEN and NOTIFY, that somebody appended to a journal of ours.
Only a hint: what is missed is found by whoever looks at the journals now and then.
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

#: How long until a connection that was lost is made again, in seconds.
RETRY_SECONDS = 3.0

#: How often to look whether the thread is still wanted, in seconds, and after how many of these
#: looks without a word the server is asked whether it is still there.
CHECK_SECONDS = 1.0
QUIET_LOOKS = 20


def channel_of(schema: str) -> str:
    """The channel of a schema; its name may be longer than a channel's can be."""
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
        #: A word for us was among what the server sent.
        self.heard = False
        thread = threading.Thread(target=self.run, name="ray-workflows-listen", daemon=True)
        thread.start()

    def stop(self) -> None:
        """Let the thread end."""
        self.stopping.set()

    def run(self) -> None:
        """What the thread does: listen, and begin again when the connection is lost."""
        while not self.stopping.is_set():
            try:
                with contextlib.closing(self.pool.connect()) as connection:
                    self.listen(connection)
            except (StorageError, psycopg.Error):
                pass  # The lease says so.
            except Exception:
                logger.exception("What listens for news met an unexpected error.")
            self.stopping.wait(RETRY_SECONDS)

    def listen(self, connection: Connection) -> None:
        """Call back for each word, until the connection is lost or nobody wants to hear."""
        connection.add_notify_handler(self.hear)
        connection.execute(f"LISTEN {self.channel}")
        # Something may have been said before.
        self.on_news()
        poll = select.poll()
        poll.register(connection.pgconn.socket, select.POLLIN)
        quiet = 0
        while not self.stopping.is_set():
            spoke = poll.poll(CHECK_SECONDS * 1000.0)
            quiet = 0 if spoke else quiet + 1
            if spoke or quiet % QUIET_LOOKS == 0:
                # Takes in what was said, or finds that the server is gone.
                connection.execute("SELECT 1")
            if self.heard:
                self.heard = False
                self.on_news()

    def hear(self, notify: psycopg.Notify) -> None:
        """Take one word; called by the connection."""
        if notify.payload in self.ours:
            self.heard = True
