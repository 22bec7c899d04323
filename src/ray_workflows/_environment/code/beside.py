"""Finds data files beside a single module, which reads them through ``__file__``.

All files below a package's directory belong to it. Files beside a single module may be anything, a
home directory or a terabyte, so only small ones that the module's source names are stored.
"""

from __future__ import annotations

import logging
import os

from ray_workflows._environment.code.archive import NEVER, walk
from ray_workflows._environment.code.sources import read_source
from ray_workflows._ray.private import git_matcher

logger = logging.getLogger(__name__)

#: The most bytes of a named file, or of all files of a named directory.
MAX_DATA_BYTES = 1024 * 1024
#: A directory with more files than this is not searched.
MAX_DATA_FILES = 1000


def data_beside(path: str) -> tuple[dict[str, str], dict[str, str]]:
    """The files beside a module that its text names, by their names in an archive; and those that
    are too large, with the reason."""
    texts = read_source(path).texts if path.endswith(".py") else frozenset()
    found: dict[str, str] = {}
    skipped: dict[str, str] = {}
    if not texts:
        return found, skipped
    directory = os.path.dirname(os.path.abspath(path))
    never = git_matcher(NEVER)
    try:
        names = os.listdir(directory)
    except OSError:
        return found, skipped  # A directory that can't be listed: its names are unknown.
    for name in sorted(texts.intersection(names)):
        there = os.path.join(directory, name)
        is_directory = os.path.isdir(there)
        if not is_directory and not os.path.isfile(there):
            continue
        if name.endswith(".py") or never(f"{name}/" if is_directory else name):
            continue
        if not os.access(there, os.R_OK):
            skipped[name] = f"{there} can't be read by this process"
            continue
        files = below(name, there) if is_directory else {name: there}
        if files is None or sum(map(size_of, files.values())) > MAX_DATA_BYTES:
            skipped[name] = (
                f"{os.path.basename(path)} names it, and it is larger than {MAX_DATA_BYTES} bytes "
                f"or has more than {MAX_DATA_FILES} files. Tasks on other machines do not find it: "
                f"make the module a package with it inside, or name its directory as working_dir "
                f"of the runtime_env."
            )
            logger.warning("%s is not stored with the workflow: %s", there, skipped[name])
        else:
            found.update(files)
    return found, skipped


def below(name: str, directory: str) -> dict[str, str] | None:
    """The files of a directory by their names in an archive; None if there are too many."""
    found: dict[str, str] = {}
    for inner, path in walk(directory):
        found[f"{name}/{inner}"] = path
        if len(found) > MAX_DATA_FILES:
            return None
    return found


def size_of(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0
