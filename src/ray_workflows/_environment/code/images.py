"""Packages for workers in a container: Ray accepts no package fields beside ``image_uri``.

So a variable names the packages, and the worker unpacks them itself. Tasks that a task in a
container starts with plain Ray don't have them.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import sys
import tempfile
import zipfile
from io import BytesIO
from typing import Any

from ray_workflows._ray import private

#: Fields beside which Ray takes only ``config`` and ``env_vars``.
FIELDS = ("image_uri", "container")

#: The variable with the packages of ``working_dir`` and ``py_modules``, as JSON.
VARIABLE = "RAY_WORKFLOWS_UNPACK"

#: The form of URIs that we can unpack. Others are left to Ray, which refuses them.
BEGIN, END = "gcs://", ".zip"


def is_ours(uri: Any) -> bool:
    return isinstance(uri, str) and uri.startswith(BEGIN) and uri.endswith(END)


def carry(runtime_env: dict[str, Any]) -> None:
    """Move the packages of a runtime_env with an image into the variable."""
    if not any(runtime_env.get(field) for field in FIELDS):
        return
    carried: dict[str, Any] = {}
    if is_ours(runtime_env.get("working_dir")):
        carried["working_dir"] = runtime_env.pop("working_dir")
    modules = runtime_env.pop("py_modules", None) or ()
    carried["py_modules"] = [uri for uri in modules if is_ours(uri)]
    left = [uri for uri in modules if not is_ours(uri)]
    if left:
        runtime_env["py_modules"] = left
    if any(carried.values()):
        env_vars = runtime_env.get("env_vars") or {}
        runtime_env["env_vars"] = {**env_vars, VARIABLE: json.dumps(carried)}


def carried_by(runtime_env: dict[str, Any]) -> list[str]:
    """The packages that the variable of a runtime_env names."""
    text = (runtime_env.get("env_vars") or {}).get(VARIABLE)
    carried = json.loads(text) if text else {}
    return [*filter(None, [carried.get("working_dir")]), *carried.get("py_modules", ())]


def unpack_carried() -> None:
    """Unpack the packages in this worker's variable, and put them first on the import path."""
    text = os.environ.pop(VARIABLE, None)
    if not text:
        return
    carried = json.loads(text)
    directories = [unpacked(uri) for uri in carried["py_modules"]]
    if carried.get("working_dir"):
        directories.insert(0, unpacked(carried["working_dir"]))
        os.chdir(directories[0])
    sys.path[:0] = directories


def own_directory() -> str:
    """A directory for temporary files that only this user can write to. All processes of the user
    share it, unless another user has taken its name."""
    path = os.path.join(tempfile.gettempdir(), f"ray_workflows-{os.geteuid()}")
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)
    # lstat, so that a link is not followed.
    about = os.lstat(path)
    trusted = stat.S_ISDIR(about.st_mode) and about.st_uid == os.geteuid()
    if not trusted or about.st_mode & 0o022:
        return tempfile.mkdtemp(prefix="ray_workflows-")
    return path


def unpacked(uri: str) -> str:
    """The directory with the unpacked package. This user's processes share it.

    Raises:
        LookupError: the cluster does not have it.
    """
    top = os.path.join(own_directory(), private.UNPACKED)
    directory = os.path.join(top, uri.removeprefix(BEGIN).removesuffix(END))
    if os.path.isdir(directory):
        return directory
    data = private.get_key(uri)
    if data is None:
        raise LookupError(f"The cluster does not have the package {uri}.")
    os.makedirs(top, mode=0o700, exist_ok=True)
    draft = tempfile.mkdtemp(dir=top)
    with zipfile.ZipFile(BytesIO(data)) as archive:
        for about in archive.infolist():
            path = archive.extract(about, draft)
            mode = about.external_attr >> 16
            if mode and not about.is_dir():
                os.chmod(path, mode)
    try:
        os.rename(draft, directory)
    except OSError:
        if not os.path.isdir(directory):
            raise
    return directory
