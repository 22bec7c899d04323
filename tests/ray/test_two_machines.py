"""A workflow goes on where nothing of the first machine is left: no directory, no cluster.

Two machines are played by two directories and two clusters, one after the other.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tests.ray.processes import ROOT, DriverProcess

INIT = """
import ray, sys
from tests.ray.start import start_cluster
start_cluster(num_cpus=2, runtime_env={runtime_env})
import ray_workflows as workflow
workflow.init({storage!r})
"""

#: A script with a module beside it that it imports, one that only a task imports, and a package
#: with data.
FIRST = """
import os
import arrivals, helper
from tests.ray.marks import Gate, Marks

def extra():
    return "old function"

@ray.remote
def early(marks):
    marks.add("early")
    return helper.NAME

@ray.remote(runtime_env={{"env_vars": {{"PIE_TOKEN": "t0ken"}}}})
def held(gate, value):
    Marks({marks!r}).add("held")
    gate.wait()
    return f"{{value}} and {{os.environ['PIE_TOKEN']}}, "

@ray.remote
def nested():
    import lazy
    return [helper.NAME, lazy.NAME]

@ray.remote(runtime_env={{"env_vars": {{"TOPPING": "nuts"}}}})
def late(value, arrived):
    import lazy
    import parts.inner
    return [value, arrived, helper.NAME, lazy.NAME, parts.inner.read(), extra(),
            os.environ.get("FLAVOUR"), os.environ["TOPPING"], os.environ.get("MY_TOKEN"),
            *ray.get(nested.remote()), os.environ.get("HOOKED")]

@ray.remote
def last(value):
    import lazy
    arrived = workflow.wait_for_event(arrivals.Arrived, "gate")
    return workflow.continuation(late.bind(value + lazy.NAME, arrived))

marks = Marks({marks!r})
dag = last.options(**workflow.options(task_id="last")).bind(
    held.bind(Gate({gate!r}), early.bind(marks)))
"""

SUBMIT = """
workflow.run_async(dag, workflow_id="w")
marks.wait_for("held")
print("submitted", flush=True)
Gate("/nonexistent").wait()
"""


def write_project(directory: Path, name: str = "first", imports: str = "") -> None:
    (directory / "parts").mkdir(parents=True)
    (directory / "helper.py").write_text(f"{imports}NAME = 'helper of {name}'\n")
    (directory / "lazy.py").write_text("import colors\nNAME = colors.NAME\n")
    (directory / "colors.py").write_text(f"NAME = 'lazy of {name}'\n")
    (directory / "arrivals.py").write_text(
        "import ray_workflows\n"
        "class Arrived(ray_workflows.EventListener):\n"
        "    async def poll_for_event(self, gate):\n"
        "        import lazy\n"
        "        return f'{lazy.NAME} arrived'\n"
    )
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
        write_project(self.first, imports="import rw_installed\n" if env else "")
        with DriverProcess(self.first, self.script(code + SUBMIT, runtime_env), **env) as driver:
            driver.wait_for_text("submitted")
        shutil.rmtree(self.first)
        Path(self.names["gate"]).touch()

    def go_on(self, code: str, *, python: str = sys.executable, **env: str) -> str:
        """Run a script on the second machine; what it prints."""
        with DriverProcess(self.second, self.script(code), python=python, **env) as driver:
            return driver.wait()


@pytest.fixture
def machines(tmp_path: Path) -> Machines:
    return Machines(tmp_path)


@pytest.mark.own_cluster
def test_a_script_with_modules_beside_it_goes_on_elsewhere(machines: Machines) -> None:
    # Installed on the first machine only: below what Python takes for its packages.
    base = machines.first.parent / "base"
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    installed = base / "lib" / version / "site-packages"
    installed.mkdir(parents=True)
    (installed / "rw_installed.py").write_text("__version__ = '4.5'\n")
    machines.submit(
        # What Ray keeps of a function it keeps in the cluster.
        runtime_env="""{
            "env_vars": {"FLAVOUR": "plain", "MY_TOKEN": "s3cret"},
            "worker_process_setup_hook": lambda: __import__("os").environ.update(HOOKED="yes"),
        }""",
        PYTHONUSERBASE=str(base),
        PYTHONPATH=os.pathsep.join([str(ROOT), str(ROOT / "src"), str(installed)]),
    )
    for path in Path(machines.names["storage"]).rglob("*"):
        if path.is_file():
            stored = path.read_bytes()
            assert b"s3cret" not in stored
            assert b"t0ken" not in stored
    # Where the second coordinator is started there are modules of the same names.
    write_project(machines.second, "second")
    printed = machines.go_on(
        """
        import os
        def refused(function, *names):
            try:
                function()
            except workflow.EnvironmentMismatchError as error:
                assert len(error.differences) == len(names), error
                assert all(name in str(error) for name in names), error
                assert workflow.get_status("w") == "RESUMABLE"
            else:
                raise AssertionError("not refused")

        @ray.remote
        def other():
            return 1

        everything = ("MY_TOKEN", "PIE_TOKEN", "rw_installed 4.5")
        refused(lambda: workflow.resume("w"), *everything)
        refused(lambda: workflow.run(other.bind(), workflow_id="w"), *everything)
        refused(lambda: ray.get(workflow.run_async_many([other.bind()], workflow_ids=["w"])),
                *everything)
        refused(lambda: workflow.fork("w", from_task="last", new_id="f"), *everything)
        os.environ.update(MY_TOKEN="new", PIE_TOKEN="pie")
        refused(lambda: workflow.resume("w"), "rw_installed 4.5")
        refused(lambda: workflow.run(other.bind(), workflow_id="w"), "rw_installed 4.5")
        path = {{"env_vars": {{"PYTHONPATH": "INSTALLED"}}}}
        print(workflow.resume("w", runtime_env=path, strict=False))
        found = workflow.get_environment("w")
        assert sorted(name for name in found.modules if not name.startswith("tests/")) == [
            "arrivals.py", "colors.py", "helper.py", "lazy.py", "parts/__init__.py",
            "parts/data.txt", "parts/inner.py"], found.modules
        # What is beside this script is what it would be resumed with as it is today.
        assert [each.here for each in found.differences if each.what == "helper.py"] == ["changed"]
        assert "-NAME = 'helper of first'\\n+NAME = 'helper of second'" in (
            found.diffs["helper.py"].replace("-import rw_installed\\n", ""))
        hook = found.runtime_env["env_vars"].pop("__RAY_WORKER_PROCESS_SETUP_HOOK_ENV_VAR")
        assert hook.startswith("ray_workflows_hook_"), hook
        assert found.runtime_env["env_vars"] == {{
            "FLAVOUR": "plain", "MY_TOKEN": "<secret>", "PYTHONPATH": "INSTALLED"}}
        assert found.installed["rw_installed"] == "4.5"
        (resumed,) = found.resumed
        assert resumed.code == "recorded" and "@" in resumed.by
        """.replace("\n        ", "\n").replace("INSTALLED", str(installed))
    )
    expected = [
        "helper of first and pie, lazy of first",
        "lazy of first arrived",
        "helper of first",
        "lazy of first",
        "data of first",
        "old function",
        "plain",
        "nuts",
        "new",
        "helper of first",
        "lazy of first",
        "yes",
    ]
    assert str(expected) in printed


#: The code in a working_dir, and not on the path of the driver; a new node that joins when the
#: driver and its package are long gone.
WITH_PACKAGE = """
import ray, sys
from ray.cluster_utils import Cluster
from tests.ray.marks import Gate, Marks, wait_until
from tests.ray.start import few_processes
import ray_workflows as workflow
from ray.util.scheduling_strategies import (
    NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy)

