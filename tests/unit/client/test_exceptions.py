"""Errors: each pickles with its attributes and cause, and is what old code catches."""

from __future__ import annotations

import inspect
import pickle
import re

import pytest
from ray.exceptions import RayTaskError

from ray_workflows import exceptions
from ray_workflows._capture.values import as_instance_of_cause, as_task_error
from ray_workflows._client.outputs import as_raised
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
    "InvalidFilterError": ("stats", 3, "why"),
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
    error = exceptions.WorkflowExecutionError("w", "t", "boom")
    error.__cause__ = as_instance_of_cause(RayTaskError("task 't'", "Traceback", KeyError("k")))
    copy = error
    for _ in range(2):  # A copy pickles as the original does.
        copy = pickle.loads(pickle.dumps(copy))
    assert isinstance(copy.__cause__, KeyError)
    assert isinstance(copy.__cause__, RayTaskError)
    assert str(copy.__cause__) == str(error.__cause__)
    assert copy.__cause__.cause.args == ("k",)


class WithoutPickle(Exception):
    def __reduce__(self) -> tuple[object, ...]:
        raise RuntimeError("not me")


ENDS = [
    exceptions.WorkflowExecutionError("w", "t", "ValueError: boom"),
    exceptions.WorkflowTimeoutError("w"),
    exceptions.WorkflowCancellationError("w"),
    exceptions.OutputNotAvailableError("w", None, "it failed."),
]


@pytest.mark.parametrize("error", ENDS, ids=lambda error: type(error).__name__)
def test_how_a_workflow_ended_is_raised_as_an_error_of_ray_too(error: WorkflowError) -> None:
    """As all that came out of the actor of `ray.workflow`."""
    error.__cause__ = KeyError("why")
    raised = as_raised(error)  # type: ignore[arg-type]
    for _ in range(3):  # A copy pickles as the original does.
        assert isinstance(raised, type(error))
        assert isinstance(raised, RayTaskError)
        assert str(raised) == str(error)
        assert raised.workflow_id == "w"
        assert isinstance(raised.__cause__, KeyError)
        assert type(raised.cause) is type(error)
        raised = pickle.loads(pickle.dumps(raised))


def test_an_error_that_can_not_be_pickled_is_raised_as_it_is() -> None:
    error = WithoutPickle("lock")
    assert as_task_error("task 't'", "text", error) is error


def test_a_traceback_does_not_name_the_process_that_reads_it() -> None:
    text = (
        "Traceback (most recent call last):\n  File 'a.py', line 1, in f\nKeyError: 'k'\n\n"
        "During handling of the above exception, another exception occurred:\n\n"
        "Traceback (most recent call last):\n  File 'a.py', line 2, in f\nKeyError: 'l'"
    )
    shown = str(as_task_error("task 't'", text, KeyError("l")))
    assert shown.startswith("task 't':\n  File 'a.py', line 1, in f\n")
    assert shown.count("task 't':") == 2
    assert "pid" not in shown


def test_a_failure_says_how_to_go_on_with_code_that_was_mended() -> None:
    """A resume takes the recorded code by itself, with the same error."""
    assert "resume('w', code='current')" in str(exceptions.WorkflowExecutionError("w", "t", "boom"))


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
