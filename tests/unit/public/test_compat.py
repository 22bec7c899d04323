"""`compat` without a cluster: imports, the arguments of ray.init, the runtime_env of workers."""

from __future__ import annotations

import importlib
import inspect
import json
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.job_config import JobConfig
from ray.runtime_env import RuntimeEnv

import ray_workflows
from ray_workflows import compat
from ray_workflows._client import connection
from ray_workflows.compat import ray_init, workers
from ray_workflows.exceptions import StorageConfigError

SUBMODULES = ["api", "common", "event_listener", "exceptions", "workflow_context"]


@pytest.fixture
def connected() -> list[dict]:
    """The arguments of every ray.init that would have connected."""
    return []


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, connected: list[dict]) -> Iterator[None]:
    """Installed, and Ray connects to nothing: only what would be given to it is looked at."""

    def init(address=None, **kwargs):
        job = json.loads(workers.os.environ.get(workers.JOB_VARIABLE, "null"))
        connected.append({"address": address, "job": job, **kwargs})

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    compat.install()
    yield
    compat.uninstall()


# -- imports -------------------------------------------------------------------------------


def test_without_it_ray_workflow_is_an_error() -> None:
    """When this fails, Ray has become kinder, and `compat` may have less to do."""
    assert "ray.workflow" not in sys.modules
    with pytest.raises((RuntimeError, ImportError)):
        importlib.import_module("ray.workflow")


def test_the_old_name_is_the_same_module(installed: None) -> None:
    import ray.workflow
    from ray import workflow

    assert workflow is ray.workflow is ray_workflows


@pytest.mark.parametrize("name", SUBMODULES)
def test_submodules_are_the_same_modules(installed: None, name: str) -> None:
    module = importlib.import_module(f"ray.workflow.{name}")
    assert module is importlib.import_module(f"ray_workflows.{name}")
    assert module is getattr(ray.workflow, name)
    assert module.__name__ == f"ray_workflows.{name}"
    assert module.__spec__.name == f"ray_workflows.{name}"


def test_everything_that_was_imported_from_the_api_is_there(installed: None) -> None:
    from ray.workflow.api import (  # noqa: F401
        cancel,
        continuation,
        delete,
        get_metadata,
        get_output,
        init,
        list_all,
        options,
        resume,
        run,
        sleep,
        wait_for_event,
    )


def test_what_was_internal_is_named(installed: None) -> None:
    with pytest.raises(ModuleNotFoundError, match=r"internal to ray\.workflow") as raised:
        importlib.import_module("ray.workflow.workflow_access")
    assert raised.value.name == "ray.workflow.workflow_access"
    # Not this package's own module of that name, which is something else.
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("ray.workflow.storage")


def test_classes_pickle_by_the_name_that_needs_no_alias(installed: None) -> None:
    from ray.workflow.event_listener import EventListener

    assert b"ray_workflows" in pickle.dumps(EventListener)


def test_install_twice_and_uninstall_leave_nothing() -> None:
    before = (ray.init, list(sys.meta_path), dict(workers.capture.process_env_vars))
    compat.install()
    compat.install()
    wrapped = ray.init
    assert wrapped is not before[0]
    assert inspect.signature(wrapped) == inspect.signature(before[0])
    compat.uninstall()
    compat.uninstall()
    assert (ray.init, sys.meta_path, workers.capture.process_env_vars) == before
    assert "workflow" not in vars(ray)
    assert not [name for name in sys.modules if name.startswith("ray.workflow")]
    test_without_it_ray_workflow_is_an_error()


# -- ray.init ------------------------------------------------------------------------------


def test_storage_becomes_the_default(installed: None, connected: list, tmp_path: Path) -> None:
    ray.init("auto", storage=str(tmp_path), num_cpus=3)
    assert connection.default_storage.url == tmp_path.as_uri()
    (given,) = connected
    assert "storage" not in given
    assert (given["address"], given["num_cpus"]) == ("auto", 3)


def test_storage_as_url(installed: None, tmp_path: Path) -> None:
    ray.init(storage=tmp_path.as_uri())
    assert connection.default_storage.url == tmp_path.as_uri()


