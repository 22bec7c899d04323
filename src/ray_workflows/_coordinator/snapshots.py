"""Decides when a coordinator appends a snapshot to a journal: often enough that recovery reads
little, and so rarely that snapshots are a small part of the journal.
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
        entries: after this many entries without a snapshot,
        size: or after this many bytes of them.
        tasks: a state with more tasks is saved without them, because that would block the loop for
            too long.
        share: other entries have at least this many times the bytes of whole snapshots.
    """

    entries: int = 1000
    size: int = 512 * 1024
    tasks: int = 10_000
    share: int = 4


class Unsaved(msgspec.Struct, frozen=True, gc=False):
    """The journal since its last snapshot.

    Attributes:
        snapshot: the number of the entry with the last snapshot; 0 if there is none.
        whole: that of the last snapshot with the tasks.
        entries: the number of entries after the last snapshot.
        size: their bytes.
        whole_size: the bytes after the last whole snapshot.
        largest: the bytes of the last whole snapshot, or of the largest entry after it: about the
            size of the next snapshot.
        lifecycle: the bytes of the last saved lifecycle.
    """

    snapshot: int = 0
    whole: int = 0
    entries: int = 0
    size: int = 0
    whole_size: int = 0
    largest: int = 0
    lifecycle: int = 0

    def after(self, seq: int, size: int, saved: StateSaved | None) -> Unsaved:
        """The value after one more entry of this number and size, with this snapshot."""
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

#: For a journal without entries.
NOTHING = Unsaved()


def saved_in(events: Sequence[Event]) -> StateSaved | None:
    """The snapshot in an entry, if it has one."""
    last = events[-1] if events else None
    return last if isinstance(last, StateSaved) else None


def size_of(saved: StateSaved) -> int:
    """About how many bytes a snapshot takes in its entry."""
    return len(saved.lifecycle) + len(saved.tasks or b"")


def next_snapshot(
    rule: SnapshotRule, unsaved: Unsaved, state: WorkflowState, at: float
) -> StateSaved | None:
    """The snapshot for the next entry, given the state after it; None if none is due."""
    if unsaved.entries < rule.entries and unsaved.size < rule.size:
        return None
    if len(state.tasks) <= rule.tasks and unsaved.whole_size >= rule.share * unsaved.largest:
        return save(state, at, None)
    if unsaved.size >= rule.share * unsaved.lifecycle:
        return save(state, at, unsaved.whole)
    return None
