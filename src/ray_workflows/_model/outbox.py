"""Messages from a workflow to other workflows."""

from __future__ import annotations

import msgspec

from ray_workflows._model.values import Value


def message_id_of(incarnation: str, task: int, part: str) -> str:
    """The id of a message: of the workflow, the task, and what in it sends the message. So it is
    the same for all attempts."""
    return f"{incarnation}-{task}-{part}"


class OutboxMessage(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A submission by a task: its workflow begins once the task's result is durable, or, if the
    task is the body of a durable function, once the call is.

    ``message_id`` is the same for all attempts of the task, and is the submission's
    ``request_id``, which the workflow ``target`` keeps. ``body`` is the encoded submission, in a
    blob of the sender if it is large.
    """

    message_id: str
    target: str
    body: Value
