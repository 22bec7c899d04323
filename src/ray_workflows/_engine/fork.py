"""Makes the first events of a fork: the results of tasks that need not run again.

The new workflow has the same plan. It takes the old one's results of all tasks but the one that it
starts from and those downstream. Tasks get new numbers, because some continuations are left out.
A signal that a kept task took becomes the task's result. Other signals were sent to the old
workflow: a signal is taken once, so the new workflow waits for its own. Messages of kept tasks are
left out: the old workflow sent them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from ray_workflows._engine.evolve import evolve
from ray_workflows._engine.state import Frame, WorkflowState
from ray_workflows._engine.values import unstored
from ray_workflows._model import events as ev
from ray_workflows._model.values import Value


class Lineage:
    """Which task opened which frame, over a whole journal. A state forgets frames that ended."""

    def __init__(self) -> None:
        self.frames: dict[int, Frame] = {}
        self.frame_of: dict[int, Frame] = {}
        #: The task whose continuation a frame was; None for the submitted plan.
        self.opener: dict[int, int | None] = {}
        self.numbers: dict[str, int] = {}
        #: Tasks that have a result, or returned a continuation.
        self.done: set[int] = set()

    def add_frame(self, frame: Frame, task_ids: Iterable[str], opener: int | None) -> None:
        self.frames[frame.number] = frame
        self.opener[frame.number] = opener
        for offset, task_id in enumerate(task_ids):
            self.frame_of[frame.first + offset] = frame
            self.numbers[task_id] = frame.first + offset

    def affected_by(self, start: int) -> tuple[set[int], set[int]]:
        """Tasks that run again when ``start`` does, and frames whose result is then open."""
        again: set[int] = set()
        open_frames: set[int] = set()
        pending = [start]
        while pending:
            number = pending.pop()
            if number in again:
                continue
            again.add(number)
            pending += self.downstream(number, open_frames)
        return again, open_frames

    def downstream(self, number: int, open_frames: set[int]) -> list[int]:
        """The tasks that consume a task's result, also as the output of an enclosing frame."""
        takers: list[int] = []
        current: int | None = number
        while current is not None:
            frame = self.frame_of[current]
            takers += frame.consumers[current - frame.first]
            if current != frame.output:
                break
            open_frames.add(frame.number)
            current = self.opener[frame.number]
        return takers


def read_lineage(events: Sequence[ev.Event]) -> Lineage:
    """Replay a journal, and record the frames that a state forgets."""
    lineage = Lineage()
    state = WorkflowState("", "")
    for event in events:
        before = state.next_frame
        if isinstance(event, (ev.TaskSucceeded, ev.TaskContinued, ev.SignalTaken)) or (
            isinstance(event, ev.ErrorCaught) and event.frame is None
        ):
            lineage.done.add(event.task)
        evolve(state, event)
        if isinstance(event, ev.WorkflowSubmitted):
            lineage.add_frame(state.frames[before], event.task_ids, None)
        elif isinstance(event, ev.TaskContinued):
            lineage.add_frame(state.frames[before], event.task_ids, event.task)
    return lineage


def fork_history(events: Sequence[ev.Event], from_task: str) -> list[ev.Event] | None:
    """The events with which a fork begins, after its ``WorkflowStarted``.

    Args:
        events: the journal of the origin, from its first event.
        from_task: id of the task to run again.

    Returns:
        Events about tasks, in order; None if there is no such task.
    """
    lineage = read_lineage(events)
    start = lineage.numbers.get(from_task)
    if start is None:
        return None
    return History(lineage, *lineage.affected_by(start)).write(events)


def result_of_signal(event: ev.SignalTaken, value: Value) -> ev.TaskSucceeded:
    """The event for a task that took a signal, without the signal itself."""
    return ev.TaskSucceeded(
        at=event.at,
        task=event.task,
        attempt=1,
        value=value,
        started_at=event.started_at,
        ended_at=event.at,
    )


