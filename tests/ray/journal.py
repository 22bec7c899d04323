"""What the journal of a workflow says, read as the library reads it."""

from __future__ import annotations

from ray_workflows._client.connection import connect
from ray_workflows._client.outputs import read_row
from ray_workflows._model import events as ev
from ray_workflows.storage.histories import History


def commits_of_results(workflow_id: str) -> list[int]:
    """The number of the journal entry with each task's result, in the order of the results."""
    storage = connect().storage
    row = read_row(storage, workflow_id)
    return [
        entry.seq
        for entry, events in History(storage, row).read()
        for event in events
        if isinstance(event, ev.TaskSucceeded)
    ]
