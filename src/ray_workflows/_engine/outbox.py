"""The outbox: messages of a workflow to other workflows, from the commit of the task that sends
one until the target has it.

Only the holder of an open workflow delivers messages. So a workflow whose messages are not all
delivered does not end: `WorkflowEnding` keeps the end until they are. Hence every workflow that an
ended one has started exists, and no coordinator searches ended workflows for messages.
"""

from __future__ import annotations

from ray_workflows._engine.decision import Decision, Events, Surroundings
from ray_workflows._engine.state import Lifecycle, WorkflowState
from ray_workflows._model import events as ev
from ray_workflows._model import messages as msg
from ray_workflows._model.commands import Command, Deliver

ENDS = (ev.WorkflowSucceeded, ev.WorkflowFailed, ev.WorkflowTimedOut, ev.WorkflowCanceled)


def on_delivered(state: WorkflowState, input: msg.Delivered, now: float) -> Events:
    if input.message_id not in state.outbox:
        return []
    delivered = ev.Delivered(at=now, message_id=input.message_id, refusal=input.refusal)
    if state.ending is None or len(state.outbox) > 1:
        return [delivered]
    return [delivered, with_time(state.ending, now)]


def with_time(end: ev.End, now: float) -> ev.End:
    """The kept end, with the time at which it takes effect."""
    return type(end)(now, *[getattr(end, name) for name in end.__struct_fields__[1:]])


def keep_end(state: Lifecycle, decision: Decision, now: float, around: Surroundings) -> Decision:
    """Replace an end in the decision by `WorkflowEnding` while there are messages to deliver. This
    coordinator takes a workflow over that nobody drives, to deliver them."""
    events = decision.events
    end = events[-1]
    if not isinstance(end, ENDS) or not has_messages(state, events):
        return decision
    kept: Events = [*events[:-1], ev.WorkflowEnding(at=now, end=end)]
    if state.holder != around.holder or state.released:
        kept.insert(0, ev.WorkflowClaimed(at=now, holder=around.holder))
    return Decision(kept, decision.answer)


def has_messages(state: Lifecycle, events: Events) -> bool:
    """Whether there are messages to deliver after these events."""
    left = set(state.outbox)
    for event in events:
        if isinstance(event, ev.Delivered):
            left.discard(event.message_id)
        elif isinstance(event, ev.Sending):
            left.update(message.message_id for message in event.messages)
    return bool(left)


# -- applied -------------------------------------------------------------------------------


def send(state: WorkflowState, event: ev.Sending, deltas: list[Command]) -> None:
    """Put the messages of a task into the outbox."""
    apply_messages(state, event)
    deltas += [Deliver(message) for message in event.messages]


def apply_messages(state: Lifecycle, event: ev.Sending) -> None:
    for message in event.messages:
        state.outbox[message.message_id] = message


def apply_delivered(state: Lifecycle, event: ev.Delivered) -> None:
    del state.outbox[event.message_id]


def apply_workflow_ending(state: Lifecycle, event: ev.WorkflowEnding) -> None:
    state.ending = event.end
    state.cancel_requested = False
    if isinstance(event.end, ev.WorkflowSucceeded):
        state.output = event.end.output
