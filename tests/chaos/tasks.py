"""What the steps of a story do on the cluster: each execution leaves its traces in the log."""

from __future__ import annotations

import time
import uuid
import zlib
from typing import Any

import msgspec
import numpy as np
import ray

import ray_workflows as workflow
from ray_workflows._executor.worker.context import current_attempt
from tests.chaos import log as kinds
from tests.chaos.log import Log
from tests.chaos.stories import ALWAYS, CAUGHT, NOTHING, Broken, Step, carry, mix, nested_id

#: A body up to this size is bytes, and a larger one an array, whose buffer is stored out of band.
SMALL = 1024


class Flaky(Exception):
    """The attempt fails; a later one will not."""


class Made(msgspec.Struct, frozen=True):
    """The result of one execution: no other execution makes an equal one."""

    workflow: str
    task: str
    nonce: str
    value: int
    body: Any = b""


def body_of(nonce: str, size: int) -> Any:
    """Bytes that only this execution has."""
    if size <= SMALL:
        return nonce.encode() * (size // len(nonce))
    return np.random.default_rng(zlib.crc32(nonce.encode())).integers(0, 256, size, np.uint8)


def is_whole(made: Made) -> bool:
    return bytes(made.body) == bytes(body_of(made.nonce, len(made.body)))


@ray.remote
def work(step: Step, path: str, *inputs: Any) -> Any:
    """Compute the value of a step."""
    task = workflow.current()
    attempt = current_attempt()
    assert task is not None
    assert attempt is not None
    log, nonce = Log(path), uuid.uuid4().hex
    execution = {
        "workflow": task.workflow_id,
        "task": task.task_id,
        "epoch": attempt.epoch,
        "attempt": attempt.attempt,
        "key": task.idempotency_key,
        "nonce": nonce,
    }
    given = [opened(each) for each in inputs]
    results = [each for each in given if isinstance(each, Made)]
    log.add(kinds.BEGIN, **execution, saw=tuple((made.task, made.nonce) for made in results))
    for made in results:
        if not is_whole(made):
            log.add(kinds.DAMAGED, **execution, text=f"input {made.task} {made.nonce}")
    time.sleep(step.seconds)
    if step.failures == ALWAYS:
        log.add(kinds.RAISED, **execution)
        raise Broken(step.name)
    if attempt.attempt <= step.failures:
        log.add(kinds.RAISED, **execution)
        raise Flaky(step.name)
    value = mix(step.name, step.carried, *map(number_in, given))
    if step.nested is not None:
        value = mix(step.name, value, run_nested(step, path, task.workflow_id))
    log.add(kinds.END, **execution, value=value)
    if step.then is not None:
        return workflow.continuation(bind(carry(step.then, value), path))
    return Made(task.workflow_id, task.task_id, nonce, value, body_of(nonce, step.size))


def opened(given: Any) -> Any:
    """An input without the pair that a task makes of it that catches exceptions."""
    if isinstance(given, tuple):
        value, error = given
        return CAUGHT if error is not None else value
    return given


def number_in(given: Any) -> int:
    """What an input is computed with."""
    if given is None:
        return NOTHING
    return given.value if isinstance(given, Made) else int(given)


def run_nested(step: Step, path: str, workflow_id: str) -> int:
    """Run a workflow in a task, which the attempt before may have begun."""
    assert step.nested is not None
    name = nested_id(workflow_id, step.name)
    try:
        made = workflow.run(bind(step.nested, path), workflow_id=name)
    except workflow.WorkflowAlreadyRunningError:
        made = workflow.get_output(name)
    value: int = made.value
    return value


def bind(step: Step, path: str, made: dict[str, Any] | None = None) -> Any:
    """The DAG of a step; one that has several consumers is one node."""
    made = {} if made is None else made
    if step.name in made:
        return made[step.name]
    inputs = [bind(each, path, made) for each in step.inputs]
    if step.kind == "sleep":
        node = workflow.sleep(step.seconds)
    elif step.kind == "signal":
        node = workflow.wait_for_signal(step.signal)
    else:
        # A nested run raises what befalls it: the storage or the coordinator may be away.
        tried_again = Exception if step.nested is not None else Flaky
        options = workflow.options(
            task_id=step.name,
            catch_exceptions=step.catches,
            checkpoint=step.stored,
            retry=workflow.RetryPolicy(None, backoff=0.1, max_backoff=2.0, retry_on=tried_again),
        )
        bare = msgspec.structs.replace(step, inputs=())
        node = work.options(**options).bind(bare, path, *inputs)
    made[step.name] = node
    return node
