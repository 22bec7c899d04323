"""What the process of bodies does beside their code: it keeps them from waiting for Ray, and from
printing again what they printed before."""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable
from typing import Any

import ray

from ray_workflows._executor.worker import context
from ray_workflows._executor.worker.bodies.attempt import BodyAttempt, current_attempt

#: The name of the logger for code of bodies.
LOG = "ray_workflows.durable.functions"

#: Functions of Ray that wait, or whose answers may differ when the code runs again.
REFUSED = ("get", "wait")


def running_code() -> BodyAttempt | None:
    """The body whose own code calls; None in a step, which runs in the same process."""
    attempt = current_attempt.get()
    scope = context.attempt.get()
    return None if attempt is None or scope is None or scope.step else attempt


def refusing(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of Ray that the code of a body can't call."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        attempt = running_code()
        if attempt is not None:
            raise RuntimeError(
                f"{attempt.run.request.where} calls ray.{name}() in code of a durable function, "
                f"which may be run again. Ask for a step: workflow.step(f, ...) in place of "
                f"ray.get(f.remote(...)), or call a function that uses Ray as a step."
            )
        return function(*args, **kwargs)

    return call


class PrintedOnce:
    """A text stream without what code of bodies writes when it runs again."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Write, unless the code has written it before."""
        attempt = running_code()
        if attempt is not None and attempt.body.replaying:
            return len(text)
        written: int = self.stream.write(text)
        return written

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def guard_this_process() -> None:
    """Guard all bodies of this process, from now on."""
    for name in REFUSED:
        setattr(ray, name, refusing(name, getattr(ray, name)))
    sys.stdout, sys.stderr = PrintedOnce(sys.stdout), PrintedOnce(sys.stderr)
    # What code of bodies logs goes to the log of this process, and with it to the driver.
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    log = logging.getLogger(LOG)
    log.addHandler(handler)
    log.propagate = False
