"""Clients: each owns one workflow id, asks for things, and knows what must come of it."""

from __future__ import annotations

import queue
from collections.abc import Callable, Generator
from random import Random
from typing import TYPE_CHECKING, Any

import msgspec

from ray_workflows._coordinator.deletion import Deletion
from ray_workflows._coordinator.liveness import Liveness
from ray_workflows._coordinator.loop import Loop
from ray_workflows._coordinator.requests import Reply, Watched, WatchRequest
from ray_workflows._model import messages as msg
from ray_workflows._model.answers import Accepted, Finished, Received
from ray_workflows._model.catalog import CatalogRow
from ray_workflows._model.status import WorkflowStatus
from ray_workflows._model.values import Value
from ray_workflows.exceptions import (
    SignalRefusedError,
    SignalTimeoutError,
    StorageCorruptError,
    StorageUnavailableError,
    WorkflowAlreadyRunningError,
    WorkflowNotFoundError,
    WorkflowNotResumableError,
    WorkflowStillActiveError,
)
from tests.simulation import scripts, shapes
from tests.simulation.monitor import Journal
from tests.simulation.oracle import signals_for
from tests.simulation.violations import Violation

if TYPE_CHECKING:
    from tests.simulation.world import Cluster, World

Story = Generator[Any, Any, None]

ACTIVE = WorkflowStatus.non_terminating_status()

#: Answers that say nothing about the workflow.
TROUBLE = (StorageUnavailableError, StorageCorruptError, queue.Full)


class Pause(msgspec.Struct):
    """A client waits."""

    seconds: float


class Put:
    """A client asks a coordinator. ``patient``: it gives up after a while. ``submits``: whose
    workflow it submits."""

    def __init__(
        self,
        cluster: Cluster,
        what: str,
        ask: Callable[[Loop, Reply], None],
        judge: Callable[[Any], None],
        *,
        patient: bool = False,
        submits: Client | None = None,
    ) -> None:
        self.cluster = cluster
        self.what = what
        self.ask = ask
        self.judge = judge
        self.patient = patient
        self.submits = submits


