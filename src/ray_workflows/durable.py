"""Durable functions: code whose steps are stored, and that goes on after a crash where it was."""

from __future__ import annotations

import functools
import inspect
import logging
import random as random_module
import time
import uuid
from collections.abc import Callable
from datetime import datetime, timezone
from functools import partial
from typing import Any, NoReturn, TypeVar, overload

import ray
from ray.remote_function import RemoteFunction

from ray_workflows._arguments import check_flag
from ray_workflows._executor.worker.bodies.attempt import current_attempt
from ray_workflows._executor.worker.bodies.calls import ask, running
from ray_workflows._executor.worker.bodies.guards import LOG
from ray_workflows._model.plan import BODY
from ray_workflows.options import options as workflow_options
from ray_workflows.options import set_default_options

F = TypeVar("F", bound=Callable[..., Any])


@overload
def durable(function: Callable[..., Any], /) -> Any: ...


@overload
def durable(*, strict: bool = False) -> Callable[[Callable[..., Any]], Any]: ...


def durable(function: Any = None, /, *, strict: bool = False) -> Any:
    """Make a durable function of an ``async def`` or a ``def``: a task whose steps are stored.

    It is bound and run like a remote function: ``f.bind(...)``, ``f.options(...)``, also in DAGs
    and in continuations. Its code asks for steps (`step`, `sleep`, `wait_for_signal`,
    `wait_for_event`), each of which is committed once. After a crash, and when it has only waited
    for a second, the code runs again from its beginning, and gets the stored outcomes of the steps
    that it has had. So it has to ask for the same steps each time: what depends on the time, on
    chance or on the world outside belongs into steps, or comes from `now`, `random` and `uuid4`.

    It runs in a process that it shares with others and that takes no CPU; what computes belongs
    into steps that are Ray tasks. Its result is always stored.

    Args:
        function: the function.
        strict: raise `NondeterminismError` if the code, run again, gives a step other arguments
            than before. Default: log a warning.

    Returns:
        A remote function, for ``bind`` and ``options``.

    Raises:
        TypeError: it is not a function that a body can be.

    Examples:
        >>> import asyncio, ray, ray_workflows as workflow
        >>> @ray.remote
        ... def price(item):
        ...     return len(item)
        >>> @workflow.durable
        ... async def order(first, second):
        ...     one = await workflow.step(price, first)
        ...     two, three = await asyncio.gather(
        ...         workflow.step(price, second), workflow.step(price, "tip")
        ...     )
        ...     await workflow.sleep(0.01)
        ...     return one + two + three
        >>> workflow.run(order.bind("tea", "cake"))
        10
    """
    if function is None:
        return functools.partial(make_durable, strict=check_flag("strict", strict))
    return make_durable(function, strict=check_flag("strict", strict))


def make_durable(function: Any, *, strict: bool) -> Any:
    """As `durable`, for a function."""
    if isinstance(function, RemoteFunction):
        raise TypeError(
            "@workflow.durable takes the plain function, without @ray.remote: options go into "
            "f.options(...)."
        )
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError("A durable function returns one result: it can't be a generator.")
    if not inspect.isfunction(function):
        raise TypeError(f"@workflow.durable takes a function, not {type(function).__name__}.")

    @functools.wraps(function)
    def body(*args: Any, **kwargs: Any) -> Any:
        # It is pickled by value, so it refers to nothing but this function.
        return call_body(function, args, kwargs)

    body.strict = strict  # type: ignore[attr-defined]
    remote = ray.remote(body)
    set_default_options(remote, {"kind": BODY})
    return remote


