"""Makes the first events of a fork: the results of tasks that need not run again.

The new workflow has the same plan. It takes the old one's results of all tasks but the one that it
starts from and those downstream. Tasks get new numbers, because some continuations are left out.
A signal that a kept task took becomes the task's result. Other signals were sent to the old
workflow: a signal is taken once, so the new workflow waits for its own. Messages of kept tasks are
left out: the old workflow sent them.

Steps of the body of a durable function are in the fork only if the body goes on in one of them; see
`KeptBody`. A body that has ended before keeps its result alone, and all others begin anew.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import msgspec

from ray_workflows._engine.bodies import index_to_repeat, without_outcome
from ray_workflows._engine.evolve import evolve
from ray_workflows._engine.lineage import Affected, BodyStep, Lineage, read_lineage
from ray_workflows._engine.state import WorkflowState
from ray_workflows._engine.values import unstored
from ray_workflows._model import events as ev
from ray_workflows._model.steps import EndedStep, StepKind, StepRecord
from ray_workflows._model.values import Value


def fork_history(events: Sequence[ev.Event], from_task: str) -> list[ev.Event] | None:
    """The events with which a fork begins, after its ``WorkflowStarted``.

    Args:
        events: the journal of the origin, from its first event.
        from_task: id of the task, or of the step of a body, to run again.

    Returns:
        Events about tasks, in order; None if there is no such task.
    """
    lineage = read_lineage(events)
    start = lineage.find(from_task)
    if start is None:
        return None
    return History(lineage, lineage.affected_by(start)).write(events)


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


class KeptBody:
    """What a body keeps in a fork: what it did before it had the outcome of a step.

    The step is asked for again by the body, and so are those that had no outcome. If the fork
    starts within the plan of the step, the step goes on with what its other tasks have given.
    """

    def __init__(self, lineage: Lineage, number: int, index: int, open_frames: set[int]) -> None:
        """``index``: of the outcome to discard. ``open_frames``: of steps that go on."""
        body = lineage.bodies[number]
        self.began = body.began
        steps, outcomes = without_outcome(body, index)
        ended = {each.path for each in outcomes}
        #: The frames of its steps that are in the fork.
        self.frames: set[int] = set()
        #: The ends of local steps that are in the fork, by their identity.
        self.ends: set[int] = set()
        #: Records of all other steps.
        self.records: list[StepRecord] = []
        for path, record in steps.items():
            step = BodyStep(number, path)
            frame = lineage.last_frame.get(step)
            if path in ended and record.step.kind is StepKind.LOCAL:
                self.ends.add(id(lineage.last_end[step]))
            elif path in ended:
                self.frames.add(lineage.last_frame[step])
            elif record.mark is not None or record.canceled is not None:
                self.records.append(record)
            elif frame is not None and frame in open_frames and not body.steps[path].again:
                self.frames.add(frame)
            else:
                self.records.append(StepRecord(record.step, again=True))

    def beginning(self, event: ev.StepsAsked | ev.StepsEnded) -> ev.StepsAsked:
        """The first event about its steps."""
        return ev.StepsAsked(
            at=event.at,
            task=event.task,
            attempt=event.attempt,
            began=self.began,
            marks=tuple(self.records),
        )

    def asked(self, event: ev.StepsAsked, first_frame: int) -> ev.StepsAsked:
        """The part of an event about steps that are in the fork."""
        kept = [
            number for number in range(len(event.opened)) if first_frame + number in self.frames
        ]
        ends = list(itertools.accumulate(event.sizes))
        tasks = [
            task
            for number in kept
            for task in range(ends[number] - event.sizes[number], ends[number])
        ]
        plan = event.plan
        return msgspec.structs.replace(
            event,
            opened=tuple(event.opened[number] for number in kept),
            plan=msgspec.structs.replace(plan, tasks=tuple(plan.tasks[task] for task in tasks)),
            sizes=tuple(event.sizes[number] for number in kept),
            task_ids=tuple(event.task_ids[task] for task in tasks),
            marks=(),
            # The body says again that it ignores an outcome.
            canceled=(),
            messages=(),
        )

    def ended(self, event: ev.StepsEnded) -> tuple[EndedStep, ...]:
        """The ends of local steps that are in the fork."""
        return tuple(
            msgspec.structs.replace(each, messages=())
            for each in event.ended
            if id(each) in self.ends
        )


class History:
    """Writes the kept events, with the numbers that tasks and frames have in the fork."""

    def __init__(self, lineage: Lineage, affected: Affected) -> None:
        self.lineage = lineage
        self.again = affected.tasks
        self.open_frames = affected.frames
        #: Tasks that wait for such a frame. Their results, and events about the loss of these, are
        #: not in the fork.
        self.continued = {lineage.opener[frame] for frame in affected.frames}
        #: The bodies that go on where they were, by their old numbers.
        self.bodies: dict[int, KeptBody] = {}
        for number, path in affected.bodies.items():
            index = index_to_repeat(lineage.bodies[number], path)
            if index is not None:
                self.bodies[number] = KeptBody(lineage, number, index, affected.frames)
        #: Those whose first event is written.
        self.begun: set[int] = set()
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
                goes_on = frame_number in self.open_frames and event.task in self.tasks
                if goes_on or self.keeps(event.task):
                    first = self.state.next_task
                    self.keep(event, first=first, messages=())
                    self.enter(frame_number, first=first)
                frame_number += 1
            elif isinstance(event, ev.StepsAsked):
                if body := self.kept_body(event):
                    self.keep_asked(body, event, frame_number)
                frame_number += len(event.opened)
            elif isinstance(event, ev.StepsEnded):
                if (body := self.kept_body(event)) and (ended := body.ended(event)):
                    self.keep(event, ended=ended)
            elif isinstance(event, ev.TaskFailed):
                # A failure is a result only if it was caught.
                caught = events[index + 1] if index + 1 < len(events) else None
                if isinstance(caught, ev.ErrorCaught) and self.keeps_catch(caught):
                    self.keep(event, step="")
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
                self.keep(event, step="")
        self.lose_unstored()
        return self.kept

    def kept_body(self, event: ev.StepsAsked | ev.StepsEnded) -> KeptBody | None:
        """The body of an event, if it goes on where it was. Its first event is then written."""
        body = self.bodies.get(event.task)
        if body is None or event.task not in self.tasks:
            return None
        if event.task not in self.begun:
            self.begun.add(event.task)
            self.keep(body.beginning(event), first=self.state.next_task)
        return body

    def keep_asked(self, body: KeptBody, event: ev.StepsAsked, frame_number: int) -> None:
        """Keep what a body asked for, as far as it is in the fork."""
        first = self.state.next_task
        asked = body.asked(event, frame_number)
        if not asked.opened:
            return
        self.keep(asked, first=first)
        entered = [
            frame_number + number
            for number in range(len(event.opened))
            if frame_number + number in body.frames
        ]
        new_frame = self.state.next_frame - len(entered)
        for number, frame in enumerate(entered, new_frame):
            self.enter(frame, first=first, number=number)
            first += len(self.lineage.frames[frame].plan.tasks)

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

    def enter(self, frame: int, *, first: int, number: int | None = None) -> None:
        """Number a frame that is in the fork too, and its tasks. By default it is the last one."""
        old = self.lineage.frames[frame]
        self.frames[frame] = self.state.next_frame - 1 if number is None else number
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