def test_a_ray_client_leaves_paths_to_the_cluster(
    installed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_init.ray_client, "is_connected", lambda: True)
    ray.init("ray://somewhere:10001", storage="~/workflows")
    assert connection.default_storage == "~/workflows"


@pytest.mark.parametrize("storage", ["gopher://bucket/x", "custom://module.filesystem/x"])
def test_storage_of_other_kinds(installed: None, connected: list, storage: str) -> None:
    with pytest.raises(StorageConfigError, match="Supported are"):
        ray.init(storage=storage)
    assert not connected


def test_another_ray_init_forgets_the_storage(installed: None, tmp_path: Path) -> None:
    ray.init(storage=tmp_path)
    ray.init(storage="")
    assert connection.default_storage is None


def test_the_old_variable(
    installed: None, connected: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_WORKFLOW_STORAGE", raising=False)
    monkeypatch.setenv("RAY_STORAGE", "gopher://for/others")
    ray.init()
    # Looked at when workflows are used: it may be there for another library.
    assert connection.default_storage == "gopher://for/others"
    monkeypatch.setenv("RAY_WORKFLOW_STORAGE", "/somewhere")
    ray.init()
    assert connection.default_storage is None


def test_a_connected_ray_decides_itself(
    installed: None, connected: list, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    ray.init(storage=tmp_path, ignore_reinit_error=True)
    assert connected == [{"address": None, "job": None, "ignore_reinit_error": True}]
    assert connection.default_storage is None


def test_a_failed_ray_init_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**kwargs):
        raise ConnectionError("no cluster")

    monkeypatch.setattr(ray, "init", fail)
    compat.install()
    try:
        with pytest.raises(ConnectionError):
            ray.init(storage=tmp_path)
        assert connection.default_storage is None
    finally:
        compat.uninstall()


# -- the runtime_env of workers ------------------------------------------------------------


def parcel(given: dict) -> dict:
    return json.loads(given["runtime_env"]["env_vars"].get(workers.PARCEL_VARIABLE, "{}"))


def test_workers_are_told(installed: None, connected: list, tmp_path: Path) -> None:
    ray.init(storage=tmp_path)
    env_vars = connected[0]["runtime_env"]["env_vars"]
    assert env_vars[workers.HOOK_VARIABLE] == "ray_workflows.compat.set_up_worker"
    assert parcel(connected[0]) == {"storage": tmp_path.as_uri()}


@pytest.mark.parametrize("kind", [dict, RuntimeEnv])
def test_a_runtime_env_is_added_to(installed: None, connected: list, kind: type) -> None:
    mine = kind(env_vars={"A": "b"}, pip=["six"])
    copy = json.loads(json.dumps(mine))
    ray.init(runtime_env=mine)
    runtime_env = connected[0]["runtime_env"]
    assert runtime_env["env_vars"].items() > {"A": "b"}.items()
    assert runtime_env["pip"] == mine["pip"]
    assert json.loads(json.dumps(mine)) == copy
    RuntimeEnv(**runtime_env)  # Ray accepts it.


def test_a_job_config_is_added_to(installed: None, connected: list) -> None:
    ray.init(job_config=JobConfig(runtime_env={"env_vars": {"A": "b"}}))
    assert connected[0]["runtime_env"]["env_vars"]["A"] == "b"


def test_images_can_be_combined_with_it(installed: None, connected: list) -> None:
    """Ray refuses a worker_process_setup_hook beside an image."""
    ray.init(runtime_env={"image_uri": "repo/image"})
    RuntimeEnv(**connected[0]["runtime_env"])


@pytest.mark.parametrize("bad", [5, {"env_vars": ["A"]}])
def test_a_bad_runtime_env_is_left_to_ray(installed: None, connected: list, bad: object) -> None:
    ray.init(runtime_env=bad)
    assert connected[0]["runtime_env"] == bad


called: list[str] = []


def hook() -> None:
    called.append("hook")


@pytest.mark.parametrize(
    "given",
    # By value, it has to find this module itself.
    [
        hook,
        f"{__name__}.hook",
        lambda: importlib.import_module("tests.unit.public.test_compat").hook(),
    ],
)
def test_a_hook_of_the_users_rides_along(
    installed: None, connected: list, monkeypatch: pytest.MonkeyPatch, given: object
) -> None:
    ray.init(runtime_env={"worker_process_setup_hook": given})
    assert "worker_process_setup_hook" not in connected[0]["runtime_env"]
    for name, value in connected[0]["runtime_env"]["env_vars"].items():
        monkeypatch.setenv(name, value)
    called.clear()
    compat.set_up_worker()
    assert called == ["hook"]


def test_hooks_that_can_not_travel(installed: None, connected: list) -> None:
    large = bytes(200_000)
    with pytest.raises(ValueError, match=r"module\.hook"):
        ray.init(runtime_env={"worker_process_setup_hook": lambda: large})
    with pytest.raises(TypeError, match="not int"):
        ray.init(runtime_env={"worker_process_setup_hook": 5})
    assert not connected


def submitted(monkeypatch: pytest.MonkeyPatch, runtime_env: dict) -> None:
    text = json.dumps({"runtime_env": runtime_env, "metadata": {"job": "1"}})
    monkeypatch.setenv(workers.JOB_VARIABLE, text)


def test_a_submitted_job_keeps_its_runtime_env(
    installed: None, connected: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime_env = {"env_vars": {"A": "b"}, "worker_process_setup_hook": "jobs.hook"}
    submitted(monkeypatch, runtime_env)
    before = workers.os.environ[workers.JOB_VARIABLE]
    ray.init()
    # Ray merges the two, and refuses what is in both.
    assert connected[0]["job"] == {
        "runtime_env": {"env_vars": {"A": "b"}},
        "metadata": {"job": "1"},
    }
    assert "A" not in connected[0]["runtime_env"]["env_vars"]
    assert parcel(connected[0]) == {"call": "jobs.hook"}
    assert workers.os.environ[workers.JOB_VARIABLE] == before


def test_two_hooks_are_refused(installed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    submitted(monkeypatch, {"worker_process_setup_hook": "jobs.hook"})
    with pytest.raises(ValueError, match=r"jobs\.hook"):
        ray.init(runtime_env={"worker_process_setup_hook": "other.hook"})


def test_the_storage_of_a_worker(installed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_WORKFLOW_STORAGE", "/before")
    monkeypatch.setenv(workers.PARCEL_VARIABLE, '{"storage": "file:///of/the/driver"}')
    compat.set_up_worker()
    assert workers.os.environ["RAY_WORKFLOW_STORAGE"] == "file:///of/the/driver"
    assert ray_init.original is not None


def test_the_example_runs() -> None:
    code = """
import doctest, ray_workflows.compat
found = doctest.testmod(ray_workflows.compat)
assert found.attempted and not found.failed
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


# -- python -m ray_workflows.compat --------------------------------------------------------


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a program run in this process may change."""
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    yield
    compat.uninstall()


PROGRAM = """
import sys
from ray import workflow
import beside
assert __name__ == "__main__" and sys.modules["__main__"].beside is beside
print(sys.argv, workflow.__name__, beside.NAME)
"""


@pytest.mark.parametrize("way", ["script", "module"])
def test_programs_are_run(
    process: None, way: str, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray_workflows.compat.__main__ import main

    (tmp_path / f"program_{way}.py").write_text(PROGRAM)
    (tmp_path / "beside.py").write_text("NAME = 'beside'")
    monkeypatch.delitem(sys.modules, "beside", raising=False)
    path = str(tmp_path / f"program_{way}.py")
    if way == "script":
        main([path, "--flag", "x"])
    else:
        monkeypatch.chdir(tmp_path)
        main(["-m", f"program_{way}", "--flag", "x"])
    assert capsys.readouterr().out == f"{[path, '--flag', 'x']} ray_workflows beside\n"


@pytest.mark.parametrize(("arguments", "code"), [([], 2), (["-m"], 2), (["--help"], 0)])
def test_usage(arguments: list[str], code: int, capsys) -> None:
    from ray_workflows.compat.__main__ import main

    with pytest.raises(SystemExit) as raised:
        main(arguments)
    assert raised.value.code == code
    out, err = capsys.readouterr()
    assert "usage:" in (err if code else out)
