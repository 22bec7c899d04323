"""``python -m tests.simulation --seed N``: live through one seed again and print what happened."""

from __future__ import annotations

import argparse
import sys
import time
import traceback

from tests.simulation.runner import command, run_seed
from tests.simulation.world import STORAGES, World


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="live through this seed")
    parser.add_argument("--trouble", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--crowded", action="store_true", help="many workflows, few may run")
    parser.add_argument("--verbose", action="store_true", help="print everything that happens")
    parser.add_argument("--count", type=int, default=1000, help="how many seeds to soak")
    parser.add_argument("--start", type=int, default=0, help="the first seed to soak")
    parser.add_argument("--keep-going", action="store_true", help="do not stop at a failure")
    parser.add_argument("--storage", choices=STORAGES, default="memory")
    options = parser.parse_args()
    World.storage_kind = options.storage
    if options.seed is not None:
        pairs = (item.partition("=") for item in options.trouble)
        trouble = {name: float(value) for name, _, value in pairs}
        return show(options.seed, trouble, options.crowded, options.verbose)
    return soak(options.start, options.count, options.keep_going)


def show(seed: int, trouble: dict[str, float], crowded: bool, verbose: bool) -> int:
    world = World(seed, trace=True, trouble=trouble, crowded=crowded)
    failed = False
    try:
        world.run()
    except Exception:
        failed = True
        print("\n".join(world.lines if verbose else world.lines[-60:]))
        traceback.print_exc(file=sys.stdout)
    else:
        if verbose:
            print("\n".join(world.lines))
        print(f"seed {seed}: {world.steps} events, {world.crashes} crashes, {world.digest()[:16]}")
    return int(failed)


def soak(start: int, count: int, keep_going: bool) -> int:
    failed = 0
    began = time.perf_counter()
    for seed in range(start, start + count):
        try:
            run_seed(seed)
        except AssertionError as error:
            failed += 1
            print(f"{command(seed)}  # {str(error).splitlines()[0][:300]}", flush=True)
            if not keep_going:
                break
    else:
        seconds = time.perf_counter() - began
        print(f"{count} seeds, {failed} failed, {count / seconds:.0f} seeds/s")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
