"""Messages whose targets can't take them: how often they are sent, and that others go on."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from ray_workflows._codec.journal import encode_plan
from ray_workflows._coordinator.outbox import LONGEST_PAUSE, LOOK_SECONDS
from ray_workflows._coordinator.requests import Reply, Submission
from ray_workflows._model import messages as msg
from ray_workflows._model.outbox import OutboxMessage
from ray_workflows._model.status import WorkflowStatus
from ray_workflows._model.values import Value
from ray_workflows.exceptions import StorageUnavailableError
from ray_workflows.storage.base import CommitOutcome
from ray_workflows.storage.memory import MemoryStorage
from tests.unit.coordinator.test_failover import Coordinator, World
from tests.unit.plans import plan

RUNNING, SUCCESSFUL = WorkflowStatus.RUNNING, WorkflowStatus.SUCCESSFUL

#: What fails while a storage is away: all that a coordinator needs of it.
NEEDED = ("commit", "read_catalog", "read_holders", "renew_holder", "list_catalog", "read_journal")


#: Attempts to commit, of 0.05 s each, that take half of 400 s.
MOST = 4_000


class Storage(MemoryStorage):
    """All of it is away, or not."""

    gone = False

    def __getattribute__(self, name: str) -> Any:
        if name in NEEDED and self.gone:
            raise StorageUnavailableError("away")
        return super().__getattribute__(name)


class Senders:
    """A coordinator, and workflows that send."""

    def __init__(self) -> None:
        self.world = World()
        self.storage = Storage(clock=self.world.clock)
        self.world.storage = self.storage  # type: ignore[assignment]
        self.coordinator = Coordinator(self.world, "c", auto_resume=False)
        self.deliveries = self.coordinator.loop.deliveries
        #: The targets that were asked, each time.
        self.asked: list[str] = []
        ask = self.deliveries.ask

        def note(target: str, message: msg.Asked, reply: Reply, until: float) -> None:
            self.asked.append(target)
            ask(target, message, reply, until)

        self.deliveries.ask = note

    def send(self, sender: str, *targets: str) -> None:
        """A workflow sends a message to each target, and ends when they are delivered."""
        self.coordinator.submit(sender)
        messages = tuple(self.message(sender, n, target) for n, target in enumerate(targets))
        report = msg.AttemptReturned(0, 0, 1, 0.0, 1.0, value=Value(b"v"), messages=messages)
        self.coordinator.loop.report(f"i-{sender}", [report])
        self.coordinator.step()

    def message(self, sender: str, number: int, target: str) -> OutboxMessage:
        message_id = f"{sender}-{number}"
        raw = msgspec.Raw(encode_plan(plan(("child", ()))))
        submission = Submission(target, f"of-{message_id}", raw, {}, None, message_id)
        return OutboxMessage(message_id, target, Value(msgspec.msgpack.encode(submission)))

    def damage(self, workflow_id: str) -> Any:
        """A workflow is there that can't be read; what mends it."""
        self.coordinator.submit(workflow_id)
        self.coordinator.loop.drop(self.coordinator.loop.active[workflow_id])
        journal = self.storage.journals.home.journals[f"i-{workflow_id}"]
        whole = journal[0]
        journal[0] = msgspec.structs.replace(whole, entry=b"damaged")

        def mend() -> None:
            journal[0] = whole

        return mend

    def status(self, workflow_id: str) -> WorkflowStatus:
        row = self.storage.read_catalog(workflow_id)
        return WorkflowStatus.NONE if row is None else row.status


@pytest.fixture
def senders() -> Senders:
    return Senders()


