"""Invariants of every state. Tests run `check` after every step; nothing else uses it."""

from __future__ import annotations

from ray_workflows._engine.signals import REMEMBERED
from ray_workflows._engine.state import Phase, Task, WorkflowState
from ray_workflows._model.plan import BODY, SIGNAL
from ray_workflows._model.status import WorkflowStatus

#: Phases of tasks that have all their inputs.
BEGUN = (Phase.ACTIVE, Phase.AWAITING_TIMER, Phase.AWAITING_SIGNAL, Phase.AWAITING_STEPS)


def check(state: WorkflowState) -> None:
    """Recompute derived fields and compare; raise AssertionError with the difference."""
    started = state.started_at is not None
    active: set[int] = set()
    timing: dict[int, float] = {}
    expecting: dict[int, Task] = {}
    for number, task in state.tasks.items():
        if task.phase is Phase.ACTIVE:
            active.add(number)
        elif task.phase is Phase.AWAITING_TIMER:
            timing[number] = task.until
        elif task.phase is Phase.AWAITING_SIGNAL:
            expecting[number] = task
    for number, task in expecting.items():
        if task.options.timeout is not None:
            timing[number] = task.until + task.options.timeout
    assert set(state.active) == active, (set(state.active), active)
    assert state.timers == timing, (state.timers, timing)
    check_signals(state, expecting)
    assert set(state.tasks) == {
        frame.first + i for frame in state.frames.values() for i in range(len(frame.plan.tasks))
    }
    assert all(number < state.next_task for number in state.tasks)
    check_bodies(state)
    parents = [f.parent for f in state.frames.values() if f.parent is not None and not f.step]
    continued = set(parents)
    assert len(continued) == len(parents), parents
    final = {number for number, task in state.tasks.items() if task.is_final}
    for task in state.tasks.values():
        check_task(state, task, started, task.number in continued, final)
    for frame in state.frames.values():
        assert frame.output == frame.first + frame.plan.output, frame.number
        if frame.parent is not None:
            parent = state.tasks[frame.parent]
            assert bool(frame.step) == (frame.parent in state.bodies), parent.task_id
            if not frame.step:
                assert parent.phase is Phase.CONTINUED, parent.task_id
                assert not parent.is_output, parent.task_id
            assert parent.frame.stored or not frame.stored, frame.number
        waits = any(option.kind == SIGNAL for option in frame.plan.options)
        assert frame.stored or not (waits or frame.parent is None), frame.number
    if state.status is WorkflowStatus.SUCCESSFUL:
        assert state.output is not None
        assert state.output.stored
    if state.output is not None:
        assert not state.tasks
    # No coordinator delivers messages of a workflow that has ended.
    assert not state.outbox or state.status in WorkflowStatus.non_terminating_status()
    assert state.ending is None or state.outbox
    runs = state.status is WorkflowStatus.RUNNING
    assert (state.deadline is not None) == (runs and state.timeout is not None)
    if state.status in WorkflowStatus.non_terminating_status():
        assert state.ended_at is None
        assert state.output is None or state.ending is not None
        # Progress is possible: an attempt or a timer runs, or a signal may come.
        goes_on = state.active or state.timers or state.waits or state.outbox
        assert not started or goes_on or state.released, "stuck"


def check_bodies(state: WorkflowState) -> None:
    """A body that has asked for steps has not ended. A step runs, was canceled, has an outcome, or
    is to be asked for again; steps of a body that waits run."""
    runs = {(f.parent, f.step): f.number for f in state.frames.values() if f.step}
    known = {(n, path): f for n, body in state.bodies.items() for path, f in body.frames.items()}
    assert runs == known, (runs, known)
    for number, body in state.bodies.items():
        task = state.tasks[number]
        assert task.options.kind == BODY, task.task_id
        assert task.phase not in (Phase.CONTINUED, Phase.SUCCEEDED), task.task_id
        assert task.frame.stored, task.task_id
        taken = [each.path for each in body.outcomes]
        assert len(set(taken)) == len(taken), taken
        for path, record in body.steps.items():
            assert path == record.step.path, (path, record)
            assert record.step.turn <= len(taken), (path, record)
            told = record.mark is not None or record.canceled is not None or record.again
            assert told + ((number, path) in runs) + (path in taken) == 1 or (
                record.canceled is not None and path in taken
            ), (path, record)
        assert set(taken) <= set(body.steps), taken
    for parent, path in runs:
        assert path in state.bodies[parent].steps, path  # type: ignore[index]


def check_signals(state: WorkflowState, expecting: dict[int, Task]) -> None:
    waits = {number: name for name, numbers in state.waits.items() for number in numbers}
    assert waits == {n: t.options.signal for n, t in expecting.items()}, (waits, set(expecting))
    assert all(state.waits.values())
    assert all(state.signals.values())
    kept = {(name, signal_id) for name, kept in state.signals.items() for signal_id in kept}
    assert not kept & state.taken.keys(), kept & state.taken.keys()
    assert len(state.taken) <= REMEMBERED


def check_task(
    state: WorkflowState, task: Task, started: bool, continued: bool, final: set[int]
) -> None:
    """``continued``: a frame is its continuation. ``final``: the tasks that never run again."""
    frame = task.frame
    index = task.number - frame.first
    assert task.spec is frame.plan.tasks[index], task.task_id
    assert task.options is frame.plan.options[task.spec.options], task.task_id
    assert task.consumers is frame.consumers[index], task.task_id
    tasks = state.tasks
    upstream = [tasks[number] for number in task.upstream]
    unmet = len([t for t in upstream if t.phase is not Phase.SUCCEEDED])
    assert task.unmet == unmet, (task.task_id, task.unmet, unmet)
    wanted = len([n for n in task.consumers if n not in final])
    assert task.wanted == wanted, (task.task_id, task.wanted, wanted)
    if task.phase is Phase.WAITING:
        assert unmet or not started, task.task_id
    if task.phase is Phase.AWAITING_STEPS:
        assert state.bodies[task.number].frames, task.task_id
    if task.phase in BEGUN:
        assert started
        assert not unmet, task.task_id
        assert all(t.outcome is not None for t in upstream), task.task_id
    assert continued == (task.phase is Phase.CONTINUED), task.task_id
    assert (task.outcome is not None) == (task.phase is Phase.SUCCEEDED and not task.released)
    assert task.charged + task.preempted <= task.attempts, task.task_id
    assert task.setbacks <= task.attempts, task.task_id
