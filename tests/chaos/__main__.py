"""``python -m tests.chaos``: real clusters under kill -9 and SIGSTOP, and the laws at the end."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType
from typing import NoReturn

from tests.ray.processes import LOOPBACK

STORAGES = ("sqlite", "postgres", "s3", "shared")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="of the faults and the workflows")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long, on each")
    parser.add_argument("--storage", choices=STORAGES, nargs="+", default=["sqlite"])
    parser.add_argument("--keep", action="store_true", help="keep the directory of the run")
    options = parser.parse_args()
    os.environ.update(LOOPBACK)
    signal.signal(signal.SIGTERM, interrupt)
    failed = False
    for storage in options.storage:
        failed |= not run(storage, options.seed, options.seconds, options.keep)
    return int(failed)


def interrupt(number: int, frame: FrameType | None) -> NoReturn:
    """Unwind, so that all that was started is ended."""
    raise SystemExit(128 + number)


def run(kind: str, seed: int, seconds: float, keep: bool) -> bool:
    """One run; whether all laws hold."""
    from tests.chaos.places import place
    from tests.chaos.report import summary, tell
    from tests.chaos.world import Run

    directory = Path(tempfile.mkdtemp(prefix="rw-chaos-"))
    print(f"chaos: {kind}, seed {seed}, {seconds:.0f} s of faults, in {directory}", flush=True)
    began = time.monotonic()
    try:
        with place(kind, directory) as chosen:
            run = Run(chosen, directory, seed, seconds)
            violations = run.live()
        print(summary(run, kind, time.monotonic() - began), flush=True)
        keep = keep or bool(violations)
        if violations:
            print(tell(run, violations), flush=True)
            print(f"chaos: FAILED. Again: make chaos STORAGE={kind} SEED={seed} ", end="")
            print(f"SECONDS={seconds:.0f}; all that is left is in {directory}", flush=True)
        else:
            print("chaos: all laws hold", flush=True)
        return not violations
    finally:
        if not keep:
            shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
