"""What an async body awaits: a call of a step.

It is a class, not a coroutine function: a task that is canceled before it begins has to cancel its
step, and a coroutine learns of that only after it has begun. And nothing warns of a call that
nobody awaits: its step is asked for when it is called.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from typing import Any, NoReturn

from ray_workflows._executor.worker.bodies.body import Asked, Body, BodyLeft


class StepCall(Coroutine[Any, Any, Any]):
    """A coroutine that gives the outcome of a step. If it is canceled, so is the step."""

    __slots__ = ("__name__", "__qualname__", "asked", "body", "generator", "loop", "over")

    def __init__(self, body: Body, asked: Asked, loop: asyncio.AbstractEventLoop) -> None:
        self.body = body
        self.asked = asked
        self.loop = loop
        self.generator: Generator[Any, Any, Any] | None = None
        #: Whether it has given the outcome, or an error.
        self.over = False
        # For the texts of tasks.
        self.__name__ = self.__qualname__ = asked.path

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"The call of step {self.asked.path!r} is no value that a step can take, or a durable "
            f"function return. Its result is: await it first."
        )

    def __await__(self) -> Generator[Any, Any, Any]:
        if self.generator is not None:
            raise RuntimeError(f"The call of step {self.asked.path!r} was awaited already.")
        self.generator = self.run()
        return self.generator

    def send(self, value: Any) -> Any:
        generator = self.generator or self.__await__()
        if self.over:
            raise RuntimeError(f"The call of step {self.asked.path!r} was awaited already.")
        return generator.send(value)

    def throw(self, *args: Any) -> Any:
        if self.generator is None and isinstance(args[0], (type, BaseException)):
            kind = args[0] if isinstance(args[0], type) else type(args[0])
            if issubclass(kind, asyncio.CancelledError):
                self.body.cancel(self.asked)
        return (self.generator or self.__await__()).throw(*args)

    def close(self) -> None:
        (self.generator or self.__await__()).close()

    def run(self) -> Generator[Any, Any, Any]:
        asked = self.asked
        try:
            if not asked.taken:
                if self.body.left:
                    raise BodyLeft
                future = self.loop.create_future()
                asked.waker = release(future)
                yield from future
            return asked.get()
        except asyncio.CancelledError:
            self.body.cancel(asked)
            raise
        finally:
            self.over = True


def release(future: asyncio.Future[None]) -> Callable[[], None]:
    def wake() -> None:
        if not future.done():
            future.set_result(None)

    return wake
