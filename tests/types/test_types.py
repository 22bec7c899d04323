"""Types as users see them: files that they could have written, checked by mypy and pyright.

The checkers look at an interpreter in which the package is installed: what they say there, they
say to users. Their own complaints of Ray are turned off by rule, never by file.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FILES = ("accepted.py", "documented.py", "rejected.py")
SRC = ROOT / "src"
DOCUMENT = ROOT / "docs" / "types.md"

#: Ray's `.bind` and `.options` are partly untyped, which strict pyright says at every use.
OF_RAY = ("reportUnknownArgumentType", "reportUnknownMemberType", "reportUnknownVariableType")

#: The command line is for the shell, and what is reached through it alone is private. Of the
#: storages, `ray_workflows.storage` has what users take.
NOT_FOR_IMPORT = re.compile(
    r"ray_workflows\.(cli|_client|_coordinator|_capture|_engine|storage\.(?!base\b|memory\b|sqlite\b)\w+)\."
)

#: For every line of a file that a checker complains of, what it says.
Complaints = dict[int, list[str]]


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's project, with an environment of its own that has what this one has."""
    directory = tmp_path_factory.mktemp("project")
    venv.create(directory / "venv", symlinks=True)
    (packages,) = (directory / "venv").glob("lib/python*/site-packages")
    installed = [path for path in sys.path if path.endswith("-packages")]
    (packages / "users.pth").write_text("\n".join([str(SRC), *installed]) + "\n")
    for name in ("accepted.py", "rejected.py"):
        (directory / name).write_text((HERE / name).read_text())
    (block,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    (directory / "documented.py").write_text(block)
    return directory


def user_python(project: Path) -> str:
    return str(project / "venv" / "bin" / "python")


def run_checker(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # Where the checkers would look beside the interpreter that they are told.
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "MYPYPATH")}
    # `--verifytypes` heeds no `--pythonpath`: it asks the first Python that it finds.
    bin_directory = str(project / "venv" / "bin")
    environment["PATH"] = os.pathsep.join([bin_directory, environment.get("PATH", "")])
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def run_mypy(project: Path) -> dict[str, Complaints]:
    done = run_checker(
        project,
        "mypy",
        "--strict",
        "--config-file=",
        f"--python-executable={user_python(project)}",
        "--output=json",
        *FILES,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found: dict[str, Complaints] = {}
    for line in done.stdout.splitlines():
        told = json.loads(line)
        if told["severity"] == "error":
            file = found.setdefault(told["file"], {})
            file.setdefault(told["line"], []).append(told["message"])
    return found


def run_pyright(project: Path) -> dict[str, Complaints]:
    settings: dict[str, Any] = dict.fromkeys(OF_RAY, "none")
    settings.update({"typeCheckingMode": "strict", "include": list(FILES)})
    (project / "pyrightconfig.json").write_text(json.dumps(settings))
    done = run_checker(
        project, "pyright", f"--pythonpath={user_python(project)}", "--project=.", "--outputjson"
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found: dict[str, Complaints] = {}
    for told in json.loads(done.stdout)["generalDiagnostics"]:
        if told["severity"] == "error":
            file = found.setdefault(Path(told["file"]).name, {})
            line = told["range"]["start"]["line"] + 1
            file.setdefault(line, []).append(told["message"])
    return found


@pytest.fixture(scope="session", params=["mypy", "pyright"])
def found(request: pytest.FixtureRequest, project: Path) -> dict[str, Complaints]:
    """What a checker complains of, by file and line."""
    return {"mypy": run_mypy, "pyright": run_pyright}[request.param](project)


@pytest.mark.parametrize("file", ["accepted.py", "documented.py"])
def test_what_users_write_is_accepted(found: dict[str, Complaints], file: str) -> None:
    assert found.get(file, {}) == {}


def test_mistakes_are_rejected(found: dict[str, Complaints]) -> None:
    lines = (HERE / "rejected.py").read_text().splitlines()
    marked = {number for number, line in enumerate(lines, 1) if line.endswith("# rejected")}
    assert len(marked) > 30
    complaints = found["rejected.py"]
    assert [lines[number - 1] for number in sorted(marked - complaints.keys())] == []
    assert {n: told for n, told in complaints.items() if n not in marked} == {}


def test_there_is_nothing_else_to_complain_of(found: dict[str, Complaints]) -> None:
    """Nothing in the package itself."""
    assert set(found) <= set(FILES)


def test_every_public_name_has_a_type(project: Path) -> None:
    """Also those that no file here uses. Fails without ``py.typed`` too."""
    done = run_checker(project, "pyright", "--verifytypes=ray_workflows", "--ignoreexternal")
    assert "Type completeness score" in done.stdout, done.stdout + done.stderr
    found = re.findall(
        r"^ *(ray_workflows\S*)\n((?:.* - error: .*\n.*\n)+)", done.stdout, re.MULTILINE
    )
    untyped = [name + errors for name, errors in found if not NOT_FOR_IMPORT.match(name)]
    assert not untyped, "\n".join(untyped)
    assert (done.returncode != 0) == bool(found), done.stdout
