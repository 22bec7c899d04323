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
    "WorkflowStillActiveError": ("DELETE", "w"),
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
        assert isinstance(copy.__cause__, KeyError)


@pytest.mark.parametrize(
    ("cls", "base"),
    [
        ("WorkflowNotFoundError", ValueError),
        ("OutputNotAvailableError", ValueError),
        ("InvalidWorkflowIdError", ValueError),
        ("StorageConfigError", ValueError),
        ("WorkflowAlreadyRunningError", RuntimeError),
        ("SerializationError", TypeError),
        ("InvalidResultError", TypeError),
    ],
)
def test_errors_are_what_old_code_catches(cls: str, base: type[Exception]) -> None:
    assert issubclass(getattr(exceptions, cls), base)


def test_the_tree_in_the_docstring_is_complete() -> None:
    drawn = set(re.findall(r"── (\w+)", exceptions.__doc__ or "")) | {"WorkflowError"}
    assert drawn == {cls.__name__ for cls in ALL} - {"PicklableWorkflowError"}
