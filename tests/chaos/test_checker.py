"""The checker of `make chaos` finds each violation that is planted in a history, and no other."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from ray_workflows._model import events as ev
from ray_workflows._model.plan import Plan
from ray_workflows._model.values import Blob, ErrorInfo, Outcome, Value
from tests.chaos import log as kinds
from tests.chaos.checker import History, Journal, check
from tests.chaos.log import Line, Log
from tests.chaos.stories import CANCELED, FAILED, SUCCESSFUL, Step, Story, value_of
from tests.chaos.tasks import Made

#: ``second`` consumes ``first``, and ``third`` both; what ``second`` makes is not stored.
FIRST = Step("first")
SECOND = Step("second", (FIRST,), stored=False)
THIRD = Step("third", (FIRST, SECOND))
GOOD = Story("w00001-good", "good", THIRD, forked_from="second")
SIGNALED = Story(
    "w00002-signaled",
    "signaled",
    Step("after", (Step("wait", kind="signal", signal="news"),)),
    signals=("news",),
)
STOPPED = Story("w00003-canceled", "canceled", Step("stopped"), CANCELED, canceled=True)
BROKEN = Story("w00004-failing", "failing", Step("broken", failures=-1), FAILED)
GONE = Story("w00005-single", "single", Step("only"), deleted=True)

ENCODER = msgspec.msgpack.Encoder()
DECODER = msgspec.msgpack.Decoder(Made)
UNSTORED = Value(Blob("live", 10, ""))


class Past:
    """A history in the making. Time goes on by a second with each line and event."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.lines: list[Line] = []
        self.events: dict[str, list[ev.Event]] = {}
        self.statuses: dict[str, str] = {}

    def tick(self) -> float:
        self.now += 1.0
        return self.now

    def line(self, kind: str, workflow: str, **fields) -> None:
        self.lines.append(Line(kind, self.tick(), 7, workflow, **fields))

    def event(self, workflow: str, event: Callable[..., ev.Event], *args, **fields) -> None:
        self.events.setdefault(workflow, []).append(event(self.tick(), *args, **fields))

    def acknowledge(self, workflow: str, verb: str) -> None:
        self.line(kinds.TRY, workflow, verb=verb)
        self.line(kinds.ACK, workflow, verb=verb)

    def start(self, workflow: str, *task_ids: str) -> None:
        self.acknowledge(workflow, "submit")
        self.event(workflow, ev.WorkflowSubmitted, Plan((), (), (), ""), task_ids, {}, "h1")
        self.event(workflow, ev.WorkflowStarted)

    def run(self, workflow: str, task: str, epoch: int, nonce: str, *saw: tuple[str, str]) -> None:
        fields = {"task": task, "epoch": epoch, "attempt": 1, "key": f"{workflow}-{task}"}
        self.line(kinds.BEGIN, workflow, nonce=nonce, saw=saw, **fields)
        self.line(kinds.END, workflow, nonce=nonce, **fields)

    def commit(self, workflow: str, step: Step, number: int, nonce: str) -> None:
        value = UNSTORED
        if step.stored:
            value = Value(ENCODER.encode(Made(workflow, step.name, nonce, value_of(step))))
        self.event(workflow, ev.TaskSucceeded, number, 1, value)

    def end(self, workflow: str, status: str, event: Callable[..., ev.Event], *args) -> None:
        self.event(workflow, event, *args)
        self.statuses[workflow] = status
        self.line(kinds.STATUS, workflow, text=status)

    def succeed(self, workflow: str, step: Step, nonce: str) -> None:
        value = Value(ENCODER.encode(Made(workflow, step.name, nonce, value_of(step))))
        self.line(kinds.READ, workflow, task=step.name, nonce=nonce, value=value_of(step))
        self.end(workflow, SUCCESSFUL, ev.WorkflowSucceeded, Outcome(value))

    def history(self) -> History:
        journals = {
            name: Journal(self.statuses[name], list(events)) for name, events in self.events.items()
        }
        stories = [GOOD, SIGNALED, STOPPED, BROKEN, GONE]
        return History(self.lines, stories, journals, read)


def read(workflow_id: str, value: Value) -> Made:
    assert isinstance(value.data, bytes)
    return DECODER.decode(value.data)


