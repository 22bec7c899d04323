"""Events by HTTP: senders that may not agree on what an event says, and listeners.

Only some worlds have them, by dice of their own: what else a seed has stays as it was.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from ray_workflows._model import messages as msg
from ray_workflows._model.answers import OtherSignal, Received, TooManySignals
from ray_workflows._model.status import WorkflowStatus
from ray_workflows._model.values import Value
from ray_workflows.exceptions import SignalRefusedError, WorkflowNotFoundError
from tests.simulation import scripts
from tests.simulation.clients import TROUBLE, Client, Put
from tests.simulation.monitor import EVENT, Journal

#: Which part of the worlds has events.
PART = 0.15

#: A listener whose acknowledgement changes nothing so often, while nothing goes wrong, is stuck.
MAX_TRIES = 20

ENDED = (WorkflowStatus.SUCCESSFUL, WorkflowStatus.CANCELED)


def start_events(client: Client) -> None:
    """Begin with the events of a workflow that was accepted, if its world has any."""
    seed = client.world.seed
    if Random(f"events {seed}").random() >= PART:
        return
    rng = Random(f"events {seed} {client.incarnation}")
    for number in range(rng.choice([1, 1, 2])):
        Event(client, rng, f"{EVENT}{number}").start()


class Event:
    """One event: it is sent and waited for until the client is done with the workflow."""

    def __init__(self, client: Client, rng: Random, name: str) -> None:
        self.client = client
        self.world = client.world
        self.incarnation = client.incarnation
        self.rng = rng
        self.name = name
        self.tries = 0

    @property
    def journal(self) -> Journal | None:
        return self.world.monitor.journals.get(self.incarnation)

    @property
    def received(self) -> list[str]:
        """The ids that the journal has received under the name."""
        return [] if self.journal is None else self.journal.received.get(self.name, [])

    @property
    def acknowledged(self) -> bool:
        return self.journal is not None and self.journal.taken.get(self.name, 0) > 0

    def start(self) -> None:
        for payload in self.rng.choice([("a",), ("a", "a"), ("a", "b"), ("a", "b", "a")]):
            self.later(lambda payload=payload: self.send(payload))
        self.later(self.find)

    def later(self, action: Callable[[], None]) -> None:
        """Do something after a while, unless the client is done by then."""

        def then() -> None:
            if not self.client.finished and self.client.incarnation == self.incarnation:
                action()

        self.world.clock.after(self.rng.choice([0.02, 1.0, 5.0]) * self.rng.random(), then)

    def ask(
        self, input: msg.Asked, judge: Callable[[Any], None], then: Callable[[Any], None]
    ) -> None:
        def judged(answer: Any) -> None:
            if isinstance(answer, WorkflowNotFoundError):
                journal = self.journal
                if (journal is None or not journal.deleted) and not self.client.deletions:
                    self.fail("replies", f"was answered by {answer!r}")
            elif not isinstance(answer, TROUBLE):
                judge(answer)

        what = f"{type(input).__name__} {self.name} of {self.client.workflow_id}"
        put = Put(self.client.anywhere(), what, self.client.asking(input), judged, patient=True)
        self.world.put(put, then)

    def fail(self, kind: str, text: str) -> None:
        self.client.fail(kind, f"event {self.name} of {self.client.workflow_id} {text}")

    # -- its senders -----------------------------------------------------------------------

    def send(self, payload: str) -> None:
        signal_id = f"{self.name}-{payload}"
        most = self.rng.choice([None, None, 1, 3])

        def judge(answer: Any) -> None:
            if isinstance(answer, Received):
                if signal_id not in self.received:
                    self.fail("durable", f"was acknowledged, and {signal_id} is not stored")
                if answer.taken and not self.acknowledged:
                    self.fail("durable", "is said to be taken, and is not")
            elif isinstance(answer, OtherSignal):
                if not set(self.received) - {signal_id}:
                    self.fail("replies", f"has no other payload than {signal_id}")
            elif isinstance(answer, TooManySignals):
                if most is None or answer.kept < most:
                    self.fail("replies", f"was refused, of {most} by {answer}")
            elif isinstance(answer, SignalRefusedError):
                journal = self.journal
                if journal is None or not (journal.cancel_noted or journal.statuses & set(ENDED)):
                    self.fail("replies", f"was answered by {answer!r}")
            else:
                self.fail("replies", f"was answered by {answer!r}")

        def then(answer: Any) -> None:
            if not isinstance(answer, (Received, OtherSignal)) or self.rng.random() < 0.5:
                self.later(lambda: self.send(payload))

        value = Value(self.world.pack(scripts.signal_value(self.name), signal_id))
        signal = msg.Signal(
            self.name, signal_id, value, self.incarnation, sole=True, most=most, asks=False
        )
        self.ask(signal, judge, then)

    # -- its listener ----------------------------------------------------------------------

    def find(self) -> None:
        def judge(answer: Any) -> None:
            if answer is None:
                return
            if not isinstance(answer, Received) or not self.received:
                self.fail("replies", f"was never sent, and was found: {answer!r}")
            elif answer.taken != (answer.value is None) or answer.taken > self.acknowledged:
                self.fail("replies", f"was found as {answer!r}")

        def then(answer: Any) -> None:
            if isinstance(answer, Received):
                self.later(self.acknowledge)
            else:
                self.later(self.find)

        self.ask(msg.FindSignal(self.name, self.incarnation), judge, then)

    def acknowledge(self) -> None:
        def judge(answer: Any) -> None:
            if answer is not None:
                self.fail("replies", f"was acknowledged with {answer!r}")

        def then(answer: Any) -> None:
            journal = self.journal
            if journal is None or journal.statuses & set(ENDED) or self.acknowledged:
                return
            self.tries += answer is None and self.world.calm
            if self.tries > MAX_TRIES:
                self.fail("events", f"was acknowledged {self.tries} times, and is kept")
            self.later(self.acknowledge)

        self.ask(msg.AcknowledgeSignals(self.name, self.incarnation), judge, then)
