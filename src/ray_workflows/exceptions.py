"""Every error the package raises, in one tree.

Each error pickles, names the workflow it is about and says what to do next.

    WorkflowError
    ├── WorkflowExecutionError          the workflow failed; ``__cause__`` is the task's error
    │   └── WorkflowTimeoutError        (also TimeoutError) it ran longer than its timeout
    ├── TaskTimeoutError                (also TimeoutError) an attempt of a task overran its timeout
    ├── SignalTimeoutError              (also TimeoutError) a task waited for a signal in vain
    ├── SignalRefusedError              the workflow has ended: it takes no more signals
    ├── WorkflowCancellationError       the workflow was canceled while somebody waited for it
    ├── WorkflowNotFoundError           (also ValueError) no such workflow, or no such task in it
    │   └── WorkflowToResumeNotFoundError   (also WorkflowNotResumableError) resume of an unknown id
    ├── WorkflowStillActiveError        delete or copy of one that is still running or pending
    ├── WorkflowAlreadyExistsError      (also ValueError) a fork's new id is in use
    ├── WorkflowCopyError               (also ValueError) it can't be copied; says why
    ├── WorkflowAlreadyRunningError     (also RuntimeError) run or resume of a running workflow
    ├── WorkflowNotResumableError       the workflow can't be resumed as it is
    │   └── WorkflowTaskNotRecoverableError   never raised here; for code that names it
    ├── OutputNotAvailableError         (also ValueError) the output asked for does not exist (yet)
    ├── InvalidWorkflowIdError          (also ValueError) the id can't name a workflow
    ├── InvalidFilterError              (also ValueError) a filter can't be read; names the word
    ├── SerializationError              (also TypeError) a value can't be stored; says which part
    ├── InvalidResultError              (also TypeError) a task returned what no task may return
    ├── NondeterminismError             a durable function does not do what its history says
    ├── PackageTooLargeError            (also ValueError) code to be stored is too large
    ├── EnvironmentMismatchError        what a workflow needs is not here; lists each difference
    ├── StorageError
    │   ├── StorageUnavailableError     the storage does not answer; work goes on when it returns
    │   ├── StorageCorruptError         stored bytes are not what was written; names the key
    │   ├── PayloadCodecError           a value can't be encoded or decoded; names the codec
    │   └── StorageConfigError          (also ValueError) the storage can't be used as configured
    └── CoordinatorUnavailableError     the coordinator did not answer in time
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any


class WorkflowError(Exception):
    """Base class of every error of this package."""


def rebuild_error(cls: type[WorkflowError], message: str, state: dict[str, Any]) -> WorkflowError:
    """Rebuild a pickled error without calling its constructor, which takes other arguments."""
    error = cls.__new__(cls, message)
    error.args = (message,)
    cause = state.pop("__cause__", None)
    error.__dict__.update(state)
    error.__cause__ = cause
    return error


class PicklableWorkflowError(WorkflowError):
    """An error whose attributes and ``__cause__`` survive pickling (plain exceptions lose both).

    Attributes:
        message: what ``str`` of the error gives.
    """

    def __init__(self, message: str):
        super().__init__(message)
        self.message = message

    def __reduce__(self) -> tuple[Any, ...]:
        message = str(self.args[0]) if self.args else ""
        return rebuild_error, (type(self), message, {**self.__dict__, "__cause__": self.__cause__})


class WorkflowExecutionError(PicklableWorkflowError):
    """The workflow failed. ``__cause__`` is the error of the task that failed it."""

    def __init__(self, workflow_id: str, task_id: str | None = None, reason: str | None = None):
        where = f" in task '{task_id}'" if task_id else ""
        why = f": {reason}" if reason else ""
        stop = "" if why.endswith((".", "!", "?")) else "."
        super().__init__(
            f"Workflow[id={workflow_id}] failed during execution{where}{why}{stop} "
            f"Mend the cause and continue with resume({workflow_id!r}), or if it was code, with "
            f"resume({workflow_id!r}, code='current'): finished tasks do not run again."
        )
        self.workflow_id = workflow_id
        self.task_id = task_id


class WorkflowTimeoutError(WorkflowExecutionError, TimeoutError):
    """The workflow ran longer than its timeout, and was stopped."""

    def __init__(self, workflow_id: str):
        super().__init__(workflow_id, None, "it ran longer than its timeout")


class TaskTimeoutError(PicklableWorkflowError, TimeoutError):
    """An attempt of a task ran longer than its timeout, and was stopped."""

    def __init__(self, workflow_id: str, task_id: str, timeout: float):
        super().__init__(
            f"An attempt of task '{task_id}' of workflow '{workflow_id}' was stopped: it ran for "
            f"more than its timeout of {timeout} s."
        )
        self.workflow_id = workflow_id
        self.task_id = task_id
        self.timeout = timeout


class SignalTimeoutError(PicklableWorkflowError, TimeoutError):
    """A task waited for a signal, and none came within its timeout. The message names both."""


class SignalRefusedError(PicklableWorkflowError):
    """The workflow has ended: nothing in it can wait for a signal.

    Attributes:
        workflow_id: the workflow.
        name: of the signal.
        status: SUCCESSFUL or CANCELED.
    """

    def __init__(self, workflow_id: str, name: str, status: str):
        remedy = "Nothing in it can wait for it any more."
        if status == "CANCELED":
            remedy = f"Let it go on first: resume_async({workflow_id!r}, canceled=True)."
        super().__init__(
            f"Workflow '{workflow_id}' does not take the signal '{name}': it is {status}. {remedy}"
        )
        self.workflow_id = workflow_id
        self.name = name
        self.status = status


class WorkflowCancellationError(PicklableWorkflowError):
    """The workflow was canceled before it produced the output that was waited for."""

    def __init__(self, workflow_id: str):
        super().__init__(f"Workflow[id={workflow_id}] is cancelled during execution.")
        self.workflow_id = workflow_id


def says_replaced(workflow_id: str) -> str:
    """The message about a deleted workflow if another one has its id by now."""
    return (
        f"Workflow[id={workflow_id}] that was asked about was deleted, and another one of this id "
        f"was made since, which was left alone. Ask again if that one is meant."
    )


#: How many task ids at most are compared with a mistyped one.
COMPARED = 10_000


def did_you_mean(task_id: str, tasks: Iterable[str]) -> str:
    """A sentence with the task id that was probably meant, if one was mistyped or has no module."""
    known = list(islice(tasks, COMPARED))
    found = [each for each in known if each.rpartition(".")[2] == task_id]
    found = found or difflib.get_close_matches(task_id, known, n=1)
    return f" Did you mean {found[0]!r}?" if found else ""


class WorkflowNotFoundError(PicklableWorkflowError, ValueError):
    """There is no workflow of this id in the storage, or no such task in the workflow.

    Attributes:
        workflow_id: the workflow.
        task_id: the task; None if there is no workflow.
        replaced: the workflow that was asked about was deleted, and another one has its id now.
    """

    def __init__(
        self,
        workflow_id: str,
        task_id: str | None = None,
        *,
        replaced: bool = False,
        tasks: Iterable[str] = (),
    ):
        """``tasks``: the existing ids, of which the message suggests one."""
        if replaced:
            message = says_replaced(workflow_id)
        elif task_id is None:
            message = (
                f"Workflow[id={workflow_id}] was referenced but doesn't exist. "
                f"list_all() shows the workflows of this storage."
            )
        else:
            message = (
                f"No such task_id '{task_id}' in workflow '{workflow_id}': it doesn't exist (yet). "
                f"Continuations add their tasks when they are reached."
                f"{did_you_mean(task_id, tasks)}"
            )
        super().__init__(message)
        self.workflow_id = workflow_id
        self.task_id = task_id
        self.replaced = replaced


class WorkflowNotResumableError(PicklableWorkflowError):
    """The workflow can't be resumed now; the message says why and what to do."""

    def __init__(self, workflow_id: str, reason: str = ""):
        super().__init__(f"Workflow[id={workflow_id}] is not resumable. {reason}".rstrip())
        self.workflow_id = workflow_id


