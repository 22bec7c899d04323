"""What simulated tasks are for the real executor: functions that are pickled, run and wait.

A `Work` is the function of a task whose behaviour a `Script` describes. Its result names the
execution that made it: what is live, what is stored and what consumers were given can be compared.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

from ray.dag import FunctionNode
from ray.exceptions import RayTaskError

import ray_workflows as workflow
from ray_workflows._capture.dag import capture_plan
from ray_workflows._capture.options import write_label
from ray_workflows._capture.pickling import pickle_value
from ray_workflows._capture.values import ValueReader, ValueWriter
from ray_workflows._codec.envelope import seal
from ray_workflows._executor.protocol import AttemptRequest
from ray_workflows._executor.worker import context
from ray_workflows._model.plan import BODY, ENGINE_KINDS, LISTENER, Environment, Plan, TaskOptions
from ray_workflows._model.values import Outcome
from ray_workflows.storage.base import Storage
from tests.simulation import scripts
from tests.simulation.bodies import Code
from tests.simulation.body_scripts import Local, Marked, local_result
from tests.simulation.scripts import Script

if TYPE_CHECKING:
    from tests.simulation.processes import SimulatedProcess

#: More than rides in a journal.
PADDING = bytes(70_000)

#: What a consumer of a timer sees.
TIMER = "none"


class ScriptError(Exception):
    """What scripts raise that are to fail."""


class FlakyError(Exception):
    """What flaky scripts raise."""


class Surroundings:
    """The process whose code runs now: one of all that are simulated."""

    process: SimulatedProcess | None = None

    def __init__(self) -> None:
        #: Errors of users that were unpickled outside of workers.
        self.exploded: list[str] = []


HERE = Surroundings()


def here() -> SimulatedProcess:
    """The process in which this is called."""
    assert HERE.process is not None
    return HERE.process


class Work:
    """A task's function."""

    def __init__(self, encoded: bytes, name: str) -> None:
        self.encoded = encoded
        self.__qualname__ = name

    def __reduce__(self) -> tuple[Any, ...]:
        return Work, (self.encoded, self.__qualname__)

    def __call__(self, text: str, *inputs: Any) -> Any:
        request = context.current_attempt()
        assert request is not None
        script = scripts.DECODER.decode(self.encoded)
        if request.options.kind == LISTENER:
            return self.listen(request, script, text, inputs)
        process = here()
        execution = process.begins(request, inputs)
        execution.run(script)
        if script.flaky > process.world.monitor.failures_of(request.incarnation, script.salt):
            process.world.raised[execution.key] = scripts.FLAKY_ERROR
            execution.ends()
            raise FlakyError(script.salt)
        result = self.result(request, script, text, inputs, execution.name)
        execution.ends()
        return result

    async def listen(
        self, request: AttemptRequest, script: Script, text: str, inputs: tuple[Any, ...]
    ) -> Any:
        process = here()
        execution = process.begins(request, inputs)
        await Nap(execution.listening(script))
        HERE.process = process
        execution.fail(script, "error")
        result = self.result(request, script, text, inputs, execution.name)
        execution.ends()
        return result

    def result(
        self,
        request: AttemptRequest,
        script: Script,
        text: str,
        inputs: tuple[Any, ...],
        name: str,
    ) -> Any:
        value = scripts.core(script, text, [seen(each) for each in inputs])
        if script.turns or script.plan is not None:
            return to_dag(scripts.continuation(script, request.options, value))
        return (value, name, PADDING) if script.large else (value, name)


def body_of(encoded: bytes, name: str) -> Any:
    """The function of a task that is a body."""
    function = partial(run_body, encoded)
    function.__qualname__ = name  # type: ignore[attr-defined]
    # Arguments of steps have to be the same each time.
    function.strict = True  # type: ignore[attr-defined]
    return function


async def run_body(encoded: bytes, text: str, *inputs: Any) -> Any:
    """Run the script of a body."""
    request = context.current_attempt()
    assert request is not None
    script = scripts.DECODER.decode(encoded)
    assert script.body is not None
    execution = here().begins(request, inputs)
    value = scripts.core(script, text, [seen(each) for each in inputs])
    try:
        value = await WorkerCode().block(script.body, value)
    except Exception as error:
        bare = without_wrappers(error)
        execution.process.world.raised[execution.key] = type(bare).__name__
        execution.ends()
        raise bare from error
    execution.ends()
    if script.turns or script.plan is not None:
        return to_dag(scripts.continuation(script, request.options, value))
    return (value, execution.name, PADDING) if script.large else (value, execution.name)


def without_wrappers(error: BaseException) -> BaseException:
    """What the code of a step raised, at any depth."""
    while isinstance(error, RayTaskError) and isinstance(error.cause, BaseException):
        error = error.cause
    return error


