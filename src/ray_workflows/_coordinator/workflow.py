"""One workflow as the loop drives it: working state, what waits for it, what is in flight."""

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
from ray_workflows._model.plan import Environment, Package
from ray_workflows._model.status import WorkflowStatus
from ray_workflows._model.values import Blob, Outcome, Value

#: How often a storage may refuse one commit until its workflow is stopped.
MAX_REFUSALS = 3

#: Scenes kept of one workflow: frames come and go.
MAX_SCENES = 256

#: What was asked, and the answer to it when what follows is durable.
Answer = tuple[Asked, object]


class Pending:
    """A commit on its way, and what happens when it is settled.

    ``deltas`` are the commands to start when it is durable; ``messages`` is what it was decided
    from, to decide again if the journal had moved on; ``commit`` is what observers see of it.
    """

    __slots__ = ("answers", "append", "commit", "deltas", "messages", "refusals", "unsaved")

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
        #: What the journal has since its last snapshot, when this is durable.
        self.unsaved = unsaved
        self.refusals = 0

    def is_refused_for_good(self) -> bool:
        """Whether the storage has refused it once more, and that is enough. A workflow that is new
        has nothing to lose: its client can try again."""
        self.refusals += 1
        return self.refusals >= (1 if self.append.expected_seq == 0 else MAX_REFUSALS)


class Workflow:
    """A workflow in the loop's hands.

    ``state`` is ahead of what is durable (``seq``, ``link``, ``row``) while a commit is pending.
    ``link``: what links the next journal entry to the last one.
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
        #: What the journal has since its last snapshot.
        self.unsaved = unsaved
        #: Whether the tasks are in the state: what is asked may not need them.
        self.whole = True
        #: What came in and is not decided on.
        self.inbox: deque[Message | Asked] = deque()
        #: Whether values are here that are in no storage, if there are any: it is driven here, and
        #: what was lost with whoever drove it before is in the journal.
        self.live = False
        #: Whether another coordinator was driving it when it was read.
        self.driven_elsewhere = False
        #: Of one that others may change: how many of the inbox came before it was read last.
        self.covered = 0
        self.pending: Pending | None = None
        #: What a durable state asks for, and is not started yet. A list: it is mostly empty, and an
        #: empty deque takes 0.7 KiB of each of 100,000 workflows.
        self.commands: list[Command] = []
        #: Why it can't be driven: it is here only until the journal says so.
        self.broken: Exception | None = None
        #: Its journal is being read again; until then the state is of no use.
        self.reading = False
        #: Read it again as soon as the pending commit is settled.
        self.doubtful = False
        #: Tasks with an attempt in the executor, or whose report is not decided on: epoch, attempt.
        self.flying: dict[int, tuple[int, int]] = {}
        #: As what `Admission` has counted it.
        self.counted: WorkflowStatus | None = None
        #: When it is woken next.
        self.alarm: Timer | None = None
        self.alarm_at = 0.0
        #: Attempts whose time has not come, by task.
        self.delayed: dict[int, Timer] = {}
        self.templates: dict[tuple[int, int, int, str], AttemptTemplate] = {}
        self.scenes_of = state.functions

    @property
    def busy(self) -> bool:
        """Whether nothing can be decided now."""
        return self.pending is not None or self.reading

    @property
    def is_idle(self) -> bool:
        """Whether nothing of it is on its way, or waits to be started or decided."""
        return not (
            self.busy or self.doubtful or self.inbox or self.commands or self.flying or self.delayed
        )

    @property
    def settled(self) -> bool:
        """Whether only an explicit request can change it."""
        state = self.state
        return state.released or state.status in (
            WorkflowStatus.SUCCESSFUL,
            WorkflowStatus.FAILED,
            WorkflowStatus.CANCELED,
        )

    @property
    def is_asked(self) -> bool:
        """Whether somebody waits for an answer about it."""
        return any(isinstance(each, Asked) for each in self.inbox)

    def put_first(self, message: Message) -> None:
        """Let something that was found by reading be decided on before all else."""
        self.inbox.appendleft(message)
        self.covered += 1

    def become(self, found: Recovered | None) -> None:
        """It is what was read; None if there is nothing, or nothing was read yet."""
        if found is None:
            self.state, self.seq, self.row = WorkflowState(self.workflow_id, ""), 0, None
            self.link, self.unsaved, self.whole = NO_LINK, NOTHING, True
        else:
            self.state, self.seq, self.row = found.state, found.seq, found.row
            self.link, self.unsaved, self.whole = found.link, found.unsaved, found.whole

    def is_ours(self) -> None:
        """It is driven here, by what is durable."""
        self.live = True
        self.driven_elsewhere = False

    def seen(self, executor: Executor) -> Watched:
        """What those who watch it are told: only what is durable."""
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
        """Attempts that are not started yet are asked for anew."""
        self.commands = [each for each in self.commands if not isinstance(each, StartAttempt)]

    def land(self, report: AttemptReport) -> None:
        """The report is being decided on."""
        if self.flying.get(report.task) == (report.epoch, report.attempt):
            del self.flying[report.task]

    def attempt_request(self, command: StartAttempt) -> AttemptRequest | None:
        """What the executor needs for an attempt; None if the state has moved on."""
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
        # By position: names take time, and thousands are made at once.
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
        )

    def followers(self, request: AttemptRequest) -> Iterator[AttemptRequest]:
        """Requests for the attempts that may be fused to this one, in their order."""
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
        """What the task has in common with others of its plan: one object for all of them."""
        frame, spec, state = task.frame, task.spec, self.state
        if self.scenes_of is not state.functions:
            # Another state, or one that a resumption has changed.
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
    """Answer a request; one whose asker is gone harms nobody."""
    try:
        reply(value)
    except Exception:
        # The asker's event loop is closed: there is nobody left to tell.
        return
