"""Workflows that tasks start: they begin when the task's result is durable, or, in the body of a
durable function, when the call is."""

from __future__ import annotations

from typing import Any

from ray.dag import DAGNode

from ray_workflows._capture.dag import check_root
from ray_workflows._client.connection import connect
from ray_workflows._client.submissions import SubmissionBuilder
from ray_workflows._coordinator.protocol import ENCODER
from ray_workflows._executor.worker import context
from ray_workflows._executor.worker.bodies.attempt import current_attempt
from ray_workflows._model.catalog import Tag
from ray_workflows._model.ids import validate_workflow_id
from ray_workflows._model.outbox import message_id_of


def start(
    dag: DAGNode,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    workflow_id: str | None,
    metadata: dict[str, Any],
    tags: dict[str, Tag],
    timeout: float | None,
) -> str:
    scope = context.attempt.get()
    if scope is None:
        raise RuntimeError(
            "start() is called inside a task of a workflow, and no task is running here (a thread "
            "that a task has started is not the task). Elsewhere, start workflows with run_async()."
        )
    check_root(dag)
    request = scope.request
    given = None if workflow_id is None else validate_workflow_id(workflow_id)
    if given is not None and (given == request.workflow_id or given in scope.started):
        raise ValueError(
            f"{given!r} is the id of this workflow, or of one that this task starts already. Each "
            f"workflow needs an id of its own."
        )

    def outgoing(part: str) -> context.Outgoing:
        # The same for all attempts of the task, so that repeated ones start the same workflow.
        message_id = message_id_of(request.incarnation, request.task, part)
        child = message_id if given is None else given
        with SubmissionBuilder(connect()) as builder:
            builder.capture(dag, args, kwargs, child, metadata, tags, timeout)
        (submission,) = builder.submissions
        return context.Outgoing(message_id, child, ENCODER.encode(submission))

    body = None if scope.step else current_attempt.get()
    if body is not None:
        child = body.started(outgoing)
    else:
        of_step = f"{scope.step}-" if scope.step else ""
        message = outgoing(f"{of_step}{len(scope.outgoing)}")
        scope.outgoing.append(message)
        child = message.target
    scope.started.add(child)
    return child
