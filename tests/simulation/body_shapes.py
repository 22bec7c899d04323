"""Shapes of bodies of durable functions, drawn at random, and plans with them."""

from __future__ import annotations

from random import Random

import msgspec

from ray_workflows._model.plan import BODY, SIGNAL, TIMER, Backoff, Plan, TaskOptions
from tests.simulation import scripts, shapes
from tests.simulation.body_scripts import (
    AnyOp,
    Block,
    Do,
    Guard,
    Local,
    Marked,
    Nap,
    Race,
    Raise,
    Together,
    plans_in,
)
from tests.simulation.oracle import expect, signals_for
from tests.simulation.scripts import Script, build
from tests.simulation.shapes import Tasks

#: Seconds that bodies sleep.
NAPS = (0.05, 0.3, 1.5, 5.0)


class Draw(msgspec.Struct, frozen=True):
    """What may be drawn. ``fails``: errors that nothing in the body catches. ``flaky``: errors that
    are not there any more when the step is run again. ``depth``: of bodies around. ``repeats``:
    steps may be stopped and run again, so that they would need their signals again."""

    fails: bool = True
    flaky: bool = True
    depth: int = 0
    repeats: bool = True

    def without_errors(self) -> Draw:
        """What may be drawn where no error may come out."""
        return msgspec.structs.replace(self, fails=False, flaky=False)

    def guarded(self) -> Draw:
        """What may be drawn where errors are caught: whether there is one must not depend on how
        often a step was run."""
        return Draw(flaky=False, depth=self.depth)


def draw_draw(rng: Random) -> Draw:
    return Draw() if rng.random() < 0.7 else Draw(fails=False, flaky=False, repeats=False)


def salt(rng: Random) -> str:
    return format(rng.getrandbits(32), "x")


def draw_body_plan(rng: Random) -> Plan:
    """A plan in which there is a body: alone, in a DAG, or in a continuation."""
    shape = rng.random()
    if shape < 0.5:
        return build([draw_body(rng, draw_draw(rng))])
    if shape < 0.65:
        inner = build([draw_body(rng, draw_draw(rng))])
        return build([(Script(salt(rng), plan=inner), TaskOptions(), ())])
    tasks: Tasks = []
    for _ in range(rng.randint(0, 2)):
        tasks.append(shapes.draw_task(rng, 2, ()))
    first = len(tasks)
    for _ in range(rng.choice([1, 1, 2])):
        upstream = tuple(n for n in range(first) if rng.random() < 0.6)
        tasks.append(draw_body(rng, draw_draw(rng), upstream))
    return build(shapes.join(rng, 2, tasks))


def draw_body(
    rng: Random, draw: Draw, upstream: tuple[int, ...] = ()
) -> tuple[Script, TaskOptions, tuple[int, ...]]:
    """A task that is a body."""
    catches = rng.random() < 0.1
    inside = draw.guarded() if catches else draw
    block = draw_block(rng, inside)
    turns, plan = 0, None
    if rng.random() < 0.12:
        turns = rng.randint(1, 2)
    elif rng.random() < 0.1 and draw.depth == 0:
        plan = build([draw_body(rng, msgspec.structs.replace(inside, depth=1))])
    script = Script(salt(rng), plan=plan, turns=turns, large=rng.random() < 0.1, body=block)
    options = TaskOptions(
        kind=BODY,
        max_retries=rng.choice([3, 3, 0, 1, -1]),
        retry_exceptions=rng.random() < 0.5,
        backoff=rng.choice([Backoff(), Backoff(), Backoff(0.5, 4.0, 0.5)]),
        catch_exceptions=catches,
        checkpoint=rng.choice([None, None, False]),
    )
    return script, calmed(script, options), upstream


def draw_block(rng: Random, draw: Draw, size: int = 4) -> Block:
    return tuple(draw_part(rng, draw, size) for _ in range(rng.randint(1, size)))


