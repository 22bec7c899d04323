"""A user's own storage: the embedded one, which kills the coordinator as soon as a commit of a kind
is durable. Nothing that follows from the commit has been done then."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence

from ray_workflows._codec.journal import HEADER_SIZE, VERSION, decode_events
from ray_workflows._model import events as ev
from ray_workflows._model.catalog import Append
from ray_workflows.storage import SqliteStorage, Storage
from ray_workflows.storage.parts import CommitOutcome
from ray_workflows.storage.sqlite.journals import SqliteJournals
from tests.ray.marks import Marks

#: A task's result that starts workflows; and the submission of one of these.
SENDS, BEGINS = "sends", "begins"


class KillingJournals(SqliteJournals):
    """Kills once for each kind of commit; ``marks`` says for which it did."""

    marks: Marks

    def commit(self, appends: Sequence[Append]) -> list[CommitOutcome]:
        outcomes = super().commit(appends)
        for append, outcome in zip(appends, outcomes, strict=True):
            events = decode_events(append.entry[HEADER_SIZE:], VERSION, append.workflow_id)
            for kind in filter(None, map(kind_of, events)):
                if outcome is CommitOutcome.OK and not self.marks.count(kind):
                    self.marks.add(kind)
                    os.kill(os.getpid(), signal.SIGKILL)
        return outcomes


def kind_of(event: ev.Event) -> str | None:
    """Which kind of commit an event is of."""
    if isinstance(event, ev.TaskSucceeded) and event.messages:
        return SENDS
    if isinstance(event, ev.WorkflowSubmitted) and event.parent:
        return BEGINS
    return None


def killing_storage(directory: str, marks: Marks) -> Storage:
    """The embedded storage of a directory, which kills and notes it in ``marks``."""
    mine = SqliteStorage(directory)
    assert isinstance(mine.journals, SqliteJournals)
    journals = KillingJournals(mine.journals.home, mine.journals.blobs)
    journals.marks = marks
    return Storage(journals=journals, blobs=mine.blobs, leases=mine.leases)