def connect(address, working_dir):
    ray.init(address=address, log_to_driver=False, logging_level="ERROR",
             runtime_env=working_dir and {{"working_dir": working_dir}})
    workflow.init({storage!r})

@ray.remote
def early(marks):
    import packed
    marks.add("early")
    return packed.NAME

@ray.remote(num_cpus=1, resources={{"new": 1}})
def late(value):
    import os, packed
    # Python may have left there what it compiled.
    return value, packed.NAME, sorted({{*os.listdir(".")}} - {{"__pycache__"}}), packed.__file__
"""

GOES_ON = (
    WITH_PACKAGE
    + """
with few_processes():
    cluster = Cluster(initialize_head=True, head_node_args=dict(num_cpus=1))
connect(cluster.address, {project!r})
held = late.bind(early.bind(Marks({marks!r})))
ref = workflow.run_async(held, workflow_id="w")
Marks({marks!r}).wait_for("early")
packages = ray.get_runtime_context().runtime_env["working_dir"]
ray.shutdown()

import shutil
shutil.rmtree({project!r})
ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
from ray_workflows._ray.private import has_key
wait_until(lambda: not has_key(packages), "Ray has deleted the package")
with few_processes():
    node = cluster.add_node(num_cpus=1, resources={{"new": 1}})
value, name, files, where = workflow.get_output("w")
assert (value, name, files) == ("in the package", "in the package", ["packed.py"]), files
assert "working_dir_files" in where, where

# A package that went from the cluster comes back.
from ray_workflows._ray.private import delete_key
delete_key(workflow.get_environment("w").runtime_env["working_dir"])
cluster.remove_node(node)
with few_processes():
    cluster.add_node(num_cpus=1, resources={{"new": 1}})
