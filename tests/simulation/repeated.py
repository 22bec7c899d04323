"""Shapes for the real executor: many tasks of few functions, short and long, stored and not."""

from __future__ import annotations

from random import Random

from ray_workflows._model.plan import Plan, TaskOptions
from tests.simulation.scripts import Script, build
from tests.simulation.shapes import Tasks

#: Functions of all workflows of a world: what is learned of one holds for the next.
FUNCTIONS = 5


def draw_repeated(rng: Random) -> Plan:
    """A plan of one of these shapes, or of several beside each other."""
    tasks: Tasks = []
    for _ in range(rng.choice([1, 1, 2, 3])):
        rng.choice([wide, unstored_chain, unstored_chain, two_levels])(rng, tasks)
    taken = {index for _, _, upstream in tasks for index in upstream}
    loose = tuple(index for index in range(len(tasks)) if index not in taken)
    return build([*tasks, (Script("join"), TaskOptions(), loose)])


def draw_script(rng: Random) -> Script:
    """A function of those that there are."""
    return Script(f"f{rng.randrange(FUNCTIONS)}", large=rng.random() < 0.1)


def draw_options(rng: Random, checkpoint: bool | None) -> TaskOptions:
    """Options with which a task may travel with others, mostly."""
    timeout = rng.choice([None] * 9 + [0.5])
    return TaskOptions(
        max_retries=rng.choice([3, 3, 3, 3, 1, 0, -1]),
        retry_exceptions=rng.random() < 0.2,
        checkpoint=checkpoint,
        # Whether a time is overrun is not known beforehand: caught, it would be in the output.
        catch_exceptions=timeout is None and rng.random() < 0.05,
        timeout=timeout,
    )


def wide(rng: Random, tasks: Tasks) -> None:
    """Many tasks of one function."""
    script, options = draw_script(rng), draw_options(rng, rng.choice([None, None, False]))
    tasks += [(script, options, ()) for _ in range(rng.choice([3, 8, 20, 40]))]


def unstored_chain(rng: Random, tasks: Tasks) -> None:
    """Each of them takes the result of the one before, which is not stored."""
    options = draw_options(rng, False)
    script = draw_script(rng)
    for index in range(rng.choice([2, 3, 6, 12])):
        upstream = (len(tasks) - 1,) if index else ()
        if rng.random() < 0.3:
            script = draw_script(rng)
        if rng.random() < 0.04:
            fails = Script(script.salt + "raises", failures=1)
            tasks.append((fails, TaskOptions(retry_exceptions=True, checkpoint=False), upstream))
        else:
            tasks.append((script, options, upstream))


def two_levels(rng: Random, tasks: Tasks) -> None:
    """Some values that many take, not all of them stored."""
    first = len(tasks)
    script, options = draw_script(rng), draw_options(rng, rng.choice([None, False]))
    tasks += [(script, options, ()) for _ in range(rng.choice([1, 2, 4]))]
    count = len(tasks) - first
    script, options = draw_script(rng), draw_options(rng, rng.choice([None, False]))
    for _ in range(rng.choice([3, 10])):
        taken = rng.sample(range(count), rng.randint(1, count))
        tasks.append((script, options, tuple(first + index for index in sorted(taken))))
