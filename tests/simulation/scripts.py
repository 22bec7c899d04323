"""What simulated tasks do: a script rides where a real plan has the pickled function.

A task's value is a hash of its script, its arguments and its inputs: the same in every run of the
same workflow, whatever happens to it on the way. The bytes of a value also name the attempt that
made it, so that it can be seen whose value was committed and consumed.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable
from typing import Any

import msgspec

from ray_workflows._capture.unpickling import unpickle_plain
from ray_workflows._codec.envelope import plain_head
from ray_workflows._model.plan import SIGNAL, Function, Plan, TaskOptions, TaskSpec
from ray_workflows._model.values import Outcome, Value
from tests.simulation.body_scripts import Block

#: Type name of errors that scripts raise, to tell them from those of crashed workers.
SCRIPT_ERROR = "ScriptError"

#: Type name of errors of flaky scripts: whatever fails because of them goes on when it is resumed.
FLAKY_ERROR = "FlakyError"


class Script(msgspec.Struct, frozen=True, array_like=True):
    """Behaviour of a task.

    ``failures``: that many first attempts raise; -1: all of them. ``plan``: returns it as a
    continuation. ``turns``: returns a continuation with one task that has a turn less, and that
    takes a signal called ``signal``, if that is given.
    ``large``: its result is stored as a blob. ``endless``: the event it waits for never comes.
    ``body``: what it does first, if it is a durable function. ``flaky``: it fails until it has
    failed that often in its workflow.
    """

    salt: str
    failures: int = 0
    plan: Plan | None = None
    turns: int = 0
    large: bool = False
    endless: bool = False
    signal: str = ""
    body: Block | None = None
    flaky: int = 0


#: A signal of this name is never sent.
NEVER = "never"


def signal_value(name: str) -> str:
    """What all signals of a name are worth: who takes which may vary."""
    return f"signal {name}"


ENCODER = msgspec.msgpack.Encoder()
DECODER = msgspec.msgpack.Decoder(Script)


def encode(script: Script) -> bytes:
    return ENCODER.encode(script)


def decode(function: Function) -> Script:
    assert isinstance(function.data, bytes)
    return DECODER.decode(function.data)


def core(script: Script, arguments: str, inputs: list[str]) -> str:
    """The value of a task that returns one."""
    text = "|".join([script.salt, arguments, *inputs])
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def continuation(script: Script, options: TaskOptions, seen: str) -> Plan:
    """The plan that a task returns; ``seen`` is what it makes of its inputs."""
    if script.turns:
        next_turn = msgspec.structs.replace(script, turns=script.turns - 1)
        options = msgspec.structs.replace(options, checkpoint=None)
        if not script.signal:
            return build([(next_turn, options, ())], arguments=seen)
        waits = TaskOptions(kind=SIGNAL, signal=script.signal)
        turn = [(Script(script.salt), waits, ()), (next_turn, options, (0,))]
        return build(turn, arguments=seen)
    assert script.plan is not None
    return with_arguments(script.plan, seen)


def with_arguments(plan: Plan, seen: str) -> Plan:
    tasks = tuple(
        msgspec.structs.replace(task, arguments=Value(pack(seen, ""))) for task in plan.tasks
    )
    return msgspec.structs.replace(plan, tasks=tasks)


def build(
    tasks: list[tuple[Script, TaskOptions, tuple[int, ...]]], arguments: str = "root"
) -> Plan:
    """A plan from ``(script, options, upstream indices)`` in topological order."""
    functions, options, specs = [], [], []
    for index, (script, option, upstream) in enumerate(tasks):
        functions.append(Function(digest=script.salt, name=script.salt, data=encode(script)))
        options.append(option)
        # Few names for many tasks: the engine has to make them unique.
        name = f"task{len(script.salt) % 3}"
        specs.append(TaskSpec(name, index, index, Value(pack(arguments, "")), upstream))
    return Plan(
        functions=tuple(functions),
        options=tuple(options),
        tasks=tuple(specs),
        digest=hashlib.blake2b(repr(tasks).encode(), digest_size=6).hexdigest(),
    )


class Packed:
    """A value. Wherever it is unpickled, `OPENED` hears of it."""

    __slots__ = ("maker", "text")

    def __init__(self, text: str, maker: str) -> None:
        self.text = text
        self.maker = maker

    def __reduce__(self) -> tuple[Any, ...]:
        return opened, (self.text, self.maker)


#: Called when a value is unpickled.
OPENED: list[Callable[[], None]] = []


def opened(text: str, maker: str) -> Packed:
    for hear in OPENED:
        hear()
    return Packed(text, maker)


def pack(text: str, maker: str) -> bytes:
    """The bytes of a value, with the attempt that made it."""
    pickled = pickle.dumps(Packed(text, maker))
    return plain_head(len(pickled)) + pickled


def value_of(data: bytes) -> Packed:
    """What `pack` has packed."""
    packed: Packed = unpickle_plain(data)
    return packed


def unpack(data: bytes) -> str:
    """The value alone."""
    return value_of(data).text


def maker(data: bytes) -> str:
    """The attempt that made a value."""
    return value_of(data).maker


def seen_as(outcome: Outcome, data: bytes | None) -> str:
    """What a consumer makes of an input. Errors look alike: which one is caught may vary."""
    if outcome.error is not None:
        return "error"
    assert data is not None
    return f"wrapped {unpack(data)}" if outcome.wrapped else unpack(data)
