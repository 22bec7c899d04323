"""The corpus: shapes of workflows, drawn at random."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from ray_workflows._model.plan import LISTENER, SIGNAL, TIMER, Backoff, Plan, TaskOptions
from tests.simulation.scripts import NEVER, Script, build

Tasks = list[tuple[Script, TaskOptions, tuple[int, ...]]]


def draw_plan(rng: Random, depth: int = 0) -> Plan:
    """A plan of any shape; the deeper it is nested, the smaller."""
    shape = rng.choice(SHAPES if depth < 2 else (single, chain))
    return build(shape(rng, depth))


def draw_endless(rng: Random) -> Plan:
    """A plan that waits for what never comes, and does something meanwhile."""
    waits = Script(format(rng.getrandbits(32), "x"), endless=True)
    tasks: Tasks = [(waits, TaskOptions(kind=LISTENER), ()), draw_task(rng, 1, ())]
    return build(join(rng, 2, tasks))


def draw_options(rng: Random, upstream: tuple[int, ...]) -> TaskOptions:
    draw = rng.random()
    kind = "function"
    duration = 0.0
    if draw < 0.08:
        if upstream:
            # Timers take no inputs: what is captured of one is its length.
            return TaskOptions()
        if rng.random() < 0.4:
            return draw_wait(rng)
        kind, duration = TIMER, rng.choice([0.3, 1.0, 5.0, 12.0])
    elif draw < 0.16:
        kind = LISTENER
    return TaskOptions(
        kind=kind,
        duration=duration,
        max_retries=rng.choice([3, 3, 3, 0, 1, -1]),
        retry_exceptions=rng.random() < 0.3,
        backoff=rng.choice([Backoff(), Backoff(), Backoff(0.5, 4.0, 0.5)]),
        catch_exceptions=rng.random() < 0.15,
        checkpoint=rng.choice([None, None, None, False, False, True]),
    )


def draw_wait(rng: Random) -> TaskOptions:
    """The options of a task that waits for a signal, mostly for one that comes."""
    catches = rng.random() < 0.2
    if rng.random() < 0.12:
        catches = rng.random() < 0.7
        timeout = rng.choice([0.5, 5.0, 20.0])
        return TaskOptions(
            kind=SIGNAL, signal=NEVER, timeout=timeout, catch_exceptions=catches, max_retries=-1
        )
    return TaskOptions(
        kind=SIGNAL,
        signal=rng.choice(["go", "go", "stop"]),
        catch_exceptions=catches,
        checkpoint=rng.choice([None, None, False]),
        max_retries=-1,
    )


def draw_task(rng: Random, depth: int, upstream: tuple[int, ...]) -> tuple:
    options = draw_options(rng, upstream)
    salt = "s" * rng.randint(1, 3) + format(rng.getrandbits(32), "x")
    draw = rng.random()
    failures, plan, turns = 0, None, 0
    if draw < 0.10:
        failures = rng.randint(1, 2)
        retries = rng.choice([failures, 3, -1])
        options = TaskOptions(
            max_retries=retries,
            retry_exceptions=True,
            catch_exceptions=options.catch_exceptions,
            checkpoint=options.checkpoint,
            backoff=options.backoff,
        )
    elif draw < 0.16:
        # Unlimited retries of what always raises would never end.
        if not (options.retry_exceptions and options.max_retries == -1):
            failures = -1
    elif draw < 0.28 and depth < 3:
        plan = draw_plan(rng, depth + 1)
    elif draw < 0.34:
        turns = rng.randint(1, 6)
    large = rng.random() < 0.15
    return Script(salt, failures, plan, turns, large), options, upstream


def single(rng: Random, depth: int) -> Tasks:
    return [draw_task(rng, depth, ())]


def chain(rng: Random, depth: int) -> Tasks:
    tasks = [draw_task(rng, depth, ())]
    for index in range(rng.randint(1, 6 - depth)):
        tasks.append(draw_task(rng, depth, (index,)))
    return tasks


def diamond(rng: Random, depth: int) -> Tasks:
    return [draw_task(rng, depth, upstream) for upstream in ((), (0,), (0,), (1, 2))]


def fan(rng: Random, depth: int) -> Tasks:
    width = rng.randint(2, 7 - 2 * depth)
    tasks = [draw_task(rng, depth, ()) for _ in range(width)]
    tasks.append(draw_task(rng, depth, tuple(range(width))))
    return tasks


def timers(rng: Random, depth: int) -> Tasks:
    """Several timers at once, and something beside them."""
    naps = [0.2, 1.0, 1.0, 4.0, 9.0]
    tasks: Tasks = []
    for _ in range(rng.randint(2, 4)):
        options = TaskOptions(kind=TIMER, duration=rng.choice(naps))
        tasks.append((Script(format(rng.getrandbits(32), "x")), options, ()))
    tasks.append(draw_task(rng, depth, ()))
    tasks.append(draw_task(rng, depth, tuple(range(len(tasks)))))
    return tasks


def signaled(rng: Random, depth: int) -> Tasks:
    """Several tasks that wait for signals, some of them one after the other."""
    tasks: Tasks = []
    for _ in range(rng.randint(1, 4)):
        tasks.append((Script(format(rng.getrandbits(32), "x")), draw_wait(rng), ()))
    if rng.random() < 0.5:
        turns = rng.randint(1, 5)
        salt = format(rng.getrandbits(32), "x")
        tasks.append((Script(salt, turns=turns, signal="go"), TaskOptions(), ()))
    if rng.random() < 0.5:
        # A continuation that would not be stored, if the signals could be had again.
        unstored = TaskOptions(checkpoint=False)
        inside: Tasks = [(Script(format(rng.getrandbits(32), "x")), draw_wait(rng), ())]
        inside.append((Script(format(rng.getrandbits(32), "x")), unstored, (0,)))
        outer = Script(format(rng.getrandbits(32), "x"), plan=build(inside))
        tasks.append((outer, unstored, ()))
    return join(rng, depth, tasks)


def volatile(rng: Random, depth: int) -> Tasks:
    """Values that are not stored, and who needs them: also after they are lost."""
    tasks: Tasks = []
    for index in range(rng.randint(3, 7)):
        upstream = tuple(sorted(rng.sample(range(index), min(index, rng.randint(1, 2)))))
        options = TaskOptions(
            checkpoint=rng.random() < 0.2,
            max_retries=rng.choice([0, 0, 1, 3]),
            catch_exceptions=rng.random() < 0.1,
        )
        salt = format(rng.getrandbits(32), "x")
        tasks.append((Script(salt, large=rng.random() < 0.1), options, upstream))
    return join(rng, depth, tasks)


def guarded(rng: Random, depth: int) -> Tasks:
    """A continuation whose errors are caught, with several of them at once."""
    inside: Tasks = []
    for _ in range(rng.randint(2, 3)):
        options = TaskOptions(max_retries=rng.choice([0, 0, 2]), retry_exceptions=True)
        failures = rng.choice([0, -1])
        inside.append((Script(format(rng.getrandbits(32), "x"), failures), options, ()))
    plan = build(join(rng, 2, inside))
    options = TaskOptions(catch_exceptions=True)
    tasks: Tasks = [(Script(format(rng.getrandbits(32), "x"), plan=plan), options, ())]
    if rng.random() < 0.4:
        tasks.append(draw_task(rng, depth, (0,)))
    return tasks


def scattered(rng: Random, depth: int) -> Tasks:
    tasks: Tasks = []
    for index in range(rng.randint(2, 9 - 2 * depth)):
        upstream = tuple(sorted(rng.sample(range(index), min(index, rng.randint(0, 3)))))
        tasks.append(draw_task(rng, depth, upstream))
    return join(rng, depth, tasks)


def join(rng: Random, depth: int, tasks: Tasks) -> Tasks:
    """With a last task that takes what nobody else takes: every task leads to the output."""
    taken = {index for _, _, upstream in tasks for index in upstream}
    loose = tuple(index for index in range(len(tasks)) if index not in taken)
    return [*tasks, draw_task(rng, depth, loose)]


SHAPES: tuple[Callable[[Random, int], Tasks], ...] = (
    single,
    chain,
    diamond,
    fan,
    timers,
    signaled,
    volatile,
    guarded,
    scattered,
    scattered,
)
