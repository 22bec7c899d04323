"""Workflows of this coordinator that are in storage alone: they wait for a time or for others."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping

import msgspec

from ray_workflows._model.catalog import NEVER
from ray_workflows._model.status import WorkflowStatus

#: Entries of the heap that are of no use any more, beside as many as there are others.
MAX_STALE = 64


class Evicted(msgspec.Struct, gc=False):
    """What is kept in memory of a workflow that is not.

    Attributes:
        seq: the number of the last entry of its journal that we know of.
        due_at: when it is to be woken, or read for another reason, in seconds since 1970; `NEVER`.
        status: as what `Admission` counts it.
        look: the number of the look through the catalog in which it was seen last, or left memory.
    """

    seq: int
    due_at: float
    status: WorkflowStatus
    look: int = 0


class EvictedWorkflows(Mapping[str, Evicted]):
    """By id. A million of them take some 300 MB."""

    def __init__(self) -> None:
        self.workflows: dict[str, Evicted] = {}
        #: Times and ids. What is not so in ``workflows`` any more is left out when it is met.
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
        """It is in storage alone from now on."""
        self.workflows[workflow_id] = evicted
        if evicted.due_at != NEVER:
            heapq.heappush(self.heap, (evicted.due_at, workflow_id))
            if len(self.heap) > 2 * len(self.workflows) + MAX_STALE:
                self.heap = [each for each in self.heap if self.is_valid(each)]
                heapq.heapify(self.heap)

    def take(self, workflow_id: str) -> Evicted | None:
        """It comes into memory, or is not ours any more."""
        return self.workflows.pop(workflow_id, None)

    def is_valid(self, entry: tuple[float, str]) -> bool:
        """Whether a workflow is still to be woken then."""
        at, workflow_id = entry
        evicted = self.workflows.get(workflow_id)
        return evicted is not None and evicted.due_at == at

    def next_due(self) -> float:
        """When the first one is to be woken; `NEVER`."""
        while self.heap and not self.is_valid(self.heap[0]):
            heapq.heappop(self.heap)
        return self.heap[0][0] if self.heap else NEVER

    def due(self, by: float, at_most: int) -> list[str]:
        """Those that are to be woken by a time, the first ones, each once."""
        found: list[str] = []
        while len(found) < at_most and self.next_due() <= by:
            found.append(heapq.heappop(self.heap)[1])
        return found