class History:
    """Writes the kept events, with the numbers that tasks and frames have in the fork."""

    def __init__(self, lineage: Lineage, again: set[int], open_frames: set[int]) -> None:
        self.lineage = lineage
        self.again = again
        self.open_frames = open_frames
        #: Tasks that wait for such a frame. Their results, and events about the loss of these, are
        #: not in the fork.
        self.continued = {lineage.opener[frame] for frame in open_frames}
        self.state = WorkflowState("", "")
        #: New numbers by old ones, of the tasks and frames in the fork.
        self.tasks: dict[int, int] = {}
        self.frames: dict[int, int] = {}
        self.kept: list[ev.Event] = []
        #: Values of the old workflow's signals, by name and id.
        self.signals: dict[tuple[str, str], Value] = {}

    def write(self, events: Sequence[ev.Event]) -> list[ev.Event]:
        frame_number = 0
        for index, event in enumerate(events):
            if isinstance(event, ev.WorkflowSubmitted):
                evolve(self.state, event)
                evolve(self.state, ev.WorkflowStarted(at=event.at))
                self.enter(frame_number, first=0)
                frame_number += 1
            elif isinstance(event, ev.TaskContinued):
                if frame_number in self.open_frames or self.keeps(event.task):
                    self.keep(event, first=self.state.next_task, messages=())
                    self.enter(frame_number, first=self.kept[-1].first)  # type: ignore[attr-defined]
                frame_number += 1
            elif isinstance(event, ev.TaskFailed):
                # A failure is a result only if it was caught.
                caught = events[index + 1] if index + 1 < len(events) else None
                if isinstance(caught, ev.ErrorCaught) and self.keeps_catch(caught):
                    self.keep(event)
            elif isinstance(event, ev.ErrorCaught):
                if self.keeps_catch(event):
                    self.keep(event, frame=self.new_frame(event.frame))
            elif isinstance(event, ev.ValuesLost):
                lost = tuple(self.tasks[task] for task in event.tasks if self.keeps(task))
                if lost:
                    self.keep(event, tasks=lost)
            elif isinstance(event, ev.SignalReceived):
                self.signals[event.name, event.signal_id] = event.value
            elif isinstance(event, ev.SignalTaken):
                value = self.signals.pop((event.name, event.signal_id))
                if self.keeps(event.task):
                    self.keep(result_of_signal(event, value))
            elif isinstance(event, ev.TaskSucceeded) and self.keeps(event.task):
                self.keep(event, messages=())
            elif isinstance(event, ev.AttemptFailed) and self.keeps(event.task):
                self.keep(event)
        self.lose_unstored()
        return self.kept

    def keeps(self, task: int) -> bool:
        """Whether the fork keeps what happened to a task."""
        return (
            task in self.tasks
            and task in self.lineage.done
            and task not in self.again
            and task not in self.continued
        )

    def keeps_catch(self, event: ev.ErrorCaught) -> bool:
        if event.task not in self.tasks or event.task in self.again:
            return False
        return event.frame is None or (
            event.frame in self.frames and event.frame not in self.open_frames
        )

    def new_frame(self, frame: int | None) -> int | None:
        return None if frame is None else self.frames[frame]

    def enter(self, frame: int, *, first: int) -> None:
        """Number a frame that is in the fork too, and its tasks."""
        old = self.lineage.frames[frame]
        self.frames[frame] = self.state.next_frame - 1
        for offset in range(len(old.plan.tasks)):
            self.tasks[old.first + offset] = first + offset

    def keep(self, event: ev.Event, **changes: object) -> None:
        if "tasks" not in changes:
            changes["task"] = self.tasks[event.task]  # type: ignore[attr-defined]
        kept = msgspec.structs.replace(event, **changes)
        evolve(self.state, kept)
        self.kept.append(kept)

    def lose_unstored(self) -> None:
        """Lose unstored results: their live values belong to the old workflow, so the tasks run
        again."""
        lost = tuple(unstored(self.state))
        if lost:
            self.kept.append(ev.ValuesLost(at=0.0, tasks=lost))
