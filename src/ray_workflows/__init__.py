"""Durable workflows on Ray: ``import ray_workflows as workflow``."""

from ray_workflows import common, event_listener, workflow_context  # noqa: F401
from ray_workflows._executor.context import CurrentTask
from ray_workflows._model.environment import EnvironmentInfo
from ray_workflows._model.status import WorkflowStatus
from ray_workflows._model.tasks import TaskInfo, TaskStatus
from ray_workflows._version import __version__
from ray_workflows.api import (
    cancel,
    continuation,
    copy,
    current,
    delete,
    fork,
    get_environment,
    get_metadata,
    get_output,
    get_output_async,
    get_status,
    get_tasks,
    init,
    list_all,
    prune,
    resume,
    resume_all,
    resume_async,
    run,
    run_async,
    run_async_many,
)
from ray_workflows.codec import PayloadCodec
from ray_workflows.events import EventListener, TimerListener, sleep, wait_for_event
from ray_workflows.exceptions import (
    CoordinatorUnavailableError,
    EnvironmentMismatchError,
    InvalidResultError,
    InvalidWorkflowIdError,
    OutputNotAvailableError,
    PackageTooLargeError,
    PayloadCodecError,
    SerializationError,
    StorageConfigError,
    StorageCorruptError,
    StorageError,
    StorageUnavailableError,
    TaskTimeoutError,
    WorkflowAlreadyExistsError,
    WorkflowAlreadyRunningError,
    WorkflowCancellationError,
    WorkflowCopyError,
    WorkflowError,
    WorkflowExecutionError,
    WorkflowNotFoundError,
    WorkflowNotResumableError,
    WorkflowStillActiveError,
    WorkflowTimeoutError,
)
from ray_workflows.options import options
from ray_workflows.retry import RetryPolicy

CANCELED = WorkflowStatus.CANCELED
FAILED = WorkflowStatus.FAILED
NONE = WorkflowStatus.NONE
PENDING = WorkflowStatus.PENDING
RESUMABLE = WorkflowStatus.RESUMABLE
RUNNING = WorkflowStatus.RUNNING
SUCCESSFUL = WorkflowStatus.SUCCESSFUL

__all__ = [
    "CANCELED",
    "FAILED",
    "NONE",
    "PENDING",
    "RESUMABLE",
    "RUNNING",
    "SUCCESSFUL",
    "CoordinatorUnavailableError",
    "CurrentTask",
    "EnvironmentInfo",
    "EnvironmentMismatchError",
    "EventListener",
    "InvalidResultError",
    "InvalidWorkflowIdError",
    "OutputNotAvailableError",
    "PackageTooLargeError",
    "PayloadCodec",
    "PayloadCodecError",
    "RetryPolicy",
    "SerializationError",
    "StorageConfigError",
    "StorageCorruptError",
    "StorageError",
    "StorageUnavailableError",
    "TaskInfo",
    "TaskStatus",
    "TaskTimeoutError",
    "TimerListener",
    "WorkflowAlreadyExistsError",
    "WorkflowAlreadyRunningError",
    "WorkflowCancellationError",
    "WorkflowCopyError",
    "WorkflowError",
    "WorkflowExecutionError",
    "WorkflowNotFoundError",
    "WorkflowNotResumableError",
    "WorkflowStatus",
    "WorkflowStillActiveError",
    "WorkflowTimeoutError",
    "__version__",
    "cancel",
    "continuation",
    "copy",
    "current",
    "delete",
    "fork",
    "get_environment",
    "get_metadata",
    "get_output",
    "get_output_async",
    "get_status",
    "get_tasks",
    "init",
    "list_all",
    "options",
    "prune",
    "resume",
    "resume_all",
    "resume_async",
    "run",
    "run_async",
    "run_async_many",
    "sleep",
    "wait_for_event",
]
