"""The workflows in a coordinator's memory, and whose they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ray_workflows._coordinator.recovery import Recovered
from ray_workflows._coordinator.room import Room
from ray_workflows._coordinator.workflow import Workflow
from ray_workflows._engine.decision import ACTIVE
from ray_workflows._engine.state import WorkflowState
from ray_workflows._model.status import WorkflowStatus


class Inheritance:
    """What earlier lives of a coordinator were driving.

    Attributes:
        lives: the lives before this one; None until they were looked for. Later ones are no earlier
            lives: whoever sees them is cut off.
        unread: ids of workflows of theirs that are known of and not read yet; None before.
    """

    def __init__(self) -> None:
        self.lives: list[str] | None = None
        self.unread: set[str] | None = None

    def may_have(self, workflow_id: str) -> bool:
        """Whether a workflow may be one that is still to be taken over."""
        return self.unread is None or workflow_id in self.unread


class ActiveWorkflows(Mapping[str, Workflow]):
    """Workflows by id: driven here, being read, or about to be appended to.

    Args:
        holder_id: the coordinator.
        room: counts those that are driven here.
    """

    def __init__(self, holder_id: str, room: Room) -> None:
        self.holder_id = holder_id
        self.room = room
        self.inheritance = Inheritance()
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
        self.room.count(workflow, None)
        return kept

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
        """Count it among those that run or wait, if it is driven here."""
        status = workflow.state.status
        counts = status in ACTIVE and self.drives(workflow)
        self.room.count(workflow, status if counts else None)

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

    def may_take(self, state: WorkflowState) -> bool:
        """Whether a workflow is to be driven, by us or by an earlier life."""
        if state.status not in ACTIVE or state.released:
            return False
        return state.holder == self.holder_id or state.holder in (self.inheritance.lives or ())
