"""Error messages of the command line: the remedy is a command, not a call."""

from __future__ import annotations

import queue
import shlex
from collections.abc import Callable

import click

from ray_workflows._client.code_changes import CodeChanges
from ray_workflows.cli.printing import note
from ray_workflows.exceptions import (
    WorkflowAlreadyRunningError,
    WorkflowExecutionError,
    WorkflowNotFoundError,
    WorkflowNotResumableError,
    WorkflowStillActiveError,
)

#: Keys in the context of a command: the URL of the storage in use, and the given ``--storage``.
STORAGE = "ray_workflows.storage"
GIVEN = "ray_workflows.given"
#: Why it is that one, if the command does not name it.
ORIGIN = "ray_workflows.origin"
#: The given ``--blobs``.
GIVEN_BLOBS = "ray_workflows.given-blobs"
#: The loaded ``--codec``.
CODEC = "ray_workflows.codec"


def command(verb: str, workflow_id: str, *options: str) -> str:
    """A command that can be pasted into a shell, for the same storage as this command."""
    given = (("--storage", remembered(GIVEN)), ("--blobs", remembered(GIVEN_BLOBS)))
    storage = [part for name, value in given if value for part in (name, value)]
    dashes = ["--"] if workflow_id.startswith("-") else []
    return shlex.join(["ray-workflows", verb, *storage, *options, *dashes, workflow_id])


def remember(key: str, value: str | None) -> None:
    """Keep a value for messages."""
    click.get_current_context().find_root().meta[key] = value


def remembered(key: str) -> str | None:
    """The kept value, inside of a command."""
    context = click.get_current_context(silent=True)
    return context.find_root().meta.get(key) if context is not None else None


def where() -> str:
    """Names the storage in use, if it is known."""
    url = remembered(STORAGE)
    return f" in {url}" if url else ""


def explain(error: BaseException) -> str:
    """The message for an error of ours."""
    found: Callable[[str], str] | None = next(
        (text for kind, text in MESSAGES.items() if isinstance(error, kind)), None
    )
    workflow_id = getattr(error, "workflow_id", None)
    if isinstance(error, queue.Full):
        return "The cluster takes no more workflows now (max_pending_workflows). Try again later."
    # Errors about more than the workflow say it better themselves.
    more = (getattr(error, name, None) for name in ("task_id", "parent"))
    if found is None or workflow_id is None or any(each is not None for each in more):
        return str(error)
    if getattr(error, "replaced", False):
        return str(error)
    return found(workflow_id) or str(error)


def not_found(workflow_id: str) -> str:
    """For `WorkflowNotFoundError`."""
    return (
        f"There is no workflow {workflow_id!r}{where()}. `ray-workflows list` shows those there "
        f"are; --storage names another storage.{remembered(ORIGIN) or ''}"
    )


def note_changes(changes: CodeChanges, verb: str, workflow_id: str, *options: str) -> None:
    """Warn on stderr about differences between the code here and that of the workflow."""
    script = ("--script", changes.scripts[0]) if changes.scripts else ()
    again = command(verb, workflow_id, *options, "--code", "current", *script)
    text = changes.text(f"To take the code here: {again}".replace("{", "{{").replace("}", "}}"))
    if text:
        note(text)


def note_all_changes(changes: CodeChanges, verb: str, *options: str) -> None:
    """As `note_changes`, of many workflows; the command is for the first of them."""
    if changes.workflows:
        note_changes(changes, verb, changes.workflows[0], *options)


def still_active(workflow_id: str) -> str:
    """For `WorkflowStillActiveError`."""
    return (
        f"Workflow {workflow_id!r} is running or pending, or its coordinator was lost seconds "
        f"ago and may return. Wait for it, or stop it with: {command('cancel', workflow_id)}"
    )


def already_running(workflow_id: str) -> str:
    """For `WorkflowAlreadyRunningError`."""
    return (
        f"Workflow {workflow_id!r} is running or pending already. How far it is: "
        f"{command('show', workflow_id)}"
    )


MESSAGES: dict[type[BaseException], Callable[[str], str]] = {
    WorkflowNotFoundError: not_found,
    WorkflowStillActiveError: still_active,
    WorkflowAlreadyRunningError: already_running,
}


def explain_resume(error: BaseException, workflow_id: str) -> str:
    """The message for an error of a resume."""
    if isinstance(error, WorkflowNotResumableError) and "canceled=True" in str(error):
        return (
            f"Workflow {workflow_id!r} was canceled. To go on nevertheless: "
            f"{command('resume', workflow_id, '--canceled')}"
        )
    if isinstance(error, WorkflowExecutionError):
        failed = f"Workflow {workflow_id!r} failed: {error.__cause__ or error}"
        return f"{failed}\n{way_on(workflow_id)}"
    return explain(error)


def way_on(workflow_id: str) -> str:
    """The commands with which a failed workflow goes on."""
    return (
        f"Mend the cause, then go on with: {command('resume', workflow_id)}\n"
        f"It runs the code that it has. With that of the same modules here, go on with: "
        f"{command('resume', workflow_id, '--code', 'current')}\n"
        f"For functions of the script itself, add: --script FILE"
    )
