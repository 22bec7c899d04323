"""``--script FILE``: the functions of a script, without running it as a program.

The file is imported as `multiprocessing` imports a script in a process that it spawns: code under
``if __name__ == "__main__":`` does not run. Then its functions get the script's module name.
"""

from __future__ import annotations

import gc
import os
import sys
from types import FunctionType, ModuleType

import click
import ray

from ray_workflows._client import connection as connections
from ray_workflows._client.environments import CURRENT

#: The module name of a script during the import.
IMPORTED = "__mp_main__"

GUARD = 'Put what it does under: if __name__ == "__main__":'

script_option = click.option(
    "--script",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, resolve_path=True),
    help="The script with the functions that --code current takes. It is imported, not run.",
)


def load_script(path: str | None, code: str) -> None:
    """Import a script as that of this process, if one was given.

    Raises:
        click.UsageError: ``--code current`` was not given.
        click.ClickException: the script can't be imported, or uses workflows during the import.
    """
    if path is None:
        return
    if code != CURRENT:
        raise click.UsageError("--script says where --code current finds functions: give both.")
    module = ModuleType(IMPORTED)
    module.__file__ = path
    sys.path.insert(0, os.path.dirname(path))
    arguments, sys.argv = sys.argv, [path]
    # Annotations and pickles look up the names of its classes here.
    sys.modules[IMPORTED] = module
    connections.refused = f"{path} uses workflows when it is imported. {GUARD}"
    connected = ray.is_initialized()
    try:
        with open(path, "rb") as file:
            exec(compile(file.read(), path, "exec", dont_inherit=True), module.__dict__)
    except (Exception, SystemExit) as error:
        raise click.ClickException(
            f"{path} can't be imported: {type(error).__name__}: {error}"
        ) from error
    finally:
        connections.refused = ""
        sys.argv = arguments
        del sys.modules[IMPORTED]
    if ray.is_initialized() and not connected:
        ray.shutdown()
        raise click.ClickException(f"{path} connects to Ray when it is imported. {GUARD}")
    rename()
    module.__name__ = "__main__"
    sys.modules["__main__"] = module


def rename() -> None:
    """Set the module of the script's functions and classes to that of a script."""
    for found in gc.get_objects():
        kind = type(found)
        if (kind is FunctionType or issubclass(kind, type)) and found.__module__ == IMPORTED:
            found.__module__ = "__main__"
