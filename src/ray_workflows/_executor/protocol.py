"""The coordinator's interface to an executor, and the messages to and from workers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any, Protocol

import msgspec

from ray_workflows._codec.transport import Message, opened
from ray_workflows._model.messages import (
    AttemptCrashed,
    AttemptFoundCorruption,
    AttemptLostInput,
    AttemptLostStorage,
    AttemptNews,
    AttemptRaised,
    AttemptReturned,
    AttemptReturnedPlan,
    AttemptSuspended,
    BodyProgress,
    FoundUnplaceable,
)
from ray_workflows._model.plan import FUNCTION, Environment, Function, TaskOptions
from ray_workflows._model.steps import History, StepOutcome
from ray_workflows._model.values import Outcome, Value
from ray_workflows._ray.private import LABELS

#: Ray options that do not change where a task can run.
NOT_SHAPE = ("name", LABELS, "enable_task_events")

#: Ray options with which a task may still share a Ray task with others.
SHARED_OPTIONS = (*NOT_SHAPE, "runtime_env")


class AttemptTemplate(msgspec.Struct, frozen=True, array_like=True, dict=True):
    """The common part of attempts of one function in one plan."""

    workflow_id: str
    incarnation: str
    function: Function
    options: TaskOptions
    environment: Environment
    constants: tuple[Value, ...]

    @cached_property
    def shape(self) -> str:
        """The scheduling class: attempts of one shape can run in the same Ray task."""
        options = {k: v for k, v in self.options.ray.items() if k not in NOT_SHAPE}
        environment = self.environment
        return repr(
            (
                self.options.kind,
                environment.code_digest,
                environment.code,
                environment.runtime_env,
                environment.python_path,
                sorted(options.items()),
            )
        )

    @cached_property
    def batchable(self) -> bool:
        """Whether attempts may share a Ray task with others of the function.

        Not if they have resources of their own, if they must be stopped one by one, or if they must
        not run again when another member kills their worker.
        """
        options = self.options
        return (
            options.kind == FUNCTION
            and options.batch
            and options.timeout is None
            and options.max_retries != 0
            and all(key in SHARED_OPTIONS for key in options.ray)
        )


class AttemptRequest(msgspec.Struct, frozen=True, gc=False):
    """Everything a worker needs to run one attempt.

    ``inputs`` are the outcomes of the upstream tasks, whose numbers are ``upstream``; those at
    the positions ``nested`` are taken by reference only.
    ``checkpoint``: the result is to be stored. ``fused``: the next member of its batch is the only
    consumer of the result. ``last_end``: why the attempt before it ended. ``history``: of a body.
    ``setbacks``: how many attempts of a body ended with their process since it last went on.
    """

    template: AttemptTemplate
    task: int
    task_id: str
    epoch: int
    attempt: int
    arguments: Value
    checkpoint: bool
    upstream: tuple[int, ...] = ()
    nested: tuple[int, ...] = ()
    inputs: tuple[Outcome, ...] = ()
    last_end: str = ""
    fused: bool = False
    history: History | None = None
    setbacks: int = 0

    @property
    def workflow_id(self) -> str:
        return self.template.workflow_id

    @property
    def incarnation(self) -> str:
        return self.template.incarnation

    @property
    def function(self) -> Function:
        return self.template.function

    @property
    def options(self) -> TaskOptions:
        return self.template.options

    @property
    def environment(self) -> Environment:
        return self.template.environment

    @property
    def constants(self) -> tuple[Value, ...]:
        return self.template.constants

    @property
    def where(self) -> str:
        """Names the task in errors."""
        return f"task '{self.task_id}' of workflow '{self.workflow_id}'"

    @property
    def blob_prefix(self) -> str:
        """The prefix of keys of blobs that this attempt writes, unique to it. Each execution adds a
        name of its own."""
        # With the incarnation, because a fork has the blobs of its origin too.
        return f"{self.incarnation}-task-{self.task}-{self.epoch}-{self.attempt}"

    @property
    def fused_key(self) -> str:
        """The key by which the next member of its batch takes its result."""
        return f"{self.blob_prefix}-fused"


#: How many bits of a fencing token count the batches of one life of a coordinator: a thousand in
#: each second for 34 years. With the takeovers before them, a token fits into a signed 64-bit
#: integer.
SEQUENCE_BITS = 40


def fencing_token(epoch: int, sequence: int) -> int:
    """A number that is larger for every later execution of a task.

    A task is in each batch once, and an executor counts its batches. Every other life of the
    coordinator, and every other coordinator, has claimed the workflow before it starts anything of
    it, which has increased the epoch. No clock and no count of attempts is in it: a clock may be
    set back, and an attempt runs again under its number when its worker has died with a batch.

    Args:
        epoch: the claims of the workflow before the execution.
        sequence: that of its batch, from 1.
    """
    return (epoch << SEQUENCE_BITS) + sequence


class Member(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An `AttemptRequest` on the wire. ``template`` is an index: many members share one."""

    template: int
    task: int
    task_id: str
    epoch: int
    attempt: int
    arguments: Value
    checkpoint: bool
    upstream: tuple[int, ...]
    nested: tuple[int, ...]
    inputs: tuple[Outcome, ...]
    last_end: str
    fused: bool
    history: History | None
    setbacks: int


