"""What simulated tasks do: a script rides where a real plan has the pickled function.

A task's value is a hash of its script, its arguments and its inputs: the same in every run of the
same workflow, whatever happens to it on the way. The bytes of a value also name the attempt that
made it, so that it can be seen whose value was committed and consumed.
"""

from __future__ import annotations

import hashlib

import msgspec

from ray_workflows._model.plan import SIGNAL, Function, Plan, TaskOptions, TaskSpec
from ray_workflows._model.values import Outcome, Value

#: Type name of errors that scripts raise, to tell them from those of crashed workers.
SCRIPT_ERROR = "ScriptError"


class Script(msgspec.Struct, frozen=True, array_like=True):
    """Behaviour of a task.

    ``failures``: that many first attempts raise; -1: all of them. ``plan``: returns it as a
    continuation. ``turns``: returns a continuation with one task that has a turn less, and that
    takes a signal called ``signal``, if that is given.
    ``large``: its result is stored as a blob. ``endless``: the event it waits for never comes.
    """

    salt: str
    failures: int = 0
    plan: Plan | None = None
    turns: int = 0
    large: bool = False
    endless: bool = False
    signal: str = ""


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


def core(script: Script, arguments: bytes, inputs: list[str]) -> str:
    """The value of a task that returns one."""
    text = "|".join([script.salt, arguments.decode(), *inputs])
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
        msgspec.structs.replace(task, arguments=Value(seen.encode())) for task in plan.tasks
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
        specs.append(TaskSpec(name, index, index, Value(arguments.encode()), upstream))
    return Plan(
        functions=tuple(functions),
        options=tuple(options),
        tasks=tuple(specs),
        digest=hashlib.blake2b(repr(tasks).encode(), digest_size=6).hexdigest(),
    )


def pack(text: str, maker: str) -> bytes:
    """The bytes of a value, with the attempt that made it."""
    return f"{text}#{maker}".encode()


def unpack(data: bytes) -> str:
    """The value alone."""
    return data.partition(b"#")[0].decode()


def maker(data: bytes) -> str:
    """The attempt that made a value."""
    return data.partition(b"#")[2].decode()


def seen_as(outcome: Outcome, data: bytes | None) -> str:
    """What a consumer makes of an input. Errors look alike: which one is caught may vary."""
    if outcome.error is not None:
        return "error"
    assert data is not None
    return f"wrapped {unpack(data)}" if outcome.wrapped else unpack(data)