def good_past() -> Past:
    """Two epochs of one workflow, with a lost value; and one of each of the other ends."""
    past, w = Past(), GOOD.workflow_id
    past.start(w, "first", "second", "third")
    past.run(w, "first", 0, "f1")
    past.commit(w, FIRST, 0, "f1")
    past.run(w, "second", 0, "s1", ("first", "f1"))
    past.commit(w, SECOND, 1, "s1")
    past.event(w, ev.WorkflowClaimed, "h2")
    past.event(w, ev.ValuesLost, (1,))
    past.run(w, "second", 1, "s2", ("first", "f1"))
    past.commit(w, SECOND, 1, "s2")
    # The first coordinator was stopped: it knows of nothing since its last commit.
    past.run(w, "third", 0, "t1", ("first", "f1"), ("second", "s1"))
    past.run(w, "third", 1, "t2", ("first", "f1"), ("second", "s2"))
    past.commit(w, THIRD, 2, "t2")
    past.succeed(w, THIRD, "t2")

    w = SIGNALED.workflow_id
    past.start(w, "wait", "after")
    past.event(w, ev.SignalReceived, "news", f"news of {w}", Value(b""))
    past.acknowledge(w, "signal news")
    past.event(w, ev.SignalTaken, 0, "news", f"news of {w}", 0.0)
    past.run(w, "after", 0, "a1")
    past.commit(w, SIGNALED.step, 1, "a1")
    past.succeed(w, SIGNALED.step, "a1")

    w = STOPPED.workflow_id
    past.start(w, "stopped")
    past.end(w, CANCELED, ev.WorkflowCanceled)
    past.acknowledge(w, "cancel")

    w = BROKEN.workflow_id
    past.start(w, "broken")
    error = ErrorInfo("Broken", "broken")
    past.event(w, ev.TaskFailed, 0, 1, error)
    past.end(w, FAILED, ev.WorkflowFailed, error, "broken")

    past.acknowledge(GONE.workflow_id, "submit")
    past.acknowledge(GONE.workflow_id, "delete")
    return past


def test_a_good_history_breaks_no_law() -> None:
    assert check(good_past().history()) == []


# -- what is planted -----------------------------------------------------------------------


def forget(past: Past) -> None:
    del past.events[GOOD.workflow_id]


def forget_a_signal(past: Past) -> None:
    events = past.events[SIGNALED.workflow_id]
    events[:] = [event for event in events if not isinstance(event, ev.SignalReceived)]


def go_on_after_cancel(past: Past) -> None:
    events = past.events[STOPPED.workflow_id]
    events.pop()
    past.end(STOPPED.workflow_id, FAILED, ev.WorkflowFailed, ErrorInfo("Broken", "x"))


def fail_by_trouble(past: Past) -> None:
    past.events[GOOD.workflow_id].pop()
    past.end(GOOD.workflow_id, FAILED, ev.WorkflowFailed, ErrorInfo("StorageUnavailable", "x"))


def never_end(past: Past) -> None:
    past.events[GOOD.workflow_id].pop()
    past.statuses[GOOD.workflow_id] = "RUNNING"


def appear_from_nowhere(past: Past) -> None:
    past.events["w00009-single"] = past.events[BROKEN.workflow_id]
    past.statuses["w00009-single"] = FAILED


def contradict_the_journal(past: Past) -> None:
    past.events[BROKEN.workflow_id].pop()


def commit_twice(past: Past) -> None:
    past.events[GOOD.workflow_id].insert(4, past.events[GOOD.workflow_id][2])


def give_up_a_stored_value(past: Past) -> None:
    past.event(GOOD.workflow_id, ev.ValuesLost, (0,))


def change_what(past: Past, task: str, **fields) -> None:
    (number,) = (
        number
        for number, line in enumerate(past.lines)
        if line.kind == kinds.BEGIN and line.task == task and line.epoch == 1
    )
    past.lines[number] = msgspec.structs.replace(past.lines[number], **fields)


def see_another_result(past: Past) -> None:
    change_what(past, "third", saw=(("first", "f9"), ("second", "s2")))


def see_what_nobody_made(past: Past) -> None:
    change_what(past, "third", saw=(("first", "f1"), ("second", "s9")))


def see_two_unstored_results(past: Past) -> None:
    """Two tasks, each with its result, which were given different ones of a third."""
    w, step = "w00001-good", Step("other", (SECOND,))
    events = past.events[w]
    # Nothing was lost.
    events[:] = [e for e in events if not isinstance(e, ev.ValuesLost)]
    del events[events.index(next(e for e in events if getattr(e, "task", 0) == 1)) + 2]
    submitted = events[0]
    assert isinstance(submitted, ev.WorkflowSubmitted)
    events[0] = msgspec.structs.replace(submitted, task_ids=(*submitted.task_ids, "other"))
    past.run(w, "other", 0, "o1", ("second", "s1"))
    value = Value(ENCODER.encode(Made(w, "other", "o1", value_of(step))))
    events.insert(-2, ev.TaskSucceeded(past.tick(), 3, 1, value))


def read_another_output(past: Past) -> None:
    w = GOOD.workflow_id
    past.line(kinds.READ, w, task="third", nonce="t1", value=GOOD.value)


def read_a_wrong_value(past: Past) -> None:
    w = GOOD.workflow_id
    past.line(kinds.READ, w, task="third", nonce="t2", value=GOOD.value + 1)


