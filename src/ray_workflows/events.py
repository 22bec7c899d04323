"""Event listeners, timers, and signals."""

from __future__ import annotations

import asyncio
import functools
import inspect
import math
import time
from collections.abc import Callable, Coroutine, Generator
from datetime import timedelta
from typing import Any

import ray
from ray.dag import FunctionNode

from ray_workflows._arguments import check_flag, to_float
from ray_workflows._capture.options import LABEL, write_label
from ray_workflows._executor.worker.bodies.attempt import current_attempt
from ray_workflows._executor.worker.context import awaits_coroutines
from ray_workflows._model.ids import validate_signal_text
from ray_workflows._model.plan import LISTENER, SIGNAL, TIMER
from ray_workflows._ray.private import LABELS
from ray_workflows.durable import step
from ray_workflows.options import validate_timeout

Event = Any


class EventListener:
    """Base class of event listeners: waits for one event of some kind.

    A listener is stateless. It is instantiated, without arguments, in an actor that serves many
    listeners at once and takes no CPU. `poll_for_event` should await, not block: a listener that
    blocks keeps its thread, and the others on that thread are called again. After a crash all are.

    Examples:
        >>> import asyncio, os, ray, ray_workflows as workflow
        >>> class FileListener(workflow.EventListener):
        ...     async def poll_for_event(self, path):
        ...         while not os.path.exists(path):
        ...             await asyncio.sleep(0.1)
        ...         return path
        >>> node = workflow.wait_for_event(FileListener, os.devnull)
        >>> workflow.run(node) == os.devnull
        True
    """

    def __init__(self) -> None:
        """Called without arguments."""

    async def poll_for_event(self, *args: Any, **kwargs: Any) -> Event:
        """Return when the event has occurred, with the event."""
        raise NotImplementedError

    async def event_checkpointed(self, event: Event) -> None:
        """Called after the event is durable, so that its source can forget it. At least once."""


EventListenerType = type[EventListener]


class TimerListener(EventListener):
    """Waits until a time."""

    async def poll_for_event(self, timestamp: float) -> Event:
        """Return at ``timestamp``, in seconds since 1970."""
        await asyncio.sleep(max(0.0, timestamp - time.time()))


