"""Workflows of every shape, made from a seed, and what each must end with.

A story is what drivers do with one workflow: submit it, send it signals, cancel it, read its
output, fork it, delete it. What its steps compute follows from their names and inputs alone.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Iterator

import msgspec

SUCCESSFUL, FAILED, CANCELED = "SUCCESSFUL", "FAILED", "CANCELED"

#: What a consumer computes with in place of an error that was caught, or of a sleep.
CAUGHT, NOTHING = 7, 0

#: Size in bytes of a result that becomes a blob.
LARGE = 64 * 1024

#: A step that always raises.
ALWAYS = -1


class Step(msgspec.Struct, frozen=True):
    """A task. ``name`` is its id, unique in its workflow, those of continuations included."""

    name: str
    inputs: tuple[Step, ...] = ()
    kind: str = "task"
    #: How long it takes, or sleeps.
    seconds: float = 0.0
    #: Bytes of its result.
    size: int = 0
    stored: bool = True
    #: How many attempts raise before one returns.
    failures: int = 0
    catches: bool = False
    #: The signal that it waits for.
    signal: str = ""
    #: What it returns as its continuation.
    then: Step | None = None
    #: What it runs as a workflow of its own.
    nested: Step | None = None
    #: What the task has computed whose continuation this is.
    carried: int = 0


class Story(msgspec.Struct, frozen=True):
    workflow_id: str
    shape: str
    step: Step
    status: str = SUCCESSFUL
    #: Names of the signals that are sent.
    signals: tuple[str, ...] = ()
    canceled: bool = False
    #: The task from which it is forked when it has ended.
    forked_from: str = ""
    deleted: bool = False

    @property
    def value(self) -> int:
        return value_of(self.step)

    @property
    def fork_id(self) -> str:
        return f"{self.workflow_id}.fork"


class Broken(Exception):
    """The step fails."""


def mix(name: str, *values: int) -> int:
    return zlib.crc32(f"{name}:{values}".encode())


def signal_value(name: str) -> int:
    return mix(f"signal {name}")


def value_of(step: Step) -> int:
    """What a step hands to its consumers.

    Raises:
        Broken: an error that nobody catches.
    """
    try:
        return uncaught_value_of(step)
    except Broken:
        if step.catches:
            return CAUGHT
        raise


def uncaught_value_of(step: Step) -> int:
    inputs = [value_of(each) for each in step.inputs]
    if step.kind == "sleep":
        return NOTHING
    if step.kind == "signal":
        return signal_value(step.signal)
    if step.failures == ALWAYS:
        raise Broken(step.name)
    own = mix(step.name, step.carried, *inputs)
    if step.nested is not None:
        own = mix(step.name, own, value_of(step.nested))
    if step.then is not None:
        return value_of(carry(step.then, own))
    return own


def carry(step: Step, value: int) -> Step:
    """The continuation of a task that has computed a value."""
    return msgspec.structs.replace(step, carried=value)


def steps_of(step: Step) -> Iterator[Step]:
    """A step and all below it, without nested workflows."""
    yield step
    for each in step.inputs:
        yield from steps_of(each)
    if step.then is not None:
        yield from steps_of(step.then)


def nested_id(workflow_id: str, task: str) -> str:
    return f"{workflow_id}.{task}"


# -- the shapes ----------------------------------------------------------------------------


def chain(rng: random.Random, length: int, prefix: str = "s", **fields) -> Step:
    step = Step(f"{prefix}0", seconds=pause(rng), **fields)
    for number in range(1, length):
        step = Step(f"{prefix}{number}", (step,), seconds=pause(rng), **fields)
    return step


def pause(rng: random.Random) -> float:
    """Mostly short, so that tasks travel together; some that are long enough to be killed."""
    return rng.choice((0.0, 0.0, 0.0, 0.01, 0.05, 0.3))


def single(rng: random.Random) -> Story:
    return Story("", "", Step("only", seconds=pause(rng)))


def a_chain(rng: random.Random) -> Story:
    return Story("", "", chain(rng, rng.randint(2, 8)))


def fan_out(rng: random.Random) -> Story:
    parts = [Step(f"part{n}", seconds=rng.choice((0.0, 0.0, 0.02))) for n in range(40)]
    return Story("", "", Step("join", tuple(parts[: rng.randint(5, 40)])))


def large(rng: random.Random) -> Story:
    sizes = [rng.choice((LARGE - 200, LARGE + 200, 300_000, 2_000_000)) for _ in range(3)]
    first = Step("l0", size=sizes[0], seconds=pause(rng))
    second = Step("l1", (first,), size=sizes[1], seconds=pause(rng))
    return Story("", "", Step("l2", (first, second), size=sizes[2]))


def unstored(rng: random.Random) -> Story:
    size = rng.choice((0, 0, 200_000))
    middle = chain(rng, rng.randint(2, 5), "u", stored=False, size=size)
    first = Step("first", (middle,), seconds=pause(rng))
    return Story("", "", Step("last", (first, middle)))


def loop(rng: random.Random) -> Story:
    step = Step("turn0", seconds=pause(rng))
    for number in range(1, rng.randint(2, 9)):
        inputs = (Step(f"in{number}"),) if rng.random() < 0.3 else ()
        step = Step(f"turn{number}", inputs, seconds=pause(rng), then=step)
    return Story("", "", Step("after", (step,)))


def retried(rng: random.Random) -> Story:
    flaky = Step("flaky", seconds=pause(rng), failures=rng.randint(1, 3))
    return Story("", "", Step("after", (flaky, Step("beside"))))


def caught(rng: random.Random) -> Story:
    failures = rng.choice((ALWAYS, 0))
    risky = Step("risky", (Step("before"),), failures=failures, catches=True, seconds=pause(rng))
    return Story("", "", Step("after", (risky,)))


def slept(rng: random.Random) -> Story:
    nap = Step("nap", kind="sleep", seconds=rng.choice((0.1, 1.0, 3.0)))
    return Story("", "", Step("after", (nap, Step("beside", seconds=pause(rng)))))


def signaled(rng: random.Random) -> Story:
    names = tuple(f"news{number}" for number in range(rng.randint(1, 3)))
    waits = tuple(Step(f"wait {name}", kind="signal", signal=name) for name in names)
    return Story("", "", Step("after", (*waits, Step("beside", seconds=pause(rng)))), signals=names)


def nested(rng: random.Random) -> Story:
    inner = chain(rng, rng.randint(1, 3), "inner")
    return Story("", "", Step("after", (Step("outer", (Step("before"),), nested=inner),)))


def canceled(rng: random.Random) -> Story:
    wait = Step("wait", kind="signal", signal="never")
    beside = chain(rng, rng.randint(1, 4), "beside")
    return Story("", "", Step("after", (wait, beside)), CANCELED, canceled=True)


def failing(rng: random.Random) -> Story:
    broken = Step("broken", (chain(rng, 2),), failures=ALWAYS)
    return Story("", "", Step("after", (broken,)), FAILED)


def forked(rng: random.Random) -> Story:
    step = chain(rng, 5, size=rng.choice((0, 100_000)))
    return Story("", "", step, forked_from=f"s{rng.randint(1, 4)}")


SHAPES: dict[str, Callable[[random.Random], Story]] = {
    "single": single,
    "chain": a_chain,
    "fan-out": fan_out,
    "large": large,
    "unstored": unstored,
    "loop": loop,
    "retried": retried,
    "caught": caught,
    "slept": slept,
    "signaled": signaled,
    "nested": nested,
    "canceled": canceled,
    "failing": failing,
    "forked": forked,
}


def story(seed: int, number: int) -> Story:
    """The story of a number: the same for the same seed, in any process."""
    rng = random.Random(f"story {seed} {number}")
    shape = rng.choice(sorted(SHAPES))
    made = SHAPES[shape](rng)
    return msgspec.structs.replace(
        made,
        workflow_id=f"w{number:05d}-{shape}",
        shape=shape,
        # All deleted ones are out of the checker's sight.
        deleted=rng.random() < 0.15,
    )


def number_of(workflow_id: str) -> int:
    """The number of the story that a workflow belongs to."""
    return int(workflow_id[1:6])
