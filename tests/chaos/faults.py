"""The faults: which, when and for how long, made from a seed; and the processes that they hit."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from tests.ray.processes import descendants

T = TypeVar("T")

KILL, STOP = "kill", "stop"


class Kind(msgspec.Struct, frozen=True):
    """A kind of fault. ``weight``: how often it comes, against the others."""

    action: str
    target: str
    weight: int
    #: A stopped process goes on after this many seconds, at least and at most.
    seconds: tuple[float, float] = (0.0, 0.0)
    #: The cluster can't go on after it: this many seconds later, another one takes its place.
    replaced_after: float | None = None

    @property
    def name(self) -> str:
        return f"{self.action} {self.target}"


#: The lease of coordinators in seconds. Some stop for longer, so that another one takes over.
LEASE = 3.0

KINDS = (
    Kind(KILL, "worker", 8),
    Kind(STOP, "worker", 4, (0.2, 3.0)),
    Kind(KILL, "coordinator", 6),
    Kind(STOP, "coordinator", 4, (0.2, LEASE + 4.0)),
    Kind(KILL, "waiter", 2),
    Kind(STOP, "waiter", 1, (0.2, 3.0)),
    Kind(KILL, "driver", 3),
    Kind(STOP, "driver", 2, (0.2, 3.0)),
    Kind(STOP, "raylet", 2, (0.2, 3.0)),
    Kind(STOP, "gcs", 2, (0.2, 3.0)),
    Kind(KILL, "raylet", 1, replaced_after=2.0),
    Kind(KILL, "gcs", 1, replaced_after=4.0),
    Kind(KILL, "cluster", 2, replaced_after=0.0),
    Kind(STOP, "cluster", 2, (0.5, LEASE + 4.0)),
    Kind(KILL, "server", 3, (0.1, 4.0)),
    Kind(STOP, "server", 3, (0.2, 6.0)),
)

#: Seconds between two faults, at most.
GAP = 4.0


class Fault(msgspec.Struct, frozen=True):
    """``gap``: seconds that it comes after the one before. ``choice``, from 0 to 1: which process
    of several. ``seconds``: how long a process is stopped, or a server is away."""

    gap: float
    kind: Kind
    choice: float
    seconds: float

    def __str__(self) -> str:
        lasting = f" for {self.seconds:.2f} s" if self.seconds else ""
        return f"{self.kind.name}{lasting} (choice {self.choice:.3f})"

    def pick(self, candidates: Sequence[T]) -> T:
        return candidates[int(self.choice * len(candidates))]


def schedule(seed: int, kinds: tuple[Kind, ...]) -> Iterator[Fault]:
    """The faults of a run, without end: the same for the same seed."""
    rng = random.Random(f"faults {seed}")
    weights = [kind.weight for kind in kinds]
    while True:
        gap = rng.uniform(0.2, GAP)
        (kind,) = rng.choices(kinds, weights)
        yield Fault(gap, kind, rng.random(), rng.uniform(*kind.seconds))


# -- the processes of a cluster ------------------------------------------------------------

#: How the processes begin that Ray names.
TITLES = {
    "coordinator": "ray::Coordinator",
    "waiter": "ray::Waiter",
    "raylet": "raylet",
    "gcs": "gcs_server",
}


#: Processes with Ray's titles that are no workers. A node does not survive its agents.
OTHERS = (
    *(TITLES["coordinator"], TITLES["waiter"], "ray::Listener"),
    *("ray::DashboardAgent", "ray::RuntimeEnvAgent"),
)


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    except OSError:
        return ""


def processes(root: int, target: str) -> list[int]:
    """The processes of a kind below a process, the same ones in the same order."""
    found = sorted(descendants(root))
    if target == "worker":
        return [
            pid
            for pid in found
            if (command := command_of(pid)).startswith("ray::") and not command.startswith(OTHERS)
        ]
    title = TITLES[target]
    return [pid for pid in found if title in command_of(pid).partition(" ")[0]]


def belonging(variable: str, value: str) -> list[int]:
    """All processes of this user that an environment variable marks, whatever started them."""
    mark = f"{variable}={value}".encode()
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                environment = Path(f"/proc/{entry}/environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if mark in environment:
                found.append(int(entry))
    return found
