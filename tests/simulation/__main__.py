"""``python -m tests.simulation --seed N``: live through one seed again and print what happened."""

from __future__ import annotations

import argparse
import sys
import time
import traceback

from tests.simulation.runner import WORLDS, command, run_seed
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
    parser.add_argument("--world", choices=WORLDS, default="engine", help="whose executor is real")
    options = parser.parse_args()
    World.storage_kind = options.storage
    pairs = (item.partition("=") for item in options.trouble)
    trouble = {name: float(value) for name, _, value in pairs}
    if options.seed is not None:
        return show(options.seed, trouble, options.crowded, options.verbose, options.world)
    return soak(options.start, options.count, trouble, options.keep_going, options.world)


def show(seed: int, trouble: dict[str, float], crowded: bool, verbose: bool, kind: str) -> int:
    world = WORLDS[kind](seed, trace=True, trouble=trouble, crowded=crowded)
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


def soak(start: int, count: int, trouble: dict[str, float], keep_going: bool, kind: str) -> int:
    failed = 0
    began = time.perf_counter()
    for seed in range(start, start + count):
        try:
            run_seed(seed, trouble=trouble, world=kind)
        except AssertionError as error:
            failed += 1
            print(
                f"{command(seed, trouble, world=kind)}  # {str(error).splitlines()[0][:300]}",
                flush=True,
            )
            if not keep_going:
                break
    else:
        seconds = time.perf_counter() - began
        print(f"{count} seeds, {failed} failed, {count / seconds:.0f} seeds/s")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
