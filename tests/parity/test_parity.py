"""Runs every scenario with ray.workflow 2.47.1 and with this package, and compares."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.parity.compare import broken, differing, equal
from tests.parity.differences import DIFFERENCES, TO_MEND

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
LOCK = HERE / "requirements-2.47.1.lock"
VENV = ROOT / ".venv-parity"

#: Both sides together, on a slow machine, with the installation of the old one, in seconds.
pytestmark = pytest.mark.timeout(1200)


def scenario_names() -> list[str]:
    from tests.parity.kit import SCENARIOS
    from tests.parity.scenarios import __all__ as modules

    assert modules
    return sorted(SCENARIOS)


def give_up(reason: str) -> None:
    """In CI what can't be compared is a failure."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def old_python() -> str:
    """A Python with ray 2.47.1: ``$PARITY_OLD_PYTHON``, or one in `VENV`, made if need be."""
    given = os.environ.get("PARITY_OLD_PYTHON")
    if given:
        return given
    python, ready = VENV / "bin" / "python", VENV / LOCK.name
    if not (ready.exists() and ready.read_text() == LOCK.read_text()):
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        commands = [[sys.executable, "-m", "venv", "--clear", VENV], [*install, "-r", LOCK]]
        for command in commands:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                give_up(f"ray 2.47.1 can't be installed here: {done.stderr[-2000:]}")
        ready.write_text(LOCK.read_text())
    return str(python)


@pytest.fixture(scope="session")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """For each side the outcomes of all scenarios; both sides run at the same time."""
    directory = tmp_path_factory.mktemp("parity")
    sides = {"ray.workflow": old_python(), "ray_workflows": sys.executable}
    running = {}
    for library, python in sides.items():
        with (directory / f"{library}.log").open("wb") as log:
            running[library] = subprocess.Popen(
                [python, HERE / "run_scenarios.py", library, directory / f"{library}.json"],
                cwd=directory,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
    codes = {library: process.wait() for library, process in running.items()}
    for library, code in codes.items():
        log_text = (directory / f"{library}.log").read_text(errors="replace")
        assert code == 0, f"scenarios of {library}:\n{log_text}"
    return {library: json.loads((directory / f"{library}.json").read_text()) for library in sides}


def told(found: dict[str, tuple[Any, Any]], *sides: dict[str, Any]) -> str:
    """Differences as text, with the traces of what failed."""
    lines = []
    for key, (old, new) in found.items():
        lines += [
            f"{key}:",
            f"  ray.workflow:  {json.dumps(old)}",
            f"  ray_workflows: {json.dumps(new)}",
        ]
    return "\n".join(lines + [side["trace"] for side in sides if "trace" in side])


def parameters() -> list[Any]:
    return [
        pytest.param(name, marks=pytest.mark.xfail(reason=TO_MEND[name], strict=True))
        if name in TO_MEND
        else name
        for name in scenario_names()
    ]


@pytest.mark.parametrize("name", parameters())
def test_the_outcome_is_the_same(name: str, outcomes: dict[str, dict[str, Any]]) -> None:
    sides = [outcomes[library][name] for library in ("ray.workflow", "ray_workflows")]
    old, new = (side["outcome"] for side in sides)
    assert not broken(new), told({"outcome": (old, new)}, *sides)
    found = differing(old, new)
    listed = DIFFERENCES.get(name)
    if listed is None:
        assert not found, told(found, *sides)
        return
    assert found.keys() == listed.ours.keys(), (
        f"{listed.reason}\nThe keys listed as different are {sorted(listed.ours)}, but:\n"
        + told(found, *sides)
    )
    for key, ours in listed.ours.items():
        assert equal(ours, new[key]), f"{listed.reason}\n{key} is listed as {ours}, but:\n" + told(
            found, *sides
        )


def test_listed_names_are_scenarios() -> None:
    assert sorted({*DIFFERENCES, *TO_MEND} - set(scenario_names())) == []


def test_reasons_are_documented() -> None:
    """Each reason is told to users, in the same words."""
    text = " ".join((ROOT / "docs" / "migration.md").read_text().split())
    assert [d.reason for d in DIFFERENCES.values() if " ".join(d.reason.split()) not in text] == []
