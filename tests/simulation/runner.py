"""Running seeds: a failure says how to see it again."""

from __future__ import annotations

from collections.abc import Mapping

from tests.simulation.violations import Violation
from tests.simulation.world import World
from tests.simulation.world_of_bodies import WorldOfBodies, WorldOfHosts
from tests.simulation.world_of_drivers import WorldOfDrivers
from tests.simulation.world_of_parents import WorldOfParents
from tests.simulation.world_of_workers import WorldOfWorkers

#: Kinds of worlds, by the names that the command line has for them.
WORLDS: dict[str, type[World]] = {
    "engine": World,
    "workers": WorldOfWorkers,
    "drivers": WorldOfDrivers,
    "parents": WorldOfParents,
    "bodies": WorldOfBodies,
    "hosts": WorldOfHosts,
}


def command(
    seed: int,
    trouble: Mapping[str, float] | None = None,
    crowded: bool = False,
    world: str = "engine",
) -> str:
    """What to type to live through a seed again."""
    words = [f"python -m tests.simulation --seed {seed}"]
    words += [f"--trouble {name}={value}" for name, value in (trouble or {}).items()]
    if world != "engine":
        words.append(f"--world {world}")
    if World.storage_kind != "memory":
        words.append(f"--storage {World.storage_kind}")
    return " ".join([*words, *(["--crowded"] if crowded else []), "--verbose"])


def run_seed(
    seed: int,
    *,
    trouble: Mapping[str, float] | None = None,
    crowded: bool = False,
    world: str = "engine",
) -> World:
    """Live through a seed, as `World` describes.

    Raises:
        Violation: a promise is broken; the message says how to see it again.
    """
    again = f"See it again: {command(seed, trouble, crowded, world)}"
    try:
        return WORLDS[world](seed, trouble=trouble, crowded=crowded).run()
    except Violation as error:
        message = str(error).removeprefix(f"[{error.kind}] ")
        raise Violation(error.kind, f"{message}\n{again}") from error
    except Exception as error:
        raise Violation("harness", f"{error!r}\n{again}") from error
