"""Import of ``ray.workflow`` and what is below it: the same module objects under both names."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

import ray

OLD = "ray.workflow"
NEW = "ray_workflows"

#: The public submodules of the old package.
SUBMODULES = (
    *("api", "common", "event_listener", "exceptions", "http_event_provider"),
    "workflow_context",
)

TARGETS = {OLD: NEW, **{f"{OLD}.{name}": f"{NEW}.{name}" for name in SUBMODULES}}


class AliasLoader(Loader):
    """Loads an alias by importing its target module."""

    def __init__(self, target: str) -> None:
        self.target = target

    def create_module(self, spec: ModuleSpec) -> None:
        """None, for Python's default module; `exec_module` replaces it."""

    def exec_module(self, module: ModuleType) -> None:
        """Import the target and put it in place of the alias.

        A second copy would have classes of its own, which no ``except`` clause would match.
        """
        sys.modules[module.__name__] = importlib.import_module(self.target)


class AliasFinder(MetaPathFinder):
    """Finds ``ray.workflow`` before Ray's own, which only raises."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of an alias.

        Raises:
            ModuleNotFoundError: an internal module of ``ray.workflow``.
        """
        if fullname in TARGETS:
            return ModuleSpec(fullname, AliasLoader(TARGETS[fullname]))
        if fullname.startswith(f"{OLD}."):
            raise ModuleNotFoundError(
                f"No module named {fullname!r}: it was internal to ray.workflow and has no "
                f"counterpart in ray_workflows. Below ray.workflow there are "
                f"{', '.join(SUBMODULES)}.",
                name=fullname,
            )
        return None


finder: AliasFinder = AliasFinder()


def install() -> None:
    """Make the names importable. Idempotent."""
    if finder not in sys.meta_path:
        sys.meta_path.insert(0, finder)
    # Set now, because Ray's own __getattr__ would import it on each access.
    ray.workflow = importlib.import_module(OLD)


def uninstall() -> None:
    """Undo `install`; modules that imported these names keep them."""
    if finder in sys.meta_path:
        sys.meta_path.remove(finder)
    for name in TARGETS:
        sys.modules.pop(name, None)
    vars(ray).pop("workflow", None)
