"""One workflow as the loop drives it: working state, inbox, and attempts in flight."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import msgspec

from ray_workflows._codec.journal import NO_LINK
from ray_workflows._coordinator.observers import Commit
from ray_workflows._coordinator.recovery import Recovered
from ray_workflows._coordinator.requests import Asked, Reply, Watched
from ray_workflows._coordinator.snapshots import NOTHING, Unsaved
from ray_workflows._engine.commands import followers
from ray_workflows._engine.state import Task, WorkflowState
from ray_workflows._executor.protocol import AttemptRequest, AttemptTemplate, Executor
from ray_workflows._executor.timers import Timer
from ray_workflows._model.catalog import Append, CatalogRow
from ray_workflows._model.commands import Command, StartAttempt
from ray_workflows._model.messages import AttemptReport, Message
from ray_workflows._model.plan import BODY, Environment, Package
from ray_workflows._model.status import WorkflowStatus
from ray_workflows._model.steps import History
from ray_workflows._model.values import Blob, Outcome, Value

#: After this many refusals of one commit by the storage, its workflow is stopped.
MAX_REFUSALS = 3

#: The most attempt templates kept per workflow: frames come and go.
MAX_SCENES = 256

#: A request, and its answer, which is sent when its events are durable.
Answer = tuple[Asked, object]


class Pending:
    """A pending commit, and what to do when it is settled.

    ``deltas``: the commands to start when it is durable; ``messages``: its messages, to decide
    again if the commit is stale; ``commit``: the record for observers.
    """

    __slots__ = (
        "answers",
        "append",
        "commit",
        "deltas",
        "messages",
        "refusals",
        "refused_at",
        "unsaved",
    )

    def __init__(
        self,
        append: Append,
        deltas: list[Command],
        messages: list[Message | Asked],
        answers: list[Answer],
        commit: Commit | None = None,
        unsaved: Unsaved = NOTHING,
    ) -> None:
        self.append = append
        self.commit = commit
        self.deltas = deltas
        self.messages = messages
        self.answers = answers
        #: The journal since its last snapshot, when this is durable.
        self.unsaved = unsaved
        self.refusals = 0
        #: How many writes the storage had taken when it refused this one first.
        self.refused_at: int | None = None

    def is_refused_for_good(self) -> bool:
        """Count a refusal by the storage; whether it is the last one. A new workflow is given up at
        once: its client can try again."""
        self.refusals += 1
        return self.refusals >= (1 if self.append.expected_seq == 0 else MAX_REFUSALS)


class Workflow:
    """A workflow in memory.

    While a commit is pending, ``state`` is ahead of the durable ``seq``, ``link`` and ``row``.
    ``link``: the link for the next journal entry.
    """

    __slots__ = (
        "alarm",
        "alarm_at",
        "broken",
        "commands",
        "counted",
        "covered",
        "delayed",
        "doubtful",
        "driven_elsewhere",
        "flying",
        "inbox",
        "link",
        "live",
        "pending",
        "reading",
        "row",
        "scenes_of",
        "seq",
        "state",
        "templates",
        "unsaved",
        "whole",
    )

    def __init__(
        self,
        state: WorkflowState,
        seq: int,
        row: CatalogRow | None,
        *,
        link: bytes = NO_LINK,
        unsaved: Unsaved = NOTHING,
    ) -> None:
        self.state = state
        self.seq = seq
        self.link = link
        self.row = row
        #: The journal since its last snapshot.
        self.unsaved = unsaved
        #: Whether the state has the tasks, which some requests don't need.
        self.whole = True
        #: Messages that are not decided on.
        self.inbox: deque[Message | Asked] = deque()
        #: Whether its unstored values are here: it is driven here, and the journal records the
        #: values that an earlier holder lost.
        self.live = False
        #: Whether another coordinator was driving it when it was read.
        self.driven_elsewhere = False
        #: If others may change it: how many messages of the inbox came before the last reading.
        self.covered = 0
        self.pending: Pending | None = None
        #: Commands of a durable state that are not started yet. A list, because it is mostly empty,
        #: and an empty deque takes 0.7 KiB for each of 100,000 workflows.
        self.commands: list[Command] = []
        #: Why it can't be driven. It stays in memory until the journal records that.
        self.broken: Exception | None = None
        #: Its journal is being read again, and the state must not be used meanwhile.
        self.reading = False
        #: Read it again as soon as the pending commit is settled.
        self.doubtful = False
        #: Epoch and attempt by task, of attempts in flight or with a report not decided on.
        self.flying: dict[int, tuple[int, int]] = {}
        #: The status with which `Admission` counts it.
        self.counted: WorkflowStatus | None = None
        #: The timer of its next wake-up.
        self.alarm: Timer | None = None
        self.alarm_at = 0.0
        #: Timers of delayed attempts, by task.
        self.delayed: dict[int, Timer] = {}
        self.templates: dict[tuple[int, int, int, str], AttemptTemplate] = {}
        self.scenes_of = state.functions

    @property
    def busy(self) -> bool:
        """Whether nothing can be decided now."""
        return self.pending is not None or self.reading

    @property
    def is_idle(self) -> bool:
        """Whether nothing is in flight, queued to start, or to be decided."""
        return not (
            self.busy or self.doubtful or self.inbox or self.commands or self.flying or self.delayed
        )

    @property
    def settled(self) -> bool:
        """Whether only a user's request can change it."""
        state = self.state
        return state.released or state.status in (
            WorkflowStatus.SUCCESSFUL,
            WorkflowStatus.FAILED,
            WorkflowStatus.CANCELED,
        )

    @property
    def is_asked(self) -> bool:
        """Whether a caller waits for an answer about it."""
        return any(isinstance(each, Asked) for each in self.inbox)

    def put_first(self, message: Message) -> None:
        """Put a message, found by reading, before all others."""
        self.inbox.appendleft(message)
        self.covered += 1

    def become(self, found: Recovered | None) -> None:
        """Set it to what was read; None if there is nothing, or nothing was read yet."""
        if found is None:
            self.state, self.seq, self.row = WorkflowState(self.workflow_id, ""), 0, None
            self.link, self.unsaved, self.whole = NO_LINK, NOTHING, True
        else:
            self.state, self.seq, self.row = found.state, found.seq, found.row
            self.link, self.unsaved, self.whole = found.link, found.unsaved, found.whole

    def is_ours(self) -> None:
        """Note that it is driven here, by a durable event."""
        self.live = True
        self.driven_elsewhere = False

    def seen(self, executor: Executor) -> Watched:
        """The answer for its watches: durable facts only."""
        row = self.row
        if row is None or row.status is not WorkflowStatus.SUCCESSFUL:
            return Watched(row)
        output = self.state.output
        value = None if output is None else output.value
        live = None if value is None else executor.live_copy(self.incarnation, value)
        return Watched(row, output, live)

    @property
    def workflow_id(self) -> str:
        return self.state.workflow_id

    @property
    def incarnation(self) -> str:
        return self.state.incarnation

    def forget_starts(self) -> None:
        """Drop queued starts: they will be requested again."""
        self.commands = [each for each in self.commands if not isinstance(each, StartAttempt)]

    def land(self, report: AttemptReport) -> None:
        """Remove the attempt of a report from those in flight."""
        if self.flying.get(report.task) == (report.epoch, report.attempt):
            del self.flying[report.task]

    def attempt_request(self, command: StartAttempt) -> AttemptRequest | None:
        """The executor's request for an attempt; None if the state has moved on."""
        state, number = self.state, command.task
        tasks = state.tasks
        task = tasks.get(number)
        if (
            task is None
            or number not in state.active
            or command.epoch != state.epoch
            or command.attempt != task.attempts + 1
            or not state.running
        ):
            return None
        upstream = task.upstream
        inputs = [tasks[number].outcome for number in upstream]
        return self.request(task, command.epoch, command.attempt, upstream, inputs)

    def request(
        self,
        task: Task,
        epoch: int,
        attempt: int,
        upstream: tuple[int, ...],
        inputs: list[Outcome | None],
    ) -> AttemptRequest:
        spec = task.spec
        assert None not in inputs, (task.task_id, upstream)
        # By position: keywords take time, and thousands are made at once.
        return AttemptRequest(
            self.template(task),
            task.number,
            task.task_id,
            epoch,
            attempt,
            spec.arguments,
            self.state.checkpoints(task),
            upstream,
            spec.nested,
            tuple(inputs),  # type: ignore[arg-type]
            task.last_end,
            False,
            self.history(task) if task.options.kind == BODY else None,
            task.setbacks,
        )

    def history(self, task: Task) -> History:
        """What a body has done in earlier attempts."""
        body = self.state.bodies.get(task.number)
        return History() if body is None else body.history

    def followers(self, request: AttemptRequest) -> Iterator[AttemptRequest]:
        """Requests for the attempts that may be fused with this one, in their order."""
        tasks = self.state.tasks
        task = tasks[request.task]
        for follower in followers(self.state, task):
            upstream = follower.upstream
            value = Value(Blob(request.fused_key, 0, ""))
            inputs = [tasks[number].outcome for number in upstream]
            position = upstream.index(task.number)
            inputs[position] = Outcome(value).wrap_if(task.options.catch_exceptions)
            attempt = follower.attempts + 1
            request = self.request(follower, request.epoch, attempt, upstream, inputs)
            task = follower
            yield request

    def template(self, task: Task) -> AttemptTemplate:
        """The common part of attempts of equal tasks in a plan: one object for all of them."""
        frame, spec, state = task.frame, task.spec, self.state
        if self.scenes_of is not state.functions:
            # The state was replaced, or a resumption has changed it.
            self.templates.clear()
            self.scenes_of = state.functions
        own = state.ray_options.get(task.task_id) if state.ray_options else None
        key = (frame.number, spec.function, spec.options, task.task_id if own else "")
        template = self.templates.get(key)
        if template is None:
            if len(self.templates) >= MAX_SCENES:
                self.templates.clear()
            plan = frame.plan
            function = plan.functions[spec.function]
            options = plan.options[spec.options]
            if own:
                options = options.with_ray(own)
            template = self.templates[key] = AttemptTemplate(
                workflow_id=self.workflow_id,
                incarnation=self.incarnation,
                function=state.functions.get(function.digest, function),
                options=options,
                environment=with_packages(state.environment, plan.environment.packages),
                constants=plan.constants,
            )
        return template


def with_packages(environment: Environment, packages: tuple[Package, ...]) -> Environment:
    """The environment of a workflow with the packages that tasks of a continuation name."""
    added = tuple(package for package in packages if package not in environment.packages)
    if not added:
        return environment
    return msgspec.structs.replace(environment, packages=(*environment.packages, *added))


def answer(reply: Reply, value: object) -> None:
    """Answer a request; ignores a caller that is gone."""
    try:
        reply(value)
    except Exception:
        # The caller's event loop is closed: it no longer waits.
        return
