"""Short tasks travel together: what one does to the others, and which never do."""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import ray

import ray_workflows as workflow
from tests.ray.journal import commits_of_results
from tests.ray.marks import Gate, Marks, wait_until


def ray_task_id() -> str:
    return ray.get_runtime_context().get_task_id()


@ray.remote
def total(*values):
    return values


def known_to_be_short(function) -> None:
    """Let it be seen often enough."""
    for _ in range(3):
        workflow.run(total.bind(*(function.bind(None) for _ in range(20))))


def run_many(function, count: int) -> set[str]:
    """The Ray tasks in which so many attempts ran."""
    found = set(workflow.run(total.bind(*(function.bind(None) for _ in range(count)))))
    assert all(found)
    return found


def test_short_tasks_share_ray_tasks() -> None:
    @ray.remote
    def short(_):
        return ray_task_id()

    known_to_be_short(short)
    # While others use the processors it takes long, and rightly shares less.
    wait_until(lambda: len(run_many(short, 400)) <= 40, "ten of them in a Ray task")


@ray.remote
def link(seen: list[str]) -> list[str]:
    """A link of a chain, which ends in the Ray tasks that have carried it."""
    return [*seen, ray_task_id()]


def chain_of(link, length: int):
    node = []
    for _ in range(length):
        node = link.bind(node)
    return node


def test_short_tasks_that_wait_for_each_other_share_ray_tasks(wid: str) -> None:
    workflow.run(chain_of(link, 20))
    numbers = itertools.count()

    def share() -> bool:
        workflow_id = f"{wid}-{next(numbers)}"
        seen = workflow.run(chain_of(link, 100), workflow_id=workflow_id)
        assert len(seen) == 100
        # Each was committed before the next one started: they travelled one after the other.
        assert len(set(commits_of_results(workflow_id))) == 100
        return len(set(seen)) <= 50

    # As above: on a busy machine, not at once.
    wait_until(share, "two of them in a Ray task")


def test_tasks_of_different_shapes_in_turn_give_way_to_each_other(wid: str) -> None:
    whole = link.options(num_cpus=ray.cluster_resources()["CPU"])
    other = link.options(runtime_env={"env_vars": {"A": "b"}})
    node = []
    for _ in range(5):
        for each in (link, link, other, other, whole):
            node = each.bind(node)
    seen = workflow.run(node, workflow_id=wid)
    assert len(seen) == 25
    # What has resources of its own has a Ray task of its own.
    for index in range(4, 25, 5):
        assert seen.count(seen[index]) == 1


def test_a_worker_that_dies_between_short_tasks(wid: str, marks: Marks) -> None:
    @ray.remote(max_retries=1)
    def fragile(seen: list[str]) -> list[str]:
        if len(seen) in (30, 60):
            marks.add(f"guilty-{len(seen)}")
            if marks.count(f"guilty-{len(seen)}") == 1:
                os.kill(os.getpid(), signal.SIGKILL)
        return [*seen, ray_task_id()]

    workflow.run(chain_of(fragile, 10))
    assert len(workflow.run(chain_of(fragile, 90), workflow_id=wid)) == 90
    attempts = [task.attempts for task in workflow.get_tasks(wid)]
    assert attempts == [2 if index in (30, 60) else 1 for index in range(90)]


@pytest.mark.parametrize(
    "change",
    [
        lambda f: f.options(**workflow.options(batch=False)),
        lambda f: f.options(**workflow.options(timeout=60)),
        lambda f: f.options(max_retries=0),
        lambda f: f.options(num_cpus=0.5),
        lambda f: f.options(resources={"special": 1}),
    ],
)
def test_tasks_that_are_to_be_alone(change: Callable) -> None:
    @ray.remote
    def short(_):
        return ray_task_id()

    alone = change(short)
    known_to_be_short(short)
    assert len(run_many(alone, 30)) == 30


def test_others_get_a_slot_while_thousands_wait(wid: str, marks: Marks) -> None:
    @ray.remote
    def short(marked: bool | None):
        time.sleep(0.01)
        if marked:
            marks.add("running")
        return ray_task_id()

    @ray.remote
    def plain():
        return "plain"

    known_to_be_short(short)
    # Of another environment, and so of another shape.
    other = short.options(runtime_env={"env_vars": {"A": "others"}})
    workflow.run(other.bind(None))
    nodes = [short.bind(index == 20) for index in range(2000 * int(ray.cluster_resources()["CPU"]))]
    ref = workflow.run_async(total.bind(*nodes), workflow_id=wid)
    marks.wait_for("running")
    assert ray.get(plain.remote()) == "plain"
    assert workflow.run(other.bind(None))
    assert workflow.get_status(wid) == workflow.RUNNING
    workflow.cancel(wid)
    with pytest.raises(workflow.WorkflowCancellationError):
        ray.get(ref)


def test_long_tasks_do_not_wait_for_each_other() -> None:
    @ray.remote
    def long(_):
        time.sleep(0.1)
        return ray_task_id()

    assert len(run_many(long, 12)) == 12


@pytest.mark.parametrize("slow", [10, 99])
@pytest.mark.parametrize("seconds", [0.0, 0.005])
def test_a_slow_member_holds_nobody_back(
    wid: str, marks: Marks, gate: Gate, seconds: float, slow: int
) -> None:
    """Neither those of its batch, before it and behind it, nor, where they take longer, those of
    the next one."""

    @ray.remote
    def mostly_short(held: bool | None):
        time.sleep(seconds)
        if held:
            marks.add("held")
            gate.wait()
        return ray_task_id()

    known_to_be_short(mostly_short)
    nodes = [mostly_short.bind(index == slow) for index in range(100)]
    ref = workflow.run_async(total.bind(*nodes), workflow_id=wid)
    marks.wait_for("held")

    def all_others_are_done() -> bool:
        statuses = [task.status for task in workflow.get_tasks(wid)[:100]]
        return statuses.count(workflow.TaskStatus.SUCCESSFUL) == 99

    wait_until(all_others_are_done, "the others are done")
    gate.open()
    assert len(ray.get(ref)) == 100
    assert [task.attempts for task in workflow.get_tasks(wid)] == [1] * 101
    assert marks.count("held") == 1


