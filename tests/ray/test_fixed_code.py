"""Code that was mended after a task of it had failed: what runs, and what is said."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from IPython.core.interactiveshell import InteractiveShell

import ray_workflows as workflow

SCRIPT = """
import ray
import ray_workflows as workflow


def divisor(x):
    return x - 4  # the first version


@ray.remote
def first():
    return 4


@ray.remote(max_retries=0)
def divide(x):
    return 8 / divisor(x)


def dag():
    named = divide.options(**workflow.options(task_id="divide"))
    return named.bind(first.bind())


if __name__ == "__main__":
    raise RuntimeError("only tests run it")
"""

MENDED = SCRIPT.replace("import ray\n", "import ray\n\n\n\n", 1).replace(
    "x - 4  # the first version", "x - 2  # the second version"
)


class Scripts:
    """Lets this process be one that runs a script."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path = path
        self.monkeypatch = monkeypatch

    def load(self, text: str) -> Any:
        self.path.write_text(text)
        module = types.ModuleType("__main__")
        module.__file__ = str(self.path)
        self.monkeypatch.setitem(sys.modules, "__main__", module)
        guarded = text.replace('if __name__ == "__main__"', "if False")
        exec(compile(guarded, str(self.path), "exec", dont_inherit=True), module.__dict__)
        return module


@pytest.fixture
def scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scripts:
    return Scripts(tmp_path / "orders.py", monkeypatch)


def failed(call: Callable[[], Any]) -> str:
    """The text of the error of a workflow that fails."""
    with pytest.raises(workflow.WorkflowExecutionError) as caught:
        call()
    assert "code='current'" in str(caught.value)
    return str(caught.value.__cause__)


@pytest.fixture
def broken(scripts: Scripts, wid: str) -> Iterator[str]:
    """The id of a workflow of the script, which failed; the script was mended since."""
    module = scripts.load(SCRIPT)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text = failed(lambda: workflow.run(module.dag(), workflow_id=wid))
        assert "the first version" not in text  # It returned; what failed is its caller.
        # Nothing has changed.
        failed(lambda: workflow.run(module.dag(), workflow_id=wid))
        failed(lambda: workflow.resume(wid))
    return wid


DIFFERS = r"the code here differs from it: divisor \(.*orders.py:9\)"


def test_each_verb_warns_once_and_shows_the_lines_that_ran(broken: str, scripts: Scripts) -> None:
    module = scripts.load(MENDED)
    verbs = [
        lambda: workflow.run(module.dag(), workflow_id=broken),
        lambda: ray.get(workflow.run_async(module.dag(), workflow_id=broken)),
        lambda: workflow.resume(broken),
        lambda: ray.get(workflow.resume_async(broken)),
    ]
    for verb in verbs:
        with pytest.warns(UserWarning, match=DIFFERS) as caught:
            text = failed(verb)
        (warning,) = caught
        assert warning.filename == __file__
        assert "return 8 / divisor(x)" in text
    with pytest.warns(UserWarning, match=f"{DIFFERS}.*fork") as caught:
        fork = workflow.fork(broken, "divide")
    (warning,) = caught
    assert warning.filename == __file__
    with pytest.raises((ValueError, workflow.WorkflowExecutionError), match="ZeroDivision"):
        workflow.get_output(fork)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fork = workflow.fork(broken, "divide", code="current")
        assert workflow.get_output(fork) == 4.0
        assert workflow.get_status(broken) == workflow.FAILED
        assert workflow.resume(broken, code="current") == 4.0


def test_the_shell_takes_the_functions_of_a_script(
    broken: str, scripts: Scripts, tmp_path: Path
) -> None:
    scripts.path.write_text(MENDED)

    def shell(*args: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "ray_workflows.cli", *args],
            env={**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == code, done.stderr
        return done

    said = shell("resume", broken, code=1).stderr
    assert f"differs from it: divisor ({scripts.path})" in said
    assert f"--code current --script {scripts.path}" in said
    assert "no script with divide" in shell("resume", broken, "--code", "current", code=1).stderr
    script = ("--code", "current", "--script", "orders.py")
    created = shell("fork", broken, "--from-task", "divide", *script).stdout.strip()
    assert workflow.get_output(created) == 4.0
    assert shell("resume", broken, *script).stdout == "4.0\n"


def test_an_edited_cell_of_a_notebook(wid: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    shell = InteractiveShell()
    monkeypatch.setattr(shell, "showtraceback", lambda *args, **kwargs: None)

    def cell(text: str) -> Any:
        done = shell.run_cell(text)
        if not done.success:
            raise done.error_before_exec or done.error_in_exec
        return done.result

    tasks = SCRIPT.partition("if __name__")[0]
    cell(tasks)
    run = f"workflow.run(dag(), workflow_id={wid!r})"
    text = failed(lambda: cell(run))
    assert "return 8 / divisor(x)" in text
    cell(tasks.replace("x - 4", "x - 3"))
    with pytest.warns(UserWarning, match="differs from it: divisor"):
        failed(lambda: cell(run))
    assert cell(f"workflow.resume({wid!r}, code='current')") == 8.0


MODULE = """
import ray


@ray.remote
def half(x):
    return x // 0


@ray.remote
def whole(x):
    return 2 * x
"""


def test_the_functions_of_a_module_are_replaced_too(
    wid: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def imported(text: str) -> Any:
        (tmp_path / "halves.py").write_text(text)
        sys.modules.pop("halves", None)
        importlib.invalidate_caches()
        return importlib.import_module("halves")

    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    halves = imported(MODULE)
    failed(lambda: workflow.run(halves.whole.bind(halves.half.bind(8)), workflow_id=wid))
    imported(MODULE.replace("x // 0", "x // 2").replace("2 * x", "3 * x"))
    assert workflow.resume(wid, code="current") == 12
    # Also one that is not imported yet, as in a command of the shell.
    other = f"{wid}-2"
    halves = imported(MODULE)
    failed(lambda: workflow.run(halves.half.bind(8), workflow_id=other))
    imported(MODULE.replace("x // 0", "x // 4"))
    del sys.modules["halves"]
    assert workflow.resume(other, code="current") == 2
