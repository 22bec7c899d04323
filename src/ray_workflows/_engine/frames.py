"""Frames and the tasks in them: opened, given their results, and closed. Only `evolve` calls these
functions.

Each adds the new commands to ``deltas``.
"""

from __future__ import annotations

from itertools import takewhile

from ray_workflows._engine.names import register_task_ids
from ray_workflows._engine.sources import SOURCES, WAITING
from ray_workflows._engine.state import Body, Frame, Phase, Task, WorkflowState
from ray_workflows._model.commands import CancelAttempt, Command, GiveOutcome, ReleaseValue
from ray_workflows._model.plan import Plan
from ray_workflows._model.steps import StepOutcome, step_id
from ray_workflows._model.values import Outcome, Value


def store_results(state: WorkflowState, frame: Frame) -> None:
    """Make a frame and those around it store their results, because the frame can't run again."""
    for around in takewhile(lambda around: not around.stored, state.frames_around(frame)):
        around.stored = True


def open_frame(
    state: WorkflowState,
    plan: Plan,
    task_ids: tuple[str, ...],
    *,
    parent: int | None,
    wraps: bool,
    checkpoint: bool,
    stored: bool,
    step: str = "",
) -> Frame:
    first = state.next_task
    frame = Frame(state.next_frame, plan, first, parent, wraps, checkpoint, stored, step)
    state.frames[frame.number] = frame
    if step and parent is not None:
        state.bodies[parent].frames[step] = frame.number
    state.next_frame += 1
    state.next_task += len(plan.tasks)
    for offset, task_id in enumerate(task_ids):
        number = frame.first + offset
        state.tasks[number] = Task(number, task_id, frame)
    register_task_ids(state.names, [spec.name for spec in plan.tasks], task_ids)
    return frame


def activate(state: WorkflowState, task: Task, at: float) -> None:
    """Begin the task's wait for its source (attempt, timer, signal): all inputs are there."""
    SOURCES[task.options.kind].begin(state, task, at)


def announce(state: WorkflowState, task: Task, deltas: list[Command]) -> None:
    """Add the commands for an activated task."""
    if state.running:
        deltas += WAITING[task.phase].commands(state, task)


def end_wait(state: WorkflowState, task: Task) -> None:
    """End the task's wait for its source, if it waits."""
    source = WAITING.get(task.phase)
    if source is not None:
        source.leave(state, task)


def resolve(
    state: WorkflowState, task: Task, outcome: Outcome, at: float, deltas: list[Command]
) -> None:
    """Give a task its one result, and update its consumers and frame."""
    end_wait(state, task)
    if state.bodies:
        end_body(state, task.number, deltas)
    task.phase = Phase.SUCCEEDED
    outcome = task.outcome = outcome.wrap_if(task.options.catch_exceptions)
    if task.is_output:
        resolve_frame(state, task.frame, outcome, at, deltas)
        return
    if task.spec.upstream and outcome.stored:
        forget_inputs(state, task, deltas)
    for number in task.consumers:
        consumer = state.tasks[number]
        consumer.unmet -= 1
        if not consumer.unmet and consumer.phase is Phase.WAITING:
            activate(state, consumer, at)
            announce(state, consumer, deltas)


def resolve_frame(
    state: WorkflowState, frame: Frame, outcome: Outcome, at: float, deltas: list[Command]
) -> None:
    """Close a frame that has its result, and give the result to its parent."""
    outcome = outcome.wrap_if(frame.wraps)
    close_frame(state, frame, keep=outcome, deltas=deltas)
    # Without a parent, the result is in the event of the workflow's end, which follows.
    if frame.parent is not None:
        parent = state.tasks[frame.parent]
        if frame.step:
            give_outcome(state, parent, frame.step, outcome, at, deltas)
        else:
            resolve(state, parent, outcome, at, deltas)


def give_outcome(
    state: WorkflowState, task: Task, path: str, outcome: Outcome, at: float, deltas: list[Command]
) -> None:
    """Record the outcome of a step, and give it to its body."""
    body = state.bodies[task.number]
    given = StepOutcome(path, at, outcome)
    body.outcomes.append(given)
    if len(body.outcomes) > body.most:
        # A body that goes on has a new budget of retries; one that gets the same error each time
        # has not.
        body.most = len(body.outcomes)
        task.charged = task.preempted = task.setbacks = 0
    if outcome.value is not None:
        # The body reads a large one from the storage, like each later attempt.
        release(outcome.value, deltas)
    if task.phase is Phase.AWAITING_STEPS:
        activate(state, task, 0.0)
        announce(state, task, deltas)
    elif task.phase is Phase.ACTIVE:
        # Also in a workflow that has failed: attempts in flight go on.
        deltas.append(GiveOutcome(task.number, len(body.outcomes) - 1, given))


def end_body(state: WorkflowState, number: int, deltas: list[Command]) -> None:
    """Forget what a body has done, and stop its steps: it has ended."""
    body = state.bodies.pop(number, None)
    if body is not None:
        forget_step_ids(state, state.tasks[number], body)
        for frame in body.frames.values():
            close_frame(state, state.frames[frame], keep=None, deltas=deltas)


def forget_step_ids(state: WorkflowState, task: Task, body: Body) -> None:
    """Forget the ids of a body's steps, which begin with the id of its task: no other task has
    that. A body that is begun anew again and again would fill the memory."""
    for path in body.steps:
        state.names.pop(step_id(task.task_id, path), None)


def close_frame(
    state: WorkflowState, frame: Frame, keep: Outcome | None, deltas: list[Command]
) -> None:
    """Drop a frame and the frames inside it. ``keep``: the outcome that stays in use."""
    kept = None if keep is None else keep.value
    doomed = [frame]
    while doomed:
        current = doomed.pop()
        del state.frames[current.number]
        if current.step and current.parent in state.bodies:
            del state.bodies[current.parent].frames[current.step]
        for number in range(current.first, current.first + len(current.plan.tasks)):
            task = state.tasks.pop(number)
            phase = task.phase
            body = state.bodies.pop(number, None) if state.bodies else None
            if body is not None:
                forget_step_ids(state, task, body)
                doomed += [state.frames[frame] for frame in body.frames.values()]
            if phase is Phase.SUCCEEDED:
                # First, because nearly all tasks have succeeded.
                value = task.outcome.value if task.outcome is not None else None
                if value is not None and value is not kept:
                    release(value, deltas)
            elif phase is Phase.CONTINUED:
                # An error that an outer task caught abandons this frame.
                doomed += [child for child in state.frames.values() if child.parent == number]
            else:
                end_wait(state, task)
                if phase is Phase.ACTIVE:
                    deltas.append(CancelAttempt(number))


def release(value: Value, deltas: list[Command]) -> None:
    """Add the command that drops a reference to a value, if it may have live copies."""
    if value.has_copies:
        deltas.append(ReleaseValue(value))


def forget_inputs(state: WorkflowState, task: Task, deltas: list[Command]) -> None:
    """Release the inputs of a task that will never run again."""
    settled = [task]
    while settled:
        for number in settled.pop().upstream:
            upstream = state.tasks[number]
            upstream.wanted -= 1
            if upstream.wanted or upstream.outcome is None:
                continue
            outcome, upstream.outcome, upstream.released = upstream.outcome, None, True
            if outcome.value is not None:
                release(outcome.value, deltas)
            if not outcome.stored:
                # The upstream task might have had to run again until now, and kept its inputs.
                settled.append(upstream)
