"""``python -m ray_workflows.compat script.py ...``: run a program under `compat.install`."""

from __future__ import annotations

import os
import runpy
import sys
from types import ModuleType

from ray_workflows import compat

USAGE = """\
usage: python -m ray_workflows.compat script.py [argument ...]
       python -m ray_workflows.compat -m module [argument ...]

Runs a program written for ray.workflow on ray_workflows, as `python script.py` would run it.
"""


def main(arguments: list[str]) -> None:
    """Run what the arguments name, as Python itself would.

    Raises:
        SystemExit: they name nothing.
    """
    if arguments[:1] in (["-h"], ["--help"]):
        sys.stdout.write(USAGE)
        raise SystemExit(0)
    if arguments in ([], ["-m"]):
        sys.stderr.write(USAGE)
        raise SystemExit(2)
    compat.install()
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        sys.path[0] = os.getcwd()
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        run_script(arguments[0])


def run_script(path: str) -> None:
    """Run a script as ``__main__``, which stays in place after it (runpy takes it away)."""
    with open(path, "rb") as file:
        code = compile(file.read(), path, "exec")
    module = ModuleType("__main__")
    module.__file__ = path
    sys.path[0] = os.path.dirname(os.path.realpath(path))
    sys.modules["__main__"] = module
    exec(code, vars(module))


if __name__ == "__main__":
    main(sys.argv[1:])
