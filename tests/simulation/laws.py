"""The laws of the real executor, from what the journals say and from what workers did.

None of them asks the engine or the executor what it believes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ray_workflows._engine.state import WorkflowState
from ray_workflows._model import events as ev
from ray_workflows._model.catalog import Append
from ray_workflows._model.values import Blob, Outcome
from tests.simulation import work
from tests.simulation.monitor import Journal, Monitor
from tests.simulation.violations import Violation

if TYPE_CHECKING:
    from tests.simulation.processes import Execution
    from tests.simulation.world_of_workers import WorldOfWorkers

#: Errors with which Ray says that a worker is gone, or a node.
DEATHS = ("WorkerCrashedError", "ActorDiedError", "TaskCancelledError")
NODE_DEATH = "NodeDiedError"

#: Errors that are the library's own, with what they are about.
OURS = ("TaskTimeoutError", "SignalTimeoutError")


class MonitorOfWorkers(Monitor):
    """Judges appends by what their values are, and runs by what was committed before them."""

    def __init__(self, world: WorldOfWorkers) -> None:
        super().__init__()
        self.world = world
        #: In which epoch of its workflow a task was done.
        self.epochs: dict[tuple[str, int], int] = {}
        #: Of each task, the executions that have begun, in this order.
        self.begun: dict[tuple[str, int], list[Execution]] = {}

    # -- appends ---------------------------------------------------------------------------

    def appended(self, holder_id: str, append: Append) -> None:
        journal = self.journals.get(append.incarnation)
        known = 0 if journal is None else len(journal.events)
        super().appended(holder_id, append)
        for event in self.journals[append.incarnation].events[known:]:
            if isinstance(event, ev.TaskSucceeded):
                self.judge_live(append.incarnation, event, holder_id)

    def judge_live(self, incarnation: str, event: ev.TaskSucceeded, holder_id: str) -> None:
        """What is live of a result is what is stored of it."""
        blob = event.value.data
        if not isinstance(blob, Blob) or not blob.stored:
            return
        live = self.world.live_value(holder_id, incarnation, blob)
        stored = work.read_back(self.world.storage, incarnation, Outcome(event.value))
        if live is not None and live != stored:
            raise Violation(
                "live is stored",
                f"{incarnation} task {event.task}: live is {live[:2]}, stored {stored[:2]}",
            )

    def judge(self, journal: Journal, event: Any, holder_id: str, where: str) -> None:
        super().judge(journal, event, holder_id, where)
        if isinstance(event, (ev.TaskSucceeded, ev.TaskContinued)):
            self.epochs[journal.state.incarnation, event.task] = journal.state.epoch
        self.world.seen["lost inputs"] += isinstance(event, ev.ValuesLost)
        if isinstance(event, (ev.AttemptFailed, ev.TaskFailed)):
            self.judge_error(journal, event, where)

    def judge_error(
        self, journal: Journal, event: ev.AttemptFailed | ev.TaskFailed, where: str
    ) -> None:
        """Check which attempts are charged for a failure."""
        state = journal.state
        key = (state.incarnation, event.task, state.epoch, event.attempt)
        name = event.error.type_name
        self.world.seen["timeouts"] += name == "TaskTimeoutError"
        if isinstance(event, ev.AttemptFailed) and not event.charged:
            return
        if name in DEATHS:
            if key not in self.world.suspects:
                raise Violation("innocent", f"{where}: charged for a death of another's: {name}")
        elif name == NODE_DEATH:
            # Charged to nobody; but what must not run again may have run there.
            if state.tasks[event.task].options.max_retries != 0:
                raise Violation("innocent", f"{where}: charged for a node that ended")
        elif name not in OURS and name != self.world.raised.get(key):
            message = event.error.message[:300]
            raise Violation("innocent", f"{where}: {name}: {message}, and it did not raise that")

    def maker_of(self, state: WorkflowState, event: ev.TaskSucceeded | ev.TaskContinued) -> str:
        if isinstance(event, ev.TaskContinued):
            return ""
        value = event.value
        if isinstance(value.data, Blob) and not value.data.stored:
            return ""
        return work.maker(work.read_back(self.world.storage, state.incarnation, Outcome(value)))

    def raiser_of(self, event: ev.AttemptFailed | ev.TaskFailed) -> str:
        return ""

    # -- runs ------------------------------------------------------------------------------

    def begins(self, execution: Execution, inputs: tuple[Any, ...]) -> None:
        """A task's function is called, by a worker of a coordinator."""
        request = execution.request
        journal = self.journals.get(request.incarnation)
        if journal is None:
            raise Violation("start", f"{execution.name} runs, and its workflow is not there")
        known = self.world.known(execution.process.life_name, request.incarnation)
        done = journal.done.get(request.task)
        epoch = self.epochs.get((request.incarnation, request.task), 0)
        # What is left of an earlier epoch is being stopped, and nothing of it can be committed.
        if done is not None and done <= known and request.epoch >= epoch:
            raise Violation(
                "ran again", f"{execution.name} runs, and {request.task_id} is done in entry {done}"
            )
        self.judge_token(execution)
        self.judge_inputs(execution, inputs)

    def judge_token(self, execution: Execution) -> None:
        """A fencing token grows with each execution of its task. What a worker begins late, when a
        later attempt has begun elsewhere, has a smaller token than that one."""
        request, token = execution.request, execution.task.epoch
        begun = self.begun.setdefault((request.incarnation, request.task), [])
        for earlier in begun:
            other, given = earlier.request, earlier.task.epoch
            is_late = (request.epoch, request.attempt) < (other.epoch, other.attempt)
            if not (token < given if is_late else given < token):
                raise Violation(
                    "token", f"{execution.name} begins with {token}, {earlier.name} had {given}"
                )
        self.judge_last_end(execution, begun)
        begun.append(execution)

    def judge_last_end(self, execution: Execution, begun: list[Execution]) -> None:
        """An attempt that began before is told that its worker died, or its node. One that was with
        no worker that died is told what the journal says of the attempt before it."""
        world, request, told = self.world, execution.request, execution.task.last_end
        state = self.journals[request.incarnation].state
        task = state.tasks[request.task]
        earlier = [each for each in begun if each.key == execution.key]
        if world.is_replaced(execution.process.life_name):
            return  # Workers report to the other one.
        if earlier:
            if earlier[-1].stops < world.stops[request.incarnation]:
                return  # It may have been stopped. A fused attempt then keeps its number.
            expected = "crashed" if earlier[-1].process.node_was_alive else "preempted"
            world.seen["attempts that began before"] += 1
        elif execution.key in world.died_with:
            return  # It may have begun, for all that its coordinator knows.
        elif (request.epoch, request.attempt) == (state.epoch, task.attempts + 1):
            expected = task.last_end
        else:
            return  # The journal says what became of this one.
        if (told or "") != expected:
            raise Violation("last end", f"{execution.name} begins after {told!r}, not {expected!r}")

    def judge_inputs(self, execution: Execution, inputs: tuple[Any, ...]) -> None:
        """What it was given is what is stored."""
        request = execution.request
        for given, outcome in zip(inputs, request.inputs, strict=True):
            if outcome.error is not None or not outcome.stored:
                continue
            try:
                stored = work.read_back(self.world.storage, request.incarnation, outcome)
            except Exception:
                continue  # It was deleted meanwhile.
            if stored != given:
                raise Violation(
                    "live is stored",
                    f"{execution.name} was given {str(given)[:150]}, stored is {str(stored)[:150]}",
                )
