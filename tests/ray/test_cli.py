"""The commands that act, on the shared cluster; and a laptop that rebooted."""

from __future__ import annotations

import datetime
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ray
from click.testing import CliRunner, Result

import ray_workflows as workflow
from ray_workflows.cli.main import main
from ray_workflows.storage import SqliteStorage
from tests.ray.marks import Gate, Marks, wait_until
from tests.ray.processes import DriverProcess


@ray.remote
def one():
    return 1


@ray.remote(max_retries=0)
def picky(marks: Marks, gate: Gate, value):
    """Fails until the gate is open."""
    marks.add("picky")
    if not os.path.exists(gate.path):
        raise ValueError("not yet")
    return {"value": value}


@ray.remote
def held(marks: Marks, gate: Gate):
    marks.add("held")
    gate.wait()
    return "held"


@ray.remote
def both(a, b):
    return [a, b]


def cli(*args: str, code: int = 0) -> Result:
    result = CliRunner().invoke(main, args)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def test_resume_prints_the_output(wid: str, marks: Marks, gate: Gate) -> None:
    with pytest.raises(workflow.WorkflowExecutionError):
        workflow.run(picky.bind(marks, gate, one.bind()), workflow_id=wid)
    error = cli("resume", wid, code=1).stderr
    assert "not yet" in error
    assert f"ray-workflows resume {wid}" in error
    assert marks.count("picky") == 2
    gate.open()
    assert cli("resume", wid).stdout == "{'value': 1}\n"
    # It has finished: nothing runs.
    assert json.loads(cli("resume", wid, "--json").stdout) == {"value": 1}
    assert marks.count("picky") == 3


def test_resume_without_waiting(wid: str, marks: Marks, gate: Gate) -> None:
    workflow.run_async(held.bind(marks, gate), workflow_id=wid)
    marks.wait_for("held")
    assert cli("cancel", wid).stdout == f"Canceled {wid}.\n"
    assert workflow.get_status(wid) == workflow.CANCELED
    error = cli("resume", wid, code=1).stderr
    assert f"ray-workflows resume --canceled {wid}" in error
    result = cli("resume", "--canceled", "--no-wait", wid)
    assert result.stdout == ""
    assert f"ray-workflows show {wid}" in result.stderr
    marks.wait_for("held", 2)
    assert "running or pending already" in cli("resume", wid, code=1).stderr
    gate.open()
    assert workflow.get_output(wid) == "held"


def test_signals(wid: str) -> None:
    waits = [workflow.wait_for_signal("approved"), workflow.wait_for_signal("paid")]
    ref = workflow.run_async(both.bind(*waits), workflow_id=wid)
    value = json.dumps({"by": "Ada"})
    for _ in range(2):
        result = cli("signal", wid, "approved", "--value", value, "--signal-id", "1")
        assert result.stdout == f"Sent approved to {wid}.\n"
    done = json.loads(cli("signal", wid, "paid", "--json").stdout)
    assert done == {"workflow_id": wid, "name": "paid", "sent": True}
    assert ray.get(ref) == [{"by": "Ada"}, None]
    assert "SUCCESSFUL: it takes no signals" in cli("signal", wid, "paid", code=1).stderr
    workflow.cancel(wid)
    error = cli("signal", wid, "paid", code=1).stderr
    assert f"ray-workflows resume --canceled --no-wait {wid}" in error
    assert "'Ada' is not JSON" in cli("signal", wid, "paid", "--value", "Ada", code=2).stderr
    assert "is empty" in cli("signal", wid, "", code=2).stderr
    assert "control character" in cli("signal", wid, "p", "--signal-id", "\n", code=2).stderr


def test_unknown_ids(storage_dir: Path) -> None:
    for verb in (["resume"], ["cancel"], ["signal"]):
        more = ["approved"] if verb == ["signal"] else []
        error = cli(*verb, "nobody", *more, code=1).stderr
        assert f"There is no workflow 'nobody' in {SqliteStorage(storage_dir).url}" in error


def test_another_storage_than_that_of_the_cluster(tmp_path: Path, wid: str) -> None:
    workflow.run(one.bind(), workflow_id=wid)
    SqliteStorage(tmp_path / "other").open()
    error = cli("cancel", "--storage", str(tmp_path / "other"), wid, code=1).stderr
    assert "The workflows of this cluster are in file://" in error
    assert "leave --local out" in cli("resume", "--local", wid, code=1).stderr


