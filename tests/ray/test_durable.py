"""Durable functions on a real cluster: what their code may ask for, and what it gets."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import sys
from datetime import timezone

import numpy as np
import pytest
import ray

import ray_workflows as workflow
from tests.ray.marks import Gate, Marks, wait_until

NEW_ASYNCIO = pytest.mark.skipif(sys.version_info < (3, 11), reason="new in Python 3.11")


@ray.remote
def add(a, b=1):
    return a + b


@ray.remote
def counted(marks: Marks, name: str, result=None):
    marks.add(name)
    return result


@ray.remote
def held(marks: Marks, gate: Gate, result=None):
    marks.add("held")
    gate.wait()
    return result


@workflow.durable
async def total(numbers):
    return sum(await asyncio.gather(*(workflow.step(add, number, 0) for number in numbers)))


@workflow.durable
def plain_total(numbers):
    return sum(workflow.step(add, number, 0) for number in numbers)


def ids_and_states(workflow_id: str) -> dict[str, str]:
    return {task.task_id: task.status.value for task in workflow.get_tasks(workflow_id)}


# -- what can be a step --------------------------------------------------------------------


def targets():
    """Each kind of step once, with the result that it has."""

    async def coroutine(x):
        await asyncio.sleep(0)
        return x * 10

    class Callable:
        def __call__(self, x):
            return -x

    node = add.bind(add.bind(1, 1), add.bind(2, 2))
    return [
        ((add, 1), {"b": 2}, 3),
        ((add.options(num_cpus=0.5), 3), {}, 4),
        ((node,), {}, 6),
        ((total, [1, 2, 3]), {}, 6),
        ((plain_total, [1, 2, 3]), {}, 6),
        ((total.bind([4, 5]),), {}, 9),
        ((abs, -3), {}, 3),
        ((coroutine, 2), {}, 20),
        ((lambda x, y: x + y, 1), {"y": 2}, 3),
        ((functools.partial(int, base=2), "101"), {}, 5),
        ((Callable(), 7), {}, -7),
        (("tea".upper,), {}, "TEA"),
    ]


def test_targets_of_coroutines_and_functions(wid: str) -> None:
    @workflow.durable
    async def awaits():
        return [await workflow.step(*args, **kwargs) for args, kwargs, _ in targets()]

    @workflow.durable
    def calls():
        return [workflow.step(*args, **kwargs) for args, kwargs, _ in targets()]

    @workflow.durable
    def starts():
        handles = [workflow.step_async(*args, **kwargs) for args, kwargs, _ in targets()]
        return [handle.result() for handle in reversed(handles)][::-1]

    expected = [result for _, _, result in targets()]
    refs = [workflow.run_async(body.bind()) for body in (awaits, calls, starts)]
    assert ray.get(refs) == [expected] * 3


def test_methods_of_actors(wid: str) -> None:
    @ray.remote(num_cpus=0)
    class Counter:
        def __init__(self):
            self.count = 0

        def add(self, number):
            self.count += number
            return self.count

    @workflow.durable
    async def body(counter):
        return [await workflow.step(counter.add, n) for n in (1, 2)]

    counter = Counter.remote()
    assert workflow.run(body.bind(counter)) == [1, 3]


def test_options_of_a_step(wid: str) -> None:
    @ray.remote
    def fail():
        raise ValueError("no")

    @workflow.durable
    async def body():
        named = workflow.options(task_id="named", metadata={"k": "v"}, tags={"t": "1"})
        one = await workflow.step(add, 1, options=named)
        caught = workflow.options(catch_exceptions=True)
        value, error = await workflow.step(fail, options=caught)
        other = await workflow.step(total, [1], options=workflow.options(task_id="inner"))
        return one, value, type(error).__name__, other

    assert workflow.run(body.bind(), workflow_id=wid)[:2] == (2, None)
    ids = ids_and_states(wid)
    (name,) = (task_id for task_id in ids if task_id.endswith("named"))
    assert workflow.get_metadata(wid, name)["user_metadata"] == {"k": "v"}
    assert any(task_id.endswith("inner") for task_id in ids), ids


def test_steps_have_the_ids_of_their_places(wid: str) -> None:
    @workflow.durable
    async def body():
        async def branch(number):
            await workflow.step(add, number)
            return await workflow.step(add, number)

        await workflow.step(add, 0)
        await asyncio.gather(branch(1), branch(2))

    named = body.options(**workflow.options(task_id="body"))
    workflow.run(named.bind(), workflow_id=wid)
    paths = ("add", "1/add", "2/add", "1/add#2", "2/add#2")
    ids = ("body", *(f"body/{path}" for path in paths))
    assert ids_and_states(wid) == dict.fromkeys(ids, "SUCCESSFUL")
    assert workflow.get_output(wid, task_id="body/2/add#2") == 3


# -- asyncio -------------------------------------------------------------------------------


def test_asyncio_in_bodies(marks: Marks, gate: Gate) -> None:
    @workflow.durable
    async def body():
        waits = functools.partial(workflow.step, held, marks, gate)
        found = {}
        tasks = [asyncio.create_task(workflow.step(add, n)) for n in range(3)]
        found["completed"] = sorted([await each for each in asyncio.as_completed(tasks)])
        done, pending = await asyncio.wait(
            [asyncio.ensure_future(workflow.step(add, 5)), asyncio.ensure_future(waits())],
            return_when=asyncio.FIRST_COMPLETED,
        )
        found["first"] = [task.result() for task in done]
        for task in pending:
            task.cancel()
        found["cancelled"] = [
            type(each).__name__ for each in await asyncio.gather(*pending, return_exceptions=True)
        ]
        try:
            await asyncio.wait_for(waits(), 0.05)
        except asyncio.TimeoutError:
            found["wait_for"] = "too long"
        shielded = asyncio.ensure_future(workflow.step(add, 8))
        try:
            outer = asyncio.shield(shielded)
            outer.cancel()
            await outer
        except asyncio.CancelledError:
            found["shielded"] = await shielded
        before = workflow.now()
        await asyncio.sleep(0.2)
        found["slept"] = (workflow.now() - before).total_seconds() >= 0.2
        queue, lock = asyncio.Queue(), asyncio.Lock()

        async def producer():
            async with lock:
                for n in range(3):
                    await queue.put(await workflow.step(add, n))

        producing = asyncio.create_task(producer())
        found["queue"] = [await queue.get() for _ in range(3)]
        await producing
        return found

    assert workflow.run(body.bind()) == {
        "completed": [1, 2, 3],
        "first": [6],
        "cancelled": ["CancelledError"],
        "wait_for": "too long",
        "shielded": 9,
        "slept": True,
        "queue": [1, 2, 3],
    }


@NEW_ASYNCIO
def test_timeouts_and_groups_of_tasks(marks: Marks, gate: Gate) -> None:
    @ray.remote
    def fail():
        raise ValueError("no")

    @workflow.durable
    async def body():
        found = []
        try:
            async with asyncio.timeout(0.05):
                await workflow.step(held, marks, gate)
        except TimeoutError:
            found.append("too long")
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(workflow.step(add, n)) for n in range(3)]
        found.append([task.result() for task in tasks])
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(workflow.step(fail))
                stopped = group.create_task(workflow.step(held, marks, gate))
        except ExceptionGroup as raised:  # noqa: F821
            found.append(([type(error) for error in raised.exceptions], stopped.cancelled()))
        return found

    too_long, results, ((error,), cancelled) = workflow.run(body.bind())
    assert (too_long, results, cancelled) == ("too long", [1, 2, 3], True)
    assert issubclass(error, ValueError)


# -- timers, signals, events ---------------------------------------------------------------


def test_waits_in_coroutines_and_functions(wid: str, tmp_path) -> None:
    class Files(workflow.EventListener):
        async def poll_for_event(self, path):
            while not os.path.exists(path):
                await asyncio.sleep(0.01)
            return "there"

    path = str(tmp_path / "event")

    @workflow.durable
    async def awaits():
        await workflow.sleep(0.01)
        got = [await workflow.wait_for_signal("s"), await workflow.wait_for_signal("s")]
        try:
            await workflow.wait_for_signal("never", timeout=0.05)
        except workflow.SignalTimeoutError as error:
            got.append(isinstance(error, TimeoutError))
        _, caught = await workflow.wait_for_signal("never", timeout=0.05, catch_exceptions=True)
        got.append(isinstance(caught, workflow.SignalTimeoutError))
        signal = asyncio.create_task(workflow.wait_for_signal("s"))
        asleep = asyncio.create_task(workflow.sleep(3600))
        got += [await signal, asleep.cancel()]
        first = await asyncio.gather(
            workflow.wait_for_event(Files, path), workflow.step(lambda: open(path, "w").close())
        )
        return [*got, first[0]]

    @workflow.durable
    def calls():
        workflow.sleep(0.01)
        got = [workflow.wait_for_signal("s"), workflow.wait_for_signal("s")]
        try:
            workflow.wait_for_signal("never", timeout=0.05)
        except workflow.SignalTimeoutError as error:
            got.append(isinstance(error, TimeoutError))
        _, caught = workflow.wait_for_signal("never", timeout=0.05, catch_exceptions=True)
        got.append(isinstance(caught, workflow.SignalTimeoutError))
        got += [workflow.wait_for_signal("s"), True]
        return [*got, workflow.wait_for_event(Files, path)]

    for kind, body in (("async", awaits), ("plain", calls)):
        ref = workflow.run_async(body.bind(), workflow_id=f"{wid}-{kind}")
        workflow.signal(f"{wid}-{kind}", "s", 1)
        workflow.signal(f"{wid}-{kind}", "s", np.arange(200_000))
        workflow.signal(f"{wid}-{kind}", "s", 3)
        first, second, *rest = ray.get(ref)
        assert (first, second.sum()) == (1, np.arange(200_000).sum())
        assert rest == [True, True, 3, True, "there"]


# -- bodies among tasks --------------------------------------------------------------------


def test_bodies_in_dags_and_continuations() -> None:
    @workflow.durable
    async def continues(numbers):
        first = await workflow.step(add, 0)
        return workflow.continuation(add.bind(total.bind(numbers), first))

    @ray.remote
    def starts(numbers):
        return workflow.continuation(add.bind(continues.bind(numbers), plain_total.bind(numbers)))

    dag = add.bind(starts.bind([1, 2]), total.bind([10, 20]))
    # (1 + 2 + 1) + (1 + 2), and 30.
    assert workflow.run(dag) == 37


def test_a_body_with_catch_exceptions() -> None:
    @workflow.durable
    async def fails(where):
        if where == "step":
            await workflow.step(lambda: 1 // 0)
        raise KeyError("mine")

    @workflow.durable
    async def body():
        catching = workflow.options(catch_exceptions=True)
        errors = [await workflow.step(fails, w, options=catching) for w in ("step", "body")]
        return [type(error).__mro__[-4:] and str(error) for _, error in errors]

    texts = workflow.run(body.bind())
    assert "division" in texts[0]
    assert "mine" in texts[1]
    value, error = workflow.run(
        fails.options(**workflow.options(catch_exceptions=True)).bind("body")
    )
    assert value is None
    assert isinstance(error, KeyError)


# -- what is the same each time ------------------------------------------------------------


def test_replays_give_the_same(wid: str, marks: Marks, caplog: pytest.LogCaptureFixture) -> None:
    @workflow.durable
    async def body(path):
        async def branch():
            await workflow.step(add, 1)
            return workflow.random().random()

        values = [
            workflow.now().timestamp(),
            workflow.now().tzinfo is timezone.utc,
            workflow.random().random(),
            str(workflow.uuid4()),
            workflow.patched("change"),
            *await asyncio.gather(branch(), branch()),
        ]
        handler = logging.FileHandler(path)
        workflow.logger.addHandler(handler)
        workflow.logger.warning("logged once")
        workflow.logger.removeHandler(handler)
        values.append(await workflow.step(marks.add, "step"))
        values.append(workflow.now().timestamp())
        marks.add("ran")
        with open(f"{path}-values", "a") as file:
            file.write(f"{values!r}\n")
        await workflow.wait_for_signal("go")
        assert workflow.patched("change")
        return values

    path = f"{marks.directory}-log"
    ref = workflow.run_async(body.bind(path), workflow_id=wid)
    marks.wait_for("ran")
    wait_for_suspension(wid)
    workflow.signal(wid, "go")
    values = ray.get(ref)
    assert values[2] != values[5] != values[6]
    with open(f"{path}-values") as file:
        assert file.read() == f"{values!r}\n" * marks.count("ran")
    assert marks.counts() == {"ran": 2, "step": 1}
    with open(path) as file:
        assert file.read() == "logged once\n"


def wait_for_suspension(workflow_id: str, step: str = "signal") -> None:
    """Wait until a body has no attempt, but waits for a step with this in its id."""

    def suspended() -> bool:
        reason = workflow.get_tasks(workflow_id)[0].reason or ""
        return reason.startswith("it waits for") and step in reason

    wait_until(suspended, "the body only waits")


# -- values --------------------------------------------------------------------------------


def test_large_values_and_objects(wid: str, marks: Marks) -> None:
    @ray.remote
    def double(array, refs):
        # An ObjectRef that is an argument itself comes as its value, as in Ray.
        return array * 2, [ray.put(ray.get(refs[0]) * 3)]

    def local(array):
        return array + 1

    @workflow.durable
    async def body(array, refs):
        doubled, (tripled,) = await workflow.step(double, array, refs)
        more = await workflow.step(local, doubled)
        direct = await workflow.step(double, refs[0], [tripled])
        marks.add("ran")
        await workflow.wait_for_signal("go")
        again = await workflow.step(local, array)
        tripled_sum = await workflow.step(lambda refs: ray.get(refs[0]).sum(), [tripled])
        return more.sum(), tripled_sum, direct[0].sum(), again.sum()

    ones = np.ones(400_000)
    ref = workflow.run_async(body.bind(ones, [ray.put(ones)]), workflow_id=wid)
    marks.wait_for("ran")
    wait_for_suspension(wid)
    workflow.signal(wid, "go")
    n = len(ones)
    assert ray.get(ref) == (3 * n, 3 * n, 2 * n, 2 * n)
    assert marks.count("ran") == 2


def test_code_of_a_body_may_not_wait_for_ray(wid: str) -> None:
    def waits(refs):
        return ray.get(refs[0])

    @workflow.durable
    def body(refs):
        found = workflow.step(waits, refs)
        assert workflow.step(add, refs[0], 1) == 8
        for function in (ray.get, ray.wait):
            with pytest.raises(RuntimeError, match=r"in code of a durable function, which may be"):
                function(refs)
        return found

    assert workflow.run(body.bind([ray.put(7)]), workflow_id=wid) == 7