class Client:
    """Runs one workflow through its story and checks every answer."""

    def __init__(self, world: World, workflow_id: str) -> None:
        self.world = world
        self.rng: Random = world.rng
        self.workflow_id = workflow_id
        self.home = world.rng.choice(world.clusters)
        self.finished = False
        self.deletions = 0
        #: A request was not answered: it may still take effect.
        self.uncertain = False
        #: What became of it, when it had become what it should.
        self.final: CatalogRow | None = None
        self.kind = world.rng.choice(
            ("plain", "plain", "cancel", "cancel and resume", "again", "delete")
        )
        self.draw_workflow()

    def draw_workflow(self) -> None:
        """What is submitted next under this id."""
        self.endless = self.kind == "cancel" and self.rng.random() < 0.5
        drawn = shapes.draw_endless(self.rng) if self.endless else self.world.draw_plan()
        self.plan = self.world.submitted(drawn)
        self.expected = self.world.expect(drawn)
        # One that ran into it is resumed, and has the whole time again.
        self.timeout = self.rng.choice([*(None,) * 9, 60.0]) if self.kind != "cancel" else None
        self.incarnation = f"{self.workflow_id}-{self.world.number()}"
        self.request_id = f"request-{self.world.number()}"
        #: Its signals: names by ids. Nobody waits for the last ones.
        names = [*signals_for(drawn), *["spare"] * self.rng.choice([0, 0, 1, 2])]
        self.signals = {f"signal-{self.world.number()}": name for name in names}

    def describe(self) -> str:
        row = self.world.storage.read_catalog(self.workflow_id)
        what = f"{row.status} seq {row.seq} held by {row.holder}" if row else "not there"
        return f"{self.workflow_id} is {what} (released={row and row.released})"

    # -- stories ---------------------------------------------------------------------------

    def story(self) -> Story:
        rng = self.rng
        yield Pause(rng.choice([0.0, 1.0, 10.0]) * rng.random())
        kind = self.kind
        yield from self.submit(patient=kind != "delete")
        for _ in range(rng.choice([0, 0, 1, 3])):
            yield Pause(rng.choice([0.1, 1.0, 6.0]) * rng.random())
            # Resumed by a request that comes late, an endless one would keep others waiting.
            asks = () if self.endless else (self.resume, self.submit_again)
            yield from rng.choice((self.watch, self.watch, *asks))()
        if kind in ("cancel", "cancel and resume"):
            yield Pause(rng.choice([0.0, 1.0, 8.0]) * rng.random())
            yield from self.cancel()
            if kind == "cancel":
                yield from self.await_cancellation()
                self.finish()
                return
            yield Pause(rng.choice([0.0, 3.0]) * rng.random())
        elif kind == "delete":
            if rng.random() < 0.7:
                yield from self.see_it_through()
            yield from self.delete()
            self.draw_workflow()
            yield from self.submit(patient=False)
        yield from self.see_it_through()
        if kind == "again":
            yield from self.submit_again()
            yield from self.see_it_through()
        self.finish()

    def finish(self) -> None:
        self.finished = True
        self.final = self.world.storage.read_catalog(self.workflow_id)

    def see_it_through(self) -> Story:
        """Until it has ended as it must; resumes it only where that is a user's to do."""
        while True:
            yield Pause(0.4 + 0.6 * self.rng.random())
            row = self.world.storage.read_catalog(self.workflow_id)
            if row is None:
                raise Violation("durable", f"{self.workflow_id} is gone")
            journal = self.world.monitor.journals[row.incarnation]
            if row.status is WorkflowStatus.SUCCESSFUL:
                self.check_output(journal)
                return
            if row.status is WorkflowStatus.FAILED:
                if self.check_failure(journal):
                    return
                yield from self.resume()
            elif row.status is WorkflowStatus.CANCELED or self.needs_a_user(row):
                yield from self.resume()

    def await_cancellation(self) -> Story:
        while True:
            yield Pause(0.4 + 0.6 * self.rng.random())
            row = self.world.storage.read_catalog(self.workflow_id)
            if row is None:
                raise Violation("durable", f"{self.workflow_id} is gone")
            if row.status is WorkflowStatus.CANCELED:
                return
            if row.status not in ACTIVE:
                raise Violation("cancel", f"{self.workflow_id} was canceled, and is {row.status}")
            if self.needs_a_user(row):
                yield from self.cancel()

    def needs_a_user(self, row: CatalogRow) -> bool:
        """Whether it is RESUMABLE, and no coordinator goes on with it by itself."""
        world = self.world
        claims = Liveness(world.storage.read_holders(), world.clock.now, probe=world.probe)
        if claims.status(row) is not WorkflowStatus.RESUMABLE:
            return False
        if row.released:
            return True
        if world.auto_resume and world.calm:
            lives = [life for life in world.lives if life.exists and life.cluster.life is life]
            return any(row.incarnation in life.orphans.unreadable for life in lives)
        holder = next(life for life in world.lives if life.name == row.holder)
        if holder.cluster.lost or holder.replaced:
            # What a life does after it was replaced is not looked for by its successors.
            return True
        return not world.calm and self.rng.random() < 0.3

    # -- verbs -----------------------------------------------------------------------------

    def asking(self, input: msg.Asked) -> Callable[[Loop, Reply], None]:
        """What asks a coordinator about the workflow."""
        return lambda loop, reply: loop.ask(self.workflow_id, input, reply)

    def anywhere(self) -> Cluster:
        """A cluster to ask: mostly one's own, unless it is lost."""
        clusters = [cluster for cluster in self.world.clusters if not cluster.lost]
        if self.home in clusters and self.rng.random() < 0.6:
            return self.home
        return self.rng.choice(clusters)

    def submit(self, patient: bool) -> Story:
        """Until it is acknowledged, by repeating the same request."""
        # Whether an earlier one may have had an effect that it did not tell.
        cluster = self.anywhere()
        while True:
            if cluster.lost or self.rng.random() < 0.1:
                cluster = self.anywhere()
            answer = yield Put(
                cluster,
                f"submit {self.workflow_id}",
                self.asking(
                    msg.Submit(
                        self.plan,
                        {"client": self.workflow_id},
                        self.incarnation,
                        self.request_id,
                        self.timeout,
                    )
                ),
                self.judge_submit,
                patient=patient,
                submits=self,
            )
            if isinstance(answer, (Accepted, Finished)):
                break
            yield Pause(self.rng.choice([0.02, 0.5, 2.0]) * self.rng.random())
        for signal_id in self.signals:
            self.send_signal(Signal(self, signal_id))
        self.world.accepted(self)

    def judge_submit(self, answer: Any) -> None:
        if isinstance(answer, TROUBLE):
            return
        if isinstance(answer, Finished):
            # The same request, asked again when everything was over.
            self.check_there(answer.incarnation)
        elif self.deletions and isinstance(answer, WorkflowAlreadyRunningError):
            return  # A paused holder of the deleted workflow does not know of the deletion yet.
        elif isinstance(answer, Accepted) and answer.created:
            self.check_there(answer.incarnation)
            state = self.journal.state
            if answer.incarnation != self.incarnation or state.request_id != self.request_id:
                self.fail("replies", f"submit of {self.workflow_id} answered {answer}")
        else:
            self.fail("replies", f"submit of {self.workflow_id} answered {answer!r}")

    def submit_again(self) -> Story:
        """The same id, by somebody who does not know that it is in use."""
        plan = self.plan
        if self.rng.random() >= 0.5:
            plan = self.world.submitted(self.world.draw_plan())
        request_id = f"request-{self.world.number()}"
        incarnation = f"{self.workflow_id}-{self.world.number()}"
        same = plan.digest == self.plan.digest
        answer = yield Put(
            self.anywhere(),
            f"submit {self.workflow_id} again",
            self.asking(msg.Submit(plan, {}, incarnation, request_id)),
            lambda answer: self.judge_again(answer, same),
        )
        self.uncertain = self.uncertain or isinstance(answer, str)

    def judge_again(self, answer: Any, same: bool) -> None:
        if isinstance(answer, (Accepted, Finished)):
            if answer.same_plan != same or (isinstance(answer, Accepted) and answer.created):
                self.fail("replies", f"second submit of {self.workflow_id}: {answer}")
        else:
            self.judge_resume(answer)

    def send_signal(self, signal: Signal) -> None:
        """At some time, and sometimes twice."""
        for _ in range(self.rng.choice([1, 1, 1, 2])):
            pause = self.rng.choice([0.0, 1.0, 10.0]) * self.rng.random()
            self.world.clock.after(pause, signal.send)

    def resume(self) -> Story:
        canceled = self.rng.random() < 0.9
        request_id = f"request-{self.world.number()}"
        cluster = self.anywhere()
        for _ in range(3):
            if cluster.lost:
                # Ray asks again where it has asked; elsewhere it is another call of somebody's.
                cluster = self.anywhere()
                request_id = f"request-{self.world.number()}"
            known = self.journal.state.resume_id == request_id
            answer = yield Put(
                cluster,
                f"resume {self.workflow_id}",
                self.asking(msg.Resume(request_id, canceled)),
                self.judge_repeated if known else self.judge_resume,
            )
            if not isinstance(answer, str):
                break
        self.uncertain = self.uncertain or isinstance(answer, str)

    def judge_repeated(self, answer: Any) -> None:
        """Of a request that has resumed it, and was not answered."""
        if isinstance(answer, WorkflowAlreadyRunningError):
            self.fail("replies", f"resume of {self.workflow_id}, repeated, answered {answer!r}")
        self.judge_resume(answer)

    def judge_resume(self, answer: Any) -> None:
        usual = (WorkflowAlreadyRunningError, WorkflowNotResumableError)
        if isinstance(answer, (*TROUBLE, *usual)):
            return
        if isinstance(answer, Accepted):
            self.check_there(answer.incarnation)
            state = self.journal.state
            # One that is taken up again with a wish to cancel in its journal ends by that.
            if state.status is WorkflowStatus.CANCELED and not state.cancel_requested:
                self.fail("replies", f"{self.workflow_id} was resumed and is canceled")
        elif isinstance(answer, Finished):
            # It may have been canceled since.
            if self.world.monitor.journals[answer.incarnation].state.output is None:
                self.fail("one truth", f"{self.workflow_id} is finished and has no output")
        else:
            self.fail("replies", f"resume of {self.workflow_id} answered {answer!r}")

    def cancel(self) -> Story:
        while True:
            answer = yield Put(
                self.anywhere(),
                f"cancel {self.workflow_id}",
                self.asking(msg.Cancel()),
                self.judge_cancel,
            )
            if answer is None:
                return
            yield Pause(self.rng.random())

    def judge_cancel(self, answer: Any) -> None:
        if isinstance(answer, TROUBLE):
            return
        if answer is not None:
            self.fail("replies", f"cancel of {self.workflow_id} answered {answer!r}")
        elif not self.journal.cancel_noted:
            self.fail("durable", f"cancel of {self.workflow_id} was acknowledged, not stored")

    def delete(self) -> Story:
        monitor = self.world.monitor
        tried = False
        while True:
            monitor.deletable.add(self.workflow_id)
            answer = yield Put(
                self.anywhere(),
                f"delete {self.workflow_id}",
                lambda loop, reply: Deletion(loop, self.workflow_id, "", reply).begin(),
                lambda answer: self.judge_delete(answer, tried),
            )
            if answer is None or (tried and isinstance(answer, WorkflowNotFoundError)):
                break
            tried = True
            if isinstance(answer, WorkflowStillActiveError):
                yield from self.cancel()
            yield Pause(self.rng.random())
        monitor.deletable.discard(self.workflow_id)
        self.deletions += 1

    def judge_delete(self, answer: Any, tried: bool) -> None:
        usual = (*TROUBLE, WorkflowStillActiveError)
        if isinstance(answer, usual) or (tried and isinstance(answer, WorkflowNotFoundError)):
            return
        if answer is not None:
            self.fail("replies", f"delete of {self.workflow_id} answered {answer!r}")
        elif self.world.storage.read_catalog(self.workflow_id) is not None:
            self.fail("durable", f"{self.workflow_id} was deleted, and is there")

    def watch(self) -> Story:
        """Answered at some time; nobody waits for it here."""
        row = self.world.storage.read_catalog(self.workflow_id)
        after = row.seq if row is not None and self.rng.random() < 0.5 else None
        put = Put(
            self.anywhere(),
            f"watch {self.workflow_id} after {after}",
            lambda loop, reply: loop.watchers.add(WatchRequest(self.workflow_id, reply, after)),
            self.judge_watch,
        )
        self.world.put(put, lambda answer: None)
        yield Pause(0.0)

    def judge_watch(self, answer: Any) -> None:
        if not isinstance(answer, Watched):
            self.fail("replies", f"watch of {self.workflow_id} answered {answer!r}")

    # -- checks ----------------------------------------------------------------------------

    @property
    def journal(self) -> Journal:
        """The journal of the workflow as it should be there."""
        journal = self.world.monitor.journals.get(self.incarnation)
        if journal is None:
            raise Violation("durable", f"{self.workflow_id} is not there")
        return journal

    def fail(self, kind: str, message: str) -> None:
        # Raising alone would not do: `answer` swallows what a reply raises.
        self.world.fail(Violation(kind, message))

    def check_there(self, incarnation: str) -> None:
        journal = self.world.monitor.journals.get(incarnation)
        if journal is None or journal.deleted or journal.seq == 0:
            self.fail("durable", f"{self.workflow_id} was acknowledged, and is not stored")

    def check_output(self, journal: Journal) -> None:
        outcome = journal.state.output
        assert outcome is not None
        output = self.world.seen_as(self.incarnation, outcome)
        if output != self.expected.output:
            raise Violation(
                "output", f"{self.workflow_id} ended with {output}, not {self.expected.output}"
            )

    def check_failure(self, journal: Journal) -> bool:
        """Whether it failed as it must; False if a worker's death failed it."""
        error = journal.state.error
        assert error is not None
        culprit = error.message
        if error.type_name == SignalTimeoutError.__name__:
            culprit = scripts.NEVER if f"'{scripts.NEVER}'" in error.message else error.message
        else:
            found = self.world.script_of(error)
            if found is None:
                return False
            culprit = found
        if culprit not in self.expected.culprits:
            raise Violation(
                "output", f"{self.workflow_id} failed with {error}, expected {self.expected}"
            )
        return True

    def check_end(self) -> None:
        """What was settled stayed so."""
        row = self.world.storage.read_catalog(self.workflow_id)
        if self.uncertain:
            return
        if row is None or self.final is None or row.status != self.final.status:
            raise Violation("settled", f"{self.workflow_id} was {self.final}, and is {row}")