def test_reads_look_where_commands_that_act_look(
    storage_dir: Path, wid: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the storage of the running cluster, if the environment names none."""
    monkeypatch.delenv("RAY_WORKFLOW_STORAGE", raising=False)
    workflow.run(one.bind(), workflow_id=wid)
    assert json.loads(cli("show", "--json", wid).stdout)["status"] == "SUCCESSFUL"
    assert wid in cli("list", "--all").stdout
    assert cli("output", wid).stdout == "1\n"
    assert cli("env", wid).stdout
    error = cli("show", "nobody", code=1).stderr
    assert f"in {SqliteStorage(storage_dir).url}" in error
    assert "It is that of the running cluster" in error
    SqliteStorage(tmp_path / "other").open()
    monkeypatch.setenv("RAY_WORKFLOW_STORAGE", str(tmp_path / "other"))
    assert wid not in cli("list", "--all").stdout
    assert "unset $RAY_WORKFLOW_STORAGE" in cli("cancel", wid, code=1).stderr


def test_reads_see_the_running_one(storage_dir: Path, wid: str, marks: Marks, gate: Gate) -> None:
    ref = workflow.run_async(both.bind(one.bind(), held.bind(marks, gate)), workflow_id=wid)
    marks.wait_for("held")
    where = ("--storage", str(storage_dir))
    found = json.loads(cli("show", "--json", *where, wid).stdout)
    assert found["status"] == "RUNNING"
    assert "not there yet" in cli("output", *where, wid, code=1).stderr
    listed = json.loads(cli("list", "--json", "--limit", "1", *where).stdout)
    assert [row["workflow_id"] for row in listed] == [wid]
    assert "cancel" in cli("delete", *where, wid, code=1).stderr
    gate.open()
    assert ray.get(ref) == [1, "held"]
    assert cli("output", *where, wid).stdout == "[1, 'held']\n"


def test_object_refs_are_shown_as_their_values(storage_dir: Path, wid: str) -> None:
    @ray.remote
    def refs():
        inner = ray.put({"deep": 1})
        return {"refs": [inner, ray.put([inner])], "same": inner}

    workflow.run(refs.bind(), workflow_id=wid)
    found = json.loads(cli("output", "--json", "--storage", str(storage_dir), wid).stdout)
    assert found == {"refs": [{"deep": 1}, [{"deep": 1}]], "same": {"deep": 1}}


def test_delete_of_one_whose_siblings_still_run(wid: str, marks: Marks, gate: Gate) -> None:
    """It has failed and is still in the coordinator's hands. Its id is free at once."""
    never = Gate(gate.path + "-never")
    dag = both.bind(held.bind(marks, gate), picky.bind(marks, never, 1))
    ref = workflow.run_async(dag, workflow_id=wid)
    marks.wait_for("held")
    with pytest.raises(workflow.WorkflowExecutionError):
        ray.get(ref)
    assert "Deleted" in cli("delete", wid).stdout
    with pytest.raises(workflow.WorkflowNotFoundError):
        workflow.get_status(wid)
    assert workflow.run(one.bind(), workflow_id=wid) == 1
    gate.open()
    # The old one's task reports to nobody.
    assert workflow.get_status(wid) == workflow.SUCCESSFUL
    assert [task.task_id for task in workflow.get_tasks(wid)] == [f"{__name__}.one"]


def test_prune(wid: str, marks: Marks, gate: Gate) -> None:
    ids = [f"{wid}-{number}" for number in range(3)]
    for workflow_id in ids:
        workflow.run_async(held.bind(marks, gate), workflow_id=workflow_id)
        workflow.cancel(workflow_id)
    hour = datetime.timedelta(hours=1)
    assert not set(ids) & set(workflow.prune(older_than=hour, statuses="CANCELED"))
    assert not set(ids) & set(workflow.prune(0, {workflow.CANCELED}, keep=3))
    deleted = workflow.prune(older_than=0, statuses={"CANCELED"}, keep=1)
    assert set(deleted) & set(ids) == set(ids[:2])
    assert cli("prune", "--older-than", "0s", "--status", "CANCELED", "--yes").stdout
    assert not set(ids) & {workflow_id for workflow_id, _ in workflow.list_all()}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("30d",), TypeError, "seconds or a timedelta, not str"),
        ((None,), TypeError, "not NoneType"),
        ((True,), TypeError, "not bool"),
        ((-1,), ValueError, "non-negative"),
        ((float("nan"),), ValueError, "non-negative"),
        ((float("inf"),), ValueError, "non-negative"),
        ((datetime.timedelta(days=-1),), ValueError, "non-negative"),
        ((0, "RUNNING"), ValueError, "RUNNING.* can't be pruned"),
        ((0, {"PENDING", "FAILED"}), ValueError, "PENDING.* can't be pruned"),
        ((0, set()), ValueError, "can't be pruned"),
        ((0, "DONE"), ValueError, "DONE"),
        ((0, ["FAILED"]), TypeError, "not list"),
        ((0, None, -1), ValueError, "keep"),
        ((0, None, 1.0), TypeError, "keep"),
    ],
)
def test_bad_input_of_prune(
    arguments: tuple[Any, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        workflow.prune(*arguments)


def test_doctor_looks_at_the_cluster(storage_dir: Path) -> None:
    found = json.loads(cli("doctor", "--json", "--storage", str(storage_dir)).stdout)
    assert found["ok"] is True
    levels = {check["name"]: check["level"] for check in found["checks"]}
    assert levels["cluster"] == levels["coordinator"] == levels["storage"] == "ok"


def test_fork(wid: str, marks: Marks, gate: Gate) -> None:
    with pytest.raises(workflow.WorkflowExecutionError):
        workflow.run(picky.bind(marks, gate, one.bind()), workflow_id=wid)
    gate.open()
    task = f"{__name__}.picky"
    assert cli("fork", "--from-task", task, "--new-id", f"{wid}-new", wid).stdout == f"{wid}-new\n"
    assert workflow.get_output(f"{wid}-new") == {"value": 1}
    assert workflow.get_status(wid) == workflow.FAILED
    created = json.loads(cli("fork", "--json", "--from-task", task, wid).stdout)
    assert created["forked_from"] == wid
    assert workflow.get_output(created["workflow_id"]) == {"value": 1}
    assert "no workflow 'nobody'" in cli("fork", "--from-task", task, "nobody", code=1).stderr


def test_a_process_of_its_own_finds_the_cluster(wid: str, marks: Marks, gate: Gate) -> None:
    workflow.run_async(held.bind(marks, gate), workflow_id=wid)
    marks.wait_for("held")
    result = subprocess.run(
        [sys.executable, "-m", "ray_workflows.cli", "cancel", "--json", wid],
        env={**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == {"workflow_id": wid, "canceled": True}
    wait_until(lambda: workflow.get_status(wid) == workflow.CANCELED, "it is canceled")


def test_an_interrupt_stops_the_waiting_alone(wid: str, marks: Marks, gate: Gate) -> None:
    workflow.run_async(held.bind(marks, gate), workflow_id=wid)
    marks.wait_for("held")
    workflow.cancel(wid)
    before = marks.count("held")
    process = subprocess.Popen(
        [sys.executable, "-m", "ray_workflows.cli", "resume", "--canceled", wid],
        env={**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # What is started in the background of a shell ignores it, and so do its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )
    marks.wait_for("held", before + 1)
    process.send_signal(signal.SIGINT)
    printed, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert printed == ""
    assert f"{wid} is not canceled. How far it is: ray-workflows show {wid}" in said
    assert "Traceback" not in said
    assert workflow.get_status(wid) == workflow.RUNNING
    gate.open()
    assert workflow.get_output(wid) == "held"


@pytest.mark.own_cluster
def test_a_laptop_that_rebooted(tmp_path: Path, marks: Marks, gate: Gate) -> None:
    """The whole cluster is killed; one command finishes the workflow, and leaves no cluster."""
    project = tmp_path / "project"
    project.mkdir()
    (project / "report.py").write_text(
        "class Report(list):\n    def __repr__(self):\n        return f'Report({list(self)})'\n"
    )
    store = str(tmp_path / "store")
    code = f"""
        import os, sys
        sys.path.insert(0, {str(project)!r})
        import ray, ray_workflows as workflow
        from report import Report
        from tests.ray.marks import Gate, Marks
        from tests.ray.start import start_cluster
        marks, gate = Marks({marks.directory!r}), Gate({gate.path!r})

        @ray.remote
        def first():
            marks.add("first")
            return 1

        @ray.remote
        def second(value):
            marks.add("second")
            print("not the output")
            gate.wait()
            return Report([value, 2])

        start_cluster(num_cpus=2)
        workflow.init({store!r})
        workflow.run(second.bind(first.bind()), workflow_id="report")
    """
    with DriverProcess(tmp_path, code) as driver:
        marks.wait_for("second")
        driver.kill_all()
    gate.open()
    command = f"""
        from ray_workflows.cli.main import main
        from tests.ray.start import few_processes
        with few_processes():
            main(["resume", "--local", "--storage", {store!r}, "report"], prog_name="ray-workflows")
    """
    again = tmp_path / "again"
    again.mkdir()
    with DriverProcess(again, command) as resumed:
        printed = resumed.wait()
    assert "Report([1, 2])" in printed.splitlines()
    assert "not the output" not in printed
    assert (marks.count("first"), marks.count("second")) == (1, 2)
    # Read without a cluster, the class is found as well.
    assert cli("output", "--storage", store, "report").stdout == "Report([1, 2])\n"