class Batch(msgspec.Struct, frozen=True, array_like=True):
    """Attempts to run one after the other in one Ray task.

    The executor gives ``number``, which no other life of the coordinator gives, and by which it
    finds the batch of a report. ``sequence`` counts the batches of this life.
    """

    number: int
    sequence: int
    templates: tuple[AttemptTemplate, ...]
    members: tuple[Member, ...]


AnyReport = (
    AttemptReturned
    | AttemptReturnedPlan
    | AttemptRaised
    | AttemptCrashed
    | AttemptLostInput
    | AttemptLostStorage
    | AttemptFoundCorruption
    | AttemptSuspended
)


class BatchReport(msgspec.Struct, frozen=True, array_like=True):
    """The outcomes of members of the batch with this number.

    ``reports`` are pairs of the member's index and its report; ``seconds`` is how long each
    of them kept the worker busy. ``unstarted`` are the indices of members returned to the queue.
    """

    number: int
    reports: tuple[tuple[int, AnyReport], ...]
    seconds: tuple[float, ...]
    unstarted: tuple[int, ...] = ()


class GivenOutcomes(msgspec.Struct, frozen=True, array_like=True):
    """Outcomes of steps, for a body that runs. ``batch``: the number of its batch, which names this
    execution alone. ``number``: how many outcomes it was given before, in its history too."""

    batch: int
    number: int
    outcomes: tuple[StepOutcome, ...]


class ToldProgress(msgspec.Struct, frozen=True, array_like=True):
    """What a body asks for. ``batch``: as above. ``number``: how often it has told something
    before."""

    incarnation: str
    batch: int
    number: int
    progress: BodyProgress


GIVEN_DECODER = msgspec.msgpack.Decoder(GivenOutcomes)
TOLD_DECODER = msgspec.msgpack.Decoder(ToldProgress)
ENCODER = msgspec.msgpack.Encoder()
BATCH_DECODER = msgspec.msgpack.Decoder(Batch)
REPORT_DECODER = msgspec.msgpack.Decoder(BatchReport)


def decode_report(wire: Message) -> tuple[BatchReport, dict[str, dict[str, Any]]]:
    """Decode a worker's report, and the live objects that the members made."""
    encoded, objects = opened(wire)
    return REPORT_DECODER.decode(encoded), objects or {}


def encode_batch(number: int, sequence: int, requests: Sequence[AttemptRequest]) -> bytes:
    """Encode attempts for a worker."""
    templates: dict[int, int] = {}
    distinct: list[AttemptTemplate] = []
    members = []
    for request in requests:
        template = request.template
        index = templates.setdefault(id(template), len(distinct))
        if index == len(distinct):
            distinct.append(template)
        members.append(
            Member(
                index,
                request.task,
                request.task_id,
                request.epoch,
                request.attempt,
                request.arguments,
                request.checkpoint,
                request.upstream,
                request.nested,
                request.inputs,
                request.last_end,
                request.fused,
                request.history,
                request.setbacks,
            )
        )
    return ENCODER.encode(Batch(number, sequence, tuple(distinct), tuple(members)))


def decode_batch(data: bytes) -> tuple[int, int, list[AttemptRequest]]:
    """The reverse of `encode_batch`: the number and sequence of the batch, and its attempts."""
    batch = BATCH_DECODER.decode(data)
    requests = [
        AttemptRequest(
            batch.templates[member.template],
            member.task,
            member.task_id,
            member.epoch,
            member.attempt,
            member.arguments,
            member.checkpoint,
            member.upstream,
            member.nested,
            member.inputs,
            member.last_end,
            member.fused,
            member.history,
            member.setbacks,
        )
        for member in batch.members
    ]
    return batch.number, batch.sequence, requests


#: Reports of an executor about attempts of a workflow.
News = AttemptNews | FoundUnplaceable

#: Takes the incarnation of a workflow and reports about its attempts. Any thread calls it.
ReportSink = Callable[[str, Sequence[News]], None]


class Executor(Protocol):
    """Runs attempts. Reports every started attempt that is not canceled, once or more often."""

    def start(self, request: AttemptRequest, followers: Iterable[AttemptRequest] = ()) -> None:
        """Run an attempt, at the latest after `flush`. A running attempt is left alone.

        ``followers``: a chain that may run right after this attempt in the same worker. Each is the
        only consumer of the unstored result before it. Those that ran are reported; the engine
        starts the others again.
        """

    def flush(self) -> None:
        """Submit all started attempts that were held back."""

    def cancel(self, incarnation: str, task: int) -> None:
        """Stop a task's attempt, if there is one. It is not reported afterwards."""

    def give(self, incarnation: str, task: int, number: int, outcome: StepOutcome) -> None:
        """Give a running body the outcome of a step, at the latest after `flush`. ``number``: how
        many outcomes came before."""

    def release(self, incarnation: str, value: Value) -> None:
        """Drop one reference to a value; live copies without references are released."""

    def live_copy(self, incarnation: str, value: Value) -> Any:
        """The ObjectRef of a live copy of a value in a blob, which has no ObjectRefs inside; None
        if there is none."""

    def forget(self, incarnation: str) -> None:
        """Stop all attempts of a workflow and release all of its live values."""
