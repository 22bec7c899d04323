"""Reports of attempts that could not report themselves."""

from __future__ import annotations

import time
from typing import Any

from ray import cloudpickle
from ray.exceptions import (
    GetTimeoutError,
    LocalRayletDiedError,
    NodeDiedError,
    OutOfMemoryError,
    RaySystemError,
    RayTaskError,
    RpcError,
    RuntimeEnvSetupError,
)

from ray_workflows._capture.objects import LOST_OBJECT_ERRORS
from ray_workflows._codec.envelope import seal
from ray_workflows._environment.secrets import without_secrets
from ray_workflows._executor.protocol import AnyReport, AttemptRequest
from ray_workflows._executor.scheduling.in_flight import InFlightAttempt
from ray_workflows._model.errors import error_info, name_of, text_of
from ray_workflows._model.messages import (
    AttemptCrashed,
    AttemptFoundCorruption,
    AttemptLostInput,
    AttemptLostStorage,
    AttemptRaised,
    Crash,
)
from ray_workflows._model.tasks import AttemptOutcome
from ray_workflows._model.values import ErrorInfo, Value
from ray_workflows.exceptions import (
    PackageTooLargeError,
    StorageCorruptError,
    TaskTimeoutError,
)

#: Ray's errors when the node of a Ray task is lost, or Ray's memory monitor ended the worker. The
#: monitor chooses any worker of the node, so Ray itself does not charge ``max_retries`` either.
LOST_NODE_ERRORS = (NodeDiedError, LocalRayletDiedError, OutOfMemoryError)

#: Ray's errors when the head of the cluster does not answer.
LOST_HEAD_ERRORS = (RpcError, RaySystemError, GetTimeoutError, ConnectionError)


def failure(flight: InFlightAttempt, error: BaseException, shared: bool = False) -> AnyReport:
    """The report of an attempt whose Ray task failed with an error of Ray's. ``shared``: its
    process served others too, so a body is not charged with the end of it: it runs again, with
    fewer others, until the guilty one is alone."""
    if flight.expired:
        return timed_out(flight)
    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, LOST_OBJECT_ERRORS):
        return lost_input(flight.request, (), error, flight)
    if isinstance(error, RayTaskError):
        # From the Ray task that uploads packages: attempts report their own errors.
        return unsubmitted(flight, cause, error)
    innocent = shared and flight.request.history is not None
    crash = Crash.PREEMPTED if innocent or is_lost_node(error) else Crash.KILLED
    return AttemptCrashed(**identity(flight), error=described(error), crash=crash)


def is_lost_node(error: BaseException) -> bool:
    """Whether a worker is gone with its node, or because its node was short of memory."""
    return isinstance(error, LOST_NODE_ERRORS) or bool(getattr(error, "preempted", False))


def end_of_worker(error: BaseException) -> str:
    """Why attempts ended that may have run in a Ray task with this error, as an `AttemptOutcome`;
    nothing for an error with which Ray has not started the Ray task."""
    if isinstance(error, (RayTaskError, RuntimeEnvSetupError, *LOST_OBJECT_ERRORS)):
        return ""
    end = AttemptOutcome.PREEMPTED if is_lost_node(error) else AttemptOutcome.CRASHED
    return end.value


def identity(flight: InFlightAttempt) -> dict[str, Any]:
    request = flight.request
    return {
        "task": request.task,
        "epoch": request.epoch,
        "attempt": request.attempt,
        "started_at": flight.submitted_at,
        "ended_at": time.time(),
    }


def described(error: BaseException) -> ErrorInfo:
    """The record of Ray's own error, with the pickled error: it contains no user data, but Ray may
    quote a runtime_env that it could not set up. Its secrets are replaced."""
    text = text_of(error)
    shown = without_secrets(text)
    if shown != text:
        if not isinstance(error, RuntimeEnvSetupError):
            return error_info(name_of(error), shown)
        error = RuntimeEnvSetupError(without_secrets(str(error.error_message)))
    try:
        exception = Value(b"".join(seal(cloudpickle.dumps(error), [])))
    except Exception:
        exception = None
    return error_info(name_of(error), shown, exception=exception)


def raised(flight: InFlightAttempt, error: BaseException) -> AttemptRaised:
    return AttemptRaised(**identity(flight), error=described(error), retryable=False)


def unsubmitted(
    flight: InFlightAttempt, cause: BaseException, error: BaseException | None = None
) -> AnyReport:
    """The report of an attempt that did not run. The head keeps secrets and packages that it needs:
    if the head does not answer, the attempt is not charged, as for a storage.

    Args:
        flight: the attempt.
        cause: why it did not run.
        error: the error with this cause, if any.
    """
    if isinstance(cause, LOST_HEAD_ERRORS):
        return AttemptLostStorage(**identity(flight), error=described(error or cause))
    return raised(flight, error or cause)


def timed_out(flight: InFlightAttempt) -> AttemptRaised:
    request = flight.request
    timeout = request.options.timeout
    assert timeout is not None
    error = TaskTimeoutError(request.workflow_id, request.task_id, timeout)
    return AttemptRaised(
        **identity(flight),
        error=described(error),
        retryable=request.options.retry_timeouts,
        timed_out=True,
    )


def refused_package(error: BaseException) -> Exception | None:
    """Why a package that a Ray task waited for could not be uploaded, if that is the error. Only
    the upload raises one of these, because the Ray task reports errors of its attempts."""
    cause = error.cause if isinstance(error, RayTaskError) else None
    return cause if isinstance(cause, (StorageCorruptError, PackageTooLargeError)) else None


def no_package(flight: InFlightAttempt, why: Exception) -> AttemptFoundCorruption:
    """The report of an attempt whose code package can't be uploaded."""
    workflow_id = flight.request.workflow_id
    text = (
        f"{text_of(why)} The code of workflow '{workflow_id}' can't be loaded. Restore the package "
        f"from a backup, or submit any workflow with the same files, which stores them again; then "
        f"continue with resume({workflow_id!r}). Where the files have changed since, "
        f"resume({workflow_id!r}, code='current') goes on with those that are here."
    )
    return AttemptFoundCorruption(**identity(flight), error=error_info(name_of(why), text))


def lost_input(
    request: AttemptRequest,
    lost: tuple[int, ...],
    error: BaseException | None = None,
    flight: InFlightAttempt | None = None,
) -> AttemptLostInput:
    now = time.time()
    return AttemptLostInput(
        task=request.task,
        epoch=request.epoch,
        attempt=request.attempt,
        started_at=flight.submitted_at if flight is not None else now,
        ended_at=now,
        error=described(error) if error else ErrorInfo("ObjectLostError", "an input is gone"),
        lost=lost,
    )
