"""The running task by the functions of ``ray.workflow``; `ray_workflows.current` tells more."""

from __future__ import annotations

from ray_workflows._executor.worker.context import current_task

__all__ = ["get_current_task_id", "get_current_workflow_id", "get_name", "in_workflow_execution"]


def in_workflow_execution() -> bool:
    """Whether the code that calls runs in a task of a workflow, or in an event listener."""
    return current_task() is not None


def get_current_workflow_id() -> str:
    """The id of the workflow that is running here.

    Raises:
        AssertionError: no task of a workflow is running here.
    """
    task = current_task()
    if task is None:
        raise AssertionError(
            "No task of a workflow is running here, so there is no workflow id. "
            "in_workflow_execution() tells; ray_workflows.current() gives None."
        )
    return task.workflow_id


def get_current_task_id() -> str:
    """The id of the task that is running here; empty if there is none."""
    task = current_task()
    return task.task_id if task is not None else ""


def get_name() -> str:
    """Workflow and task that are running here, as ``workflow@task``.

    Raises:
        AssertionError: no task of a workflow is running here.
    """
    return f"{get_current_workflow_id()}@{get_current_task_id()}"
