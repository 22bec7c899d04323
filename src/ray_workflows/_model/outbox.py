"""Messages from a workflow to other workflows."""

from __future__ import annotations

import msgspec

from ray_workflows._model.values import Value


class OutboxMessage(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A submission by a task: its workflow begins once the task's result is durable.

    ``message_id`` is the same for all attempts of the task, and is the submission's
    ``request_id``, which the workflow ``target`` keeps. ``body`` is the encoded submission, in a
    blob of the sender if it is large.
    """

    message_id: str
    target: str
    body: Value
