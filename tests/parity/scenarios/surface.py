"""The public names: signatures, statuses, errors, and where they are found."""

from __future__ import annotations

import importlib
import inspect

from tests.parity.kit import LIBRARY, caught, scenario

#: Every public function of ray.workflow 2.47.1, with the parameters it has.
PARAMETERS = {
    "init": ["max_running_workflows", "max_pending_workflows"],
    "run": ["dag", "args", "workflow_id", "metadata", "kwargs"],
    "run_async": ["dag", "args", "workflow_id", "metadata", "kwargs"],
    "resume": ["workflow_id"],
    "resume_async": ["workflow_id"],
    "resume_all": ["include_failed"],
    "cancel": ["workflow_id"],
    "list_all": ["status_filter"],
    "delete": ["workflow_id"],
    "get_output": ["workflow_id", "task_id"],
    "get_output_async": ["workflow_id", "task_id"],
    "get_status": ["workflow_id"],
    "get_metadata": ["workflow_id", "task_id"],
    "sleep": ["duration"],
    "wait_for_event": ["event_listener_type", "args", "kwargs"],
    "continuation": ["dag_node"],
}

#: What else `from ray.workflow import *` and attributes give.
NAMES = [
    *PARAMETERS,
    "options",
    "EventListener",
    "WorkflowError",
    "WorkflowExecutionError",
    "WorkflowCancellationError",
    "WorkflowStatus",
    "NONE",
    "RUNNING",
    "CANCELED",
    "SUCCESSFUL",
    "FAILED",
    "RESUMABLE",
    "PENDING",
]

ERRORS = {
    "WorkflowError": ["text"],
    "WorkflowExecutionError": ["an-id"],
    "WorkflowCancellationError": ["an-id"],
    "WorkflowNotResumableError": ["an-id"],
    "WorkflowNotFoundError": ["an-id"],
    "WorkflowStillActiveError": ["DELETE", "an-id"],
    "WorkflowTaskNotRecoverableError": ["a-task"],
}


@scenario
def public_names(workflow, scratch):
    return {name: hasattr(workflow, name) for name in NAMES}


@scenario
def names_for_star_imports(workflow, scratch):
    listed = [*PARAMETERS, "options", "EventListener", "WorkflowError", "WorkflowExecutionError"]
    return {name: name in workflow.__all__ for name in [*listed, "WorkflowCancellationError"]}


@scenario
def signatures(workflow, scratch):
    found = {}
    for name, parameters in PARAMETERS.items():
        signature = inspect.signature(getattr(workflow, name)).parameters
        found[name] = {
            parameter: [str(signature[parameter].kind), repr(signature[parameter].default)]
            for parameter in parameters
        }
        for parameter in found[name].values():
            parameter[1] = parameter[1].replace("<class 'inspect._empty'>", "required")
    return found


@scenario
def the_statuses(workflow, scratch):
    status = workflow.WorkflowStatus
    return {
        "members": {m.name: m.value for m in status},
        "is_text": issubclass(status, str),
        "attributes": {m.name: getattr(workflow, m.name) is m for m in status},
        "non_terminating": [s.value for s in status.non_terminating_status()],
        "text": str(status("FAILED")),
        "by_value": caught(status, "NEVER"),
    }


@scenario
def the_errors(workflow, scratch):
    module = importlib.import_module(f"{LIBRARY}.exceptions")
    found = {}
    for name, args in ERRORS.items():
        cls = getattr(module, name, None)
        if cls is None:
            found[name] = None
            continue
        error = cls(*args)
        found[name] = {
            "bases": [c.__name__ for c in cls.__mro__ if c.__module__ == cls.__module__],
            "names_it": args[-1] in str(error),
        }
        found[name]["bases"] = [b for b in found[name]["bases"] if not b.startswith("Pick")]
    return found


@scenario
def messages_of_errors(workflow, scratch):
    """The attribute `message`."""
    module = importlib.import_module(f"{LIBRARY}.exceptions")
    return {
        name: getattr(getattr(module, name)(*args), "message", "").startswith(start)
        for name, args, start in [
            ("WorkflowExecutionError", ["a"], "Workflow[id=a] failed during execution"),
            ("WorkflowCancellationError", ["a"], "Workflow[id=a] is cancelled during execution."),
            ("WorkflowNotResumableError", ["a"], "Workflow[id=a] is not resumable."),
            ("WorkflowNotFoundError", ["a"], "Workflow[id=a] was referenced but doesn't exist."),
            ("WorkflowStillActiveError", ["DELETE", "a"], "DELETE couldn't be completed because"),
        ]
    }


@scenario
def submodules(workflow, scratch):
    """Names that code imports from below the package."""
    wanted = {
        "common": ["WorkflowStatus"],
        "exceptions": ["WorkflowError", "WorkflowNotFoundError"],
        "event_listener": ["EventListener", "TimerListener"],
        "workflow_context": ["get_current_workflow_id", "get_current_task_id"],
    }
    found = {}
    for name, names in wanted.items():
        try:
            module = importlib.import_module(f"{LIBRARY}.{name}")
        except ImportError:
            found[name] = None
        else:
            found[name] = [n for n in names if hasattr(module, n)]
    return found


@scenario
def event_listener_class(workflow, scratch):
    cls = workflow.EventListener
    return {
        "init": caught(cls),
        "poll_is_async": inspect.iscoroutinefunction(cls.poll_for_event),
        "checkpointed_is_async": inspect.iscoroutinefunction(cls.event_checkpointed),
    }
