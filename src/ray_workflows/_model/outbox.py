"""What a workflow sends to others."""

from __future__ import annotations

import msgspec

from ray_workflows._model.values import Value


class OutboxMessage(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A submission that a task has made: a workflow that begins once the task's result is durable.

    ``message_id`` is the same whichever attempt of the task makes it, and is the submission's
    ``request_id``: ``target``, the workflow, knows it from then on. ``body`` is the encoded
    submission, in a blob of the sender if it is large.
    """

    message_id: str
    target: str
    body: Value
