"""`testing.Environment`: workflows in this process, without a cluster and without waiting."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray.dag import InputNode

import ray_workflows as workflow
from ray_workflows.event_listener import EventListener
from ray_workflows.testing import (
    EndlessRetriesError,
    Environment,
    WorkflowStalledError,
    crash_everywhere,
)

#: What tasks did outside of their workflow.
done: list[Any] = []


def record(what: Any) -> None:
    """Tasks are copied, with what they close over. This function is found by its name."""
    done.append(what)


def times(what: Any) -> int:
    return done.count(what)


@pytest.fixture(autouse=True)
def no_ray() -> Iterator[None]:
    names = ("get", "put", "wait")
    before = [getattr(ray, name) for name in names]
    started = ray.is_initialized()
    done.clear()
    yield
    assert [getattr(ray, name) for name in names] == before
    assert ray.is_initialized() == started


@pytest.fixture
def env() -> Iterator[Environment]:
    with Environment() as env:
        yield env


@ray.remote
def add(a: int, b: int) -> int:
    return a + b


@ray.remote
def note(what: Any, *after: Any) -> Any:
    record(what)
    return what


@ray.remote(retry_exceptions=True, max_retries=2)
def fetch(url: str) -> str:
    return f"<{url}>"


@ray.remote
def fib(n: int) -> Any:
    if n < 2:
        return n
    return workflow.continuation(add.bind(fib.bind(n - 1), fib.bind(n - 2)))


@ray.remote
def parent() -> str:
    return workflow.start(add.bind(1, 2), workflow_id="child")


def ran(env: Environment) -> list[str]:
    return [each.task_id.rpartition(".")[2] for each in env.executions]


# -- running -------------------------------------------------------------------------------


def test_dags_inputs_and_continuations(env: Environment) -> None:
    with InputNode() as given:
        dag = add.bind(given[0], given.b)
    assert env.run(dag, 1, b=2) == 3
    assert env.run(fib.bind(7), workflow_id="fib", metadata={"a": 1}, tags={"team": "x"}) == 13
    assert env.run(fib.bind(7), workflow_id="fib") == 13
    assert workflow.get_metadata("fib")["user_metadata"] == {"a": 1}
    assert [row.workflow_id for row in workflow.list_workflows("tag.team=x")] == ["fib"]
    assert ran(env).count("fib") == 1  # The others have numbers.
    assert len(ran(env)) == 1 + 41 + 20


def test_arguments_and_results_are_copied(env: Environment) -> None:
    given = [1]

    @ray.remote
    def change(values: list[int]) -> list[int]:
        values.append(2)
        given.append(3)
        return values

    assert env.run(change.bind(given)) == [1, 2]
    assert given == [1]
    with pytest.raises((TypeError, workflow.SerializationError), match="generator"):
        env.run(change.bind([iter(each for each in ())]))


def test_objects_without_a_cluster(env: Environment) -> None:
    @ray.remote
    def make() -> dict[str, Any]:
        return {"array": ray.put(np.ones(50_000)), "more": [ray.put("b")]}

    @ray.remote
    def read(refs: dict[str, Any], parts: list[Any]) -> list[Any]:
        ready, others = ray.wait(parts, num_returns=1)
        assert (len(ready), len(others)) == (1, 1)
        return [float(ray.get(refs["array"]).sum()), *ray.get(refs["more"]), *ray.get(parts)]

    parts = [add.bind(1, 2), ray.put(4)]
    assert env.run(read.bind(make.bind(), parts)) == [50_000.0, "b", 3, 4]
    output = env.run(make.bind())
    assert ray.get(output["more"]) == ["b"]


def test_values_that_are_not_stored(env: Environment) -> None:
    large = note.options(**workflow.options(checkpoint=False)).bind(np.ones(100_000))

    @ray.remote
    def total(values: Any, _: Any) -> float:
        return float(values.sum())

    waits = workflow.wait_for_signal("go")
    started = env.run_async(total.bind(large, waits), workflow_id="w")
    assert len(done) == 1
    env.restart()
    assert len(done) == 2
    env.signal("w", "go")
    assert started.result() == 100_000.0
    assert len(done) == 2


def test_workflows_in_tasks(env: Environment) -> None:
    @ray.remote
    def outer() -> Any:
        return workflow.run(add.bind(20, 22), workflow_id="inner")

    assert env.run(outer.bind()) == 42
    assert workflow.run(outer.bind()) == 42
    assert ran(env).count("add") == 1
    assert env.run(parent.bind()) == "child"
    assert env.wait("child") == 3


def test_what_tasks_know(env: Environment) -> None:
    @ray.remote(max_retries=1, retry_exceptions=True)
    def know() -> Any:
        workflow.set_metadata({"seen": True})
        current = workflow.current()
        if current.attempt == 1:
            raise ValueError("once")
        return current.workflow_id, current.attempt, current.last_end

    assert env.run(know.bind(), workflow_id="w") == ("w", 2, "raised")
    (task,) = env.get_tasks("w", attempts=True)
    assert [each.outcome.value for each in task.history] == ["raised", "returned"]
    assert workflow.get_metadata("w", task.task_id)["user_metadata"] == {"seen": True}


class AtOnce(EventListener):
    async def poll_for_event(self, what: str) -> str:
        return f"{what} has happened"


def test_listeners(env: Environment) -> None:
    assert env.run(workflow.wait_for_event(AtOnce, "it")) == "it has happened"


# -- time ----------------------------------------------------------------------------------


def test_sleeps_and_deadlines_take_no_time(env: Environment) -> None:
    began = env.now
    year = timedelta(days=365)
    assert env.run(note.bind("awake", workflow.sleep(year.total_seconds()))) == "awake"
    assert env.now - began == year.total_seconds()
    with pytest.raises(workflow.WorkflowTimeoutError):
        env.run(workflow.sleep(100), timeout=60)
    with pytest.raises(workflow.WorkflowExecutionError, match="none came"):
        env.run(workflow.wait_for_signal("never", timeout=60))


def test_time_passes_when_it_is_told_to(env: Environment) -> None:
    started = env.run_async(note.bind("awake", workflow.sleep(100)))
    env.advance(99)
    assert (started.status, done) == ("RUNNING", [])
    began = env.now
    env.advance(timedelta(seconds=2))
    assert (started.status, done) == ("SUCCESSFUL", ["awake"])
    assert env.now == began + 2
    for bad in (-1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="forwards"):
            env.advance(bad)


def test_backoff_takes_no_time(env: Environment) -> None:
    policy = workflow.RetryPolicy(max_attempts=3, backoff=60.0, max_backoff=600.0, jitter=0.0)
    tried = note.options(**workflow.options(retry=policy)).bind("a")
    env.mock(note, raises=OSError("away"), times=2)
    began = env.now
    assert env.run(tried) == "a"
    assert env.now - began == 60 + 120


ENDLESS = [
    {"max_retries": -1, "retry_exceptions": True},
    workflow.options(retry=workflow.RetryPolicy(max_attempts=None, backoff=3600.0)),
    workflow.options(retry=workflow.RetryPolicy(max_attempts=10**9, backoff=0.0)),
]


@pytest.mark.parametrize("options", ENDLESS, ids=["of Ray", "policy", "large limit"])
def test_a_task_that_is_retried_without_end_ends_the_test(options: dict[str, Any]) -> None:
    with Environment(max_attempts=20) as env:
        env.mock(note, raises=OSError("no network"))
        endless = note.options(**options).bind("a")
        for run in (lambda: env.run(endless, workflow_id="w"), lambda: env.wait("w")):
            with pytest.raises(EndlessRetriesError) as caught:
                run()
            told = str(caught.value)
            assert "Task 'tests.unit.testing.test_environment.note' of workflow 'w'" in told
            assert "20 attempts" in told
            assert "OSError: no network" in told
            assert "max_retries, or RetryPolicy(max_attempts=...)" in told
        assert len(env.executions) == 20
        # It can be canceled, and others run.
        env.cancel("w")
        assert env.get_status("w") == "CANCELED"
        env.mock(note, returns="b", times=1)
        assert env.run(note.bind("b"), workflow_id="x") == "b"


def test_as_many_attempts_as_an_environment_admits(env: Environment) -> None:
    endless = note.options(max_retries=-1, retry_exceptions=True).bind("a")
    env.mock(note, raises=OSError("no network"), times=100)
    assert env.run(endless) == "a"
    with pytest.raises(ValueError, match="at least 1"):
        Environment(max_attempts=0)
    with pytest.raises(TypeError, match="a number"):
        Environment(max_attempts=True)


# -- what is sent, and what does not come ----------------------------------------------------


def test_signals_and_what_nobody_sends(env: Environment) -> None:
    dag = note.bind("approved", workflow.wait_for_signal("approval"))
    with pytest.raises(WorkflowStalledError, match="waits for the signal 'approval'"):
        env.run(dag, workflow_id="w")
    workflow.signal("w", "approval", "by Ada")
    env.settle()
    assert env.get_output("w") == "approved"
    assert env.get_output("w", "signal-approval") == "by Ada"
    with pytest.raises(workflow.SignalRefusedError):
        env.signal("w", "approval")


def test_cancel_resume_delete(env: Environment) -> None:
    started = env.run_async(workflow.sleep(10), workflow_id="w")
    env.cancel("w")
    assert started.status == "CANCELED"
    with pytest.raises(workflow.WorkflowCancellationError):
        started.result()
    env.resume("w", canceled=True).result()
    workflow.set_tags("w", {"a": 1})
    assert workflow.count_workflows("tag.a=1") == 1
    workflow.delete("w")
    with pytest.raises(workflow.WorkflowNotFoundError):
        env.get_status("w")


def test_errors_are_those_of_a_cluster(env: Environment) -> None:
    env.mock(add, raises=KeyError("no such thing"))
    with pytest.raises(workflow.WorkflowExecutionError) as raised:
        env.run(note.bind("after", add.bind(note.bind("before"), 1)), workflow_id="w")
    assert isinstance(raised.value.__cause__, KeyError)
    assert isinstance(raised.value, ray.exceptions.RayTaskError)
    assert done == ["before"]
    env.mock(add, returns=5)
    assert env.resume("w").result() == "after"
    assert done == ["before", "after"]
    for bad, error in ((5, TypeError), (add.bind(1), TypeError)):
        with pytest.raises(error):
            env.run(bad)  # type: ignore[arg-type]
    assert workflow.count_workflows() == 1


# -- mocks ---------------------------------------------------------------------------------


def test_mocks(env: Environment) -> None:
    env.mock(fetch, returns="mocked")
    env.mock("special", calls=lambda url: f"special {url}")
    special = fetch.options(**workflow.options(task_id="special"))
    assert env.run(add.bind(fetch.bind("a"), special.bind("b"))) == "mockedspecial b"
    assert [each.mocked for each in env.executions] == [True, True, False]
    env.mock(fetch, raises=OSError, times=3)
    with pytest.raises(workflow.WorkflowExecutionError):
        env.run(fetch.bind("a"))
    # The one before it counts again.
    assert env.run(fetch.bind("a")) == "mocked"

    def local() -> str:
        return "local"

    env.mock(local, returns="mocked too")
    assert env.run(ray.remote(local).bind()) == "mocked too"


@ray.remote
class Actor:
    pass


@pytest.mark.parametrize(
    ("target", "options", "match"),
    [
        (fetch, {"returns": 1, "raises": OSError}, "one of the three"),
        (fetch, {"raises": "x"}, "exception or its type"),
        (fetch, {"calls": 5}, "to call"),
        (fetch, {"times": "a"}, "number"),
        (fetch, {"times": -1}, "at least once"),
        (5, {}, "remote function"),
        (Actor, {}, "remote function"),
        (fetch.options(num_cpus=1), {}, "as it is decorated"),
    ],
)
def test_mocks_that_mean_nothing(
    env: Environment, target: Any, options: dict[str, Any], match: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=match):
        env.mock(target, **options)
    assert env.run(fetch.bind("a")) == "<a>"


def mistyped() -> None:
    with Environment() as env:
        env.mock("no such", returns=1)
        env.crash_at("frist")
        env.run(chain())


def test_what_never_came_to_pass_is_said() -> None:
    with pytest.raises(AssertionError, match=r"mock.'no such'., crash_at.'frist'.: no such task"):
        mistyped()
    with pytest.raises(TypeError, match="id of a task"), Environment() as env:
        env.crash_at(fetch)  # type: ignore[arg-type]


def test_what_ends_a_test_ends_it(env: Environment) -> None:
    env.mock(fetch, raises=KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        env.run(fetch.bind("a"))
    env.mock(fetch, calls=lambda url: pytest.fail("not that one"))
    with pytest.raises(pytest.fail.Exception, match="not that one"):
        env.run(fetch.bind("a"))


def test_what_needs_ray_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    # Also where a test before has started it.
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with Environment() as env:
        with pytest.raises(RuntimeError, match=r"call ray.init\(\) before"):
            fetch.remote("a")
        env.cancel(env.run_async(workflow.sleep(5), workflow_id="w").workflow_id)
        with pytest.raises(RuntimeError, match="env.resume"):
            workflow.resume("w", canceled=True)
        with_env = fetch.options(runtime_env={"env_vars": {"A": "1"}, "pip": ["nothing-there"]})
        assert env.run(with_env.bind("a")) == "<a>"


def test_in_a_coroutine(env: Environment) -> None:
    async def test() -> str:
        result: str = env.run(workflow.wait_for_event(AtOnce, "it"))
        return result

    assert asyncio.run(test()) == "it has happened"


# -- crashes -------------------------------------------------------------------------------


def chain() -> Any:
    first = note.options(**workflow.options(task_id="first")).bind("first")
    return note.options(**workflow.options(task_id="second")).bind("second", first)


@pytest.mark.parametrize(("when", "again"), [("before", ["first"]), ("after", [])])
def test_crash_at(env: Environment, when: str, again: list[str]) -> None:
    env.crash_at("first", when)
    assert env.run(chain()) == "second"
    assert done == ["first", *again, "second"]
    (point,) = env.crashes
    assert point.when == when
    assert "TaskSucceeded 'first'" in point.what


def test_an_attempt_after_a_crash_has_a_greater_epoch(env: Environment) -> None:
    @ray.remote
    def epoch() -> None:
        record(workflow.current().epoch)

    env.crash_at("epoch", "before")
    env.run(epoch.options(**workflow.options(task_id="epoch")).bind())
    first, second = done
    assert first < second


def test_crash_everywhere() -> None:
    def scenario(env: Environment) -> Any:
        env.mock(fetch, raises=OSError("once"), times=1)
        waits = workflow.wait_for_signal("go", timeout=60)
        dag = note.bind("end", fib.bind(2), fetch.bind("a"), waits, workflow.sleep(5))
        started = env.run_async(dag, workflow_id="w")
        env.signal("w", "go", 1)
        child = env.run(parent.bind())
        return started.result(), env.wait(child)

    report = crash_everywhere(scenario)
    assert report.result == ("end", 3)
    assert len(report.points) > 10
    assert {point.when for point in report.points} == {"before", "after"}
    assert max(report.executions) <= min(report.executions) + 2


def test_results_that_need_a_comparison_of_their_own() -> None:
    @ray.remote
    def array() -> np.ndarray:
        return np.arange(3)

    with pytest.raises(TypeError, match="numpy.array_equal"):
        crash_everywhere(array.bind())
    assert len(crash_everywhere(array.bind(), equal=np.array_equal).points) == 4
    with pytest.raises(TypeError, match=r"bind\(...\)"):
        crash_everywhere(array)  # type: ignore[arg-type]


def test_crash_everywhere_finds_what_is_not_repeatable() -> None:
    @ray.remote
    def count() -> int:
        record("count")
        return times("count")

    def scenario(env: Environment) -> Any:
        done.clear()
        return env.run(count.bind())

    with pytest.raises(AssertionError, match=r"crash before commit 2 .* result is 2 and not 1"):
        crash_everywhere(scenario)

    @ray.remote(max_retries=0)
    def once() -> None:
        record("once")
        if times("once") > 1:
            raise RuntimeError("It was done before.")

    with pytest.raises(AssertionError, match=r"crash before commit 1 .* It was done before"):
        crash_everywhere(once.bind())


# -- the environment itself ------------------------------------------------------------------


def test_it_has_to_be_entered_and_alone(env: Environment) -> None:
    with pytest.raises(RuntimeError, match="Another"), Environment():
        pass
    other = Environment()
    for call in (
        lambda: other.run(add.bind(1, 2)),
        lambda: other.signal("w", "s"),
        lambda: other.advance(1),
        other.restart,
        lambda: other.wait("w"),
        lambda: other.cancel("w"),
        lambda: other.resume("w"),
    ):
        with pytest.raises(RuntimeError, match="with"):
            call()
    with pytest.raises(RuntimeError, match="env.run_async"):
        workflow.run_async(add.bind(1, 2))
    workflow.init()  # Of the code under test: it changes nothing.
    with pytest.raises(ValueError, match="before"):
        env.crash_at("first", "during")


TEST_OF_A_USER = """
import ray
import ray_workflows as workflow

pytest_plugins = ["ray_workflows.testing.pytest_plugin"]


@ray.remote
def add(a, b):
    return a + b


def test_add(workflow_environment):
    assert workflow.run(add.bind(1, 2)) == 3
    assert not ray.is_initialized()
"""


def test_the_fixture(tmp_path: Path) -> None:
    (tmp_path / "test_of_a_user.py").write_text(TEST_OF_A_USER)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
