"""Golden journals: workflows as a release stored them, in a file each, and what was seen of them.

A file is JSON: the catalog row, the entries and blobs as they were stored, and under ``seen`` what
`look` found when the release wrote them.
"""

from __future__ import annotations

import base64
import json
import zlib
from pathlib import Path
from typing import Any

import msgspec

from ray_workflows._client.reader import Reader
from ray_workflows._client.reads import get_metadata, get_status, get_tasks, stored_output
from ray_workflows._codec.envelope import objects_in
from ray_workflows._codec.journal import decode_entries
from ray_workflows._codec.references import blobs_in
from ray_workflows._engine.commands import commands
from ray_workflows._engine.evolve import evolve
from ray_workflows._engine.invariants import check
from ray_workflows._engine.state import WorkflowState
from ray_workflows._engine.summary import catalog_row
from ray_workflows._model.catalog import Append, CatalogRow
from ray_workflows._model.commands import StartAttempt
from ray_workflows.storage import Storage
from ray_workflows.testing.builders import OK

DIRECTORY = Path(__file__).parent

#: What is compared of a task. Release 0.1.0 had no more.
TASK_FIELDS = (
    *("task_id", "status", "attempts", "started_at", "ended_at"),
    *("upstream", "error"),
)

#: Statuses of tasks that have not ended. Releases differ in how much they say of these, so they
#: count as one here.
UNFINISHED = ("WAITING", "QUEUED", "RUNNING", "RETRYING", "CANCELED")


def pack(data: bytes | memoryview) -> str:
    return base64.b85encode(zlib.compress(data, 9)).decode()


def unpack(text: str) -> bytes:
    return zlib.decompress(base64.b85decode(text))


def dump(storage: Storage, workflow_id: str, story: str) -> dict[str, Any]:
    """All that is stored of a workflow, and what is seen of it."""
    row = storage.read_catalog(workflow_id)
    assert row is not None
    entries = storage.read_journal(row.incarnation)
    blobs: dict[str, str] = {}
    pending = list(blobs_in(decode_entries(entries, workflow_id, row.incarnation)))
    while pending:
        blob = pending.pop()
        if blob.key not in blobs:
            data = storage.read_blob(row.incarnation, blob)
            blobs[blob.key] = pack(data)
            pending += objects_in(data, where=blob.key) or ()
    return {
        "story": story,
        "row": msgspec.to_builtins(row),
        "entries": [[entry.commit_id, pack(entry.entry)] for entry in entries],
        "blobs": blobs,
        "seen": look(storage, workflow_id),
    }


def load(path: Path, storage: Storage) -> dict[str, Any]:
    """Put a workflow of a file into a storage; the file's contents."""
    golden: dict[str, Any] = json.loads(path.read_text())
    golden["seen"]["tasks"] = [seen_of(task) for task in golden["seen"]["tasks"]]
    row = msgspec.convert(golden["row"], CatalogRow)
    for key, data in golden["blobs"].items():
        storage.write_blob(row.incarnation, key, [unpack(data)])
    appends = [
        Append(
            workflow_id=row.workflow_id,
            incarnation=row.incarnation,
            expected_seq=seq,
            commit_id=commit_id,
            entry=unpack(entry),
            catalog=msgspec.structs.replace(row, seq=seq + 1),
        )
        for seq, (commit_id, entry) in enumerate(golden["entries"])
    ]
    assert storage.commit(appends) == [OK] * len(appends)
    return golden


def look_as_then(storage: Storage, golden: dict[str, Any]) -> dict[str, Any]:
    """As `look`, with the columns of the catalog that there were when the journal was written."""
    seen = look(storage, golden["row"]["workflow_id"])
    seen["catalog"] = {name: seen["catalog"][name] for name in golden["row"]}
    return seen


def look(storage: Storage, workflow_id: str) -> dict[str, Any]:
    """What the verbs that read, and the engine, say of a workflow; as plain data."""
    reader = Reader(storage)
    row = storage.read_catalog(workflow_id)
    assert row is not None
    entries = storage.read_journal(row.incarnation)
    events = decode_entries(entries, workflow_id, row.incarnation)
    state = WorkflowState(workflow_id, row.incarnation)
    steps = []
    for event in events:
        evolve(state, event)
        steps.append(due(state))
    check(state)
    status = get_status(reader, workflow_id).value
    tasks = get_tasks(reader, workflow_id)
    outputs = {}
    for task in tasks:
        if task.status == "SUCCESSFUL":
            try:
                outputs[task.task_id] = shown(stored_output(reader, workflow_id, task.task_id))
            except ValueError:
                outputs[task.task_id] = "not stored"
    seen = {
        "status": status,
        "output": shown(stored_output(reader, workflow_id, None))
        if status == "SUCCESSFUL"
        else None,
        "error": [state.error.type_name, state.error.message] if state.error else None,
        "metadata": get_metadata(reader, workflow_id, None),
        "tasks": [seen_of(msgspec.to_builtins(task)) for task in tasks],
        "outputs": outputs,
        "of tasks": {t.task_id: get_metadata(reader, workflow_id, t.task_id) for t in tasks},
        "catalog": msgspec.to_builtins(catalog_row(state, row.seq)),
        "events": [type(event).__name__ for event in events],
        # What a coordinator would do that found the journal to end after each of its events.
        "next": steps,
    }
    found: dict[str, Any] = json.loads(json.dumps(seen, default=repr))
    return found


def seen_of(task: dict[str, Any]) -> dict[str, Any]:
    """What is compared of a task."""
    found = {name: task[name] for name in TASK_FIELDS}
    if found["status"] in UNFINISHED:
        found["status"] = "unfinished"
    return found


def due(state: WorkflowState) -> list[str]:
    """What is to be done, as text."""
    return sorted(
        f"start {state.tasks[command.task].task_id}, attempt {command.attempt}, epoch "
        f"{command.epoch}, not before {command.not_before}"
        if isinstance(command, StartAttempt)
        else repr(command)
        for command in commands(state)
    )


def shown(value: Any) -> str:
    """A value as text: long bytes by their size and checksum, errors by their type."""
    if isinstance(value, bytes) and len(value) > 100:
        return f"{len(value)} bytes, crc {zlib.crc32(value)}"
    if isinstance(value, BaseException):
        cause = getattr(value, "cause", value)
        return f"{type(cause).__name__}: {cause}"
    if isinstance(value, (list, tuple)):
        return f"{type(value).__name__} of {[shown(item) for item in value]}"
    return repr(value)
