"""What the journal of a workflow says, read as the library reads it."""

from __future__ import annotations

from ray_workflows._client.connection import connect
from ray_workflows._client.outputs import read_row
from ray_workflows._codec.journal import events_of
from ray_workflows._model import events as ev


def commits_of_results(workflow_id: str) -> list[int]:
    """The number of the journal entry with each task's result, in the order of the results."""
    storage = connect().storage
    row = read_row(storage, workflow_id)
    return [
        entry.seq
        for entry in storage.read_journal(row.incarnation)
        for event in events_of(entry, workflow_id)
        if isinstance(event, ev.TaskSucceeded)
    ]
