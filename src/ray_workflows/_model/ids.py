"""What may name a workflow, and what names made by us look like."""

from __future__ import annotations

import unicodedata

from ray_workflows.exceptions import InvalidWorkflowIdError

#: Ids are stored as UTF-8; the limit keeps an index row small on every backend.
MAX_WORKFLOW_ID_BYTES = 512


def validate_workflow_id(workflow_id: object) -> str:
    """Return the id, or raise if it can't name a workflow.

    Ids never become file names, so slashes, dots and any printable Unicode are welcome.

    Raises:
        TypeError: it is not a string.
        InvalidWorkflowIdError: it is empty, over 512 bytes of UTF-8, or has control characters.
    """
    if not isinstance(workflow_id, str):
        raise TypeError(f"workflow_id has to be a string type, not {type(workflow_id).__name__}.")
    if not workflow_id:
        raise InvalidWorkflowIdError(
            "workflow_id is empty. Leave it out to get a generated one, or give it a name."
        )
    try:
        size = len(workflow_id.encode("utf-8"))
    except UnicodeEncodeError:
        raise InvalidWorkflowIdError(
            f"workflow_id {workflow_id!r} has surrogate characters that UTF-8 can't encode. "
            f"Remove them."
        ) from None
    if size > MAX_WORKFLOW_ID_BYTES:
        raise InvalidWorkflowIdError(
            f"workflow_id {workflow_id[:40]!r}... is {size} bytes of UTF-8 long; the limit is "
            f"{MAX_WORKFLOW_ID_BYTES}. Use a shorter id and keep the rest in metadata=."
        )
    for position, character in enumerate(workflow_id):
        if unicodedata.category(character) == "Cc":
            raise InvalidWorkflowIdError(
                f"workflow_id {workflow_id!r} has the control character {character!r} at "
                f"position {position}. Remove it."
            )
    return workflow_id
