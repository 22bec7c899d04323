"""The workflows in a coordinator's memory, and which of them it drives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ray_workflows._coordinator.admission import Admission
from ray_workflows._coordinator.evicted import Evicted, EvictedWorkflows
from ray_workflows._coordinator.recovery import Recovered
from ray_workflows._coordinator.workflow import Workflow
from ray_workflows._engine.commands import due_at
from ray_workflows._engine.decision import ACTIVE
from ray_workflows._engine.state import WorkflowState
from ray_workflows._model.catalog import CatalogRow
from ray_workflows._model.status import WorkflowStatus


class ActiveWorkflows(Mapping[str, Workflow]):
    """Workflows by id: driven here, being read, or about to be appended to.

    Args:
        holder_id: the coordinator.
        room: counts the workflows that are driven here, including evicted ones.

    Attributes:
        evicted: workflows that are driven here, and in storage alone.
        lives: the ids of earlier lives of the coordinator, read once; None before. An id that
            appears later is that of a later life, which has replaced this process.
        kept: those of them that workflows may name, whose leases are renewed.
        listed: whether the catalog was scanned for our workflows.
        looks: the number of scans begun.
    """

    def __init__(self, holder_id: str, admission: Admission) -> None:
        self.holder_id = holder_id
        self.admission = admission
        self.evicted = EvictedWorkflows()
        self.lives: list[str] | None = None
        self.kept: tuple[str, ...] = ()
        self.listed = False
        self.looks = 0
        self.workflows: dict[str, Workflow] = {}
        self.by_incarnation: dict[str, Workflow] = {}

    def __getitem__(self, workflow_id: str) -> Workflow:
        return self.workflows[workflow_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self.workflows)

    def __len__(self) -> int:
        return len(self.workflows)

    def hold(self, workflow: Workflow) -> None:
        """Keep a workflow in memory."""
        evicted = self.evicted.take(workflow.workflow_id)
        if evicted is not None:
            workflow.counted = evicted.status
        self.workflows[workflow.workflow_id] = workflow
        self.index(workflow)

    def holds(self, workflow: Workflow) -> bool:
        """Whether it is still in memory."""
        return self.workflows.get(workflow.workflow_id) is workflow

    def remove(self, workflow: Workflow) -> bool:
        """Remove it from memory; whether it was there."""
        kept = self.holds(workflow)
        if kept:
            del self.workflows[workflow.workflow_id]
            self.unindex(workflow)
        self.count_as(workflow, None)
        return kept

    def evict(self, workflow: Workflow) -> None:
        """Remove a workflow from memory that is still driven here."""
        del self.workflows[workflow.workflow_id]
        self.unindex(workflow)
        state = workflow.state
        evicted = Evicted(workflow.seq, due_at(state), state.status, self.looks)
        self.evicted.add(workflow.workflow_id, evicted)

    def leave(self, row: CatalogRow, due_at: float) -> None:
        """Count a workflow of an earlier life, which is at rest, as evicted."""
        self.evicted.add(row.workflow_id, Evicted(row.seq, due_at, row.status, self.looks))
        self.admission.change(row.workflow_id, None, row.status)

    def become(self, workflow: Workflow, found: Recovered | None) -> None:
        """Set a workflow to what was read; None if there is nothing, or nothing was read yet."""
        self.unindex(workflow)
        workflow.become(found)
        self.index(workflow)

    def name(self, workflow: Workflow, incarnation: str) -> None:
        """Name the incarnation of a workflow that is about to be created."""
        self.unindex(workflow)
        workflow.state = WorkflowState(workflow.workflow_id, incarnation)
        self.index(workflow)

    def index(self, workflow: Workflow) -> None:
        """Route reports of its attempts to it."""
        if workflow.incarnation:
            self.by_incarnation[workflow.incarnation] = workflow
        self.count(workflow)

    def unindex(self, workflow: Workflow) -> None:
        if self.by_incarnation.get(workflow.incarnation) is workflow:
            del self.by_incarnation[workflow.incarnation]

    def count(self, workflow: Workflow) -> None:
        """Count it as running or pending if it is driven here. While it is read, its count
        stays."""
        if workflow.reading:
            return
        status = workflow.state.status
        counts = status in ACTIVE and self.drives(workflow)
        self.count_as(workflow, status if counts else None)

    def count_as(self, workflow: Workflow, status: WorkflowStatus | None) -> None:
        """Count it with a status; None: it is not driven here any more."""
        self.admission.change(workflow.workflow_id, workflow.counted, status)
        workflow.counted = status

    def drives(self, workflow: Workflow) -> bool:
        """Whether this coordinator starts the workflow's commands: it is ours, and open or has
        attempts in flight."""
        state = workflow.state
        return (
            state.holder == self.holder_id
            and not state.released
            and workflow.broken is None
            and self.holds(workflow)
            and (
                state.status in ACTIVE
                or (state.status is WorkflowStatus.FAILED and bool(workflow.flying))
            )
        )

    def drives_incarnation(self, incarnation: str) -> bool:
        """As `drives`, of the workflow of an incarnation, if it is in memory."""
        workflow = self.by_incarnation.get(incarnation)
        return workflow is not None and self.drives(workflow)

    def may_take(self, state: WorkflowState | CatalogRow) -> bool:
        """Whether we have to drive a workflow, because we or an earlier life were doing so."""
        if state.status not in ACTIVE or state.released:
            return False
        return self.is_ours(state.holder)

    def is_ours(self, holder_id: str) -> bool:
        """Whether a holder is this coordinator or an earlier life of it."""
        return holder_id == self.holder_id or holder_id in (self.lives or ())