def draw_part(rng: Random, draw: Draw, size: int) -> AnyOp:
    die = rng.random()
    smaller = max(1, size - 1)
    if size > 1 and die < 0.16:
        branches = tuple(draw_block(rng, draw, smaller) for _ in range(rng.randint(2, 3)))
        return Together(branches, stops=rng.random() < 0.5)
    if size > 1 and die < 0.24:
        return Race(draw_block(rng, draw.guarded(), smaller), rng.choice(NAPS))
    if size > 1 and die < 0.36:
        block = draw_block(rng, draw.guarded(), smaller)
        return Guard(block, draw_block(rng, draw.without_errors(), 2))
    if die < 0.46:
        return Nap(rng.choice(NAPS))
    if die < 0.52:
        return Marked(salt(rng))
    if die < 0.68:
        fails = draw.fails and rng.random() < 0.15
        return Local(salt(rng), fails, large=rng.random() < 0.2)
    if die < 0.7 and draw.fails:
        return Raise(salt(rng))
    return Do(draw_step(rng, draw))


def draw_step(rng: Random, draw: Draw) -> Plan:
    """A plan that is a step, and that no death of a worker can make fail."""
    die = rng.random()
    if die < 0.15 and not (draw.depth and draw.repeats):
        waits = TaskOptions(kind=SIGNAL, signal=rng.choice(["go", "stop"]), max_retries=-1)
        return build([(Script(salt(rng)), waits, ())])
    if die < 0.2:
        nap = TaskOptions(kind=TIMER, duration=rng.choice(NAPS))
        return build([(Script(salt(rng)), nap, ())])
    if die < 0.3 and draw.depth < 2:
        inner = msgspec.structs.replace(draw, depth=draw.depth + 1)
        plan = build([draw_body(rng, inner)])
    elif die < 0.42 and draw.flaky:
        return build(
            [(Script(salt(rng), flaky=rng.randint(1, 2)), TaskOptions(max_retries=-1), ())]
        )
    elif die < 0.55:
        plan = shapes.draw_plan(rng, 2)
    else:
        script = Script(salt(rng), large=rng.random() < 0.2)
        plan = build([(script, TaskOptions(checkpoint=rng.choice([None, False])), ())])
    plan = hardened(plan)
    fails = bool(expect(plan).culprits)
    if (fails and not draw.fails) or (draw.repeats and signals_for(plan)):
        return build([(Script(salt(rng)), TaskOptions(max_retries=-1), ())])
    return plan


def is_flaky(plan: Plan) -> bool:
    """Whether something in a plan fails until it has failed often enough."""
    return any(scripts.decode(each).flaky for each in plan.functions) or any(
        is_flaky(inner) for each in plan.functions for inner in inner_plans(scripts.decode(each))
    )


def inner_plans(script: Script) -> list[Plan]:
    found = [] if script.plan is None else [script.plan]
    return found + ([] if script.body is None else plans_in(script.body))


def calmed(script: Script, options: TaskOptions) -> TaskOptions:
    """Options with which what always fails is not retried for ever."""
    alone = msgspec.structs.replace(options, max_retries=3, catch_exceptions=False)
    if options.max_retries == -1 and expect(build([(script, alone, ())])).culprits:
        return msgspec.structs.replace(options, retry_exceptions=False)
    return options


def hardened(plan: Plan) -> Plan:
    """A plan whose tasks survive all deaths of workers: an error that a body is given has to be one
    of a script."""
    functions, options = [], list(plan.options)
    for each in plan.functions:
        script = scripts.decode(each)
        if script.plan is not None:
            script = msgspec.structs.replace(script, plan=hardened(script.plan))
        functions.append(msgspec.structs.replace(each, data=scripts.encode(script)))
    for spec in plan.tasks:
        given = msgspec.structs.replace(options[spec.options], max_retries=-1)
        options[spec.options] = calmed(scripts.decode(functions[spec.function]), given)
    return msgspec.structs.replace(plan, functions=tuple(functions), options=tuple(options))