def finish(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine: awaited by the listener host, or run here, outside workflows."""
    return coroutine if awaits_coroutines.get() else asyncio.run(coroutine)


def get_message(listener_type: EventListenerType, *args: Any, **kwargs: Any) -> Event:
    """Wait for the event; its result is checkpointed."""
    return finish(listener_type().poll_for_event(*args, **kwargs))


def message_committed(listener_type: EventListenerType, event: Event) -> Event:
    """Tell the listener that the event is durable."""

    async def acknowledge() -> Event:
        await listener_type().event_checkpointed(event)
        return event

    return finish(acknowledge())


def end_time(duration: float) -> None:
    """The function of a timer, which runs only outside of workflows."""
    time.sleep(duration)


def take_signal(name: str) -> None:
    """The function of a wait for a signal, which fails outside of workflows: no signal could
    come."""
    raise RuntimeError(
        f"wait_for_signal({name!r}) waits in a workflow only. Run the DAG with workflow.run."
    )


def bind(function: Callable[..., Any], options: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    """A node of a function of this module, with internal options."""
    return remote(function, write_label(options)[LABEL]).bind(*args, **kwargs)


@functools.lru_cache(maxsize=1_000)
def remote(function: Callable[..., Any], label: str) -> Any:
    """A function of this module with its options. Cached, because Ray makes a class for each, and a
    durable function that runs again asks for the same waits again."""
    # Unlimited: a listener must not fail because another listener killed their host.
    return ray.remote(function).options(max_retries=-1, **{LABELS: {LABEL: label}})


class AwaitableNode(FunctionNode, Coroutine[Any, Any, Any]):  # type: ignore[misc]
    """A node that a durable function can await, as a step. A coroutine too, for asyncio's
    ``create_task``; the step is asked for when that begins."""

    #: The step, once it is awaited.
    call: Coroutine[Any, Any, Any] | None = None

    def begun(self) -> Coroutine[Any, Any, Any]:
        """The step, which begins with the first use."""
        if self.call is None:
            self.call = step(self)
        return self.call

    def __await__(self) -> Generator[Any, Any, Any]:
        """Wait for the step."""
        return self.begun().__await__()

    def send(self, value: Any) -> Any:
        """As of any coroutine."""
        return self.begun().send(value)

    def throw(self, *raised: Any) -> Any:
        """As of any coroutine."""
        return self.begun().throw(*raised)

    def close(self) -> None:
        """As of any coroutine. A step that has not begun never will."""
        if self.call is not None:
            self.call.close()


def for_caller(node: FunctionNode) -> Any:
    """What the caller gets for a node: in a plain durable function, its result; in a durable
    coroutine function, a node to await; else the node."""
    attempt = current_attempt.get()
    if attempt is None:
        return node
    if not attempt.body.is_async:
        return step(node)
    node.__class__ = AwaitableNode
    return node


def wait_for_event(event_listener_type: EventListenerType, *args: Any, **kwargs: Any) -> Any:
    """A node that waits for an event and produces it.

    Args:
        event_listener_type: a subclass of `EventListener`.
        args: passed to its ``poll_for_event``; may be nodes.
        kwargs: as ``args``.

    Returns:
        A DAG node; tasks bound to it start when the event is durable and acknowledged. In durable
        functions, as of `wait_for_signal`.

    Raises:
        TypeError: not a subclass of `EventListener`.
    """
    if not inspect.isclass(event_listener_type) or not issubclass(
        event_listener_type, EventListener
    ):
        name = getattr(event_listener_type, "__name__", repr(event_listener_type))
        raise TypeError(
            f"Event listener type is {name}, which is not a subclass of workflow.EventListener"
        )
    name = f"event-{event_listener_type.__name__}"
    # Always stored, whatever the enclosing tasks' options: `event_checkpointed` relies on it.
    waits = {"kind": LISTENER, "task_id": name, "checkpoint": True}
    message = bind(get_message, waits, event_listener_type, *args, **kwargs)
    acknowledges = {"kind": LISTENER, "task_id": f"{name}-acknowledged"}
    return for_caller(bind(message_committed, acknowledges, event_listener_type, message))


def sleep(duration: float) -> Any:
    """A node that produces None after a while; the deadline survives crashes. In a durable
    coroutine function, await it; in a plain durable function, it waits.

    Args:
        duration: how long to wait, in seconds, from the moment the node could start; a negative
            one is over at once.

    Raises:
        TypeError: not a number.
        ValueError: infinite or not a number (NaN).
    """
    if isinstance(duration, bool) or not isinstance(duration, (int, float)):
        raise TypeError(f"sleep takes a number of seconds, not {type(duration).__name__}.")
    seconds = to_float(duration)
    if not math.isfinite(seconds):
        raise ValueError(f"sleep takes a finite number of seconds, not {seconds}.")
    seconds = max(0.0, seconds)
    options = {"kind": TIMER, "duration": seconds, "task_id": "sleep"}
    return for_caller(bind(end_time, options, seconds))


def wait_for_signal(
    name: str,
    *,
    timeout: float | timedelta | None = None,
    catch_exceptions: bool = False,
) -> Any:
    """A node that waits for a signal to its workflow and produces the signal's value.

    It takes the oldest signal of the name that no node has taken, also one that came before the
    node began to wait. Of several nodes that wait for a name, the one that has waited longest takes
    the next signal. Waiting occupies no worker, and outlives crashes.

    Args:
        name: the name that is given to `signal`; up to 512 bytes of UTF-8.
        timeout: how long to wait, in seconds or as a timedelta, from the moment the node could
            start. Then it fails with `SignalTimeoutError`, and is not tried again. A workflow that
            is resumed waits for the whole time again. Default: without end.
        catch_exceptions: as in `options`: the node produces ``(value, None)``, or
            ``(None, error)``.

    Returns:
        A DAG node; an argument of tasks, or a continuation. In a durable coroutine function, it can
        be awaited; in a plain durable function, the value itself, when it is there.

    Raises:
        TypeError: a name that is not a string, or a timeout that is not a time.
        ValueError: a name that is empty or too long, or a timeout that is not positive.

    Examples:
        >>> import ray, ray_workflows as workflow
        >>> @ray.remote
        ... def ship(order, approval):
        ...     return f"{order}, approved by {approval}"
        >>> dag = ship.bind("order 5", workflow.wait_for_signal("approved"))
        >>> ref = workflow.run_async(dag, workflow_id="order 5")
        >>> workflow.signal("order 5", "approved", "Ada")
        >>> ray.get(ref)
        'order 5, approved by Ada'
    """
    name = validate_signal_text("name", name)
    options = {
        "kind": SIGNAL,
        "signal": name,
        "task_id": f"signal-{name}",
        "timeout": validate_timeout(timeout),
        "catch_exceptions": check_flag("catch_exceptions", catch_exceptions),
    }
    return for_caller(bind(take_signal, options, name))
