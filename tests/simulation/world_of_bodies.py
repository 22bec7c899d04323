"""A world whose workflows are durable functions, alone and among other tasks."""

from __future__ import annotations

from collections import Counter
from typing import Any

from ray_workflows._engine.state import Body, Phase, WorkflowState
from ray_workflows._executor.protocol import AttemptRequest
from ray_workflows._model import events as ev
from ray_workflows._model.plan import BODY, Plan
from ray_workflows._model.values import Blob, ErrorInfo, Value
from tests.simulation import scripts
from tests.simulation.body_shapes import draw_body_plan
from tests.simulation.laws import MonitorOfWorkers
from tests.simulation.life import Life
from tests.simulation.monitor import Journal, Monitor
from tests.simulation.violations import Violation
from tests.simulation.world import World
from tests.simulation.world_of_workers import WorldOfWorkers

#: The task that has steps, and its workflow.
Key = tuple[str, int]


class MonitorOfBodies(Monitor):
    """Knows the steps of bodies from the journal's events."""

    def __init__(self, seen: Counter[str]) -> None:
        super().__init__()
        #: What has happened at all.
        self.seen = seen
        #: By body, the paths of steps that were asked for and not discarded since.
        self.asked: dict[Key, set[str]] = {}
        #: By body, the most outcomes that it has had.
        self.most: dict[Key, int] = {}

    def look(self, journal: Journal) -> None:
        """Note what has become of bodies since the event before."""
        incarnation = journal.state.incarnation
        for number, body in journal.state.bodies.items():
            key = (incarnation, number)
            # What was discarded may be asked for again.
            self.asked[key] = {path for path, record in body.steps.items() if not record.again}
            if len(body.outcomes) > self.most.get(key, 0):
                # It goes on, and has a new budget.
                self.most[key] = len(body.outcomes)
                journal.charged.pop(number, None)

    def judge(self, journal: Journal, event: Any, holder_id: str, where: str) -> None:
        self.look(journal)
        super().judge(journal, event, holder_id, where)
        state = journal.state
        if isinstance(event, ev.StepsAsked):
            self.judge_names(journal, event.plan, event.task_ids, where)
            journal.names.update(enumerate(event.task_ids, event.first))
            self.judge_steps(state, event, holder_id, where)
        elif isinstance(event, ev.StepsEnded):
            self.judge_local(state, event, holder_id, where)
        elif isinstance(event, ev.AttemptSuspended):
            self.judge_maker(state, event, "", holder_id, where)
            body = state.bodies.get(event.task)
            missed = body is not None and len(body.outcomes) > event.taken
            self.seen["outcomes that a suspended attempt had not"] += missed
            self.seen["suspended attempts"] += 1
        elif isinstance(event, (ev.AttemptFailed, ev.TaskFailed)) and event.step:
            self.seen["errors of steps"] += 1
        elif isinstance(event, ev.WorkflowClaimed):
            self.seen["bodies taken over"] += bool(state.bodies)

    def judge_steps(
        self, state: WorkflowState, event: ev.StepsAsked, holder_id: str, where: str
    ) -> None:
        """A step is asked for once, unless it was discarded."""
        self.judge_maker(state, event, "", holder_id, where)
        asked = self.asked.setdefault((state.incarnation, event.task), set())
        for path in [step.path for step in event.opened] + [each.step.path for each in event.marks]:
            if path in asked:
                raise Violation("commit once", f"{where}: step {path} was asked for before")
            asked.add(path)
        self.seen["canceled steps"] += len(event.canceled)
        body = state.bodies.get(event.task)
        if body is not None:
            ended = {each.path for each in body.outcomes}
            again = [step for step in event.opened if step.path in body.steps]
            self.seen["steps that are asked for again"] += len(again)
            self.seen["steps that had ended when they were canceled"] += sum(
                each.path in ended for each in event.canceled
            )
        self.seen["bodies in bodies"] += any(each.kind == BODY for each in event.plan.options)

    def judge_local(
        self, state: WorkflowState, event: ev.StepsEnded, holder_id: str, where: str
    ) -> None:
        """A local step ends once, in the current attempt."""
        asked = self.asked.setdefault((state.incarnation, event.task), set())
        for ended in event.ended:
            if ended.step.path in asked:
                raise Violation("commit once", f"{where}: step {ended.step.path} had ended")
            asked.add(ended.step.path)
            value = ended.outcome.value
            if value is None:
                assert ended.outcome.error is not None
                made_by = self.maker_of_error(ended.outcome.error)
            else:
                made_by = self.maker_of_local(value)
            self.judge_maker(state, event, made_by, holder_id, where)

    def maker_of_local(self, value: Value) -> str:
        """The attempt that made the value of a local step."""
        data = value.data
        return data.key if isinstance(data, Blob) else scripts.maker(data)

    def maker_of_error(self, error: ErrorInfo) -> str:
        """The attempt that made the error of a local step."""
        return error.traceback

    def body_of(self, request: AttemptRequest) -> Body | None:
        """What the journal has of a body, if it has more than nothing and the attempt is the
        current one."""
        journal = self.journals.get(request.incarnation)
        if journal is None or journal.deleted:
            return None
        state = journal.state
        task = state.tasks.get(request.task)
        if task is None or task.phase is not Phase.ACTIVE:
            return None
        if (state.epoch, task.attempts + 1) != (request.epoch, request.attempt):
            return None
        return state.bodies.get(request.task)

    def local_begins(self, request: AttemptRequest, path: str) -> None:
        """A local step runs: it has no outcome yet."""
        body = self.body_of(request)
        record = None if body is None else body.steps.get(path)
        if record is not None and not record.again:
            raise Violation("ran again", f"{request.where}: step {path} runs, and has its outcome")


class WorldOfBodies(World):
    """See the module."""

    monitor: MonitorOfBodies

    def new_monitor(self) -> MonitorOfBodies:
        #: What has happened at all, so that a test can say that it does.
        self.seen: Counter[str] = Counter()
        #: Before the trouble ends: then it is not known that there was any.
        self.undisturbed = self.faults.undisturbed
        return MonitorOfBodies(self.seen)

    def draw_plan(self) -> Plan:
        return draw_body_plan(self.rng)

    def died(self, life: Life) -> None:
        life.executor.close()

    def close(self) -> None:
        for life in self.lives:
            life.executor.close()


class MonitorOfHosts(MonitorOfBodies, MonitorOfWorkers):
    """The laws of both."""

    def __init__(self, world: WorldOfHosts) -> None:
        MonitorOfWorkers.__init__(self, world)
        self.seen = world.seen
        self.asked = {}
        self.most = {}

    def maker_of_local(self, value: Value) -> str:
        return ""

    def maker_of_error(self, error: ErrorInfo) -> str:
        return ""


class WorldOfHosts(WorldOfWorkers):
    """A world of bodies with real executors, and the real hosts of bodies."""

    def __init__(self, seed: int, **options: Any) -> None:
        # Errors that are hard to bring home end bodies in other ways than scripts say.
        options["trouble"] = {"poison": 0.0, **(options.get("trouble") or {})}
        super().__init__(seed, **options)

    def new_monitor(self) -> MonitorOfHosts:
        return MonitorOfHosts(self)

    def draw_plan(self) -> Plan:
        return draw_body_plan(self.rng)
