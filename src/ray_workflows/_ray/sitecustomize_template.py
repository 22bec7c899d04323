"""Goes with the user's code into its package, as the ``sitecustomize`` that Python imports first.

When a Ray worker gets its first task, Ray puts the directories of the driver that has started the
coordinator before all others on its path. There may be later code in them, or somebody else's. Our
own attempts mend that themselves; this does for the tasks that the user's tasks start, which
inherit the packages and nothing else of ours. So it imports nothing of ours, and never fails.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Sequence
from types import ModuleType

#: The name of this module in a package.
NAME = "sitecustomize"

#: As in `private`.
UNPACKED = f"{os.sep}runtime_resources{os.sep}"

#: What a Ray worker runs.
WORKER = "default_worker.py"


def packages_first(path: list[str], directories: Sequence[str]) -> list[str]:
    """A path on which some directories come after the packages, if they came before."""
    places = [place for place, entry in enumerate(path) if UNPACKED in f"{entry}{os.sep}"]
    if not places:
        return path
    early = [entry for entry in path[: places[0]] if entry in directories]
    before = [entry for entry in path[: places[0]] if entry not in directories]
    end = places[-1] + 1
    return [*before, *path[places[0] : end], *early, *path[end:]]


class WhenTheTaskIsThere:
    """Finds no module, but notices the first one that is looked for in a task."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> None:
        """Put the packages first when it is known whose task it is."""
        worker = getattr(sys.modules.get("ray._private.worker"), "global_worker", None)
        if getattr(worker, "_cached_job_id", None) is None or self not in sys.meta_path:
            return
        sys.meta_path.remove(self)
        try:
            directories = worker.core_worker.get_job_config().py_driver_sys_path  # type: ignore[union-attr]
        except AttributeError:
            return  # Another Ray: as it would be without us.
        sys.path[:] = packages_first(sys.path, list(directories))


def import_next() -> None:
    """Import the module of this name that would have been imported without this one.

    Only from what comes after it: there may be several packages, each with one like this.
    """
    here = os.path.dirname(__file__)
    after = sys.path[sys.path.index(here) + 1 :] if here in sys.path else []
    spec = importlib.machinery.PathFinder.find_spec(NAME, after)
    if spec is None or spec.loader is None:
        return
    module = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = module
    spec.loader.exec_module(module)


if __name__ == NAME:
    if any(argument.endswith(WORKER) for argument in sys.orig_argv):
        sys.meta_path.insert(0, WhenTheTaskIsThere())
    import_next()
