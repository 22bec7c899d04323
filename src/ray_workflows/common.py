"""`WorkflowStatus` and what else was public in ``ray.workflow.common``."""

from __future__ import annotations

from ray import ObjectRef

from ray_workflows._model.status import WorkflowStatus
from ray_workflows.events import Event

#: The id of a task in its workflow.
TaskID = str

#: What `run_async` returns.
WorkflowOutputType = ObjectRef

#: The name of the Ray Serve application of `http_event_provider.HTTPEventProvider`.
HTTP_EVENT_PROVIDER_NAME = "WorkflowHttpEventProvider"

__all__ = [
    "HTTP_EVENT_PROVIDER_NAME",
    "Event",
    "TaskID",
    "WorkflowOutputType",
    "WorkflowStatus",
]
