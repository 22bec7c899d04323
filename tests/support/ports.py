"""Ports for servers that have to be told theirs, in place of saying which one they took."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import socket
import tempfile
from pathlib import Path

#: Above what Ray gives its workers, below what Linux gives to connections and to servers that take
#: any port: nobody takes one of these between the moment it is chosen and its server's start.
PORTS = range(20_000, 32_000)

#: Whose locks say which ports are chosen, among the processes that run tests.
LOCKS = Path(tempfile.gettempdir(), f"rw-ports-{os.getuid()}")

#: Of this process, for as long as it lives.
held: list[int] = []


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that are free now and that no other caller gets, all different."""
    LOCKS.mkdir(exist_ok=True)
    found = []
    for port in random.SystemRandom().sample(PORTS, len(PORTS)):
        if len(found) == count:
            return found
        lock = os.open(LOCKS / str(port), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        with contextlib.suppress(OSError), socket.socket() as probe:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            probe.bind(("127.0.0.1", port))
            held.append(lock)
            found.append(port)
            continue
        os.close(lock)
    raise AssertionError("no port is free")


def free_port() -> int:
    [port] = free_ports(1)
    return port