def store_a_wrong_value(past: Past) -> None:
    value = Value(ENCODER.encode(Made(GOOD.workflow_id, "third", "t2", 12)))
    past.events[GOOD.workflow_id][-1] = ev.WorkflowSucceeded(past.tick(), Outcome(value))


def read_an_output_of_a_failure(past: Past) -> None:
    past.line(kinds.READ, BROKEN.workflow_id, task="broken", nonce="b", value=1)


def begin_again_in_a_later_epoch(past: Past) -> None:
    past.run(GOOD.workflow_id, "first", 1, "f2")


def begin_again_in_the_same_epoch(past: Past) -> None:
    past.run(GOOD.workflow_id, "third", 1, "t3")


def begin_a_later_attempt(past: Past) -> None:
    change_what(past, "third", attempt=2)


def begin_in_an_epoch_that_never_was(past: Past) -> None:
    change_what(past, "third", epoch=9)


def begin_a_task_that_is_not_there(past: Past) -> None:
    past.run(GOOD.workflow_id, "fourth", 1, "x")


def end_twice(past: Past) -> None:
    past.event(BROKEN.workflow_id, ev.WorkflowFailed, ErrorInfo("Broken", "x"))


def go_on_after_the_end(past: Past) -> None:
    past.event(GOOD.workflow_id, ev.WorkflowClaimed, "h3")


def show_another_end(past: Past) -> None:
    past.line(kinds.STATUS, GOOD.workflow_id, text=FAILED)


def come_back_after_deletion(past: Past) -> None:
    past.events[GONE.workflow_id] = past.events[BROKEN.workflow_id]
    past.statuses[GONE.workflow_id] = FAILED


def share_a_key(past: Past) -> None:
    change_what(past, "third", key=f"{GOOD.workflow_id}-first")


def change_a_key(past: Past) -> None:
    change_what(past, "third", key="another")


def be_damaged(past: Past) -> None:
    past.line(kinds.DAMAGED, GOOD.workflow_id, task="third", text="input first f1")


def go_back_to_a_lost_epoch(past: Past) -> None:
    """The workflow is taken up once more, and runs what it has."""
    events = past.events[GOOD.workflow_id]
    events.insert(-1, ev.WorkflowClaimed(past.tick(), "h3"))
    past.run(GOOD.workflow_id, "second", 2, "s3")


PLANTED: dict[Callable[[Past], None], str] = {
    forget: "acknowledged means durable",
    forget_a_signal: "acknowledged means durable",
    go_on_after_cancel: "acknowledged means durable",
    fail_by_trouble: "right end",
    never_end: "right end",
    appear_from_nowhere: "right end",
    contradict_the_journal: "one truth",
    commit_twice: "commit once",
    give_up_a_stored_value: "commit once",
    see_another_result: "consumers see the committed result",
    see_what_nobody_made: "consumers see the committed result",
    see_two_unstored_results: "consumers see the committed result",
    read_another_output: "the output is the stored one",
    read_a_wrong_value: "the output is the stored one",
    store_a_wrong_value: "the output is the stored one",
    read_an_output_of_a_failure: "the output is the stored one",
    begin_again_in_a_later_epoch: "what is committed never runs again",
    begin_again_in_the_same_epoch: "what is committed never runs again",
    begin_a_later_attempt: "what is committed never runs again",
    begin_in_an_epoch_that_never_was: "what is committed never runs again",
    begin_a_task_that_is_not_there: "what is committed never runs again",
    go_back_to_a_lost_epoch: "what is committed never runs again",
    end_twice: "an end is an end",
    go_on_after_the_end: "an end is an end",
    show_another_end: "an end is an end",
    come_back_after_deletion: "deleted means gone",
    share_a_key: "keys name tasks",
    change_a_key: "keys name tasks",
    be_damaged: "values are whole",
}


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_what_is_planted_is_found(plant: Callable[[Past], None]) -> None:
    past = good_past()
    plant(past)
    assert PLANTED[plant] in {violation.law for violation in check(past.history())}


# -- the log -------------------------------------------------------------------------------


def test_a_line_that_was_cut_short_spoils_no_other(tmp_path) -> None:
    log = Log(str(tmp_path / "log"))
    assert log.read() == []
    log.add(kinds.BEGIN, workflow="w", nonce="1", saw=(("first", "f1"),))
    with open(log.path, "ab") as file:
        file.write(b'\n{"kind":"end","at":1.0,"pi')
    log.add(kinds.END, durable=True, workflow="w", nonce="1", value=5)
    begin, end = log.read()
    assert (begin.kind, begin.saw) == (kinds.BEGIN, (("first", "f1"),))
    assert (end.kind, end.value) == (kinds.END, 5)
