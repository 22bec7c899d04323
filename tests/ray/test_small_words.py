"""What is said where a word saves hours."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time

import pytest
import ray
from ray.exceptions import RayActorError
from rich.console import Console

import ray_workflows as workflow
from ray_workflows._client import progress
from ray_workflows._client.connection import connect, why_it_died
from ray_workflows._client.outputs import read_row
from tests.ray.marks import Gate, Marks


@ray.remote
def held(marks: Marks, gate: Gate):
    marks.add("held")
    gate.wait()
    return "held"


@ray.remote
def gather(*values):
    return len(values)


@pytest.mark.parametrize("shows_progress", [False, True])
def test_who_interrupts_run_learns_that_the_workflow_goes_on(
    wid: str, marks: Marks, gate: Gate, shows_progress: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def interrupt() -> None:
        marks.wait_for("held")
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt), caplog.at_level(logging.WARNING):
        workflow.run(held.bind(marks, gate), workflow_id=wid, progress=shows_progress)
    thread.join()
    assert f"Workflow '{wid}' was not canceled" in caplog.text
    assert f"get_output('{wid}')" in caplog.text
    gate.open()
    assert workflow.get_output(wid) == "held"


def test_sleeps_and_events_have_names_of_their_own(wid: str) -> None:
    dag = gather.bind(
        workflow.sleep(0.0),
        workflow.sleep(0.0),
        workflow.wait_for_event(workflow.event_listener.TimerListener, time.time()),
    )
    assert workflow.run(dag, workflow_id=wid) == 3
    ids = {task.task_id for task in workflow.get_tasks(wid)}
    assert {"sleep", "sleep_1", "event-TimerListener", "event-TimerListener-acknowledged"} < ids
    assert len(ids) == 5


@pytest.mark.parametrize("widgets", [False, True])
def test_a_notebook_without_widgets_has_lines(
    wid: str, monkeypatch: pytest.MonkeyPatch, widgets: bool
) -> None:
    workflow.run(gather.bind(), workflow_id=wid)
    monkeypatch.setattr(progress, "Console", lambda stderr: Console(force_jupyter=True))
    monkeypatch.setattr(progress, "has_widgets", lambda: widgets)
    connection = connect()
    display = progress.ProgressDisplay(connection, read_row(connection.storage, wid))
    assert (display.bar is not None) == widgets


def test_a_coordinator_without_the_package_says_what_to_install() -> None:
    text = "The actor died: ModuleNotFoundError: No module named 'ray_workflows'"
    died = RayActorError(error_msg=text)
    assert "pip install ray-workflows==" in why_it_died(died)
    assert "Look into the log" in why_it_died(RayActorError(error_msg="out of memory"))
