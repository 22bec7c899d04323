"""Runs of tasks without checkpoints travel as one: the same results, for almost nothing."""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray

import ray_workflows as workflow
from tests.ray.journal import commits_of_results
from tests.ray.marks import Gate, Marks, wait_until
from tests.ray.test_batches import ray_task_id

UNSTORED = workflow.options(checkpoint=False)

#: So often a function runs to be known as short, though a run of it was kept waiting.
ENOUGH = 10


@ray.remote
def link(marks: Marks, index: int | None, seen: list, gate: Gate | None = None):
    """Appends to what it gets, which must be its own copy."""
    if index is not None:
        marks.add(f"link-{index}")
    if gate is not None:
        marks.add("held")
        gate.wait()
    seen.append(ray_task_id())
    return seen


def chain(marks: Marks, length: int, *, gates: dict[int, Gate] | None = None, function=link):
    node = function.options(**UNSTORED).bind(marks, 0, [])
    for index in range(1, length):
        options = UNSTORED if index < length - 1 else workflow.options()
        gate = (gates or {}).get(index)
        node = function.options(**options).bind(marks, index, node, gate)
    return node


@pytest.fixture
def known(marks: Marks) -> None:
    """The function has shown itself short."""
    for _ in range(ENOUGH):
        workflow.run(link.bind(marks, None, []))


def once_each(marks: Marks, length: int) -> dict[str, int]:
    return {f"link-{index}": 1 for index in range(length)}


def again_and_again(wid: str, tmp_path: Path) -> Iterator[tuple[str, Marks]]:
    """For another try each: while others use the processors tasks take long, and rightly share
    less."""
    for number in itertools.count():
        yield f"{wid}-{number}", Marks(str(tmp_path / f"try-{number}"))


@pytest.mark.usefixtures("known")
def test_a_chain_runs_in_few_ray_tasks(wid: str, tmp_path: Path) -> None:
    tries = again_and_again(wid, tmp_path)

    def are_few() -> bool:
        workflow_id, marks = next(tries)
        tasks = workflow.run(chain(marks, 200), workflow_id=workflow_id)
        assert len(tasks) == 200
        assert marks.counts() == once_each(marks, 200)
        infos = workflow.get_tasks(workflow_id)
        assert {(task.status.value, task.attempts) for task in infos} == {("SUCCESSFUL", 1)}
        with pytest.raises(ValueError, match="not checkpointed"):
            workflow.get_output(workflow_id, task_id=infos[0].task_id)
        return len(set(tasks)) < 30

    wait_until(are_few, "200 links in few Ray tasks")


@pytest.mark.usefixtures("known")
def test_a_checkpoint_in_between_is_committed_before_what_follows(wid: str, tmp_path: Path) -> None:
    tries = again_and_again(wid, tmp_path)

    def travel_as_one() -> bool:
        workflow_id, marks = next(tries)
        middle = link.bind(marks, 100, chain(marks, 100))
        node = link.options(**UNSTORED).bind(marks, 101, middle)
        tasks = workflow.run(link.bind(marks, 102, node), workflow_id=workflow_id)
        commits = commits_of_results(workflow_id)
        assert commits[100] < commits[101]
        return tasks[101] == tasks[102] and commits[101] == commits[102]

    wait_until(travel_as_one, "what follows travels as one")


@pytest.mark.usefixtures("known")
def test_a_member_that_takes_long_keeps_what_it_has(wid: str, marks: Marks, gate: Gate) -> None:
    ref = workflow.run_async(chain(marks, 30, gates={10: gate}), workflow_id=wid)
    marks.wait_for("held")

    def seen_so_far() -> bool:
        statuses = [task.status.value for task in workflow.get_tasks(wid)]
        return statuses[:11] == ["SUCCESSFUL"] * 10 + ["RUNNING"]

    wait_until(seen_so_far, "those before it are reported")
    gate.open()
    assert len(ray.get(ref)) == 30
    held = {"held": 1}
    assert marks.counts() == once_each(marks, 30) | held


def test_errors_in_the_middle_are_those_of_their_task(wid: str, marks: Marks) -> None:
    @ray.remote(max_retries=1, retry_exceptions=True)
    def fails_once(marks, index, seen, gate=None):
        if index is not None:
            marks.add(f"link-{index}")
        if index == 20 and marks.count("link-20") == 1:
            raise ValueError("once")
        return [*seen, index]

    for _ in range(ENOUGH):
        workflow.run(fails_once.bind(marks, None, []))
    assert workflow.run(chain(marks, 40, function=fails_once), workflow_id=wid) == list(range(40))
    counts = marks.counts()
    assert counts["link-20"] == 2
    # What was not stored and was needed again was computed again, and nothing after it twice.
    assert all(counts[f"link-{index}"] == 1 for index in range(21, 40))
    attempts = [task.attempts for task in workflow.get_tasks(wid)]
    assert attempts[20] >= 2
    assert attempts[21:] == [1] * 19


