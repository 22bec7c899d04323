"""The storages of a run: started for it, killed and stopped in it, and looked into after it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ray_workflows.storage.objects import ObjectStorage
from tests.chaos.faults import KILL, KINDS, STOP, Fault, Kind, command_of
from tests.ray.processes import descendants
from tests.support.moto import CREDENTIALS, s3_server, storage_url
from tests.support.postgres import PostgresServer
from tests.support.stored import in_bucket, in_files, in_postgres, in_sqlite

SCHEMA = "chaos"

#: In an object store or a shared directory: what is there without any workflow, and what stays of
#: a deleted one for some hours, nearly empty.
LASTING = ("layout", "clocks/", "holders/", "tmp/")
TRACES, TRACE_BYTES = ("journal/", "ids/", "graves/"), 1000


def is_trace(name: str, data: bytes) -> bool:
    return name.startswith(LASTING) or (name.startswith(TRACES) and len(data) < TRACE_BYTES)


class Place:
    """A storage. ``look``: all that is stored there, by name."""

    def __init__(
        self,
        url: str,
        look: Callable[[], dict[str, bytes]],
        *,
        clusters: int = 2,
        server: PostgresServer | None = None,
        pids: list[int] | None = None,
        put_once: bool = False,
    ) -> None:
        self.url = url
        self.look = look
        #: How many clusters share it.
        self.clusters = clusters
        self.server = server
        #: The processes of a server that can be stopped, and not killed: it would forget all.
        self.pids = pids or []
        self.put_once = put_once

    @property
    def faults(self) -> tuple[Kind, ...]:
        """The kinds of faults that there can be."""
        lacking = set()
        if self.server is None:
            lacking.add((KILL, "server"))
            if not self.pids:
                lacking.add((STOP, "server"))
        return tuple(kind for kind in KINDS if (kind.action, kind.target) not in lacking)

    def kill(self) -> None:
        assert self.server is not None
        self.server.kill()

    def start(self) -> None:
        assert self.server is not None
        self.server.start()

    def stop(self, fault: Fault) -> list[int]:
        """Stop the server; its processes, which are to go on later."""
        if self.server is not None:
            return self.server.signal(signal.SIGSTOP)
        for pid in self.pids:
            os.kill(pid, signal.SIGSTOP)
        return self.pids

    def left(self) -> list[str]:
        """What is still there that belongs to a workflow."""
        found = self.look()
        if self.put_once:
            return sorted(name for name, data in found.items() if not is_trace(name, data))
        return sorted(name for name in found if not name.startswith("holders "))


@contextmanager
def place(kind: str, directory: Path) -> Iterator[Place]:
    """A storage of a kind, for the time of a run."""
    store = directory / "store"
    if kind == "sqlite":
        yield Place(str(store), lambda: in_sqlite(store), clusters=1)
    elif kind == "shared":
        yield Place(f"shared://{store}", lambda: in_files(store), put_once=True)
    elif kind == "postgres":
        with PostgresServer() as server:
            url = f"{server.url}?schema={SCHEMA}"
            yield Place(url, lambda: in_postgres(server.url, SCHEMA), server=server)
    elif kind == "s3":
        os.environ.update(CREDENTIALS)
        with s3_server() as endpoint:
            pids = [
                pid for pid in descendants(os.getpid()) if "tests.support.moto" in command_of(pid)
            ]
            url = storage_url(endpoint)
            yield Place(url, lambda: in_bucket(ObjectStorage(url)), pids=pids, put_once=True)
    else:
        raise ValueError(f"There is no storage of the kind {kind!r}.")
