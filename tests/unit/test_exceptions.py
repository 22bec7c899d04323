"""Errors: each pickles with its attributes and cause, and is what old code catches."""

from __future__ import annotations

import inspect
import pickle
import re

import pytest

from ray_workflows import exceptions
from ray_workflows.exceptions import WorkflowError

ALL = [
    value
    for value in vars(exceptions).values()
    if inspect.isclass(value) and issubclass(value, WorkflowError)
]

ARGUMENTS = {
    "WorkflowExecutionError": ("w", "t", "boom"),
    "WorkflowNotFoundError": ("w", "t"),
    "TaskTimeoutError": ("w", "t", 1.5),
    "SignalRefusedError": ("w", "approved", "CANCELED"),
    "WorkflowStillActiveError": ("DELETE", "w"),
    "WorkflowCopyError": (["w"], "why"),
    "PayloadCodecError": ("zlib", "why"),
    "OutputNotAvailableError": ("w", None, "it is gone."),
}


@pytest.mark.parametrize("cls", ALL)
def test_errors_pickle_with_their_cause(cls: type[WorkflowError]) -> None:
    error = cls(*ARGUMENTS.get(cls.__name__, ("w",)))
    error.__cause__ = KeyError("why")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is cls
    assert str(copy) == str(error)
    assert copy.__dict__ == error.__dict__
    if cls is not WorkflowError:
        assert copy.message == str(error)
        assert isinstance(copy.__cause__, KeyError)


@pytest.mark.parametrize(
    ("cls", "base"),
    [
        ("WorkflowNotFoundError", ValueError),
        ("OutputNotAvailableError", ValueError),
        ("InvalidWorkflowIdError", ValueError),
        ("StorageConfigError", ValueError),
        ("SignalTimeoutError", TimeoutError),
        ("WorkflowAlreadyRunningError", RuntimeError),
        ("SerializationError", TypeError),
        ("InvalidResultError", TypeError),
        ("WorkflowToResumeNotFoundError", exceptions.WorkflowNotFoundError),
        ("WorkflowToResumeNotFoundError", exceptions.WorkflowNotResumableError),
        ("WorkflowTaskNotRecoverableError", exceptions.WorkflowNotResumableError),
    ],
)
def test_errors_are_what_old_code_catches(cls: str, base: type[Exception]) -> None:
    assert issubclass(getattr(exceptions, cls), base)


def test_errors_that_join_two_name_the_workflow_once() -> None:
    error = exceptions.WorkflowToResumeNotFoundError("w-1")
    assert str(error).count("w-1") == 1
    assert error.workflow_id == "w-1"


class UsersError(WorkflowError):
    def __init__(self, text: str) -> None:
        self.message = text
        super().__init__(text)


def test_users_errors_may_have_a_message_of_their_own() -> None:
    assert UsersError("text").message == "text"


def test_the_cause_of_a_failure_pickles() -> None:
    """Its class is made by Ray at run time, so that pickle can't find it by its name."""
    from ray.exceptions import RayTaskError

    from ray_workflows._capture.values import as_instance_of_cause

    error = exceptions.WorkflowExecutionError("w", "t", "boom")
    error.__cause__ = as_instance_of_cause(RayTaskError("task 't'", "Traceback", KeyError("k")))
    copy = error
    for _ in range(2):  # A copy pickles as the original does.
        copy = pickle.loads(pickle.dumps(copy))
    assert isinstance(copy.__cause__, KeyError)
    assert isinstance(copy.__cause__, RayTaskError)
    assert str(copy.__cause__) == str(error.__cause__)
    assert copy.__cause__.cause.args == ("k",)


def test_the_tree_in_the_docstring_is_complete() -> None:
    drawn = set(re.findall(r"── (\w+)", exceptions.__doc__ or "")) | {"WorkflowError"}
    assert drawn == {cls.__name__ for cls in ALL} - {"PicklableWorkflowError"}


@pytest.mark.parametrize(
    ("reason", "sentence"),
    [
        (None, "during execution in task 't'. Mend"),
        ("KeyError: 'k'", "in task 't': KeyError: 'k'. Mend"),
        ("Error: it is gone.", "in task 't': Error: it is gone. Mend"),
    ],
)
def test_what_to_do_is_a_sentence_of_its_own(reason: str | None, sentence: str) -> None:
    assert sentence in str(exceptions.WorkflowExecutionError("w", "t", reason))