forked = workflow.fork("w", from_task="__main__.early", new_id="f")
assert workflow.get_output("f")[0] == "in the package"
print("all right")
"""
)


@pytest.mark.own_cluster
def test_a_package_outlives_its_driver_on_a_node_that_joins_later(machines: Machines) -> None:
    project = machines.first / "packed"
    project.mkdir()
    (project / "packed.py").write_text("NAME = 'in the package'\n")
    (project / "left.out").touch()
    (project / ".gitignore").write_text("*.out\n.gitignore\n")
    machines.names["project"] = str(project)
    code = GOES_ON.format(**machines.names)
    # Long enough for a loaded machine to have the driver registered, which holds it then.
    env = {"RAY_RUNTIME_ENV_TEMPORARY_REFERENCE_EXPIRATION_S": "8"}
    with DriverProcess(machines.second, code, **env) as driver:
        assert "all right" in driver.wait(120)


UPGRADE = """
import helper
from tests.ray.marks import Gate, Marks

def extra():
    return "new function"

@ray.remote
def late(value):
    return [value, helper.NAME, extra()]

@ray.remote
def bound(value):
    return value
"""

BOUND = """
import helper
from tests.ray.marks import Gate, Marks
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

def extra():
    return "old function"

@ray.remote
def early(marks):
    marks.add("early")
    return helper.NAME

@ray.remote
def bound(value):
    return value

@ray.remote
def late(value):
    return [value, helper.NAME, extra()]

@ray.remote
def held(gate, value):
    Marks({marks!r}).add("held")
    gate.wait()
    return value

marks = Marks({marks!r})
here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
tied = bound.options(scheduling_strategy=here, **workflow.options(task_id="tied"))
dag = late.bind(tied.bind(held.bind(Gate({gate!r}), early.bind(marks))))

@ray.remote
def closed(gate):
    gate.wait()
    return "closed"

@ray.remote(runtime_env={{"pip": [{wheel!r}], "env_vars": {{"WHEEL_TOKEN": "t0ken"}}}})
def installed(value):
    import os, rw_wheel
    return [value, rw_wheel.NAME, os.environ["WHEEL_TOKEN"]]

workflow.run_async(installed.options(**workflow.options(task_id="installed")).bind(
    closed.bind(Gate({gate!r}))), workflow_id="with a wheel")
"""


def write_wheel(directory: Path) -> Path:
    """A package to be installed, with one module."""
    path = directory / "rw_wheel-1.0-py3-none-any.whl"
    about = "rw_wheel-1.0.dist-info"
    files = {
        "rw_wheel.py": "NAME = 'from a wheel'\n",
        f"{about}/METADATA": "Metadata-Version: 2.1\nName: rw-wheel\nVersion: 1.0\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{about}/RECORD"] = "".join(f"{name},,\n" for name in [*files, f"{about}/RECORD"])
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


def make_lean_python(directory: Path) -> str:
    """An environment that has all that this one has, in one line: Ray copies the environment that
    it runs in for each set of packages."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(directory)], check=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    link = directory / "lib" / version / "site-packages" / "all.pth"
    link.write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    return str(directory / "bin" / "python")


@pytest.mark.own_cluster
def test_todays_code_on_purpose_and_another_place(machines: Machines) -> None:
    # Another installation, in a place that the first machine does not have.
    python = make_lean_python(machines.second.parent / "python")
    machines.names["wheel"] = str(write_wheel(machines.second.parent))
    machines.submit(BOUND)
    write_project(machines.second, "second")
    printed = machines.go_on(
        UPGRADE
        + """
import os, warnings
try:
    workflow.run(bound.bind(1), workflow_id="with a wheel")
except workflow.EnvironmentMismatchError as error:
    assert len(error.differences) == 1 and "WHEEL_TOKEN" in str(error), error
os.environ["WHEEL_TOKEN"] = "of the second"
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    assert workflow.run(bound.bind(1), workflow_id="with a wheel") == [
        "closed", "from a wheel", "of the second"]
assert "another DAG" in str(caught[-1].message), caught
found = workflow.get_environment("with a wheel")
assert found.task_runtime_envs == {{"installed": {{
    "pip": {{"packages": [{wheel!r}], "pip_check": False}},
    "env_vars": {{"WHEEL_TOKEN": "<secret>"}}}}}}, found.task_runtime_envs
assert [(resumed.code, resumed.environment) for resumed in found.resumed] == [("recorded", False)]
try:
    workflow.resume("w", code="current")
except workflow.EnvironmentMismatchError as error:
    assert "task 'tied' is bound to the node" in str(error), error
    assert len(error.differences) == 1, error
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
try:
    workflow.resume("w", task_options={{"nix": {{}}}})
except ValueError as error:
    assert "nix" in str(error)
print(workflow.resume("w", code="current", runtime_env={{"env_vars": {{"A": "1"}}}},
                      task_options={{"tied": {{"scheduling_strategy": here}}}}))
found = workflow.get_environment("w")
(resumed,) = found.resumed
assert (resumed.code, resumed.environment, resumed.tasks) == ("current", True, ("tied",))
assert found.runtime_env["env_vars"] == {{"A": "1"}}
""",
        python=python,
    )
    assert str(["helper of first", "helper of second", "new function"]) in printed
