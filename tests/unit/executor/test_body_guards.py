from __future__ import annotations

import io
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest

from ray_workflows._executor.worker import context
from ray_workflows._executor.worker.bodies.attempt import current_attempt
from ray_workflows._executor.worker.bodies.guards import PrintedOnce, refusing


class InCode:
    """Scope of the code of a body, or of one of its steps."""

    def __init__(self, *, replaying: bool, step: str = "") -> None:
        self.attempt: Any = SimpleNamespace(
            body=SimpleNamespace(replaying=replaying),
            run=SimpleNamespace(request=SimpleNamespace(where="task 't' of workflow 'w'")),
        )
        self.scope: Any = SimpleNamespace(step=step)

    def __enter__(self) -> None:
        self.tokens = current_attempt.set(self.attempt), context.attempt.set(self.scope)

    def __exit__(self, *raised: object) -> None:
        current_attempt.reset(self.tokens[0])
        context.attempt.reset(self.tokens[1])


@pytest.mark.parametrize(
    ("scope", "printed"),
    [
        (None, "one"),
        (InCode(replaying=False), "one"),
        (InCode(replaying=True), ""),
        (InCode(replaying=True, step="f"), "one"),
    ],
)
def test_code_that_runs_again_prints_nothing(scope: InCode | None, printed: str) -> None:
    stream = io.StringIO()
    once = PrintedOnce(stream)
    with ExitStack() as stack:
        if scope is not None:
            stack.enter_context(scope)
        print("one", end="", file=once)
    assert stream.getvalue() == printed
    once.flush()


def test_code_of_a_body_may_not_wait_for_ray() -> None:
    get = refusing("get", lambda ref: ref)
    assert get(1) == 1
    with InCode(replaying=False, step="f"):
        assert get(2) == 2
    with (
        InCode(replaying=False),
        pytest.raises(RuntimeError, match=r"^task 't' of workflow 'w' calls ray.get\(\) in code"),
    ):
        get(3)
