"""What a workflow must end with, computed from its plan alone: no engine, no faults."""

from __future__ import annotations

import msgspec

from ray_workflows._model.plan import ENGINE_KINDS, SIGNAL, TIMER, Plan, TaskOptions
from tests.simulation import scripts
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
        value = scripts.core(script, arguments, inputs)
        if script.turns or script.plan is not None:
            result = expect(scripts.continuation(script, options, value), timer)
        else:
            result = Expected(value)
    if not options.catch_exceptions:
        return result
    if result.output is None:
        return Expected(CAUGHT)
    if result.output == CAUGHT or result.output.startswith("wrapped "):
        return result  # Catchers around catchers wrap once.
    return Expected(f"wrapped {result.output}")
