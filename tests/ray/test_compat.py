"""Applications written for ray.workflow, unedited, on real clusters and under real SIGKILL."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import ray

from ray_workflows import compat
from tests.ray.marks import Marks
from tests.ray.processes import OWN_CODE, DriverProcess

APPLICATION = Path(__file__).parent / "unedited" / "application.py"

#: Becomes what a user would start: the same process, with its own way to begin.
EXEC = """
    import os, sys
    os.execv(sys.executable, [sys.executable, "-m", "ray_workflows.compat", *{arguments!r}])
"""


def told(text: str) -> dict[str, str]:
    """What the application printed, by its labels."""
    lines = [line.partition(": ") for line in text.splitlines()]
    return {label: rest for label, colon, rest in lines if colon}


@pytest.mark.own_cluster
def test_an_unedited_application_is_killed_and_goes_on(tmp_path: Path) -> None:
    event, marks = tmp_path / "event", Marks(str(tmp_path / "marks"))
    arguments = [str(APPLICATION), (tmp_path / "store").as_uri(), str(event), marks.directory]
    code = EXEC.format(arguments=arguments)
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    with DriverProcess(tmp_path / "1", code, **OWN_CODE) as driver:
        driver.wait_for_text("run by an actor")
        for name in ("polled", "loop-2", "loop-1"):
            marks.wait_for(name)
        driver.kill_all()
    first = told(driver.text())
    assert first["before"] == "None"
    assert first["resume"] == "Workflow[id=nobody] is not resumable: it doesn't exist"
    assert first["caught"] == "True"
    assert first["in a task"] == first["in an actor"] == "RUNNING"
    assert first["run by an actor"] == "['another/steplib.step']"
    assert (tmp_path / "store" / "workflows.sqlite").exists()

    event.write_text("granted")
    with DriverProcess(tmp_path / "2", code, **OWN_CODE) as driver:
        second = told(driver.wait())
    assert second["before"] == "RESUMABLE"
    tasks = ["main/first", "main/loop-2", "main/loop-1"]
    assert second["result"] == repr(("granted", tasks))
    assert second["listed"] == "['another', 'main']"
    assert not event.exists()
    assert marks.counts() == {"another": 1, "first": 1, "loop-1": 1, "loop-2": 1, "polled": 2}


DRIVER = """
    from ray_workflows import compat
    compat.install()
    import json, os, sys, ray
    from ray import workflow

    def hook():
        # Before ours, this would be an error.
        import ray.workflow.common
        os.environ["HOOKED"] = ray.workflow.common.WorkflowStatus.FAILED.value

    os.environ["RAY_JOB_CONFIG_JSON_ENV_VAR"] = json.dumps(
        {{"runtime_env": {{"env_vars": {{"OF_THE_JOB": "j"}}}}, "metadata": {{}}}}
    )
    from tests.ray.start import few_processes
    with few_processes():
        ray.init("local", storage={storage!r}, num_cpus=2, include_dashboard=False,
                 log_to_driver=False, _node_ip_address="127.0.0.1",
                 runtime_env={{"worker_process_setup_hook": hook, "env_vars": {{"MINE": "m"}}}})

    @ray.remote
    def look(*previous):
        import ray.workflow
        from ray.workflow.exceptions import WorkflowError
        return [os.environ[name] for name in ("OF_THE_JOB", "MINE", "HOOKED")]

    @ray.remote
    def submit():
        from ray import workflow
        return workflow.run(look.bind())

    own = look.options(runtime_env={{"env_vars": {{"MINE": "own"}}}})
    print("plain:", ray.get(look.remote()), flush=True)
    # The first that needs workflows is a task: it finds the storage of the driver.
    print("submitted by a task:", ray.get(submit.remote()), flush=True)
    print("in a workflow:", workflow.run(look.bind()), flush=True)
    print("with its own:", ray.get(own.remote()), workflow.run(own.bind()), flush=True)
    print("sleeps:", workflow.run(look.bind(workflow.sleep(0))), flush=True)
"""


@pytest.mark.own_cluster
def test_workers_have_the_users_runtime_env_too(tmp_path: Path) -> None:
    code = DRIVER.format(storage=str(tmp_path / "store"))
    with DriverProcess(tmp_path, code, RAY_WORKFLOW_STORAGE=str(tmp_path / "other")) as driver:
        found = told(driver.wait())
    usual, own = ["j", "m", "FAILED"], ["j", "own", "FAILED"]
    assert found["plain"] == found["submitted by a task"] == repr(usual)
    assert found["in a workflow"] == found["sleeps"] == repr(usual)
    assert found["with its own"] == f"{own} {own}"
    assert (tmp_path / "store").exists()
    assert not (tmp_path / "other").exists()


LATE = """
    import warnings, ray
    from ray_workflows import compat

    ray.init(address={address!r}, log_to_driver=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        compat.install()
        compat.install()
    print("warned:", [str(w.message)[:58] for w in caught], flush=True)
    from ray import workflow

    @ray.remote
    def look():
        from ray.workflow.common import WorkflowStatus
        return WorkflowStatus.FAILED.value

    print("workflow:", workflow.run(look.bind()), flush=True)
    try:
        ray.get(look.remote())
    except Exception as error:
        print("plain:", type(error.cause).__name__, flush=True)
"""


def test_installed_after_ray_was_started(tmp_path: Path) -> None:
    address = ray.get_runtime_context().gcs_address
    with DriverProcess(tmp_path, LATE.format(address=address)) as driver:
        found = told(driver.wait())
    warning = "ray_workflows.compat.install() was called after ray.init()"
    assert found["warned"] == repr([warning] * 2)
    assert found["workflow"] == "FAILED"
    assert found["plain"] in ("RuntimeError", "ModuleNotFoundError")


def test_two_storages_on_one_cluster_are_refused(tmp_path: Path) -> None:
    address = ray.get_runtime_context().gcs_address
    code = f"""
        from ray_workflows import compat
        compat.install()
        import ray
        from ray import workflow
        ray.init({address!r}, storage={str(tmp_path / "other")!r}, log_to_driver=False)
        try:
            workflow.list_all()
        except ValueError as error:
            print("error:", error, flush=True)
    """
    with DriverProcess(tmp_path, code) as driver:
        assert "One cluster has one storage" in told(driver.wait())["error"]


@pytest.fixture
def uninstalled() -> None:
    yield
    compat.uninstall()


def test_tasks_may_install_it_themselves(uninstalled: None) -> None:
    @ray.remote
    def task():
        import warnings

        from ray_workflows import compat

        with warnings.catch_warnings():
            warnings.simplefilter("error")
            compat.install()
        from ray import workflow

        return workflow.__name__

    assert ray.get(task.remote()) == "ray_workflows"
    assert "ray.workflow" not in sys.modules
