"""Replays what durable functions have recorded against other code of theirs. No step runs, nothing
is written, and Ray is not asked, unless a value has ObjectRefs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from ray.remote_function import RemoteFunction

from ray_workflows._capture.classes import Bringing
from ray_workflows._capture.steps import Call, StepCapture
from ray_workflows._capture.upgrade import import_here, present_version
from ray_workflows._capture.values import ValueWriter
from ray_workflows._engine.evolve import evolve
from ray_workflows._engine.state import Body, Task, WorkflowState
from ray_workflows._executor.protocol import AttemptRequest, AttemptTemplate
from ray_workflows._executor.worker import context
from ray_workflows._executor.worker.attempt import AttemptRun
from ray_workflows._executor.worker.bodies.attempt import BodyAttempt, ContinueAsNew
from ray_workflows._executor.worker.bodies.body import UnreadableOutcome
from ray_workflows._executor.worker.process import HERE
from ray_workflows._model import events as ev
from ray_workflows._model.catalog import CatalogRow
from ray_workflows._model.plan import EMPTY_PLAN, Function, Plan
from ray_workflows._model.values import Outcome
from ray_workflows._ray.private import remote_body
from ray_workflows.exceptions import NondeterminismError
from ray_workflows.storage.base import Storage
from ray_workflows.storage.histories import History as Journal

logger = logging.getLogger(__name__)

#: Why a function can't be checked.
NOT_HERE = "There is no durable function of this name here. (One of a script: --script FILE.)"


class RecordedBody(NamedTuple):
    """A durable function of a workflow, and what it has done. ``ended``: it does not run again."""

    request: AttemptRequest
    ended: bool

    @property
    def function(self) -> Function:
        """The function that would run now."""
        return self.request.function


class Begun(NamedTuple):
    """A body at its first progress: its inputs may be dropped later."""

    task: Task
    body: Body
    inputs: tuple[Outcome | None, ...]


def recorded_bodies(storage: Storage, row: CatalogRow) -> Iterator[RecordedBody]:
    """The durable functions of a workflow that have asked for something, in the order in which they
    first did."""
    state = WorkflowState(row.workflow_id, row.incarnation)
    begun: dict[int, Begun] = {}
    for _, events in Journal(storage, row).read():
        for event in events:
            evolve(state, event)
            if isinstance(event, (ev.StepsAsked, ev.StepsEnded)):
                number = event.task
                if number not in begun:
                    task = state.tasks[number]
                    inputs = tuple(state.tasks[each].outcome for each in task.upstream)
                    begun[number] = Begun(task, state.bodies[number], inputs)
    for number, found in begun.items():
        yield RecordedBody(request_of(state, found), number not in state.bodies)


def request_of(state: WorkflowState, found: Begun) -> AttemptRequest:
    """The request for the next attempt of a body."""
    task = found.task
    plan, spec = task.frame.plan, task.spec
    function = plan.functions[spec.function]
    template = AttemptTemplate(
        workflow_id=state.workflow_id,
        incarnation=state.incarnation,
        function=state.functions.get(function.digest, function),
        options=task.options,
        environment=state.environment,
        constants=plan.constants,
    )
    return AttemptRequest(
        template=template,
        task=task.number,
        task_id=task.task_id,
        epoch=state.epoch,
        attempt=task.attempts + 1,
        arguments=spec.arguments,
        checkpoint=True,
        upstream=task.upstream,
        nested=spec.nested,
        inputs=tuple(each or Outcome() for each in found.inputs),
        history=found.body.history,
    )


def present_function(name: str) -> Callable[..., Any] | None:
    """The durable function that has this name here: of this process's script, or of a module that
    can be imported. None if there is none."""
    parts = name.split(".")
    found: Any = present_version(parts[0], ".".join(parts[1:]))
    for end in range(len(parts) - 1, 0, -1):
        if found is not None or parts[0] == "__main__":
            break
        try:
            found = import_here(".".join(parts[:end]))
        except ImportError:
            continue
        for part in parts[end:]:
            found = getattr(found, part, None)
    return body_of(found)


def body_of(function: Any) -> Callable[..., Any] | None:
    """The code of a durable function; None if it is none."""
    body = remote_body(function) if isinstance(function, RemoteFunction) else function
    return body if hasattr(body, "strict") and callable(body) else None


def replay(storage: Storage, recorded: RecordedBody, function: Callable[..., Any]) -> None:
    """Run a durable function with a recorded history, until it asks for something new or ends.

    Raises:
        NondeterminismError: it does not do what the history says.
        Exception: its arguments or an outcome can't be read here.
    """
    body = ReplayedBody(ReplayedRun(storage, recorded.request, function))
    history = recorded.request.history
    assert history is not None
    try:
        body.start()
        body.advance(list(history.outcomes))
        failure = body.body.failure
    except UnreadableOutcome as unreadable:
        raise unreadable.error from None
    finally:
        body.leave()
    if failure is not None:
        raise failure


class ReplayedRun(AttemptRun):
    """An attempt that calls another function, and reports to nobody."""

    def __init__(
        self, storage: Storage, request: AttemptRequest, function: Callable[..., Any]
    ) -> None:
        super().__init__(request, storage, None, HERE, 0, 0, patience=0.0)
        self.function = function

    def load(self) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
        """The function and its recorded arguments."""
        # Classes of the script here in place of recorded ones.
        self.reader.classes = Bringing(by_name=True)
        where = f"arguments of {self.request.where}"
        arguments = self.request.arguments
        args, kwargs = self.reader.read(arguments, where=where, resolve=self.resolve)
        return self.function, args, kwargs


class ReplayedSteps(StepCapture):
    """Captures nothing: new steps are not asked of anybody."""

    def plan(self, call: Call) -> Plan:
        """A plan without tasks."""
        return EMPTY_PLAN


class ReplayedBody(BodyAttempt):
    """An attempt of a body that writes and starts nothing."""

    def __init__(self, run: ReplayedRun) -> None:
        super().__init__(run)
        self.steps = ReplayedSteps(
            ValueWriter(run.storage, run.request.incarnation), lambda node: EMPTY_PLAN
        )

    def started(self, make: Callable[[str], context.Outgoing]) -> str:
        """The recorded id of a workflow that the code started; of a new one, the path."""
        return self.body.started(lambda path: path)

    def continue_as_new(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ContinueAsNew:
        """What ends the code."""
        self.body.check()
        return ContinueAsNew(EMPTY_PLAN)


class Checked(NamedTuple):
    """The result for one durable function of a workflow. ``difference``: None if it does what it
    did. ``problem``: why it could not be checked; empty if it could."""

    workflow_id: str
    task_id: str
    function: str
    difference: NondeterminismError | None = None
    problem: str = ""


def check_present_code(storage: Storage, row: CatalogRow) -> Iterator[Checked]:
    """Replay the functions of a workflow that have not ended, with the code that they have here."""
    for recorded in recorded_bodies(storage, row):
        if recorded.ended:
            continue
        name = recorded.function.name
        told = (row.workflow_id, recorded.request.task_id, name)
        try:
            function = present_function(name)
        except Exception as error:
            yield Checked(*told, problem=f"The module can't be imported: {error!r}")
            continue
        if function is None:
            yield Checked(
                *told,
                problem=NOT_HERE,
            )
            continue
        try:
            replay(storage, recorded, function)
        except NondeterminismError as difference:
            yield Checked(*told, difference=difference)
        except Exception as error:
            logger.debug("%s can't be checked.", recorded.request.where, exc_info=True)
            yield Checked(*told, problem=f"It can't be checked: {type(error).__name__}: {error}")
        else:
            yield Checked(*told)
