"""When a coordinator saves a state in its journal: often enough that what has to be read is little,
and so rarely that writing snapshots costs a small part of writing the journal.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ray_workflows._engine.snapshots import save
from ray_workflows._engine.state import WorkflowState
from ray_workflows._model.events import Event, StateSaved


class SnapshotRule(msgspec.Struct, frozen=True):
    """When the state of a workflow is saved.

    Attributes:
        entries: after so many entries without a snapshot,
        size: or after so many bytes of them.
        tasks: a state of more tasks is not saved whole: that would take longer than others can
            wait. Its lifecycle is.
        share: there are this many times more bytes of other entries than of snapshots.
    """

    entries: int = 1000
    size: int = 512 * 1024
    tasks: int = 10_000
    share: int = 4


class Unsaved(msgspec.Struct, frozen=True, gc=False):
    """What a journal has since its last snapshot.

    Attributes:
        snapshot: the number of the entry with the last snapshot; 0 if there is none.
        whole: of the last one that has the tasks too.
        entries: how many entries there are after the last snapshot.
        size: how many bytes they have.
        whole_size: how many bytes there are after the last whole snapshot.
        largest: how many bytes the last whole snapshot has, or the largest entry after it: about
            what the next one will have.
        lifecycle: how many bytes the last saved lifecycle has.
    """

    snapshot: int = 0
    whole: int = 0
    entries: int = 0
    size: int = 0
    whole_size: int = 0
    largest: int = 0
    lifecycle: int = 0

    def after(self, seq: int, size: int, saved: StateSaved | None) -> Unsaved:
        """After one more entry, of this number and size, with this snapshot."""
        if saved is None:
            return Unsaved(
                self.snapshot,
                self.whole,
                self.entries + 1,
                self.size + size,
                self.whole_size + size,
                max(self.largest, size),
                self.lifecycle,
            )
        lifecycle = len(saved.lifecycle)
        if saved.tasks is not None:
            return Unsaved(seq, seq, largest=lifecycle + len(saved.tasks), lifecycle=lifecycle)
        return Unsaved(
            seq,
            saved.last_whole,
            whole_size=self.whole_size + size,
            largest=max(self.largest, size),
            lifecycle=lifecycle,
        )


#: How often coordinators save states.
RULE = SnapshotRule()

#: Of a journal without entries.
NOTHING = Unsaved()


def saved_in(events: Sequence[Event]) -> StateSaved | None:
    """The snapshot in an entry, if it has one."""
    last = events[-1] if events else None
    return last if isinstance(last, StateSaved) else None


def size_of(saved: StateSaved) -> int:
    """About how many bytes of an entry are its snapshot."""
    return len(saved.lifecycle) + len(saved.tasks or b"")


def next_snapshot(
    rule: SnapshotRule, unsaved: Unsaved, state: WorkflowState, at: float
) -> StateSaved | None:
    """The snapshot for the next entry, after which the state is this one; None if none is due."""
    if unsaved.entries < rule.entries and unsaved.size < rule.size:
        return None
    if len(state.tasks) <= rule.tasks and unsaved.whole_size >= rule.share * unsaved.largest:
        return save(state, at, None)
    if unsaved.size >= rule.share * unsaved.lifecycle:
        return save(state, at, unsaved.whole)
    return None
