"""What the coordinator asks of an executor, and what goes over the wire to a worker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec

from ray_workflows._model.inputs import (
    AttemptCrashed,
    AttemptFoundCorruption,
    AttemptLostInput,
    AttemptNews,
    AttemptRaised,
    AttemptReturned,
    AttemptReturnedPlan,
)
from ray_workflows._model.plan import Environment, Function, TaskOptions
from ray_workflows._model.values import Outcome, Value


class AttemptRequest(msgspec.Struct, frozen=True, array_like=True):
    """Everything a worker needs to run one attempt.

    ``inputs`` are the outcomes of the upstream tasks, whose numbers are ``upstream``; those at
    the positions ``nested`` are taken by reference only.
    ``checkpoint``: the result is to be stored.
    """

    workflow_id: str
    incarnation: str
    task: int
    task_id: str
    epoch: int
    attempt: int
    function: Function
    arguments: Value
    options: TaskOptions
    environment: Environment
    checkpoint: bool
    upstream: tuple[int, ...] = ()
    nested: tuple[int, ...] = ()
    inputs: tuple[Outcome, ...] = ()
    constants: tuple[Value, ...] = ()

    @property
    def where(self) -> str:
        """Names the task in errors."""
        return f"task '{self.task_id}' of workflow '{self.workflow_id}'"

    @property
    def blob_prefix(self) -> str:
        """Start of the keys of blobs that this attempt writes; no other attempt has it."""
        # The incarnation, because a fork has the blobs of the workflow that it comes from.
        return f"{self.incarnation}-task-{self.task}-{self.epoch}-{self.attempt}"


AnyReport = (
    AttemptReturned
    | AttemptReturnedPlan
    | AttemptRaised
    | AttemptCrashed
    | AttemptLostInput
    | AttemptFoundCorruption
)

ENCODER = msgspec.msgpack.Encoder()
REQUEST_DECODER = msgspec.msgpack.Decoder(AttemptRequest)
REPORT_DECODER: msgspec.msgpack.Decoder[AnyReport] = msgspec.msgpack.Decoder(AnyReport)

#: Takes the incarnation of a workflow and news of one of its attempts. Any thread calls it.
ReportSink = Callable[[str, AttemptNews], None]


class Executor(Protocol):
    """Runs attempts. Every attempt that was started and not canceled is reported, once or more."""

    def start(self, request: AttemptRequest) -> None:
        """Run an attempt. One that is running already is left alone."""

    def cancel(self, incarnation: str, task: int) -> None:
        """Stop a task's attempt, if there is one; it reports nothing any more."""

    def release(self, incarnation: str, value: Value) -> None:
        """One hold on a value ends; live copies that nobody holds are given up."""

    def forget(self, incarnation: str) -> None:
        """Stop all attempts of a workflow and give up all of its live values."""
