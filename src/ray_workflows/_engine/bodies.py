"""Rules for bodies of durable functions: the steps that they ask for, and attempts that only wait.

A body is a task whose attempt asks for steps while it runs. A step of kind PLAN is a frame whose
parent is the body; local steps and marks are values that the attempt reports. Each attempt gets the
history and runs the code again, so the same steps must be asked for in the same turns.
"""

from __future__ import annotations

import msgspec

from ray_workflows._engine.attempts import reported_task, too_late_to_send
from ray_workflows._engine.commands import start_attempt
from ray_workflows._engine.decision import ACTIVE, Events
from ray_workflows._engine.frames import (
    activate,
    announce,
    close_frame,
    end_wait,
    give_outcome,
    open_frame,
    store_results,
)
from ray_workflows._engine.names import assign_task_ids
from ray_workflows._engine.outbox import send
from ray_workflows._engine.retry import floor
from ray_workflows._engine.state import Body, Phase, Task, WorkflowState
from ray_workflows._model import events as ev
from ray_workflows._model import messages as msg
from ray_workflows._model.commands import Command
from ray_workflows._model.outbox import message_id_of
from ray_workflows._model.plan import TaskSpec
from ray_workflows._model.steps import Step, StepKind, StepOutcome, StepRecord

# -- reported ------------------------------------------------------------------------------


def on_body_progress(state: WorkflowState, message: msg.BodyProgress, now: float) -> Events:
    task = reported_task(state, message)
    if task is None:
        return []
    number, attempt, began = task.number, message.attempt, message.began
    body = state.bodies.get(number)
    news = message if body is None else without_known(state, body, message)
    if state.status not in ACTIVE and (news.messages or any(e.messages for e in news.ended)):
        return [too_late_to_send(message, now)]
    events: Events = []
    if news.opened or news.marks or news.canceled:
        names = [spec.name for spec in news.plan.tasks]
        events.append(
            ev.StepsAsked(
                at=now,
                task=number,
                attempt=attempt,
                began=began,
                opened=news.opened,
                plan=news.plan,
                sizes=news.sizes,
                task_ids=assign_task_ids(state.names, names),
                first=state.next_task,
                marks=news.marks,
                canceled=news.canceled,
                messages=news.messages,
            )
        )
    if news.ended:
        events.append(
            ev.StepsEnded(
                at=now,
                task=number,
                attempt=attempt,
                began=began,
                ended=news.ended,
                node=news.node,
            )
        )
    return events


def without_known(state: WorkflowState, body: Body, message: msg.BodyProgress) -> msg.BodyProgress:
    """A message without what is recorded: the loop decides on a message again if the commit with
    its events took effect late."""
    steps = body.steps

    def is_new(path: str) -> bool:
        record = steps.get(path)
        return record is None or record.again

    opened = [each.path for each in message.opened if is_new(each.path)]
    if len(opened) < len(message.opened):
        message = with_opened(message, set(opened))
    marks = tuple(each for each in message.marks if each.step.path not in steps)
    ids = {message_id_of(state.incarnation, message.task, each.step.path) for each in marks}
    return msgspec.structs.replace(
        message,
        marks=marks,
        messages=tuple(each for each in message.messages if each.message_id in ids),
        canceled=tuple(
            each
            for each in message.canceled
            if each.path in opened or (not is_new(each.path) and steps[each.path].canceled is None)
        ),
        ended=tuple(each for each in message.ended if is_new(each.step.path)),
    )


def with_opened(message: msg.BodyProgress, paths: set[str]) -> msg.BodyProgress:
    """A message that asks for these steps only."""
    plan, begin = message.plan, 0
    opened: list[Step] = []
    sizes: list[int] = []
    tasks: list[TaskSpec] = []
    for step, size in zip(message.opened, message.sizes, strict=True):
        if step.path in paths:
            opened.append(step)
            sizes.append(size)
            tasks += plan.tasks[begin : begin + size]
        begin += size
    return msgspec.structs.replace(
        message,
        opened=tuple(opened),
        sizes=tuple(sizes),
        plan=msgspec.structs.replace(plan, tasks=tuple(tasks)),
    )


def on_attempt_suspended(state: WorkflowState, message: msg.AttemptSuspended, now: float) -> Events:
    task = reported_task(state, message)
    if task is None:
        return []
    return [
        ev.AttemptSuspended(
            at=now,
            task=task.number,
            attempt=message.attempt,
            taken=message.taken,
            started_at=message.started_at,
            ended_at=message.ended_at,
            node=message.node,
        )
    ]


# -- applied -------------------------------------------------------------------------------


def apply_steps_asked(state: WorkflowState, event: ev.StepsAsked, deltas: list[Command]) -> None:
    task = state.tasks[event.task]
    body = body_of(state, task, event.began)
    if event.messages:
        send(state, event, deltas)
    for mark in event.marks:
        body.steps[mark.step.path] = mark
    open_steps(state, task, body, event, deltas)
    for each in event.canceled:
        record = body.steps.get(each.path)
        if record is not None and record.canceled is None:
            body.steps[each.path] = StepRecord(record.step, canceled=each.turn)
            close_step(state, body, each.path, deltas)


