"""A world whose tasks start workflows: each exists if and only if the result of its task is
committed, and it is made once, also if somebody deletes it as soon as it has ended."""

from __future__ import annotations

import zlib
from random import Random
from typing import Any

import msgspec

from ray_workflows._codec.journal import encode_plan
from ray_workflows._coordinator.deletion import Deletion
from ray_workflows._coordinator.loop import Loop
from ray_workflows._coordinator.requests import Reply, Submission
from ray_workflows._executor.protocol import AttemptRequest
from ray_workflows._model import events as ev
from ray_workflows._model import messages as msg
from ray_workflows._model.outbox import OutboxMessage
from ray_workflows._model.plan import TaskOptions
from ray_workflows._model.status import WorkflowStatus
from ray_workflows._model.values import Value
from ray_workflows.exceptions import WorkflowStillActiveError
from tests.simulation.clients import TROUBLE
from tests.simulation.executor import SimulatedExecutor
from tests.simulation.life import Life, Ticket
from tests.simulation.monitor import Journal, Monitor
from tests.simulation.scripts import Script, build
from tests.simulation.violations import Violation
from tests.simulation.world import CRASHED, World

#: What may be answered to a deletion.
USUAL = (*TROUBLE, WorkflowStillActiveError)

#: How often somebody looks for something to delete, in seconds at most.
DELETE_SECONDS = 4.0

#: One message of this many goes to an id that others send to, too, and one is large.
SHARED, LARGE = 4, 3


def messages_of(request: AttemptRequest, maker: str, life: Life) -> tuple[OutboxMessage, ...]:
    """What the attempt of a task sends, as a worker makes it: of every second task."""
    message_id = f"{request.incarnation}-{request.task}-0"
    die = zlib.crc32(f"{request.workflow_id} {request.task_id}".encode())
    if die % 2 or not request.workflow_id.startswith("wf"):
        # What was started starts nothing: there has to be an end.
        return ()
    target = "shared" if die // 2 % SHARED == 0 else f"child-of-{message_id}"
    plan = build([(Script(f"child{die}"), TaskOptions(), ())])
    submission = Submission(
        target, f"{maker}-child", msgspec.Raw(encode_plan(plan)), {}, None, message_id
    )
    data = msgspec.msgpack.encode(submission)
    if die // 2 % LARGE:
        return (OutboxMessage(message_id, target, Value(data)),)
    blob = life.storage.write_blob(request.incarnation, f"{maker}-message", [data])
    return (OutboxMessage(message_id, target, Value(blob)),)


class ParentsExecutor(SimulatedExecutor):
    """Attempts that succeed start workflows."""

    def run_with_inputs(self, request: AttemptRequest, *arguments: Any) -> Any:
        messages = messages_of(request, self.maker(request), self.life)
        if messages and not request.checkpoint:
            # As in a worker: what has sent something is not made again.
            request = msgspec.structs.replace(request, checkpoint=True)
        report, objects = super().run_with_inputs(request, *arguments)
        if isinstance(report, (msg.AttemptReturned, msg.AttemptReturnedPlan)):
            report = msgspec.structs.replace(report, messages=messages)
        return report, objects


class MonitorOfParents(Monitor):
    """Knows which messages were committed, and what was made of them."""

    def __init__(self) -> None:
        super().__init__()
        #: By the ids of messages: the incarnation of the sender, and of what was started.
        self.sent: dict[str, str] = {}
        self.begun: dict[str, str] = {}

    def judge(self, journal: Journal, event: Any, holder_id: str, where: str) -> None:
        super().judge(journal, event, holder_id, where)
        if isinstance(event, (ev.TaskSucceeded, ev.TaskContinued)):
            for message in event.messages:
                if message.message_id in self.sent:
                    raise Violation("children", f"{where}: {message.message_id} is sent again")
                self.sent[message.message_id] = journal.state.incarnation
        elif isinstance(event, ev.WorkflowSubmitted) and event.parent:
            if event.request_id not in self.sent:
                raise Violation("children", f"{where}: nobody has started it")
            if event.request_id in self.begun:
                raise Violation("children", f"{where}: {event.request_id} was there")
            self.begun[event.request_id] = journal.state.incarnation
        elif isinstance(event, ev.Delivered):
            begun = event.message_id in self.begun
            if begun == (event.refusal is not None):
                raise Violation("children", f"{where}: begun is {begun}, {event.refusal}")

    def check_end(self) -> None:
        """All that was sent by workflows that have ended is there, or its id is in use."""
        for message_id, incarnation in self.sent.items():
            journal = self.journals[incarnation]
            ended = journal.state.status not in WorkflowStatus.non_terminating_status()
            refused = any(
                isinstance(event, ev.Delivered) and event.message_id == message_id and event.refusal
                for event in journal.events
            )
            if ended and message_id not in self.begun and not refused:
                raise Violation("children", f"{message_id} of {incarnation} was never begun")


class WorldOfParents(World):
    """See the module."""

    monitor: MonitorOfParents

    def live(self) -> None:
        self.deletions = Random(f"deletions {self.seed}")
        self.clock.after(self.deletions.random(), self.delete_some)
        super().live()

    def delete_some(self) -> None:
        """Delete a workflow that a task has started and that has ended, if there is one."""
        die = self.deletions
        if self.calm:
            return
        self.clock.after(DELETE_SECONDS * die.random(), self.delete_some)
        ended = [
            journal
            for journal in self.monitor.journals.values()
            if journal.state.parent
            and not journal.deleted
            and journal.state.status not in WorkflowStatus.non_terminating_status()
        ]
        life = die.choice(self.clusters).life
        if life is None or not ended:
            return
        state = die.choice(ended).state
        self.monitor.deletable.add(state.workflow_id)

        def ask(loop: Loop, reply: Reply) -> None:
            Deletion(loop, state.workflow_id, state.incarnation, reply).begin()

        def judge(answer: Any) -> None:
            self.trace("deletion of %s: %s", state.workflow_id, answer)
            if answer is not None and answer is not CRASHED and not isinstance(answer, USUAL):
                self.fail(Violation("replies", f"deletion of {state.workflow_id}: {answer!r}"))

        life.ask(Ticket(life, f"delete {state.workflow_id} #{self.number()}", judge), ask)

    def new_monitor(self) -> MonitorOfParents:
        return MonitorOfParents()

    def executor_for(self, life: Life) -> Any:
        return ParentsExecutor(self, life)

    def check_end(self) -> None:
        super().check_end()
        self.monitor.check_end()
