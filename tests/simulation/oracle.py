"""What a workflow must end with, computed from its plan alone: no engine, no faults."""

from __future__ import annotations

import msgspec

from ray_workflows._model.plan import ENGINE_KINDS, SIGNAL, TIMER, Plan, TaskOptions
from tests.simulation import body_scripts, scripts
from tests.simulation.body_scripts import Block, mix
from tests.simulation.scripts import Script

#: What a task that catches exceptions hands on when there was one.
CAUGHT = "error"


class Expected(msgspec.Struct, frozen=True):
    """``output`` as a consumer would see it, or, if there is none, the scripts that may fail it."""

    output: str | None
    culprits: frozenset[str] = frozenset()


def expect(plan: Plan, timer: str | None = None) -> Expected:
    """Run a plan in the head. ``timer``: what timers are worth, if not what they are given."""
    seen: list[Expected] = []
    for spec in plan.tasks:
        upstream = [seen[index] for index in spec.upstream]
        culprits = frozenset().union(*(result.culprits for result in upstream))
        if culprits:
            seen.append(Expected(None, culprits))
            continue
        inputs = [result.output for result in upstream if result.output is not None]
        assert isinstance(spec.arguments.data, bytes)
        script = scripts.decode(plan.functions[spec.function])
        options = plan.options[spec.options]
        seen.append(
            expect_task(script, options, scripts.unpack(spec.arguments.data), inputs, timer)
        )
    return seen[-1]


def signals_for(plan: Plan) -> list[str]:
    """Names of signals with which every wait of a plan has one, whatever becomes of the others."""
    found: list[str] = []
    for spec in plan.tasks:
        options = plan.options[spec.options]
        script = scripts.decode(plan.functions[spec.function])
        if options.kind == SIGNAL and options.signal != scripts.NEVER:
            found.append(options.signal)
        if options.kind in ENGINE_KINDS:
            continue
        if script.signal:
            found += [script.signal] * script.turns
        if script.body is not None:
            for inner in body_scripts.plans_in(script.body):
                found += signals_for(inner) * (script.turns + 1)
        if script.plan is not None:
            found += signals_for(script.plan)
    return found


def expect_task(
    script: Script,
    options: TaskOptions,
    arguments: str,
    inputs: list[str],
    timer: str | None,
) -> Expected:
    if options.kind == TIMER:
        result = Expected(arguments if timer is None else timer)
    elif options.kind == SIGNAL and options.signal == scripts.NEVER:
        result = Expected(None, frozenset([scripts.NEVER]))
    elif options.kind == SIGNAL:
        result = Expected(scripts.signal_value(options.signal))
    elif script.failures < 0:
        result = Expected(None, frozenset([script.salt]))
    else:
        result = Expected(scripts.core(script, arguments, inputs))
        if script.body is not None:
            result = expect_block(script.body, value_of(result), timer)
        if result.output is not None and (script.turns or script.plan is not None):
            result = expect(scripts.continuation(script, options, result.output), timer)
    if not options.catch_exceptions:
        return result
    if result.output is None:
        return Expected(CAUGHT)
    if result.output == CAUGHT or result.output.startswith("wrapped "):
        return result  # Catchers around catchers wrap once.
    return Expected(f"wrapped {result.output}")


def value_of(result: Expected) -> str:
    assert result.output is not None
    return result.output


def expect_block(block: Block, seen: str, timer: str | None = None) -> Expected:
    """What a block of a body comes to, that begins with ``seen``."""
    for op in block:
        result = expect_part(op, seen, timer)
        if result.output is None:
            return result
        seen = result.output
    return Expected(seen)


def expect_part(op: body_scripts.AnyOp, seen: str, timer: str | None) -> Expected:
    if isinstance(op, body_scripts.Do):
        result = expect(scripts.with_arguments(op.plan, seen), timer)
        return result if result.output is None else Expected(mix(seen, result.output))
    if isinstance(op, body_scripts.Local):
        failed = Expected(None, frozenset([op.salt]))
        return failed if op.fails else Expected(body_scripts.local_result(op, seen))
    if isinstance(op, body_scripts.Raise):
        return Expected(None, frozenset([op.salt]))
    if isinstance(op, body_scripts.Together):
        results = [
            expect_block(each, mix(seen, str(n)), timer) for n, each in enumerate(op.branches)
        ]
        culprits = frozenset().union(*(result.culprits for result in results))
        if culprits:
            return Expected(None, culprits)
        return Expected(mix(seen, *map(value_of, results)))
    if isinstance(op, body_scripts.Race):
        return Expected(mix(seen, "raced"))
    if isinstance(op, body_scripts.Guard):
        result = expect_block(op.block, seen, timer)
        if result.output is not None:
            return result
        return expect_block(op.after, mix(seen, "caught"), timer)
    return Expected(seen)
