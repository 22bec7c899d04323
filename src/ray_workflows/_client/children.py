"""Workflows that tasks start: they begin when the task's result is durable."""

from __future__ import annotations

from typing import Any

from ray.dag import DAGNode

from ray_workflows._capture.dag import check_root
from ray_workflows._client.connection import connect
from ray_workflows._client.submissions import SubmissionBuilder
from ray_workflows._coordinator.protocol import ENCODER
from ray_workflows._executor.worker import context
from ray_workflows._model.catalog import Tag
from ray_workflows._model.ids import validate_workflow_id


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
    # The same for all attempts of the task, so that repeated attempts start the same workflow.
    message_id = f"{request.incarnation}-{request.task}-{len(scope.outgoing)}"
    child = message_id if workflow_id is None else validate_workflow_id(workflow_id)
    if child == request.workflow_id or any(child == each.target for each in scope.outgoing):
        raise ValueError(
            f"{child!r} is the id of this workflow, or of one that this task starts already. Each "
            f"workflow needs an id of its own."
        )
    with SubmissionBuilder(connect()) as builder:
        builder.capture(dag, args, kwargs, child, metadata, tags, timeout)
    (submission,) = builder.submissions
    scope.outgoing.append(context.Outgoing(message_id, child, ENCODER.encode(submission)))
    return child