def test_an_error_that_stays_fails_the_workflow_and_a_resume_goes_on(
    wid: str, marks: Marks, gate: Gate
) -> None:
    @ray.remote
    def fails(marks, index, seen, gate_path=None):
        if index == 5 and not os.path.exists(gate.path):
            raise ValueError("not yet")
        return [*seen, index]

    for _ in range(ENOUGH):
        workflow.run(fails.bind(marks, None, []))
    with pytest.raises(workflow.WorkflowExecutionError) as caught:
        workflow.run(chain(marks, 10, function=fails), workflow_id=wid)
    assert isinstance(caught.value.__cause__, ValueError)
    gate.open()
    assert workflow.resume(wid) == list(range(10))


def test_continuations_and_caught_errors_in_a_run(wid: str, marks: Marks) -> None:
    @ray.remote
    def odd(marks, index, seen, gate=None):
        if index == 3:
            return workflow.continuation(odd.bind(marks, 100, seen))
        if index == 6:
            raise KeyError(index)
        return [*seen, index] if isinstance(seen, list) else [seen, index]

    for _ in range(ENOUGH):
        workflow.run(odd.bind(marks, None, []))
    caught = workflow.options(checkpoint=False, catch_exceptions=True)
    node = odd.options(**UNSTORED).bind(marks, 0, [])
    for index in range(1, 10):
        options = caught if index in (5, 6) else UNSTORED
        node = odd.options(**options).bind(marks, index, node)
    value = workflow.run(node, workflow_id=wid)
    (nothing, error), rest = value[0], value[1:]
    assert nothing is None
    assert isinstance(error, KeyError)
    assert rest == [7, 8, 9]


def test_a_worker_that_dies_in_a_run(wid: str, marks: Marks) -> None:
    @ray.remote(max_retries=1)
    def fragile(marks, index, seen, gate=None):
        # It dies until it was charged, however often it dies in a run before.
        if index == 15 and workflow.current().attempt == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return [*seen, index]

    for _ in range(ENOUGH):
        workflow.run(fragile.bind(marks, None, []))
    dag = chain(marks, 30, function=fragile)
    assert workflow.run(dag, workflow_id=wid) == list(range(30))
    attempts = [task.attempts for task in workflow.get_tasks(wid)]
    assert attempts[15] == 2
    assert attempts[16:] == [1] * 14


def test_arrays_are_handed_on_in_place_and_read_only(marks: Marks) -> None:
    @ray.remote
    def array(marks, index, seen, gate=None):
        if index is None or index == 0:
            return np.zeros(100_000), ray.put("kept")
        value, ref = seen
        assert ray.get(ref) == "kept"
        assert not value.flags.writeable
        return value + 1, ref

    for _ in range(ENOUGH):
        workflow.run(array.bind(marks, None, []))
    value, ref = workflow.run(chain(marks, 20, function=array))
    assert float(value.sum()) == 19 * 100_000
    assert ray.get(ref) == "kept"


@pytest.mark.usefixtures("known")
def test_what_has_other_takers_is_not_part_of_a_run(marks: Marks) -> None:
    @ray.remote
    def both(left, right):
        return left, right

    first = link.options(**UNSTORED).bind(marks, 0, [])
    left = link.options(**UNSTORED).bind(marks, 1, first)
    right = link.options(**UNSTORED).bind(marks, 2, first)
    (a, left_id), (b, right_id) = workflow.run(both.bind(left, right))
    assert a == b
    assert marks.counts() == {"link-0": 1, "link-1": 1, "link-2": 1}
    del left_id, right_id


@pytest.mark.usefixtures("known")
def test_cancel_in_the_middle_of_a_run(wid: str, marks: Marks, gate: Gate) -> None:
    workflow.run_async(chain(marks, 30, gates={10: gate}), workflow_id=wid)
    marks.wait_for("held")
    workflow.cancel(wid)
    gate.open()
    started = time.monotonic()
    assert len(workflow.resume(wid, canceled=True)) == 30
    assert time.monotonic() - started < 60