def test_a_damaged_target_is_asked_ever_less_often(senders: Senders) -> None:
    mend = senders.damage("damaged")
    for number in range(20):
        senders.send(f"s{number}", "damaged")
    senders.asked.clear()
    senders.world.pass_time(600.0)
    # After 1, 2, 4, ... 60 s: not 20 times a second.
    assert 600.0 / LONGEST_PAUSE <= len(senders.asked) <= 600.0 / LONGEST_PAUSE + 8
    assert all(senders.status(f"s{number}") is RUNNING for number in range(20))
    mend()
    senders.world.pass_time(LONGEST_PAUSE + LOOK_SECONDS)
    # The id is in use: that is an answer.
    assert all(senders.status(f"s{number}") is SUCCESSFUL for number in range(20))
    assert (senders.deliveries.under_way, senders.deliveries.blocked) == (set(), {})


def test_the_log_names_the_sender_the_target_and_the_reason(
    senders: Senders, caplog: pytest.LogCaptureFixture
) -> None:
    """The task has returned the id, and its workflow ends as if all were well."""
    senders.send("parent", "child")
    senders.world.pass_time(1.0)
    assert caplog.messages == []
    senders.coordinator.submit("in-use")
    senders.damage("damaged")
    senders.send("another", "in-use", "damaged")
    senders.world.pass_time(0.5)
    refused, waits = caplog.messages
    assert "Workflow 'another' has not started workflow 'in-use', and will not: " in refused
    assert "already" in refused
    assert "Workflow 'another' can't start workflow 'damaged' yet; again in 1 s: " in waits


def test_others_go_on_beside_a_damaged_target(senders: Senders) -> None:
    senders.damage("damaged")
    senders.send("first", "damaged", "early")
    senders.world.pass_time(100.0)
    senders.send("second", "late", "damaged")
    senders.world.pass_time(1.0)
    assert [senders.status(each) for each in ("early", "late")] == [RUNNING, RUNNING]
    assert [senders.status(each) for each in ("first", "second")] == [RUNNING, RUNNING]


def test_while_the_storage_is_away_no_target_is_asked_and_soon_afterwards_all(
    senders: Senders,
) -> None:
    loop = senders.coordinator.loop
    names = [f"s{number}" for number in range(50)]
    senders.coordinator.submit(*names)
    senders.storage.gone = True
    senders.world.pass_time(10.0)
    assert loop.store.error is not None
    for name in names:
        message = senders.message(name, 0, f"child-of-{name}")
        senders.deliveries.deliver(loop.active[name], message)
    senders.world.pass_time(300.0)
    assert len(senders.asked) == 50
    senders.storage.gone = False
    senders.world.pass_time(5.0)
    assert {senders.status(f"child-of-{name}") for name in names} == {RUNNING}
    assert len(senders.asked) == 100


def test_what_others_drive_is_let_go_of(senders: Senders) -> None:
    senders.damage("damaged")
    senders.send("sender", "damaged")
    loop = senders.coordinator.loop
    assert senders.deliveries.under_way == {("i-sender", "sender-0")}
    loop.drop(loop.active["sender"])
    senders.world.pass_time(2.0)
    assert senders.deliveries.under_way == set() == set(senders.deliveries.blocked)


def test_a_target_that_a_storage_refuses_for_hours_is_not_asked_without_end(
    senders: Senders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As object stores do with an incarnation that was deleted: each attempt to create it finds
    that the id is taken, and nothing is there."""
    commits: list[float] = []
    commit = senders.storage.journals.commit

    def refuse(appends: Any) -> Any:
        appends = list(appends)
        if any(append.workflow_id == "deleted" for append in appends):
            commits.append(senders.world.clock.now)
            assert len(commits) < MOST
            senders.world.clock.now += 0.05  # It takes its time.
            return [CommitOutcome.STALE] * len(appends)
        return commit(appends)

    monkeypatch.setattr(senders.storage.journals, "commit", refuse)
    senders.send("sender", "deleted")
    senders.world.pass_time(400.0)
    assert senders.status("sender") is RUNNING
    assert 1 < len(commits) < MOST
    monkeypatch.setattr(senders.storage.journals, "commit", commit)
    senders.world.pass_time(LONGEST_PAUSE + LOOK_SECONDS)
    assert [senders.status(each) for each in ("sender", "deleted")] == [SUCCESSFUL, RUNNING]