@pytest.mark.parametrize("seconds", [0.0, 0.02])
def test_a_death_of_a_worker_charges_only_the_guilty(wid: str, seconds: float) -> None:
    @ray.remote(max_retries=2)
    def fragile(index: int | None):
        time.sleep(seconds)
        # It dies until it was charged twice, however often it dies in a batch before.
        if index == 50 and workflow.current().attempt <= 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return ray_task_id()

    known_to_be_short(fragile)
    workflow.run(total.bind(*(fragile.bind(index) for index in range(100))), workflow_id=wid)
    attempts = [task.attempts for task in workflow.get_tasks(wid)]
    # In a batch its death is nobody's fault; alone it is its own.
    assert attempts.pop(50) == 3
    assert attempts == [1] * 100


def test_members_that_run_again_have_greater_fencing_tokens(wid: str, marks: Marks) -> None:
    """Their attempts have the numbers that they had: the death of a batch is charged to nobody."""

    @ray.remote(max_retries=1)
    def fragile(directory: str | None, index: int = 0):
        if directory is not None:
            task = workflow.current()
            with open(os.path.join(directory, str(index)), "a") as file:
                file.write(f"{task.epoch} {task.last_end}\n")
            if index == 50 and task.last_end is None:
                os.kill(os.getpid(), signal.SIGKILL)
        return ray_task_id()

    known_to_be_short(fragile)
    numbers = itertools.count()

    def neighbours_run_again() -> bool:
        directory = os.path.join(marks.directory, str(next(numbers)))
        os.mkdir(directory)
        workflow_id = f"{wid}-{os.path.basename(directory)}"
        nodes = [fragile.bind(directory, index) for index in range(100)]
        workflow.run(total.bind(*nodes), workflow_id=workflow_id)
        again = 0
        for index in range(100):
            lines = Path(directory, str(index)).read_text().split("\n")[:-1]
            tokens, ends = zip(*(line.split() for line in lines), strict=True)
            assert list(map(int, tokens)) == sorted(set(map(int, tokens)))
            assert set(ends[1:]) <= {"crashed"}
            again += index != 50 and len(tokens) > 1
        return again > 0 and {task.attempts for task in workflow.get_tasks(workflow_id)} == {1}

    # While others use the processors they take long, and have no neighbours.
    wait_until(neighbours_run_again, "a worker dies in a batch")


def test_cancel_of_a_workflow_stops_its_members_only(wid: str, marks: Marks, gate: Gate) -> None:
    @ray.remote
    def mixed(kind: str | None):
        if kind == "forever":
            marks.add("forever")
            while True:
                time.sleep(0.01)
        if kind == "held":
            gate.wait()
        return ray_task_id()

    known_to_be_short(mixed)
    doomed = f"{wid}-doomed"
    ref = workflow.run_async(total.bind(*(mixed.bind(None) for _ in range(50))), workflow_id=wid)
    workflow.run_async(
        total.bind(*(mixed.bind("forever" if index == 3 else None) for index in range(50))),
        workflow_id=doomed,
    )
    marks.wait_for("forever")
    workflow.cancel(doomed)
    assert len(ray.get(ref)) == 50
    (pid,) = marks.pids("forever")
    wait_until(lambda: not os.path.exists(f"/proc/{pid}"), "it is stopped")
    assert workflow.get_status(doomed) == workflow.CANCELED


def test_errors_and_results_of_members_are_their_own(wid: str) -> None:
    @ray.remote
    def odd_ones_fail(index: int | None):
        if index and index % 2:
            raise ValueError(index)
        # Its own context, too.
        return index, workflow.current().task_id if workflow.current() else None

    catching = odd_ones_fail.options(**workflow.options(catch_exceptions=True))
    known_to_be_short(odd_ones_fail)
    values = workflow.run(total.bind(*(catching.bind(index) for index in range(60))))
    for index, (value, error) in enumerate(values):
        if index % 2:
            assert isinstance(error, ValueError)
            assert error.cause.args == (index,)
        else:
            assert value[0] == index
    assert len({value[1] for value, _ in values if value}) == 30


@pytest.mark.parametrize("checkpoint", [True, False])
def test_members_that_take_the_same_value_have_copies_of_their_own(checkpoint: bool) -> None:
    @ray.remote
    def makes(_):
        return [0] * (1 if not checkpoint else 100_000)

    @ray.remote
    def changes(values: list | None, index: int = 0):
        if values is not None:
            values.append(index)
            return len(values), values[-1]
        return None

    known_to_be_short(changes)
    made = makes.options(**workflow.options(checkpoint=checkpoint)).bind(None)
    found = workflow.run(total.bind(*(changes.bind(made, index) for index in range(50))))
    length = 2 if not checkpoint else 100_001
    assert found == tuple((length, index) for index in range(50))


def test_large_results_and_refs_of_members() -> None:
    import numpy as np

    @ray.remote
    def makes(index: int | None):
        return np.full(20_000, index or 0), ray.put(index)

    @ray.remote
    def takes(*values):
        return [(int(array.sum()), ray.get(ref)) for array, ref in values]

    known_to_be_short(makes)
    found = workflow.run(takes.bind(*(makes.bind(index) for index in range(40))))
    assert found == [(20_000 * index, index) for index in range(40)]
