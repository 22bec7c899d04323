"""Compares a recorded environment with that of this process."""

from __future__ import annotations

import difflib
import os
import platform
import re
import zipfile
from collections.abc import Iterable, Mapping
from io import BytesIO
from typing import Any

import msgspec
import ray

from ray_workflows._environment.code.archive import file_digest
from ray_workflows._environment.code.modules import is_importable, version_of
from ray_workflows._environment.record import Record

#: Fields of a runtime_env that bring a Python or packages of their own.
OWN_PACKAGES = ("pip", "uv", "conda", "image_uri", "container", "py_executable")
OWN_PYTHON = ("conda", "image_uri", "container", "py_executable")


class Here(msgspec.Struct, frozen=True):
    """The environment here. ``installed``: versions by name, of importable packages."""

    python: str
    ray: str
    installed: dict[str, str]


def look(names: Iterable[str]) -> Here:
    """The environment here, with the packages of these names."""
    installed = {name: version_of(name) for name in names if is_importable(name)}
    return Here(platform.python_version(), ray.__version__, installed)


def numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version, for comparison."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def obstacles(record: Record, here: Here, runtime_envs: Iterable[Mapping[str, Any]]) -> list[str]:
    """The reasons why tasks can't run here, each with its remedy.

    Args:
        record: the recorded environment.
        here: the environment here.
        runtime_envs: that of the workflow, and those of its tasks.
    """
    fields = {name for env in runtime_envs for name, value in env.items() if value}
    found = []
    theirs, ours = numbers(record.python)[:2], numbers(here.python)[:2]
    if theirs != ours and not fields.intersection(OWN_PYTHON):
        found.append(
            f"Python {record.python}, and here is {here.python}: functions are stored as code of "
            f"one minor version. Resume it on a cluster with Python {dotted(theirs)}."
        )
    if numbers(here.ray) < numbers(record.ray):
        found.append(
            f"Ray {record.ray}, and here is {here.ray}, which is older. Upgrade the cluster: "
            f"pip install 'ray>={record.ray}'."
        )
    if not fields.intersection(OWN_PACKAGES):
        for name, version in sorted(record.installed.items()):
            if name not in here.installed:
                pinned = f"{name}=={version}" if version else name
                found.append(
                    f"the package {name}{f' {version}' if version else ''}, which can't be "
                    f"imported here. Install it on the nodes, or: "
                    f"resume(..., runtime_env={{'pip': ['{pinned}']}})."
                )
    return found


def dotted(version: Iterable[int]) -> str:
    return ".".join(map(str, version))


def other_versions(record: Record, here: Here) -> list[tuple[str, str, str]]:
    """Packages with another version here, or missing (""): name, theirs, ours."""
    pairs = [("python", record.python, here.python), ("ray", record.ray, here.ray)]
    pairs += [(name, v, here.installed.get(name, "")) for name, v in record.installed.items()]
    return [
        (name, theirs, ours)
        for name, theirs, ours in pairs
        if theirs != ours or (name not in ("python", "ray") and name not in here.installed)
    ]


def changed_modules(record: Record, directories: Iterable[str] = ()) -> dict[str, str | None]:
    """Files of the recorded code that differ: by name the present path, or None.

    Looks for each at its recorded path, then in ``directories``.
    """
    tops = tuple(directories)
    found: dict[str, str | None] = {}
    for name, module in sorted(record.modules.items()):
        places = (module.path, *(os.path.join(top, name) for top in tops))
        path = next(filter(os.path.isfile, places), None)
        try:
            if path is None or file_digest(path) != module.digest:
                found[name] = path
        except OSError:
            found[name] = None
    return found


def diff(name: str, path: str, package: bytes | memoryview) -> str:
    """The unified diff from a file of the recorded code to one here."""
    with zipfile.ZipFile(BytesIO(package)) as archive:
        then = archive.read(name).decode(errors="replace")
    with open(path, encoding="utf-8", errors="replace") as file:
        now = file.read()
    return "".join(
        difflib.unified_diff(
            then.splitlines(keepends=True),
            now.splitlines(keepends=True),
            f"{name} (recorded)",
            f"{path} (here)",
        )
    )
