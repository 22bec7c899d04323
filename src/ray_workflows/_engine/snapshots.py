"""Snapshots: a state as data, and its restoration.

Derived fields are no part of a snapshot. The order in which tasks became active, or began to wait
for a signal, is a part: it decides which comes first, and no task has it.
"""

from __future__ import annotations

from collections import OrderedDict

import msgspec

from ray_workflows._engine.sources import WAITING
from ray_workflows._engine.state import Body, Frame, Lifecycle, Phase, Task, WorkflowState
from ray_workflows._model import events as ev
from ray_workflows._model.plan import Plan
from ray_workflows._model.values import Outcome

#: The version of the records below. A new field at the end, with a default, needs no new version.
VERSION = 1


class UnknownSnapshotError(Exception):
    """A newer release saved the snapshot."""


class SavedTask(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A task that changed since its plan was opened; the fields are those of `Task`."""

    number: int
    phase: Phase
    attempts: int
    charged: int
    preempted: int
    setbacks: int
    last_end: str
    until: float
    outcome: Outcome | None
    released: bool


class SavedFrame(msgspec.Struct, frozen=True, array_like=True):
    """A frame; the fields are those of `Frame`. ``tasks``: the changed ones."""

    number: int
    plan: Plan
    first: int
    parent: int | None
    wraps: bool
    checkpoint: bool
    stored: bool
    task_ids: tuple[str, ...]
    tasks: tuple[SavedTask, ...]
    step: str = ""


class SavedTasks(msgspec.Struct, frozen=True, array_like=True):
    """The state without its lifecycle; the fields are those of `WorkflowState`."""

    next_task: int
    next_frame: int
    names: dict[str, int]
    frames: tuple[SavedFrame, ...]
    active: tuple[int, ...]
    waits: dict[str, tuple[int, ...]]
    bodies: dict[int, Body] = {}


ENCODER = msgspec.msgpack.Encoder()
LIFECYCLE = msgspec.msgpack.Decoder(Lifecycle)
TASKS = msgspec.msgpack.Decoder(SavedTasks)


# -- taking --------------------------------------------------------------------------------


def save(state: WorkflowState, at: float, last_whole: int | None) -> ev.StateSaved:
    """A snapshot of the state, as the last event of an entry.

    Args:
        state: the state after all other events of the entry.
        at: the time, in seconds since 1970.
        last_whole: None to save the whole state; the number of the last entry with a whole
            snapshot to save the lifecycle alone.
    """
    lifecycle = Lifecycle(*[getattr(state, name) for name in Lifecycle.__struct_fields__])
    return ev.StateSaved(
        at=at,
        version=VERSION,
        lifecycle=ENCODER.encode(lifecycle),
        tasks=ENCODER.encode(save_tasks(state)) if last_whole is None else None,
        last_whole=last_whole or 0,
    )


def save_tasks(state: WorkflowState) -> SavedTasks:
    return SavedTasks(
        next_task=state.next_task,
        next_frame=state.next_frame,
        names=state.names,
        frames=tuple(save_frame(state, frame) for frame in state.frames.values()),
        active=tuple(state.active),
        waits={name: tuple(numbers) for name, numbers in state.waits.items()},
        bodies=state.bodies,
    )


def save_frame(state: WorkflowState, frame: Frame) -> SavedFrame:
    tasks = [state.tasks[frame.first + index] for index in range(len(frame.plan.tasks))]
    return SavedFrame(
        number=frame.number,
        plan=frame.plan,
        first=frame.first,
        parent=frame.parent,
        wraps=frame.wraps,
        checkpoint=frame.checkpoint,
        stored=frame.stored,
        task_ids=tuple(task.task_id for task in tasks),
        tasks=tuple(save_task(task) for task in tasks if task.attempts or task.phase),
        step=frame.step,
    )


def save_task(task: Task) -> SavedTask:
    return SavedTask(
        number=task.number,
        phase=task.phase,
        attempts=task.attempts,
        charged=task.charged,
        preempted=task.preempted,
        setbacks=task.setbacks,
        last_end=task.last_end,
        until=task.until,
        outcome=task.outcome,
        released=task.released,
    )


# -- reading -------------------------------------------------------------------------------


def restore_lifecycle(saved: ev.StateSaved) -> Lifecycle:
    """The saved lifecycle.

    Raises:
        UnknownSnapshotError: a newer release saved it.
    """
    if saved.version > VERSION:
        raise UnknownSnapshotError(
            f"its snapshot has version {saved.version}, newer than the {VERSION} that this release "
            f"reads"
        )
    lifecycle = LIFECYCLE.decode(saved.lifecycle)
    lifecycle.signals = {name: OrderedDict(kept) for name, kept in lifecycle.signals.items()}
    return lifecycle


def restore(saved: ev.StateSaved) -> WorkflowState:
    """The saved state, without tasks if only the lifecycle was saved; errors as in
    `restore_lifecycle`."""
    lifecycle = restore_lifecycle(saved)
    state = WorkflowState(*[getattr(lifecycle, name) for name in Lifecycle.__struct_fields__])
    if saved.tasks is None:
        return state
    tasks = TASKS.decode(saved.tasks)
    state.next_task = tasks.next_task
    state.next_frame = tasks.next_frame
    state.names = tasks.names
    for frame in tasks.frames:
        restore_frame(state, frame)
    state.bodies = tasks.bodies
    state.active = dict.fromkeys(tasks.active)
    state.waits = {name: OrderedDict.fromkeys(numbers) for name, numbers in tasks.waits.items()}
    for task in state.tasks.values():
        derive(state, task)
    return state


def restore_frame(state: WorkflowState, saved: SavedFrame) -> None:
    frame = Frame(
        saved.number,
        saved.plan,
        saved.first,
        saved.parent,
        saved.wraps,
        saved.checkpoint,
        saved.stored,
        saved.step,
    )
    state.frames[frame.number] = frame
    for number, task_id in enumerate(saved.task_ids, frame.first):
        state.tasks[number] = Task(number, task_id, frame)
    for each in saved.tasks:
        task = state.tasks[each.number]
        task.phase = each.phase
        task.attempts = each.attempts
        task.charged = each.charged
        task.preempted = each.preempted
        task.setbacks = each.setbacks
        task.last_end = each.last_end
        task.until = each.until
        task.outcome = each.outcome
        task.released = each.released


def derive(state: WorkflowState, task: Task) -> None:
    """Compute the derived fields of a task, once all others are restored."""
    tasks = state.tasks
    task.unmet = sum(tasks[number].phase is not Phase.SUCCEEDED for number in task.upstream)
    task.wanted = sum(not tasks[number].is_final for number in task.consumers)
    source = WAITING.get(task.phase)
    goes_off = None if source is None else source.goes_off(task)
    if goes_off is not None:
        state.timers[task.number] = goes_off
