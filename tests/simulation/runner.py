"""Running seeds: a failure says how to see it again."""

from __future__ import annotations

from collections.abc import Mapping

from tests.simulation.violations import Violation
from tests.simulation.world import World


def command(seed: int, trouble: Mapping[str, float] | None = None, crowded: bool = False) -> str:
    """What to type to live through a seed again."""
    words = [f"python -m tests.simulation --seed {seed}"]
    words += [f"--trouble {name}={value}" for name, value in (trouble or {}).items()]
    if World.storage_kind != "memory":
        words.append(f"--storage {World.storage_kind}")
    return " ".join([*words, *(["--crowded"] if crowded else []), "--verbose"])


def run_seed(
    seed: int, *, trouble: Mapping[str, float] | None = None, crowded: bool = False
) -> World:
    """Live through a seed, as `World` describes.

    Raises:
        Violation: a promise is broken; the message says how to see it again.
    """
    again = f"See it again: {command(seed, trouble, crowded)}"
    try:
        return World(seed, trouble=trouble, crowded=crowded).run()
    except Violation as error:
        message = str(error).removeprefix(f"[{error.kind}] ")
        raise Violation(error.kind, f"{message}\n{again}") from error
    except Exception as error:
        raise Violation("harness", f"{error!r}\n{again}") from error
