"""The Python of workers, where its path has characters that mean something to a shell."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ray_workflows._environment.attempts import runtime_env_for
from ray_workflows._environment.code import interpreter
from ray_workflows._environment.snapshot import own_runtime_env
from ray_workflows._model.plan import Environment


@pytest.fixture(params=["a b", "ä", "it's", "$(a) & 'b'"])
def python(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This Python by another path."""
    path = tmp_path / request.param / "environment"
    path.parent.mkdir()
    path.symlink_to(sys.prefix)
    python = path / "bin" / Path(sys.executable).name
    monkeypatch.setattr(sys, "executable", str(python))
    return python


def test_a_shell_starts_it(python: Path) -> None:
    runtime_env: dict[str, Any] = {"env_vars": {"A": "b"}}
    interpreter.name_python(runtime_env)
    # As Ray does: `RuntimeEnvContext.exec_worker`.
    command = f"exec {runtime_env['py_executable']} -c 'import sys; print(sys.executable)'"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(python)


def test_attempts_name_it_and_submissions_do_not(
    python: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = Environment(runtime_env={"env_vars": {"A": "b"}})
    runtime_env = runtime_env_for(environment, None)
    assert runtime_env["py_executable"] == interpreter.quoted()

    class Context:
        def __init__(self) -> None:
            self.runtime_env = runtime_env

    # What an attempt submits runs on other machines too.
    monkeypatch.setattr("ray.get_runtime_context", Context)
    assert own_runtime_env() == {"env_vars": {"A": "b"}}


@pytest.mark.parametrize(
    "runtime_env",
    [{}, {"py_executable": "mine"}, {"pip": ["a"]}, {"uv": ["a"]}, {"image_uri": "a"}],
)
def test_what_names_another_one_stays(python: Path, runtime_env: dict[str, Any]) -> None:
    named = dict(runtime_env)
    interpreter.name_python(named)
    assert named == runtime_env
    interpreter.check_python(runtime_env)


def test_a_driver_whose_workers_would_never_start(python: Path) -> None:
    with pytest.raises(ValueError, match="Add the field 'py_executable'"):
        interpreter.check_python({"env_vars": {"A": "b"}})


def test_any_other_path_is_left_to_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/usr/bin/python3.11")
    runtime_env: dict[str, Any] = {"env_vars": {"A": "b"}}
    interpreter.name_python(runtime_env)
    interpreter.check_python(runtime_env)
    interpreter.unname_python(runtime_env)
    assert runtime_env == {"env_vars": {"A": "b"}}
