"""The workflows in a coordinator's memory, and whose they are."""

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
        room: counts those that are driven here, and those that were and are in storage alone.

    Attributes:
        evicted: what is driven here, and in storage alone.
        lives: the ids of earlier lives of the coordinator; None until they were looked for. Later
            ones are no earlier lives: whoever sees them is cut off.
        kept: those of them that workflows may name, whose leases are renewed.
        listed: whether the catalog was looked through for what is ours.
        looks: how often that was begun.
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
        """Whether it is in memory still."""
        return self.workflows.get(workflow.workflow_id) is workflow

    def remove(self, workflow: Workflow) -> bool:
        """Keep it no more; whether it was kept."""
        kept = self.holds(workflow)
        if kept:
            del self.workflows[workflow.workflow_id]
            self.unindex(workflow)
        self.count_as(workflow, None)
        return kept

    def evict(self, workflow: Workflow) -> None:
        """Keep a workflow that is driven here in storage alone."""
        del self.workflows[workflow.workflow_id]
        self.unindex(workflow)
        state = workflow.state
        evicted = Evicted(workflow.seq, due_at(state), state.status, self.looks)
        self.evicted.add(workflow.workflow_id, evicted)

    def leave(self, row: CatalogRow, due_at: float) -> None:
        """Leave what an earlier life was driving in storage, where it is at rest."""
        self.evicted.add(row.workflow_id, Evicted(row.seq, due_at, row.status, self.looks))
        self.admission.change(row.workflow_id, None, row.status)

    def become(self, workflow: Workflow, found: Recovered | None) -> None:
        """A workflow is what was read; None if there is nothing, or nothing was read yet."""
        self.unindex(workflow)
        workflow.become(found)
        self.index(workflow)

    def name(self, workflow: Workflow, incarnation: str) -> None:
        """A workflow that is not there is about to be created."""
        self.unindex(workflow)
        workflow.state = WorkflowState(workflow.workflow_id, incarnation)
        self.index(workflow)

    def index(self, workflow: Workflow) -> None:
        """Let what is reported of its attempts come to it."""
        if workflow.incarnation:
            self.by_incarnation[workflow.incarnation] = workflow
        self.count(workflow)

    def unindex(self, workflow: Workflow) -> None:
        if self.by_incarnation.get(workflow.incarnation) is workflow:
            del self.by_incarnation[workflow.incarnation]

    def count(self, workflow: Workflow) -> None:
        """Count it among those that run or wait, if it is driven here. One that is being read is
        what it was."""
        if workflow.reading:
            return
        status = workflow.state.status
        counts = status in ACTIVE and self.drives(workflow)
        self.count_as(workflow, status if counts else None)

    def count_as(self, workflow: Workflow, status: WorkflowStatus | None) -> None:
        """Count it with a status; None: it is not in hand any more."""
        self.admission.change(workflow.workflow_id, workflow.counted, status)
        workflow.counted = status

    def drives(self, workflow: Workflow) -> bool:
        """Whether this coordinator acts on what the workflow asks for: it is ours, and open or has
        attempts to hear of."""
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
        """Whether a workflow is to be driven by us, as we or an earlier life were doing."""
        if state.status not in ACTIVE or state.released:
            return False
        return self.is_ours(state.holder)

    def is_ours(self, holder_id: str) -> bool:
        """Whether a holder is this coordinator or an earlier life of it."""
        return holder_id == self.holder_id or holder_id in (self.lives or ())
