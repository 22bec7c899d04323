"""What a decision is made of beside the workflow's state, and what comes of it."""

from __future__ import annotations

from typing import Any

import msgspec

from ray_workflows._model import events as ev
from ray_workflows._model.status import WorkflowStatus

Events = list[ev.Event]

ACTIVE = WorkflowStatus.non_terminating_status()
SETTLED = (WorkflowStatus.SUCCESSFUL, WorkflowStatus.FAILED, WorkflowStatus.CANCELED)


class Surroundings(msgspec.Struct, frozen=True, gc=False):
    """What no journal tells, and decisions depend on.

    Attributes:
        holder: the coordinator that decides.
        driven_elsewhere: another live coordinator drives the workflow.
        live: values that are in no storage are still there, because this coordinator was driving
            the workflow when they were made.
        can_run: one more workflow may run.
        can_wait: one more workflow may wait for that.
    """

    holder: str = ""
    driven_elsewhere: bool = False
    live: bool = True
    can_run: bool = True
    can_wait: bool = True


class Decision(msgspec.Struct, frozen=True, gc=False):
    """What follows from a message: events, in order, and the answer to whoever asked, which may be
    an exception. The answer holds once the events are durable."""

    events: Events
    answer: Any = None
