"""Checks names of workflows, signals and tasks."""

from __future__ import annotations

import unicodedata

from ray_workflows.exceptions import InvalidWorkflowIdError

#: Ids are stored as UTF-8; the limit keeps an index row small on every backend.
MAX_ID_BYTES = 512

#: The prefix of ids of the library's own catalog rows, such as packages of code. No workflow's id
#: may begin so: deleting such a row would delete what workflows need.
RESERVED_PREFIX = "ray_workflows/"


def plain_text(text: str) -> str:
    """The characters of a text, which may be of a subclass: numpy's, or an enum's.

    Not ``str(text)``: a subclass may have a ``__str__`` of its own, and an enum has one.
    """
    return text if type(text) is str else str.__str__(text)


def validate_workflow_id(workflow_id: object) -> str:
    """Return the id as plain text, or raise if it can't name a workflow.

    Ids never become file names, so slashes, dots and any printable Unicode are welcome.

    Raises:
        TypeError: it is not a string.
        InvalidWorkflowIdError: it is empty, over 512 bytes of UTF-8, has control characters, or
            begins with `RESERVED_PREFIX`.
    """
    if not isinstance(workflow_id, str):
        raise TypeError(f"workflow_id has to be a string type, not {type(workflow_id).__name__}.")
    workflow_id = plain_text(workflow_id)
    if not workflow_id:
        raise InvalidWorkflowIdError(
            "workflow_id is empty. Leave it out to get a generated one, or give it a name."
        )
    problem = problem_with("workflow_id", workflow_id, "keep the rest in metadata=")
    if problem is not None:
        raise InvalidWorkflowIdError(problem)
    if workflow_id.startswith(RESERVED_PREFIX):
        raise InvalidWorkflowIdError(
            f"workflow_id {workflow_id!r} begins with {RESERVED_PREFIX!r}, as what the library "
            f"stores for itself does. Choose another beginning."
        )
    return workflow_id


def validate_signal_text(what: str, text: object) -> str:
    """Return the name or the id of a signal as plain text, or raise if it can't be one.

    Raises:
        TypeError: it is not a string.
        ValueError: it is empty, over 512 bytes of UTF-8, or has control characters.
    """
    if not isinstance(text, str):
        raise TypeError(f"{what} must be a string, not {type(text).__name__}.")
    text = plain_text(text)
    if not text:
        raise ValueError(f"{what} is empty. Give it some characters.")
    problem = problem_with(what, text, "put the rest into its value")
    if problem is not None:
        raise ValueError(problem)
    return text


def problem_with(what: str, text: str, remedy: str) -> str | None:
    """Why a text can't be stored as an id; None if it can."""
    try:
        size = len(text.encode("utf-8"))
    except UnicodeEncodeError:
        return f"{what} {text!r} has surrogate characters that UTF-8 can't encode. Remove them."
    if size > MAX_ID_BYTES:
        return (
            f"{what} {text[:40]!r}... is {size} bytes of UTF-8 long; the limit is "
            f"{MAX_ID_BYTES}. Use a shorter one and {remedy}."
        )
    for position, character in enumerate(text):
        if unicodedata.category(character) == "Cc":
            return (
                f"{what} {text!r} has the control character {character!r} at position {position}. "
                f"Remove it."
            )
    return None
