"""Executes commands of durable states: starts and stops attempts, sets alarms."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from ray_workflows._coordinator.commits import Guard
from ray_workflows._coordinator.workflow import Workflow
from ray_workflows._executor.protocol import Executor
from ray_workflows._executor.timers import TimerQueue
from ray_workflows._model.commands import (
    CancelAttempt,
    Command,
    Deliver,
    GiveOutcome,
    ReleaseValue,
    StartAttempt,
    WakeAt,
)
from ray_workflows._model.outbox import OutboxMessage

#: The most commands that are started in one step, which takes 20 to 40 ms. With fewer, batches of
#: very short attempts would be smaller.
STARTS = 5_000


class Starter:
    """Starts commands in limited steps: a workflow may have a million.

    Args:
        executor: runs attempts.
        timers: timers of the loop.
        clock: seconds since 1970 that pass evenly.
        guard: calls a function for one workflow, and handles its errors.
        may_start: whether attempts of a workflow may be started now.
        touch: called when all commands of a workflow were started: it may be at rest now.
        wake: called when a workflow's alarm is due.
        deliver: delivers a message of a workflow.
        at_once: the most commands per step.
    """

    def __init__(
        self,
        executor: Executor,
        timers: TimerQueue,
        clock: Callable[[], float],
        guard: Guard,
        may_start: Callable[[Workflow], bool],
        touch: Callable[[Workflow], None],
        wake: Callable[[Workflow], None],
        deliver: Callable[[Workflow, OutboxMessage], None],
        at_once: int,
    ) -> None:
        self.executor = executor
        self.timers = timers
        self.clock = clock
        self.guard = guard
        self.may_start = may_start
        self.touch = touch
        self.wake = wake
        self.deliver = deliver
        self.at_once = at_once
        #: Workflows with commands that are not started.
        self.waiting: dict[int, Workflow] = {}

    def add(self, workflow: Workflow, commands: Iterable[Command]) -> None:
        """Queue the commands of a durable state."""
        workflow.commands.extend(commands)
        if workflow.commands:
            self.waiting[id(workflow)] = workflow

    def start(self) -> None:
        """Start queued commands, up to ``at_once``."""
        left = self.at_once
        while self.waiting and left:
            workflow = self.waiting.pop(next(iter(self.waiting)))
            if workflow.busy:
                continue  # Its state is not durable now. The commit adds it here again.
            some = workflow.commands[:left]
            del workflow.commands[:left]
            left -= len(some)
            if workflow.commands:
                self.waiting[id(workflow)] = workflow
            else:
                self.touch(workflow)
            self.guard(workflow, partial(self.carry_out_all, started=some))

    def carry_out_all(self, workflow: Workflow, started: Iterable[Command]) -> None:
        for command in started:
            self.carry_out(workflow, command)

    def carry_out(self, workflow: Workflow, command: Command) -> None:
        if isinstance(command, StartAttempt):
            pause = command.not_before - self.clock() if command.not_before else 0.0
            if pause > 0.0:
                self.delay(workflow, command, pause)
            else:
                self.start_attempt(workflow, command)
        elif isinstance(command, GiveOutcome):
            self.executor.give(workflow.incarnation, command.task, command.number, command.outcome)
        elif isinstance(command, CancelAttempt):
            workflow.flying.pop(command.task, None)
            self.timers.cancel(workflow.delayed.pop(command.task, None))
            self.executor.cancel(workflow.incarnation, command.task)
        elif isinstance(command, ReleaseValue):
            self.executor.release(workflow.incarnation, command.value)
        elif isinstance(command, WakeAt):
            self.set_alarm(workflow, command.at)
        elif isinstance(command, Deliver) and self.may_start(workflow):
            self.deliver(workflow, command.message)

    def delay(self, workflow: Workflow, command: StartAttempt, seconds: float) -> None:
        """Start an attempt after a pause, in place of an earlier delayed one of its task."""

        def start() -> None:
            del workflow.delayed[command.task]
            self.add(workflow, [command])

        self.timers.cancel(workflow.delayed.pop(command.task, None))
        workflow.delayed[command.task] = self.timers.after(seconds, start)

    def start_attempt(self, workflow: Workflow, command: StartAttempt) -> None:
        if not self.may_start(workflow):
            return
        task, flying = command.task, workflow.flying
        attempt = (command.epoch, command.attempt)
        if flying.get(task) == attempt:
            return
        request = workflow.attempt_request(command)
        if request is not None:
            flying[task] = attempt
            # A result to be stored is committed before its consumers run, so only others are fused.
            followers = () if request.checkpoint else workflow.followers(request)
            self.executor.start(request, followers)

    def set_alarm(self, workflow: Workflow, at: float) -> None:
        """Wake a workflow at a wall-clock time, unless it has an earlier alarm. One alarm is
        enough, because each wake-up sets the next."""
        if workflow.alarm is None or at < workflow.alarm_at:
            self.timers.cancel(workflow.alarm)
            workflow.alarm_at = at
            workflow.alarm = self.timers.after(at - self.clock(), lambda: self.wake(workflow))

    def forget(self, workflow: Workflow) -> None:
        """Drop all commands and timers of a workflow."""
        self.waiting.pop(id(workflow), None)
        workflow.commands.clear()
        self.forget_timers(workflow)

    def forget_timers(self, workflow: Workflow) -> None:
        self.timers.cancel(workflow.alarm)
        workflow.alarm = None
        for timer in workflow.delayed.values():
            self.timers.cancel(timer)
        workflow.delayed.clear()
