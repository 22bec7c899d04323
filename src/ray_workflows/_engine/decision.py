"""The inputs of a decision beside the workflow's state, and its result."""

from __future__ import annotations

from typing import Any

import msgspec

from ray_workflows._model import events as ev
from ray_workflows._model.status import WorkflowStatus

Events = list[ev.Event]

ACTIVE = WorkflowStatus.non_terminating_status()
SETTLED = (WorkflowStatus.SUCCESSFUL, WorkflowStatus.FAILED, WorkflowStatus.CANCELED)


class Surroundings(msgspec.Struct, frozen=True, gc=False):
    """Facts that are not in the journal, and that decisions depend on.

    Attributes:
        holder: the coordinator that decides.
        driven_elsewhere: another live coordinator drives the workflow.
        live: the unstored values are still there, because this coordinator was driving the workflow
            when they were made.
        can_run: one more workflow may run.
        can_wait: one more workflow may be pending.
    """

    holder: str = ""
    driven_elsewhere: bool = False
    live: bool = True
    can_run: bool = True
    can_wait: bool = True


class Decision(msgspec.Struct, frozen=True, gc=False):
    """The result of a message: events, in order, and the answer to the caller, which may be an
    exception. The answer is valid once the events are durable."""

    events: Events
    answer: Any = None