class WorkflowToResumeNotFoundError(WorkflowNotFoundError, WorkflowNotResumableError):
    """There is no workflow with this id to resume."""

    def __init__(self, workflow_id: str, *, replaced: bool = False):
        # One message in place of those of both bases.
        PicklableWorkflowError.__init__(
            self,
            says_replaced(workflow_id)
            if replaced
            else f"Workflow[id={workflow_id}] is not resumable: it doesn't exist. "
            f"list_all() shows the workflows of this storage.",
        )
        self.workflow_id = workflow_id
        self.task_id: str | None = None
        self.replaced = replaced


class WorkflowTaskNotRecoverableError(WorkflowNotResumableError):
    """A task's inputs are lost. Nothing here raises it: lost inputs are computed again."""

    def __init__(self, task_id: str):
        PicklableWorkflowError.__init__(self, f"Workflow task[id={task_id}] is not recoverable")
        self.task_id = task_id


class WorkflowStillActiveError(PicklableWorkflowError):
    """The operation needs a workflow that is neither running nor pending, and that the workflow
    which has started it, if one has, knows to be there.

    Attributes:
        operation: DELETE or COPY.
        workflow_id: the workflow.
        parent: the workflow that has started it and does not know yet that it is there, if that is
            why.
    """

    def __init__(self, operation: str, workflow_id: str, parent: str | None = None):
        why = f"is still running or pending. Wait for it, or stop it with cancel({workflow_id!r})."
        if parent is not None:
            why = (
                f"was started by {parent!r}, which does not know yet that it is there, and would "
                f"start it again. Try again in a moment; if that does not help, resume({parent!r}) "
                f"or delete({parent!r}) first."
            )
        super().__init__(
            f"{operation} couldn't be completed because Workflow[id={workflow_id}] {why}"
        )
        self.operation = operation
        self.workflow_id = workflow_id
        self.parent = parent


