"""Evicted workflows: driven by this coordinator, waiting, and in storage alone."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping

import msgspec

from ray_workflows._model.catalog import NEVER
from ray_workflows._model.status import WorkflowStatus

#: Outdated entries of the heap that are tolerated, beyond as many as there are valid ones.
MAX_STALE = 64


class Evicted(msgspec.Struct, gc=False):
    """What stays in memory of an evicted workflow.

    Attributes:
        seq: the number of the last known entry of its journal.
        due_at: when it has to be read, in seconds since 1970, or `NEVER`.
        status: the status with which `Admission` counts it.
        look: the number of the catalog scan that saw it last, or during which it was evicted.
    """

    seq: int
    due_at: float
    status: WorkflowStatus
    look: int = 0


class EvictedWorkflows(Mapping[str, Evicted]):
    """The evicted workflows by id. A million of them take some 300 MB."""

    def __init__(self) -> None:
        self.workflows: dict[str, Evicted] = {}
        #: Due times and ids. Entries that disagree with ``workflows`` are outdated, and skipped.
        self.heap: list[tuple[float, str]] = []

    def __getitem__(self, workflow_id: str) -> Evicted:
        return self.workflows[workflow_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self.workflows)

    def __len__(self) -> int:
        return len(self.workflows)

    def __contains__(self, workflow_id: object) -> bool:
        return workflow_id in self.workflows

    def add(self, workflow_id: str, evicted: Evicted) -> None:
        """Add a workflow that was evicted."""
        self.workflows[workflow_id] = evicted
        if evicted.due_at != NEVER:
            heapq.heappush(self.heap, (evicted.due_at, workflow_id))
            if len(self.heap) > 2 * len(self.workflows) + MAX_STALE:
                self.heap = [each for each in self.heap if self.is_valid(each)]
                heapq.heapify(self.heap)

    def take(self, workflow_id: str) -> Evicted | None:
        """Remove a workflow that is read into memory, or is no longer ours."""
        return self.workflows.pop(workflow_id, None)

    def is_valid(self, entry: tuple[float, str]) -> bool:
        """Whether an entry of the heap is up to date."""
        at, workflow_id = entry
        evicted = self.workflows.get(workflow_id)
        return evicted is not None and evicted.due_at == at

    def next_due(self) -> float:
        """The first due time, or `NEVER`."""
        while self.heap and not self.is_valid(self.heap[0]):
            heapq.heappop(self.heap)
        return self.heap[0][0] if self.heap else NEVER

    def due(self, by: float, at_most: int) -> list[str]:
        """The first workflows that are due by a time, each once."""
        found: list[str] = []
        while len(found) < at_most and self.next_due() <= by:
            found.append(heapq.heappop(self.heap)[1])
        return found