def open_steps(
    state: WorkflowState,
    task: Task,
    body: Body,
    event: ev.StepsAsked,
    deltas: list[Command],
) -> None:
    """Open a frame for each new step of kind PLAN, and start its tasks."""
    plan, begin = event.plan, 0
    for step, size in zip(event.opened, event.sizes, strict=True):
        end = begin + size
        body.steps[step.path] = StepRecord(step)
        frame = open_frame(
            state,
            msgspec.structs.replace(plan, tasks=plan.tasks[begin:end]),
            event.task_ids[begin:end],
            parent=task.number,
            wraps=False,
            checkpoint=True,
            stored=True,
            step=step.path,
        )
        begin = end
        for number in range(frame.first, frame.first + size):
            fresh = state.tasks[number]
            if not fresh.unmet:
                activate(state, fresh, event.at)
                announce(state, fresh, deltas)


def apply_steps_ended(state: WorkflowState, event: ev.StepsEnded, deltas: list[Command]) -> None:
    task = state.tasks[event.task]
    body = body_of(state, task, event.began)
    if event.messages:
        send(state, event, deltas)
    for ended in event.ended:
        # One that was canceled stays so, but has an outcome that the body takes and ignores.
        record = body.steps.get(ended.step.path)
        if record is None or record.again:
            body.steps[ended.step.path] = StepRecord(ended.step)
        give_outcome(state, task, ended.step.path, ended.outcome, event.at, deltas)


def apply_attempt_suspended(
    state: WorkflowState, event: ev.AttemptSuspended, deltas: list[Command]
) -> None:
    task = state.tasks[event.task]
    task.attempts += 1
    task.last_end = ""
    body = state.bodies.get(event.task)
    outcomes = [] if body is None else body.outcomes
    if body is not None and body.frames and len(outcomes) <= event.taken:
        end_wait(state, task)
        task.phase = Phase.AWAITING_STEPS
        return
    if len(outcomes) <= event.taken:
        # Nothing runs that it could wait for: its process could not store the outcome of a local
        # step. With a pause, because that may last.
        task.setbacks += 1
        task.until = event.at + floor(task)
    if state.running:
        deltas.append(start_attempt(state, task))


def body_of(state: WorkflowState, task: Task, began: float) -> Body:
    """The record of a body, made at its first progress."""
    body = state.bodies.get(task.number)
    if body is None:
        body = state.bodies[task.number] = Body(began)
        # It can't run again once it has ended: its history is gone then.
        store_results(state, task.frame)
    return body


def close_step(state: WorkflowState, body: Body, path: str, deltas: list[Command]) -> None:
    """Stop the tasks of a step, if it runs."""
    number = body.frames.get(path)
    if number is not None:
        close_frame(state, state.frames[number], keep=None, deltas=deltas)


# -- after an error ------------------------------------------------------------------------


def go_back(state: WorkflowState, task: Task, deltas: list[Command]) -> None:
    """Let the next attempt of a body do without the step whose error ended the last one: it asks
    for it again.

    Not if the body asked for other steps after that error, such as the refund of a payment. They
    were done, so the history stays as it is, and the body raises the error again. (A fork can go
    back further.)
    """
    body = state.bodies.get(task.number)
    if body is None or not body.failed:
        return
    failed, body.failed = body.failed, ""
    paths = [each.path for each in body.outcomes]
    if failed not in paths:
        return
    index = paths.index(failed)
    steps = [record.step for record in body.steps.values()]
    if not any(step.turn > index and step.kind is not StepKind.MARK for step in steps):
        discard_after(state, body, index, deltas)


def discard_after(state: WorkflowState, body: Body, index: int, deltas: list[Command]) -> None:
    """Discard an outcome, by its index, and all that followed from it."""
    steps, outcomes = without_outcome(body, index)
    for path in list(body.frames):
        if path not in steps or steps[path].again:
            close_step(state, body, path, deltas)
    body.steps, body.outcomes = steps, outcomes


def without_outcome(body: Body, index: int) -> tuple[dict[str, StepRecord], list[StepOutcome]]:
    """The steps and outcomes of a body that stay when an outcome is discarded, by its index, and
    all that followed from it. If there is no such outcome yet, everything stays.

    What followed are the steps asked for after the body had taken it. What the body asked for
    before stays, also if it ended later; what it canceled after is asked for again.
    """
    discarded = body.outcomes[index].path if index < len(body.outcomes) else None
    outcomes = [
        each
        for each in body.outcomes
        if each.path != discarded and body.steps[each.path].step.turn <= index
    ]
    ended = {each.path for each in outcomes}
    steps: dict[str, StepRecord] = {}
    for path, record in body.steps.items():
        if record.step.turn > index:
            continue
        if path == discarded or (record.canceled is not None and record.canceled > index):
            # It may have ended before the coordinator knew of that: then the body now takes it.
            steps[path] = StepRecord(record.step, again=path not in ended)
        else:
            steps[path] = record
    return steps, outcomes


def index_to_repeat(body: Body, path: str) -> int | None:
    """The index of the outcome to discard so that a step runs again: its own, or the one after
    which the body canceled it. None if the body has to begin anew."""
    record = body.steps.get(path)
    if record is None or record.canceled == 0:
        return None
    if record.canceled is not None:
        return record.canceled - 1
    paths = [each.path for each in body.outcomes]
    return paths.index(path) if path in paths else len(paths)