class WorkflowAlreadyRunningError(PicklableWorkflowError, RuntimeError):
    """Run or resume of a workflow that a live coordinator already drives."""

    def __init__(self, workflow_id: str):
        super().__init__(
            f"Workflow '{workflow_id}' is already running or pending. "
            f"get_output({workflow_id!r}) waits for its result."
        )
        self.workflow_id = workflow_id


class WorkflowAlreadyExistsError(PicklableWorkflowError, ValueError):
    """The id for a new workflow is in use."""

    def __init__(self, workflow_id: str):
        super().__init__(
            f"Workflow '{workflow_id}' exists already. Choose another id, or "
            f"delete({workflow_id!r}) first."
        )
        self.workflow_id = workflow_id


class WorkflowCopyError(PicklableWorkflowError, ValueError):
    """A workflow, or some of several, can't be copied. The others were copied.

    Attributes:
        workflow_ids: the ids of those that were not copied.
    """

    def __init__(self, workflow_ids: list[str], reason: str):
        super().__init__(reason)
        self.workflow_ids = workflow_ids


class OutputNotAvailableError(PicklableWorkflowError, ValueError):
    """The requested output does not exist: not produced (yet), or not checkpointed."""

    def __init__(self, workflow_id: str, task_id: str | None, reason: str):
        what = f"task '{task_id}' in workflow" if task_id else "workflow"
        super().__init__(f"Cannot load output from {what} '{workflow_id}': {reason}")
        self.workflow_id = workflow_id
        self.task_id = task_id


class InvalidWorkflowIdError(PicklableWorkflowError, ValueError):
    """The id can't name a workflow (empty, too long, or with control characters)."""


class InvalidFilterError(PicklableWorkflowError, ValueError):
    """A filter can't be read.

    Attributes:
        word: the wrong word.
        position: where the word begins, counted from 0.
    """

    def __init__(self, word: str, position: int, reason: str):
        super().__init__(f"The filter can't be read at position {position}, {word!r}: {reason}")
        self.word = word
        self.position = position