class Signal:
    """One signal of a client, sent until it is acknowledged, and sometimes after that."""

    def __init__(self, client: Client, signal_id: str) -> None:
        self.client = client
        self.world = client.world
        self.incarnation = client.incarnation
        self.signal_id = signal_id
        self.name = client.signals[signal_id]
        data = self.world.pack(scripts.signal_value(self.name), signal_id)
        self.value = Value(data)
        if self.world.rng.random() < 0.15:
            blob = self.world.storage.write_blob(self.incarnation, signal_id, [data])
            self.value = Value(blob)

    def send(self) -> None:
        client = self.client
        if client.finished or client.incarnation != self.incarnation:
            return
        put = Put(
            client.anywhere(),
            f"signal {self.signal_id} to {client.workflow_id}",
            client.asking(msg.Signal(self.name, self.signal_id, self.value, self.incarnation)),
            self.judge,
            patient=True,
        )
        self.world.put(put, self.then)

    def judge(self, answer: Any) -> None:
        client = self.client
        journal = self.world.monitor.journals.get(self.incarnation)
        if isinstance(answer, TROUBLE):
            return
        if isinstance(answer, WorkflowNotFoundError):
            # A paused holder of the deleted workflow does not know of the new one yet.
            if (journal is None or not journal.deleted) and not client.deletions:
                client.fail("replies", f"{self.signal_id}: {answer!r}")
        elif isinstance(answer, SignalRefusedError):
            done = journal is not None and journal.state.status is WorkflowStatus.SUCCESSFUL
            if journal is None or not (done or journal.cancel_noted):
                client.fail("replies", f"{self.signal_id}: {answer!r}")
            elif not journal.cancel_noted and self.signal_id in journal.received.get(self.name, ()):
                client.fail("replies", f"{self.signal_id} is stored, and was refused")
        elif not isinstance(answer, Received):
            client.fail("replies", f"{self.signal_id} was answered by {answer!r}")
        elif journal is None or self.signal_id not in journal.received.get(self.name, ()):
            client.fail("durable", f"{self.signal_id} was acknowledged, and is not stored")

    def then(self, answer: Any) -> None:
        rng = self.world.rng
        if not isinstance(answer, Received) or rng.random() < 0.2:
            self.world.clock.after(rng.choice([0.02, 1.0, 5.0]) * rng.random(), self.send)


def draw_clients(world: World) -> list[Client]:
    count = world.rng.choice([1, 1, 2, 3, 5])
    if world.crowded:
        count = 5
    return [Client(world, f"wf{index}") for index in range(count)]