class WorkerCode(Code):
    """The code of a body, with the functions that users have."""

    errors = (Exception,)

    async def do(self, plan: Plan) -> str:
        return seen(await workflow.step(to_dag(plan)))

    async def local(self, op: Local, text: str) -> str:
        return seen(await workflow.step(do_local, op.salt, text, op.fails, op.large))

    async def marked(self, op: Marked, text: str) -> str:
        unique = f"{op.salt} {workflow.uuid4()} {workflow.now()}"
        return seen(await workflow.step(do_local, unique, text, False, False))

    def error(self, salt: str) -> Exception:
        return ScriptError(salt)


def do_local(salt: str, text: str, fails: bool, large: bool) -> Any:
    """A local step."""
    process = here()
    process.sleep(process.world.rng.choice([0.001, 0.01, 1.5]) * process.world.rng.random())
    if fails:
        raise ScriptError(salt)
    value = local_result(Local(salt), text)
    return (value, "", PADDING) if large else (value, "")


class Nap:
    """Awaited, it hands out how long to wait; None: for ever."""

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds

    def __await__(self) -> Any:
        yield self.seconds


def seen(value: Any) -> str:
    """What a consumer makes of an input."""
    if value is None:
        return TIMER
    if len(value) == 2 and (value[1] is None or isinstance(value[1], BaseException)):
        return "error" if value[1] is not None else f"wrapped {seen(value[0])}"
    text: str = value[0]
    return text


def maker(value: Any) -> str:
    """The execution that made a value; nothing for one that no execution made."""
    return value[1] if isinstance(value, tuple) and isinstance(value[1], str) else ""


def sealed(value: Any) -> bytes:
    """A value as it is stored."""
    return b"".join(seal(pickle_value(value, where="value").data, []))


def read_back(storage: Storage, incarnation: str, outcome: Outcome) -> Any:
    """What a consumer gets from the storage."""
    return ValueReader(storage, incarnation).read_outcome(outcome, where="value")


def label(options: TaskOptions) -> dict[str, Any]:
    """Options as they are bound to a node."""
    found: dict[str, Any] = {
        "kind": options.kind,
        "catch_exceptions": options.catch_exceptions,
        "checkpoint": options.checkpoint,
        "duration": options.duration,
        "signal": options.signal,
        "timeout": options.timeout,
        "batch": options.batch,
    }
    if options.backoff.initial and options.retry_exceptions:
        backoff, limit = options.backoff, options.max_retries
        found["retry"] = {
            "max_attempts": None if limit == -1 else limit + 1,
            "retry_on": None,
            "give_up_on": None,
            "retry_timeouts": True,
            "backoff": backoff.initial,
            "max_backoff": backoff.maximum,
            "jitter": backoff.jitter,
            "preemptions": -1 if options.preemptions is None else options.preemptions,
        }
        return {"_labels": write_label(found)}
    retries = {"max_retries": options.max_retries, "retry_exceptions": options.retry_exceptions}
    return {**retries, "_labels": write_label(found)}


def to_dag(plan: Plan) -> FunctionNode:
    """A plan of scripts as the DAG that a user would bind."""
    bodies: dict[bytes, Any] = {}
    bound: list[dict[str, Any]] = [label(options) for options in plan.options]
    nodes: list[FunctionNode] = []
    for spec in plan.tasks:
        data = plan.functions[spec.function].data
        assert isinstance(data, bytes)
        make = body_of if plan.options[spec.options].kind == BODY else Work
        body = bodies.setdefault(data, make(data, spec.name))
        assert isinstance(spec.arguments.data, bytes)
        args: tuple[Any, ...] = (scripts.unpack(spec.arguments.data),)
        if plan.options[spec.options].kind not in ENGINE_KINDS:
            args += tuple(nodes[index] for index in spec.upstream)
        nodes.append(FunctionNode(body, args, {}, bound[spec.options]))
    return nodes[-1]


def captured(plan: Plan, storage: Storage, incarnation: str) -> Plan:
    """A plan of scripts as a driver would capture it."""
    writer = ValueWriter(storage, incarnation)
    return capture_plan(to_dag(plan), writer=writer, environment=Environment(), prefix=incarnation)


class Poisoned(Exception):
    """An error that can't be unpickled: ``reason`` says what happens to who tries."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return explode, (self.reason,)


def explode(reason: str) -> Any:
    """What unpickling a `Poisoned` calls."""
    if HERE.process is None:
        HERE.exploded.append(reason)
    if reason == "exit":
        raise SystemExit("unpickled")
    raise RuntimeError("unpickled")


def error_named(kind: str, salt: str) -> BaseException:
    """An exception of a kind."""
    if kind == "canceled":
        return asyncio.CancelledError(salt)
    if kind == "keyboard":
        return KeyboardInterrupt(salt)
    if kind == "exits":
        return SystemExit(salt)
    if kind == "surrogate":
        return ScriptError(f"{salt}\udce9")
    if kind in ("raises", "exit"):
        return Poisoned(salt, kind)
    return ScriptError(salt)
