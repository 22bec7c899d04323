"""What durable functions can't do, and what they say then."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import threading
from typing import Any

import pytest
import ray

import ray_workflows as workflow
from tests.ray.test_durable import add


class Plain:
    """A class, which is no step."""


@ray.remote
class Actor:
    def go(self):
        return 1


# -- code of bodies, and what it gets ------------------------------------------------------


async def awaits_a_foreign_future():
    await asyncio.wrap_future(concurrent.futures.Future())


async def awaits_nothing():
    await asyncio.Event().wait()


async def awaits_an_object():
    await add.remote(1)


async def uses_a_thread():
    await asyncio.to_thread(abs, -1)


async def uses_a_socket():
    await asyncio.open_connection("127.0.0.1", 1)


async def runs_a_loop():
    asyncio.run(asyncio.sleep(0))


async def awaits_twice():
    call = workflow.step(add, 1)
    await call
    await call


async def sleeps_for_no_number():
    await asyncio.sleep(float("nan"))


async def starts_in_a_coroutine():
    workflow.step_async(add, 1)


async def returns_a_call():
    return workflow.step(add, 1)


async def passes_a_call():
    return await workflow.step(add, workflow.step(add, 1))


async def passes_a_call_to_a_function():
    return await workflow.step(lambda x: x, workflow.step(add, 1))


def steps_in_a_step():
    workflow.step(lambda: workflow.step(add, 1))


def steps_in_a_thread():
    errors: list[BaseException] = []

    def ask() -> None:
        try:
            workflow.step(add, 1)
        except RuntimeError as error:
            errors.append(error)

    thread = threading.Thread(target=contextvars.copy_context().run, args=(ask,))
    thread.start()
    thread.join()
    raise errors[0]


async def gives_a_node_arguments():
    await workflow.step(add.bind(1), 2)


async def gives_a_function_a_node():
    await workflow.step(abs, add.bind(1))


def step_of(target: Any, *args: Any, **kwargs: Any) -> Any:
    async def body():
        await workflow.step(target, *args, **kwargs)

    return body


async def passes_what_cant_be_pickled():
    await workflow.step(add, threading.Lock())


async def returns_what_cant_be_pickled():
    return threading.Lock()


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (awaits_a_foreign_future, "waits, and not for a step"),
        (awaits_nothing, "waits, and not for a step"),
        (awaits_an_object, "waits, and not for a step"),
        (uses_a_thread, "can't do this itself.*Do it in a step"),
        (uses_a_socket, "can't do this itself.*Do it in a step"),
        (runs_a_loop, "cannot be called from a running event loop"),
        (awaits_twice, "awaited already"),
        (sleeps_for_no_number, "not a number"),
        (starts_in_a_coroutine, "step.. starts the step: await it later"),
        (returns_a_call, "call of step 'add' .*await it"),
        (passes_a_call, "call of step 'add' .*await it"),
        (passes_a_call_to_a_function, "call of step 'add' .*await it"),
        (steps_in_a_step, "none runs here"),
        (steps_in_a_thread, "another thread asked for a step"),
        (step_of(5), "step.. takes .*not 5"),
        (step_of(None), "step.. takes .*not None"),
        (step_of(Plain), "step.. takes .*not <class"),
        (step_of(Actor), "can't be a step|not a task"),
        (step_of(Actor.options(num_cpus=0)), "not a task"),
        (step_of(abs, options=workflow.options(task_id="a")), "Options are for remote functions"),
        (gives_a_node_arguments, "it has its own"),
        (step_of(add, 1, 2, 3), "can't be called as it was bound"),
        (step_of(add, wrong=1), "can't be called as it was bound"),
        (gives_a_function_a_node, "FunctionNode"),
        (step_of(threading.Lock), "'allocate_lock'.*can't be stored"),
        (passes_what_cant_be_pickled, "cannot pickle"),
        (returns_what_cant_be_pickled, "result of task .*can't be stored"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_refused(code: Any, message: str) -> None:
    body = workflow.durable(code)
    with pytest.raises(workflow.WorkflowExecutionError, match=f"(?s){message}"):
        workflow.run(body.bind())


def test_a_refused_step_can_be_caught() -> None:
    @workflow.durable
    async def body():
        try:
            await workflow.step(5)
        except TypeError:
            return await workflow.step(add, 1)

    assert workflow.run(body.bind()) == 2


# -- calls from elsewhere ------------------------------------------------------------------


@workflow.durable
async def durable_function(x):
    return x


def generator():
    yield 1


async def async_generator():
    yield 1


@pytest.mark.parametrize(
    "function",
    [add, generator, async_generator, Plain, Actor, Plain(), 3, None.__class__, abs, "text"],
    ids=lambda each: type(each).__name__,
)
def test_no_durable_function_is_made_of(function: Any) -> None:
    with pytest.raises(TypeError, match="durable|generator"):
        workflow.durable(function)


def test_calls_that_are_none() -> None:
    with pytest.raises(TypeError, match="cannot be called directly"):
        durable_function(1)
    with pytest.raises(RuntimeError, match=r"run it in a workflow.*durable_function.bind"):
        ray.get(durable_function.remote(1))
    with pytest.raises(TypeError, match=r"call .bind"):
        workflow.run(durable_function)
    for call in (
        lambda: workflow.step(add, 1),
        lambda: workflow.step_async(add, 1),
        lambda: workflow.patched("x"),
    ):
        with pytest.raises(RuntimeError, match="none runs here"):
            call()


def test_what_works_everywhere() -> None:
    assert workflow.now().tzinfo is not None
    assert workflow.uuid4() != workflow.uuid4()
    assert 0 <= workflow.random().random() < 1
    workflow.logger.debug("as any logger")
