"""Signals on a real cluster: durable when `signal` returns, taken once; no worker waits."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import ray

import ray_workflows as workflow
from ray_workflows._client.connection import connect
from ray_workflows._model import events as ev
from ray_workflows.storage.histories import History
from tests.ray.marks import Gate, Marks, wait_until
from tests.ray.test_crashes import coordinator_pid, kill_coordinator


@ray.remote
def join(*parts):
    return list(parts)


@ray.remote
def fail_until(path: str, *after):
    if not os.path.exists(path):
        raise ValueError("not yet")
    return "done"


def events(workflow_id: str) -> list[ev.AnyEvent]:
    storage = connect().storage
    row = storage.read_catalog(workflow_id)
    assert row is not None
    return History(storage, row).events()


def received(workflow_id: str) -> list[str]:
    return [e.signal_id for e in events(workflow_id) if isinstance(e, ev.SignalReceived)]


def status_of(workflow_id: str, task_id: str) -> str:
    tasks = {task.task_id: task.status.value for task in workflow.get_tasks(workflow_id)}
    return tasks[task_id]


def test_a_signal_is_an_argument(wid: str) -> None:
    waits = [workflow.wait_for_signal("a"), workflow.wait_for_signal("b")]
    ref = workflow.run_async(join.bind(*waits, [waits[0]]), workflow_id=wid)
    workflow.signal(wid, "b", {"n": 2})
    assert status_of(wid, "signal-b") == "SUCCESSFUL"
    # As a timer that has not gone off.
    assert status_of(wid, "signal-a") == "WAITING"
    assert workflow.get_status(wid) == workflow.RUNNING
    metadata = workflow.get_metadata(wid, "signal-b")
    assert metadata["stats"]["end_time"] >= metadata["stats"]["start_time"]
    assert workflow.get_metadata(wid, "signal-a")["stats"] == {}
    workflow.signal(wid, "a")
    first, second, (nested,) = ray.get(ref)
    assert (first, second, ray.get(nested)) == (None, {"n": 2}, None)
    assert workflow.get_output(wid, task_id="signal-b") == {"n": 2}


def test_those_that_come_early_are_kept_in_their_order(wid: str, marks: Marks, gate: Gate) -> None:
    @ray.remote
    def held():
        marks.add("held")
        gate.wait()
        waits = [workflow.wait_for_signal("s") for _ in range(3)]
        return workflow.continuation(join.bind(*waits))

    ref = workflow.run_async(held.bind(), workflow_id=wid)
    marks.wait_for("held")
    for number in range(4):
        workflow.signal(wid, "s", number)
    gate.open()
    assert ray.get(ref) == [0, 1, 2]


def test_a_repeated_signal_is_one(wid: str) -> None:
    dag = join.bind(*(workflow.wait_for_signal("s") for _ in range(2)))
    ref = workflow.run_async(dag, workflow_id=wid)
    for value in ("first", "again", "once more"):
        workflow.signal(wid, "s", value, signal_id="payment 1")
    workflow.signal(wid, "s", "second", signal_id="payment 2")
    assert ray.get(ref) == ["first", "second"]
    assert received(wid) == ["payment 1", "payment 2"]


def test_a_loop_of_continuations_takes_one_after_the_other(wid: str) -> None:
    @ray.remote
    def turn(total, number):
        if number is None:
            return total
        following = workflow.wait_for_signal("number")
        return workflow.continuation(turn.bind(total + number, following))

    ref = workflow.run_async(turn.bind(0, 0), workflow_id=wid)
    for number in range(1, 11):
        workflow.signal(wid, "number", number)
    workflow.signal(wid, "number", None)
    assert ray.get(ref) == 55


def test_large_values_and_objects_outlive_the_coordinator(
    wid: str, marks: Marks, gate: Gate, storage_dir: Path
) -> None:
    @ray.remote
    def held(value):
        marks.add("held")
        gate.wait()
        array, refs = value
        return float(array.sum() + sum(ray.get(ref).sum() for ref in refs)), len(set(refs))

    ref = workflow.run_async(held.bind(workflow.wait_for_signal("s")), workflow_id=wid)
    one = ray.put(np.ones(100_000))
    value = (np.ones(200_000), [one, one])
    for _ in range(2):
        workflow.signal(wid, "s", value, signal_id="1")
    incarnation = connect().storage.read_catalog(wid).incarnation
    # The array, and what the refs refer to, once.
    assert len(list((storage_dir / "blobs" / incarnation).iterdir())) == 2
    del value, one
    marks.wait_for("held")
    kill_coordinator()
    gate.open()
    assert ray.get(ref) == (400_000.0, 1)
    workflow.delete(wid)
    assert not (storage_dir / "blobs" / incarnation).exists()


def test_waiting_occupies_nothing(wid: str, marks: Marks) -> None:
    ids = [f"{wid}-{number}" for number in range(100)]
    refs = workflow.run_async_many(
        [join.bind(workflow.wait_for_signal("s")) for _ in ids], workflow_ids=ids
    )
    assert workflow.run(join.bind(1)) == [1]
    for workflow_id in ids:
        workflow.signal(workflow_id, "s", workflow_id)
    assert ray.get(refs) == [[workflow_id] for workflow_id in ids]


def test_a_killed_coordinator_forgets_nothing(wid: str) -> None:
    dag = join.bind(*(workflow.wait_for_signal(name) for name in "abc"))
    ref = workflow.run_async(dag, workflow_id=wid)
    workflow.signal(wid, "a", 1)
    kill_coordinator()
    workflow.signal(wid, "b", 2)
    # Its answer is lost with it, and the call is repeated by Ray.
    pid = coordinator_pid()
    os.kill(pid, signal.SIGSTOP)
    sending = threading.Thread(target=workflow.signal, args=(wid, "c", 3))
    sending.start()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not os.path.exists(f"/proc/{pid}"), "the coordinator is gone")
    sending.join(60)
    assert ray.get(ref) == [1, 2, 3]
    assert len(received(wid)) == 3


def test_a_failed_workflow_has_it_when_it_is_resumed(wid: str, tmp_path: Path) -> None:
    path = tmp_path / "go"
    dag = join.bind(fail_until.bind(str(path)), workflow.wait_for_signal("s"))
    with pytest.raises(workflow.WorkflowExecutionError):
        workflow.run(dag, workflow_id=wid)
    workflow.signal(wid, "s", "kept")
    assert workflow.get_status(wid) == workflow.FAILED
    path.touch()
    assert workflow.resume(wid) == ["done", "kept"]


def test_what_has_ended_takes_none(wid: str, storage_dir: Path) -> None:
    ref = workflow.run_async(workflow.wait_for_signal("s"), workflow_id=wid)
    workflow.cancel(wid)
    with pytest.raises(workflow.SignalRefusedError, match="CANCELED.*canceled=True"):
        workflow.signal(wid, "s")
    with pytest.raises(workflow.WorkflowCancellationError):
        ray.get(ref)
    ref = workflow.resume_async(wid, canceled=True)
    workflow.signal(wid, "s", 7, signal_id="the one")
    assert ray.get(ref) == 7
    for value in (None, bytes(100_000)):
        # That one has come, and is not refused by what it has ended.
        workflow.signal(wid, "s", value, signal_id="the one")
        with pytest.raises(workflow.SignalRefusedError, match=f"{wid}.*'s'.*SUCCESSFUL"):
            workflow.signal(wid, "s", value)
    incarnation = connect().storage.read_catalog(wid).incarnation
    assert not (storage_dir / "blobs" / incarnation).exists()


def test_a_timeout_fails_the_workflow_and_a_resume_waits_again(wid: str) -> None:
    dag = join.bind(workflow.wait_for_signal("s", timeout=0.2))
    with pytest.raises(workflow.WorkflowExecutionError) as caught:
        workflow.run(dag, workflow_id=wid)
    cause = caught.value.__cause__
    assert isinstance(cause, workflow.SignalTimeoutError)
    assert isinstance(cause, TimeoutError)
    assert f"'signal-s' of workflow '{wid}'" in str(cause)
    assert status_of(wid, "signal-s") == "FAILED"
    workflow.signal(wid, "s", "late")
    assert workflow.resume(wid) == ["late"]


def test_a_timeout_is_caught() -> None:
    @ray.remote
    def kind_of(result):
        value, error = result
        return value, isinstance(error, workflow.SignalTimeoutError)

    @workflow.options(catch_exceptions=True)
    @ray.remote
    def around():
        return workflow.continuation(workflow.wait_for_signal("s", timeout=0.1))

    itself = workflow.wait_for_signal("s", timeout=0.1, catch_exceptions=True)
    assert workflow.run(kind_of.bind(itself)) == (None, True)
    assert workflow.run(kind_of.bind(around.bind())) == (None, True)


def test_a_task_signals_another_workflow(wid: str) -> None:
    @ray.remote
    def tell():
        workflow.signal(wid, "s", workflow.current().workflow_id)

    ref = workflow.run_async(workflow.wait_for_signal("s"), workflow_id=wid)
    workflow.run(tell.bind(), workflow_id=f"{wid}-other")
    assert ray.get(ref) == f"{wid}-other"


def test_a_fork_keeps_what_was_taken(wid: str) -> None:
    waits = [workflow.wait_for_signal("large"), workflow.wait_for_signal("small")]
    dag = join.options(**workflow.options(task_id="join")).bind(*waits)
    ref = workflow.run_async(dag, workflow_id=wid)
    large = np.arange(100_000)
    workflow.signal(wid, "large", large)
    workflow.signal(wid, "small", 1)
    ray.get(ref)
    workflow.fork(wid, "join", f"{wid}-join")
    workflow.fork(wid, "signal-small", f"{wid}-small")
    workflow.delete(wid)
    array, number = workflow.get_output(f"{wid}-join")
    assert (array.sum(), number) == (large.sum(), 1)
    assert status_of(f"{wid}-small", "signal-small") == "WAITING"
    workflow.signal(f"{wid}-small", "small", 2)
    array, number = workflow.get_output(f"{wid}-small")
    assert (array.sum(), number) == (large.sum(), 2)


def test_nobody_waits_outside_of_workflows() -> None:
    with pytest.raises(RuntimeError, match="waits in a workflow only"):
        workflow.continuation(workflow.wait_for_signal("s"))