def call_body(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call the code of a durable function, in the process that runs it. Stored functions refer to
    this by its name.

    Raises:
        RuntimeError: somebody else calls.
    """
    if current_attempt.get() is None:
        raise RuntimeError(
            f"{function.__name__} is a durable function: run it in a workflow, with "
            f"workflow.run({function.__name__}.bind(...)), or as a step of another one."
        )
    return function(*args, **kwargs)


def given(options: workflow_options | None) -> dict[str, Any]:
    """Options as keywords."""
    return dict(options) if options is not None else {}


def step(target: Any, /, *args: Any, options: workflow_options | None = None, **kwargs: Any) -> Any:
    """Run a step of a durable function: its outcome is stored, and the step is not run again.

    Args:
        target: what to run: a Ray remote function, a DAG node, another durable function; or a plain
            function or coroutine function, which runs in the process of the durable function, once
            for each commit at least; or a method of a Ray actor, for whose answer a thread waits.
        args: its arguments.
        options: options of a remote or durable function, as in ``f.options(...)``.
        kwargs: its arguments.

    Returns:
        In a coroutine function, something to await once, that gives the result; `asyncio.gather`,
        ``wait_for``, ``create_task`` and ``TaskGroup`` take it. The step starts at once. In a plain
        function, the result.

    Raises:
        Exception: in a plain function, what the step raised: an instance of its class.
        NondeterminismError: the code asked for something else when it ran before.
        RuntimeError: no durable function is running here.
        TypeError: the target can't be a step.
    """
    attempt = running("step()")
    return attempt.body.outcome_of(ask(attempt, target, args, kwargs, given(options)))


class StepHandle:
    """A step that runs, in a plain durable function. Made by `step_async`."""

    def __init__(self, result: Callable[[], Any], cancel: Callable[[], None]) -> None:
        self._result = result
        self._cancel = cancel

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "A handle of step_async() is no value that a step can take, or a durable function "
            "return. Its result is: call result() first."
        )

    def result(self) -> Any:
        """Wait for the step, and return its result, or raise what it raised."""
        return self._result()

    def cancel(self) -> None:
        """Stop the step, unless it has ended."""
        self._cancel()


def step_async(
    target: Any, /, *args: Any, options: workflow_options | None = None, **kwargs: Any
) -> StepHandle:
    """Start a step of a plain durable function, and go on.

    Args:
        target: as of `step`.
        args: its arguments.
        options: as of `step`.
        kwargs: its arguments.

    Returns:
        A handle; its ``result()`` waits.

    Raises:
        RuntimeError: no plain durable function is running here: in a coroutine function, `step`
            starts a step at once.
    """
    attempt = running("step_async()")
    if attempt.body.is_async:
        raise RuntimeError("In a coroutine function, step() starts the step: await it later.")
    asked = ask(attempt, target, args, kwargs, given(options))
    body = attempt.body
    return StepHandle(partial(body.outcome_of, asked), partial(body.cancel, asked))


def now() -> datetime:
    """The time, in UTC. In a durable function, that of the last outcome which it was given, and so
    the same when the code runs again."""
    attempt = current_attempt.get()
    seconds = time.time() if attempt is None else attempt.body.now()
    return datetime.fromtimestamp(seconds, timezone.utc)


def random() -> random_module.Random:
    """A source of random numbers. In a durable function, it gives the same ones when the code runs
    again; each asyncio task has its own."""
    attempt = current_attempt.get()
    return random_module.Random() if attempt is None else attempt.random()


def uuid4() -> uuid.UUID:
    """A random UUID. In a durable function, the same when the code runs again."""
    return uuid.UUID(int=random().getrandbits(128), version=4)


def patched(name: str) -> bool:
    """Whether the code of a durable function may do what it does since a change.

    A durable function that was running when its code changed has to ask for the steps that it asked
    for before. Guard the change: ``if workflow.patched("name"): new steps, else: old ones``. Bodies
    that had passed this place before the change get False, and all others True, each time that they
    run again.

    Args:
        name: of the change, the same for ever.

    Raises:
        RuntimeError: no durable function is running here.
    """
    return running("patched()").body.patched(name)


def continue_as_new(*args: Any, **kwargs: Any) -> NoReturn:
    """End a durable function, and begin it anew with other arguments and an empty history.

    Use it in a function that lives long, or in a loop without end: the history of a function is
    read each time that the function is called. The same code runs, with the same options, as the
    next task; its result becomes the result of this one. Steps that still run are stopped. Signals
    that nobody has taken stay.

    It raises, and ``except Exception`` does not catch that; ``finally`` blocks run.

    Args:
        args: the arguments for the function.
        kwargs: the arguments for the function.

    Raises:
        RuntimeError: no durable function is running here, or not its main coroutine.
        TypeError: the function does not take these arguments, or (SerializationError) one can't be
            stored.

    Examples:
        >>> import ray_workflows as workflow
        >>> @workflow.durable
        ... async def count_down(number, passed=0):
        ...     if not number:
        ...         return passed
        ...     await workflow.sleep(0.01)
        ...     workflow.continue_as_new(number - 1, passed=passed + 1)
        >>> workflow.run(count_down.bind(3), workflow_id="countdown")
        3
    """
    raise running("continue_as_new()").continue_as_new(args, kwargs)


class ReplayFilter(logging.Filter):
    """Drops records of code that runs again."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the code that logs does so for the first time."""
        attempt = current_attempt.get()
        return attempt is None or not attempt.body.replaying


#: A logger for durable functions: what their code logs when it runs again is dropped.
logger: logging.Logger = logging.getLogger(LOG)
logger.addFilter(ReplayFilter())
logger.setLevel(logging.INFO)