class SerializationError(PicklableWorkflowError, TypeError):
    """A value can't be stored. The message names the task, the type and the part at fault."""


class InvalidResultError(PicklableWorkflowError, TypeError):
    """A task returned something that no task may return (a DAG node inside a container)."""


class NondeterminismError(PicklableWorkflowError):
    """A durable function ran again, and asked for other steps than the first time.

    Attributes:
        where: the workflow and the task.
        recorded: what the history has.
        asked: what the code does.
    """

    def __init__(self, where: str, recorded: str = "", asked: str = ""):
        super().__init__(
            f"{where} does not do what it did before. Its history has {recorded}. Its code asks "
            f"for {asked}. Code of a durable function has to ask for the same steps in the same "
            f"order each time. Keep the order of its steps, or guard the change with "
            f'`if workflow.patched("name"):`, or resume it with the recorded code.'
        )
        self.where = where
        self.recorded = recorded
        self.asked = asked


class PackageTooLargeError(PicklableWorkflowError, ValueError):
    """The files that a workflow would need to be resumed elsewhere are too large to be stored."""

    def __init__(self, what: str, size: int = 0, most: int = 0, largest: Sequence[str] = ()):
        names = f" The largest: {', '.join(largest)}." if largest else ""
        super().__init__(
            f"{what} is too large to be stored with workflows: {size} bytes, and {most} may be."
            f"{names} Name what is not code in a .rayignore or .gitignore beside it, or in "
            f"runtime_env={{'excludes': [...]}}, or raise $RAY_WORKFLOWS_MAX_PACKAGE_BYTES."
        )


class EnvironmentMismatchError(PicklableWorkflowError):
    """The environment here lacks something that the workflow needs. Nothing was started.

    Attributes:
        workflow_id: the workflow.
        differences: a text for each difference, with its remedy.
    """

    def __init__(self, workflow_id: str, differences: Sequence[str] = ()):
        listed = "".join(f"\n  - {difference}" for difference in differences)
        super().__init__(
            f"Workflow '{workflow_id}' needs what is not here, and nothing was started:{listed}"
            f"\nTo go on nevertheless: resume({workflow_id!r}, strict=False), or "
            f"fork(..., strict=False)."
        )
        self.workflow_id = workflow_id
        self.differences: tuple[str, ...] = tuple(differences)


class StorageError(PicklableWorkflowError):
    """Base class of errors about the storage."""


class StorageUnavailableError(StorageError):
    """The storage does not answer now. Nothing committed is lost; work goes on when it returns."""


#: Errors of a full disk: transient, because somebody can free some space.
FULL_DISK = frozenset((errno.ENOSPC, errno.EDQUOT))


def is_transient(error: BaseException) -> bool:
    """Whether an error of a storage is worth another try.

    Coordinator and workers retry after a transient error, and charge no attempt. Other errors would
    only come again.
    """
    if isinstance(error, StorageUnavailableError):
        return True
    return isinstance(error, OSError) and error.errno in FULL_DISK


class StorageCorruptError(StorageError):
    """Stored bytes are damaged: not what was written. Or a newer release wrote them. The message
    names the key. What does not need these bytes goes on."""


class PayloadCodecError(StorageError):
    """A value can't be encoded or decoded: the codec of ``init(codec=...)`` failed or is missing.

    Attributes:
        codec: the name of the codec.
    """

    def __init__(self, codec: str, reason: str):
        super().__init__(reason)
        self.codec = codec


class StorageConfigError(StorageError, ValueError):
    """The storage can't be used as configured: unknown URL, path not writable, two storages.

    It is about the whole storage; if it comes while workflows run, all of them wait.
    """


class CoordinatorUnavailableError(PicklableWorkflowError):
    """The coordinator did not answer in time. The request may be repeated: it is idempotent."""
