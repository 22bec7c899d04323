"""``--script FILE``: the functions of a script, which is imported and not run."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import pytest

from ray_workflows._capture.code_parts import code_of_function
from ray_workflows._capture.upgrade import present_version
from ray_workflows.cli.scripts import load_script
from tests.cli.conftest import Cli

SCRIPT = """
import functools
import sys
import ray
import beside_the_script

assert sys.argv == [__file__], sys.argv


def decorated(function):
    @functools.wraps(function)
    def wrapper(*args):
        return function(*args)
    return wrapper


class Order:
    def net(self):
        return 1


@ray.remote
@decorated
def task(x):
    return Order().net() + x


def inner():
    def made():
        return 1
    return made


if __name__ == "__main__":
    raise RuntimeError("it is not run")
"""


@pytest.fixture(autouse=True)
def process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a process of its own would lose by ending."""
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "beside_the_script.py").touch()
    yield
    sys.modules.pop("beside_the_script", None)


def test_its_functions_are_those_of_a_script(tmp_path: Path) -> None:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    arguments = sys.argv
    load_script(str(path), "current")
    assert sys.argv is arguments
    assert "__mp_main__" not in sys.modules
    task = present_version("__main__", "task")
    assert task is not None
    # As a script's own: stored as code, under its name there.
    code = code_of_function(task, "task")
    assert (code.module, code.qualname) == ("__main__", "task")
    assert set(code.parts) == {"task", "Order", "Order.net"}
    # Also what comes to be later.
    assert present_version("__main__", "inner")().__module__ == "__main__"
    assert present_version("__main__", "nothing") is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import sys; sys.exit(3)", "can't be imported: SystemExit: 3"),
        ("1 / 0", "can't be imported: ZeroDivisionError"),
        ("no (python", "can't be imported: SyntaxError"),
        ("import ray_workflows as w; w.list_all()", "uses workflows when it is imported"),
        ("import ray_workflows as w; w.init()", "uses workflows when it is imported"),
    ],
)
def test_a_script_that_does_its_work_when_it_is_imported(
    tmp_path: Path, text: str, said: str
) -> None:
    path = tmp_path / "script.py"
    path.write_text(text)
    main = sys.modules["__main__"]
    with pytest.raises(click.ClickException, match=said) as caught:
        load_script(str(path), "current")
    if "workflows" in said:
        assert 'if __name__ == "__main__":' in caught.value.message
    assert sys.modules["__main__"] is main


@pytest.mark.parametrize("command", [("resume", "w"), ("fork", "w", "--from-task", "t")])
def test_it_is_for_current_code_alone(tmp_path: Path, cli: Cli, command: tuple[str, ...]) -> None:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    result = cli(*command, "--script", str(path), code=2)
    assert "--code current" in result.output
    assert "does not exist" in cli(*command, "--script", "nix.py", code=2).output
