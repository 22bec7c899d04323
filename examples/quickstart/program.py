"""The user's program of the quickstart: the part one would write for real.

It is started twice by ``main.py``, as ``program.py start HOME`` and ``program.py resume HOME``.
In between, the machine loses its power.
"""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import ray
from rich.console import Console

import ray_workflows as workflow
from basics import run_examples
from cluster import start_ray
from stdlib_report import WORKFLOW_ID, start_report


def start(home: Path) -> None:
    """Run the short examples, then start the long workflow and wait for it, in vain."""
    run_examples(home, Console())
    ray.get(start_report(home / "executions.log"))


def resume(home: Path) -> None:
    """Go on with whatever was interrupted. That takes no knowledge of what it was."""
    if workflow.get_output("sum") != 101:
        raise SystemExit("A workflow that had finished before the power went is not as it was.")
    resumed = dict(workflow.resume_all())
    if list(resumed) != [WORKFLOW_ID]:
        raise SystemExit(f"resume_all() resumed {list(resumed)}, expected ['{WORKFLOW_ID}'].")
    report = ray.get(resumed[WORKFLOW_ID])
    (home / "report.pickle").write_bytes(pickle.dumps(report))


if __name__ == "__main__":
    home = Path(sys.argv[2])
    start_ray(home / "ray")
    workflow.init(home / "storage")
    {"start": start, "resume": resume}[sys.argv[1]](home)
    ray.shutdown()
