"""What the parts of the storage benchmark share: the stores, rounds in turn, tables."""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import psycopg

from ray_workflows.storage.base import Storage
from ray_workflows.storage.objects import ObjectStorage, SharedStorage
from ray_workflows.storage.postgres import PostgresStorage
from ray_workflows.storage.sqlite import SqliteStorage
from tests.support.fast_s3 import fast_s3
from tests.support.moto import storage_url
from tests.support.postgres import VARIABLE, PostgresServer


@dataclass
class Part:
    """A table with what is to be said of it."""

    title: str
    columns: list[str]
    rows: list[list[str]] = field(default_factory=list)
    before: str = ""
    after: str = ""


def write_table(part: Part) -> str:
    """It in Markdown."""
    lines = [f"## {part.title}", ""]
    if part.before:
        lines += [part.before, ""]
    lines += ["| " + " | ".join(part.columns) + " |", "|---" * len(part.columns) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in part.rows]
    if part.after:
        lines += ["", part.after]
    return "\n".join([*lines, ""])


class Context:
    """The stores, each started when it is first asked for; used as a context."""

    def __init__(self, directory: Path, options: argparse.Namespace) -> None:
        self.directory = directory
        self.options = options
        self.opened = ExitStack()
        self.schemas = 0
        self.server: str | None = None

    def __enter__(self) -> Context:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.opened.close()

    def postgres_url(self) -> str:
        """A server's."""
        if self.server is None:
            self.server = os.environ.get(VARIABLE)
        if self.server is None:
            self.server = self.opened.enter_context(PostgresServer()).url
        return self.server

    def server_version(self) -> str:
        """What the server says of itself, if it was needed."""
        if self.server is None:
            return "(not asked)"
        with psycopg.connect(self.server) as connection:
            found = connection.execute("SHOW server_version").fetchone()
            return str(found[0] if found else "?")

    @contextmanager
    def schema(self, url: str | None = None) -> Iterator[tuple[PostgresStorage, Any]]:
        """A storage in a schema of its own, and a bare connection with that schema as its path."""
        self.schemas += 1
        name = f"benchmark_{os.getpid()}_{self.schemas}"
        url = url or self.postgres_url()
        with psycopg.connect(self.postgres_url(), autocommit=True) as bare:
            bare.execute(f"SET search_path = {name}; SET client_min_messages = error")
            storage = PostgresStorage(f"{url}{'&' if '?' in url else '?'}schema={name}")
            storage.open()
            yield storage, bare
            storage.close()
            bare.execute(f"DROP SCHEMA {name} CASCADE")

    @contextmanager
    def storages(self) -> Iterator[dict[str, Storage]]:
        """An empty one of each kind, by its name."""
        number = len(list(self.directory.iterdir()))
        with fast_s3() as endpoint, self.schema() as (postgres, _):
            found: dict[str, Storage] = {
                "SQLite": SqliteStorage(self.directory / f"sqlite-{number}"),
                "PostgreSQL": postgres,
                "shared directory": SharedStorage(self.directory / f"shared-{number}"),
                "S3": ObjectStorage(storage_url(endpoint)),
            }
            for storage in found.values():
                storage.open()
            yield found
            for storage in found.values():
                storage.close()


def seconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


class Turns:
    """Ours and another, in turn: the medians, and the median of the ratios of the rounds."""

    def __init__(self) -> None:
        self.ours: list[float] = []
        self.others: list[float] = []

    def add(self, ours: Callable[[], object], other: Callable[[], object]) -> None:
        """One round; who is first changes."""
        works = [(self.ours, ours), (self.others, other)]
        for times, work in works if len(self.ours) % 2 else reversed(works):
            times.append(seconds(work))

    def medians(self, skip: int = 0) -> tuple[float, float, float]:
        """Ours, the other's, and how many times as fast as it ours is."""
        ours, others = self.ours[skip:], self.others[skip:]
        ratio = statistics.median(b / a for a, b in zip(ours, others, strict=True))
        return statistics.median(ours), statistics.median(others), ratio


def judged(value: float, met: bool, text: str) -> str:
    """A number, bold if it misses its target."""
    return text if met else f"**{text}**"


def rate(amount: float, took: float) -> str:
    """So many per second."""
    return f"{amount / took:,.0f}"


def percent(ratio: float, target: float) -> str:
    """A ratio, bold if it is below the target."""
    return judged(ratio, ratio >= target, f"{100 * ratio:.0f} %")


def medians(works: Sequence[Callable[[], object]], rounds: int) -> list[float]:
    """The median time of each, in turn."""
    times: list[list[float]] = [[] for _ in works]
    for _ in range(rounds):
        for place, work in zip(times, works, strict=True):
            place.append(seconds(work))
    return [statistics.median(each) for each in times]
