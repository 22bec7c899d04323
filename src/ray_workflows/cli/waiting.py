"""Limits on how long a command waits for a cluster or a storage.

A call that blocks inside of Ray or in a system call can't be interrupted. So it runs on a thread of
its own, and if it takes too long the command goes on, or ends, without it.
"""

from __future__ import annotations

import math
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn, TypeVar, cast

import click

T = TypeVar("T")

#: The result of a call, and the error that it raised.
Answer = tuple[Any, BaseException | None]

#: After how many seconds a command says what it waits for.
QUIET_SECONDS = 5.0

#: How long connecting to a cluster may take, in seconds.
ATTACH_SECONDS = 60.0
#: How long a request to a cluster may take, in seconds. It starts the coordinator if there is none,
#: which takes up to a minute, and a call of the coordinator takes up to 90 s.
CLUSTER_SECONDS = 180.0
#: How long a workflow may take to be resumed or forked, in seconds: code and values are copied.
START_SECONDS = 600.0
#: How long a storage may take to be opened, in seconds.
STORAGE_SECONDS = 60.0
#: How long a storage may take for one call, or for one piece of a value, in seconds. A command may
#: make any number of them.
CALL_SECONDS = 300.0
#: How long Ray may take to disconnect, in seconds.
LEAVE_SECONDS = 10.0

#: Calls that did not return in time.
abandoned: list[threading.Thread] = []


class NoAnswerError(click.ClickException):
    """A cluster, coordinator or storage did not answer in time."""


#: Comes after the last value.
END = object()


class Progress:
    """The time of the last progress, on the monotonic clock."""

    def __init__(self) -> None:
        self.at = time.monotonic()

    def over(self, values: Iterable[T]) -> Iterator[T]:
        """Pass the values on; each one taken counts as progress. Time spent in their source does
        not count."""
        source = iter(values)
        while True:
            self.at = math.inf
            value = next(source, END)
            self.at = time.monotonic()
            if value is END:
                return
            yield value  # type: ignore[misc]


def within(
    seconds: float,
    what: str,
    call: Callable[..., T],
    *args: Any,
    progress: Progress | None = None,
) -> T:
    """Call a function with a time limit.

    Args:
        seconds: the limit, since the call or the last progress.
        what: names the wait in messages.
        call: the function.
        args: its arguments.
        progress: the progress of the call, if it can be observed.

    Raises:
        NoAnswerError: it has not returned in time; names the wait.
        Exception: raised by the function.
    """
    answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
    context = click.get_current_context(silent=True)

    def run() -> None:
        try:
            if context is None:
                answers.put((call(*args), None))
            else:
                # Errors name the command's storage in their remedies, so run in its context.
                with context.scope(cleanup=False):
                    answers.put((call(*args), None))
        except BaseException as error:
            answers.put((None, error))

    thread = threading.Thread(target=run, name="ray-workflows-call", daemon=True)
    thread.start()
    try:
        value, error = wait(answers, seconds, what, progress or Progress())
    except BaseException:
        abandoned.append(thread)
        raise
    if error is not None:
        raise error
    return cast(T, value)


def wait(
    answers: queue.SimpleQueue[Answer], seconds: float, what: str, progress: Progress
) -> Answer:
    """The answer; says what is waited for, if it takes long."""
    limit = min(QUIET_SECONDS, seconds)
    while True:
        left = progress.at + limit - time.monotonic()
        try:
            return answers.get(timeout=max(0.0, min(left, limit)))
        except queue.Empty:
            if time.monotonic() < progress.at + limit:
                continue
        if limit == seconds:
            raise NoAnswerError(
                f"Waited {seconds:.0f} s for {what}, and there was no answer. Check that it is up "
                f"and can be reached from here, then try again: what was asked for may have been "
                f"done."
            )
        click.echo(f"Waiting for {what} ...", err=True)
        limit = seconds


def end_process(code: Any) -> NoReturn:
    """End the process without the usual end: Ray's would wait for what never returned."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))
