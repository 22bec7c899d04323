"""A workflow that somebody left half done, made by engine and storage alone."""

from __future__ import annotations

import time
import uuid

from workloads import LEAVES

from peers.tasks import mark, marked_total, total
from ray_workflows._capture.dag import capture_plan
from ray_workflows._capture.values import ValueWriter
from ray_workflows._codec.journal import NO_LINK, encode_entry, link_of
from ray_workflows._engine.decide import decide
from ray_workflows._engine.evolve import evolve
from ray_workflows._engine.state import WorkflowState
from ray_workflows._engine.summary import catalog_row
from ray_workflows._environment.snapshot import take_snapshot
from ray_workflows._model import messages as msg
from ray_workflows._model.catalog import Append
from ray_workflows._model.plan import Plan
from ray_workflows.storage import Storage
from ray_workflows.storage.base import CommitOutcome

#: Reports that became one journal entry.
COMMIT_SIZE = 500


class Author:
    """Writes a journal as a coordinator would have, in the name of one that no longer lives."""

    def __init__(self, storage: Storage, workflow_id: str) -> None:
        self.storage = storage
        self.state = WorkflowState(workflow_id, uuid.uuid4().hex)
        self.seq = 0
        self.link = NO_LINK

    def commit(self, inputs: list[msg.Input]) -> None:
        events = []
        for each in inputs:
            for event in decide(self.state, each, time.time()):
                evolve(self.state, event)
                events.append(event)
        workflow_id, incarnation = self.state.workflow_id, self.state.incarnation
        entry = encode_entry(events, workflow_id, incarnation, self.seq + 1, self.link)
        append = Append(
            workflow_id=self.state.workflow_id,
            incarnation=self.state.incarnation,
            expected_seq=self.seq,
            commit_id=uuid.uuid4().hex,
            entry=entry,
            catalog=catalog_row(self.state, self.seq + 1),
        )
        assert self.storage.commit([append]) == [CommitOutcome.OK]
        self.seq += 1
        self.link = link_of(entry)


def capture(storage: Storage, incarnation: str, path: str, size: int) -> Plan:
    """Marks that are summed in groups."""
    groups = [range(i, min(i + LEAVES, size)) for i in range(0, size, LEAVES)]
    marks = [[mark.bind(path, i) for i in group] for group in groups]
    return capture_plan(
        total.bind(*(marked_total.bind(path, *group) for group in marks)),
        writer=ValueWriter(storage, incarnation),
        environment=take_snapshot(storage, storage.url),
        prefix="plan",
    )


def store_interrupted(
    storage: Storage, workflow_id: str, path: str, size: int, *, done: int
) -> None:
    """Store a running workflow whose first ``done`` marks have succeeded."""
    author = Author(storage, workflow_id)
    state = author.state
    plan = capture(storage, state.incarnation, path, size)
    holder = f"gone-{uuid.uuid4().hex}"
    author.commit([msg.Submit(plan=plan, metadata={}, holder=holder, start=True)])
    writer = ValueWriter(storage, state.incarnation)
    marks = [number for number, task in state.tasks.items() if task.spec.name.endswith(".mark")]
    for first in range(0, done, COMMIT_SIZE):
        reports: list[msg.Input] = []
        for value in range(first, min(first + COMMIT_SIZE, done)):
            now = time.time()
            reports.append(
                msg.AttemptReturned(
                    task=marks[value],
                    epoch=state.epoch,
                    attempt=1,
                    started_at=now,
                    ended_at=now,
                    value=writer.write(value, key=f"mark-{value}", where="a mark"),
                )
            )
        author.commit(reports)
