"""Inspects modules of this process without running their code.

An object in ``sys.modules`` may import more, or raise, on attribute access, and need not be a
module at all. So names are read from a module's own dictionary, by Python's own descriptor for it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib._bootstrap_external import _NamespacePath as NamespacePath  # type: ignore
from types import ModuleType
from typing import Any

from ray_workflows._model.ids import plain_text

MODULE_DICT: Any = vars(ModuleType)["__dict__"]
CLASS_DICT: Any = vars(type)["__dict__"]


def is_module(value: object) -> bool:
    """Whether a value is a module. Not by ``isinstance``: a lazy proxy would claim to be one, and
    load its module."""
    return issubclass(type(value), ModuleType)


def names_in(module: object) -> Mapping[str, Any]:
    """The names that a module has now; none for other objects."""
    return (MODULE_DICT.__get__(module) or {}) if is_module(module) else {}


def names_of_class(value: object) -> Mapping[str, Any]:
    """The names in a class's own dictionary; none for other objects."""
    return CLASS_DICT.__get__(value) if issubclass(type(value), type) else {}


def text_in(module: object, name: str) -> str:
    """A text that a module has under a name; empty if it has none."""
    value: Any = names_in(module).get(name)
    return plain_text(value) if issubclass(type(value), str) else ""


def file_of(module: object) -> str:
    """The file of a module; empty if it has none."""
    return text_in(module, "__file__")


def parts_of(module: object) -> tuple[str, ...]:
    """The directories of a package; none for other modules."""
    value = names_in(module).get("__path__")
    if not issubclass(type(value), (list, tuple, NamespacePath)):
        return ()
    return tuple([part for part in value or () if type(part) is str])


def all_modules() -> list[tuple[str, object]]:
    """The imported modules of this process, by name."""
    return [(name, module) for name, module in list(sys.modules.items()) if type(name) is str]


def cells() -> list[str]:
    """The source typed into IPython or a notebook; empty without one."""
    getipython = names_in(sys.modules.get("IPython.core.getipython")).get("get_ipython")
    shell = getipython() if getipython is not None else None
    history = getattr(shell, "history_manager", None)
    return [cell for cell in getattr(history, "input_hist_parsed", ()) if type(cell) is str]
