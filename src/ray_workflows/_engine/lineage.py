"""The lineage of tasks over a whole journal: a state forgets frames and bodies that have ended."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from ray_workflows._engine.evolve import evolve
from ray_workflows._engine.state import Body, Frame, WorkflowState
from ray_workflows._model import events as ev
from ray_workflows._model.steps import EndedStep, step_id


class BodyStep(NamedTuple):
    """A step of a body: the number of the body, and the path of the step."""

    body: int
    path: str


class Affected(NamedTuple):
    """What runs again in a fork.

    ``tasks``: these have no results in it. ``frames``: their results are open, and others in them
    are kept. ``bodies``: of the tasks, the bodies that keep what they did before the outcome of
    this step.
    """

    tasks: set[int]
    frames: set[int]
    bodies: dict[int, str]


class Lineage:
    """Which task opened which frame, and what bodies have done."""

    def __init__(self) -> None:
        self.frames: dict[int, Frame] = {}
        self.frame_of: dict[int, Frame] = {}
        #: The task whose continuation, or step, a frame was; None for the submitted plan.
        self.opener: dict[int, int | None] = {}
        self.numbers: dict[str, int] = {}
        self.ids: dict[int, str] = {}
        #: Tasks that have a result, or returned a continuation.
        self.done: set[int] = set()
        #: What each body had done when it ended, or has done until now.
        self.bodies: dict[int, Body] = {}
        #: The steps of bodies, by the frame that was opened for each.
        self.step_of: dict[int, BodyStep] = {}
        #: The last frame that was opened for a step.
        self.last_frame: dict[BodyStep, int] = {}
        #: By their ids, steps that ran in the process of their body; and the last end of each.
        self.local_steps: dict[str, BodyStep] = {}
        self.last_end: dict[BodyStep, EndedStep] = {}

    def add_frame(self, frame: Frame, task_ids: Iterable[str], opener: int | None) -> None:
        self.frames[frame.number] = frame
        self.opener[frame.number] = opener
        for number, task_id in enumerate(task_ids, frame.first):
            self.frame_of[number] = frame
            self.numbers[task_id] = number
            self.ids[number] = task_id

    def add_steps(self, event: ev.StepsAsked, first_frame: int, state: WorkflowState) -> None:
        """Record the frames of steps. A step that was canceled at once has none any more."""
        begin, number = 0, first_frame
        for step, size in zip(event.opened, event.sizes, strict=True):
            frame = state.frames.get(number)
            if frame is not None:
                self.add_frame(frame, event.task_ids[begin : begin + size], event.task)
                self.step_of[number] = BodyStep(event.task, step.path)
                self.last_frame[self.step_of[number]] = number
            begin += size
            number += 1

    def add_local_steps(self, event: ev.StepsEnded) -> None:
        for ended in event.ended:
            step = BodyStep(event.task, ended.step.path)
            self.local_steps[step_id(self.ids[event.task], ended.step.path)] = step
            self.last_end[step] = ended

    def find(self, task_id: str) -> int | BodyStep | None:
        """A task, or a step that the body itself is to ask for again."""
        number = self.numbers.get(task_id)
        if number is None:
            return self.local_steps.get(task_id)
        frame = self.frame_of[number]
        step = self.step_of.get(frame.number)
        return step if step is not None and number == frame.output else number

    def affected_by(self, start: int | BodyStep) -> Affected:
        """What runs again when ``start`` does."""
        affected = Affected(set(), set(), {})
        if isinstance(start, BodyStep):
            affected.bodies[start.body] = start.path
            start = start.body
        pending = [start]
        while pending:
            number = pending.pop()
            if number not in affected.tasks:
                affected.tasks.add(number)
                pending += self.downstream(number, affected)
        return affected

    def downstream(self, number: int, affected: Affected) -> Iterator[int]:
        """The tasks that consume a task's result, also as the output of an enclosing frame, and
        the bodies that took it."""
        current: int | None = number
        while current is not None:
            frame = self.frame_of[current]
            yield from frame.consumers[current - frame.first]
            if current != frame.output:
                break
            affected.frames.add(frame.number)
            step = self.step_of.get(frame.number)
            if step is not None:
                affected.bodies[step.body] = step.path
                yield step.body
                break
            current = self.opener[frame.number]


def read_lineage(events: Sequence[ev.Event]) -> Lineage:
    """Replay a journal, and record what a state forgets."""
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
        elif isinstance(event, (ev.StepsAsked, ev.StepsEnded)):
            lineage.bodies[event.task] = state.bodies[event.task]
            if isinstance(event, ev.StepsAsked):
                lineage.add_steps(event, before, state)
            else:
                lineage.add_local_steps(event)
    return lineage
