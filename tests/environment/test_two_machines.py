"""A workflow goes on where nothing of the first machine is left: no directory, no cluster.

Two machines are played by two directories and two clusters, one after the other.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.ray.processes import DriverProcess

INIT = """
import ray, sys
ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False,
         logging_level="ERROR", _node_ip_address="127.0.0.1", runtime_env={runtime_env})
import ray_workflows as workflow
workflow.init({storage!r})
"""

#: A script with a module beside it that it imports, one that only a task imports, and a package
#: with data.
FIRST = """
import os
import helper
from tests.ray.marks import Gate, Marks

def extra():
    return "old function"

@ray.remote
def early(marks):
    marks.add("early")
    return helper.NAME

@ray.remote(runtime_env={{"env_vars": {{"PIE_TOKEN": "t0ken"}}}})
def held(gate, value):
    gate.wait()
    return f"{{value}} and {{os.environ['PIE_TOKEN']}}, "

@ray.remote(runtime_env={{"env_vars": {{"TOPPING": "nuts"}}}})
def late(value):
    import lazy
    import parts.inner
    return [value, helper.NAME, lazy.NAME, parts.inner.read(), extra(), os.environ.get("FLAVOUR"),
            os.environ["TOPPING"], os.environ.get("MY_TOKEN")]

@ray.remote
def last(value):
    import lazy
    return workflow.continuation(late.bind(value + lazy.NAME))

marks = Marks({marks!r})
dag = last.options(**workflow.options(task_id="last")).bind(
    held.bind(Gate({gate!r}), early.bind(marks)))
"""

SUBMIT = """
workflow.run_async(dag, workflow_id="w")
marks.wait_for("early")
print("submitted", flush=True)
Gate("/nonexistent").wait()
"""


def write_project(directory: Path, name: str = "first") -> None:
    (directory / "parts").mkdir(parents=True)
    (directory / "helper.py").write_text(f"NAME = 'helper of {name}'\n")
    (directory / "lazy.py").write_text("import colors\nNAME = colors.NAME\n")
    (directory / "colors.py").write_text(f"NAME = 'lazy of {name}'\n")
    (directory / "parts" / "__init__.py").touch()
    (directory / "parts" / "data.txt").write_text(f"data of {name}")
    (directory / "parts" / "inner.py").write_text(
        "from pathlib import Path\n"
        "def read():\n    return Path(__file__).with_name('data.txt').read_text()\n"
    )


class Machines:
    """Directories of two machines, and a storage that both reach."""

    def __init__(self, directory: Path) -> None:
        self.first = directory / "first" / "project"
        self.second = directory / "second" / "project"
        self.first.mkdir(parents=True)
        self.second.mkdir(parents=True)
        self.names = {
            "storage": str(directory / "storage"),
            "marks": str(directory / "marks"),
            "gate": str(directory / "gate"),
        }

    def script(self, code: str, runtime_env: str = "None") -> str:
        return (INIT + code).format(runtime_env=runtime_env, **self.names)

    def submit(self, code: str = FIRST, runtime_env: str = "None", **env: str) -> None:
        """Submit a workflow on the first machine, and lose all of it."""
        write_project(self.first)
        with DriverProcess(self.first, self.script(code + SUBMIT, runtime_env), **env) as driver:
            driver.wait_for_text("submitted")
        shutil.rmtree(self.first)
        Path(self.names["gate"]).touch()

    def go_on(self, code: str, **env: str) -> str:
        """Run a script on the second machine; what it prints."""
        with DriverProcess(self.second, self.script(code), **env) as driver:
            return driver.wait()


@pytest.fixture
def machines(tmp_path: Path) -> Machines:
    return Machines(tmp_path)


def test_a_script_with_modules_beside_it_goes_on_elsewhere(machines: Machines) -> None:
    machines.submit(runtime_env='{"env_vars": {"FLAVOUR": "plain", "MY_TOKEN": "s3cret"}}')
    for path in Path(machines.names["storage"]).rglob("*"):
        if path.is_file():
            stored = path.read_bytes()
            assert b"s3cret" not in stored
            assert b"t0ken" not in stored
    printed = machines.go_on(
        """
        import os
        try:
            workflow.resume("w")
        except workflow.EnvironmentMismatchError as error:
            assert "MY_TOKEN" in str(error) and "PIE_TOKEN" in str(error), error
        assert workflow.get_status("w") == "RESUMABLE"
        os.environ.update(MY_TOKEN="new", PIE_TOKEN="pie")
        print(workflow.resume("w"))
        found = workflow.get_environment("w")
        assert sorted(name for name in found.modules if not name.startswith("tests/")) == [
            "colors.py", "helper.py", "lazy.py", "parts/__init__.py", "parts/data.txt",
            "parts/inner.py"], found.modules
        assert found.runtime_env["env_vars"] == {{"FLAVOUR": "plain", "MY_TOKEN": "<secret>"}}
        (resumed,) = found.resumed
        assert resumed.code == "recorded" and "@" in resumed.by
        """.replace("\n        ", "\n")
    )
    expected = [
        "helper of first and pie, lazy of first",
        "helper of first",
        "lazy of first",
        "data of first",
        "old function",
        "plain",
        "nuts",
        "new",
    ]
    assert str(expected) in printed
