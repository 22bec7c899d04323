"""The way of attempts through queues, batches and Ray tasks: none is ever lost."""

from __future__ import annotations

import random

import pytest
from ray.exceptions import (
    GetTimeoutError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RaySystemError,
    RayTaskError,
    RpcError,
    RuntimeEnvSetupError,
    WorkerCrashedError,
)

from ray_workflows._executor.protocol import AttemptRequest
from ray_workflows._executor.scheduling import dispatch
from ray_workflows._executor.scheduling.durations import TARGET_SECONDS
from ray_workflows._model.messages import AttemptCrashed, Crash
from ray_workflows.exceptions import PackageTooLargeError, StorageCorruptError, WorkflowError
from tests.unit.scheduling import INCARNATION, RayTask, Scheduling, attempt, chain, template

SHORT, SLOW = 0.001, 4 * TARGET_SECONDS


def test_a_run_whose_function_turns_out_slow_in_the_queue_travels_whole() -> None:
    """Nobody would start its followers again: they count as running."""
    world = Scheduling()
    world.known("f")
    head, *rest = chain(template("f"), 0, 3)
    world.executor.start(head, rest)
    world.known("f", seconds=SLOW)
    world.flush()
    (task,) = world.tasks
    world.end_well(task)
    assert world.outcomes == [(n, "AttemptReturned") for n in range(3)]
    assert not world.executor.flights


def test_a_run_whose_function_is_forgotten_in_the_queue_travels_whole() -> None:
    world = Scheduling()
    world.known("f")
    head, *rest = chain(template("f"), 0, 3)
    world.executor.start(head, rest)
    world.executor.dispatch.durations.seconds.clear()
    world.flush()
    (task,) = world.tasks
    world.end_well(task)
    assert len(world.reported) == 3


@pytest.mark.parametrize("sent", [False, True])
@pytest.mark.parametrize("again_with_followers", [False, True])
def test_whoever_stops_an_attempt_stops_those_that_run_on_its_result(
    sent: bool, again_with_followers: bool
) -> None:
    world = Scheduling()
    world.known("f")
    head, *rest = chain(template("f"), 0, 3)
    world.executor.start(head, rest)
    if sent:
        world.flush()
    world.cancel(0)
    world.flush()
    assert not world.executor.flights
    assert all(task.canceled for task in world.tasks)
    # When it succeeds after all, they are started as any others.
    world.start(attempt(template("f"), 0, attempt=2), rest if again_with_followers else ())
    world.flush()
    world.end_well(world.tasks[-1])
    for request in () if again_with_followers else rest:
        world.start(request)
        world.flush()
        world.end_well(world.tasks[-1])
    assert world.outcomes == [(n, "AttemptReturned") for n in range(3)]


def test_a_follower_that_is_stopped_in_the_queue_does_not_travel() -> None:
    world = Scheduling()
    world.known("f")
    head, *rest = chain(template("f"), 0, 3)
    world.executor.start(head, rest)
    world.cancel(1)
    world.flush()
    (task,) = world.tasks
    assert [request.task for _, requests in task.batches() for request in requests] == [0]
    world.end_well(task)
    assert world.outcomes == [(0, "AttemptReturned")]


def test_what_a_batch_told_is_reported_though_no_other_can_be_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = Scheduling()
    world.known("f")
    world.start(attempt(template("f"), 0))
    world.flush()

    def fail(*_: object) -> None:
        raise RuntimeError("no answer")

    monkeypatch.setattr(world.executor.dispatch, "go_on", fail)
    with pytest.raises(RuntimeError, match="no answer"):
        world.report_first(world.tasks[0])
    world.settle()
    assert world.outcomes == [(0, "AttemptReturned")]


def test_what_cannot_be_encoded_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    world = Scheduling()
    world.known("f")
    load_of = dispatch.load_of

    def refuse_the_third(sent: dispatch.SentBatch, live: object) -> object:
        if any(flight.request.task == 3 for flight in sent.members):
            raise UnicodeEncodeError("utf-8", "\udcff", 0, 1, "surrogates not allowed")
        return load_of(sent, {})

    monkeypatch.setattr(dispatch, "load_of", refuse_the_third)
    for number in range(10):
        world.executor.start(attempt(template("f"), number))
    world.flush()
    while world.tasks:
        world.end_well(world.tasks[0])
        world.settle()
    assert sorted(world.outcomes) == [
        (n, "AttemptRaised" if n == 3 else "AttemptReturned") for n in range(10)
    ]


HEAD_IS_AWAY = [RpcError("no connection"), GetTimeoutError("GCS"), RaySystemError("disconnected")]


@pytest.mark.parametrize("error", HEAD_IS_AWAY, ids=lambda error: type(error).__name__)
def test_a_head_that_is_away_is_charged_to_nobody(error: Exception) -> None:
    """It is asked for secrets and packages when attempts are submitted, and by what brings them."""
    world = Scheduling()
    world.known("f")
    world.cluster.away = error
    for number in range(10):
        world.executor.start(attempt(template("f"), number))
    world.flush()
    assert world.outcomes == [(number, "AttemptLostStorage") for number in range(10)]
    world.cluster.away = None
    world.executor.start(attempt(template("f"), 0, 2))
    world.flush()
    world.end(world.tasks[0], RayTaskError("bring", "Traceback", error))
    assert world.outcomes[10:] == [(0, "AttemptLostStorage")]


def test_a_head_that_does_not_answer_holds_up_what_needs_its_answer_and_nothing_else() -> None:
    world = Scheduling(capacity=2)
    world.known("f", "g")
    other = template("g", ray={"num_gpus": 1})
    world.start(attempt(template("f"), 0))
    world.flush()
    world.head_hangs = True
    world.start(attempt(other, 1))
    world.flush()
    world.start(attempt(template("f"), 2))
    world.flush()
    world.end_well(world.tasks[0])
    world.end_well(world.tasks[0])
    assert world.outcomes == [(0, "AttemptReturned"), (2, "AttemptReturned")]
    assert not world.tasks
    assert len(world.asked) == 1
    world.cancel(1)
    world.start(attempt(other, 1, 2))
    world.flush()
    world.head_hangs = False
    world.flush()
    world.end_well(world.tasks[0])
    assert world.outcomes[2:] == [(1, "AttemptReturned")]


def test_a_cluster_that_does_not_say_its_size_holds_nothing_up() -> None:
    world = Scheduling()
    world.cluster.away = ConnectionError("the GCS is away")
    world.cluster.prepared.add(template("f").shape)
    world.executor.placement.has_looked = False
    with pytest.raises(ConnectionError):
        world.executor.placement.look()
    world.start(attempt(template("f"), 0))
    world.flush()
    world.end_well(world.tasks[0])
    assert world.outcomes == [(0, "AttemptReturned")]


def test_a_cluster_that_grows_gets_more_ray_tasks() -> None:
    world = Scheduling(capacity=1)
    world.known("f", seconds=0.001)
    for number in range(200):
        world.executor.start(attempt(template("f"), number))
    world.flush()
    before = len(world.tasks)
    world.cluster.size = 4
    world.executor.placement.look()
    world.check()
    assert before < len(world.tasks)


def test_attempts_whose_missing_package_nobody_can_look_for_are_charged_nothing() -> None:
    world = Scheduling()
    world.start(attempt(template("f"), 0))
    world.flush()
    world.cluster.away = RpcError("no connection")
    world.end(world.tasks[0], RuntimeEnvSetupError("no such package"))
    assert world.outcomes == [(0, "AttemptLostStorage")]


class Walk:
    """Random steps, and at the end everything that was started and not stopped was reported."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.world = Scheduling(capacity=self.rng.randint(1, 4))
        self.templates = [
            template("f"),
            template("g"),
            template("timed", timeout=5.0),
            template("h", batch=False),
        ]
        #: What should be reported: by task, the attempt that was started last.
        self.wanted: dict[int, AttemptRequest] = {}
        #: Followers that were handed along: they are started when nothing comes of that.
        self.hoped: dict[int, AttemptRequest] = {}
        self.next_task = 0

    def run(self) -> None:
        steps = [self.start, self.start, self.flush, self.learn, self.cancel, self.end, self.die]
        steps += [self.report, self.hand_back, self.world.settle]
        for _ in range(60):
            self.rng.choice(steps)()
            self.world.check()
            self.note()
        while True:
            self.world.settle()
            self.note()
            self.world.flush()
            if self.world.tasks:
                self.world.end_well(self.rng.choice(self.world.tasks))
            elif not self.world.later and not self.world.timers:
                break
        assert not self.wanted, f"never reported: {sorted(self.wanted)}"
        assert not self.world.executor.flights

    def start(self) -> None:
        of = self.rng.choice(self.templates)
        head, *rest = chain(of, self.next_task, self.rng.choice([1, 1, 2, 5]))
        self.next_task += 1 + len(rest)
        self.wanted[head.task] = head
        self.hoped.update({request.task: request for request in rest})
        self.world.start(head, rest)

    def note(self) -> None:
        """Take what was reported, and start what follows from it, as the engine would."""
        reports, self.world.reported[:] = list(self.world.reported), []
        for report in reports:
            known = self.wanted.pop(report.task, None) or self.hoped.pop(report.task, None)
            if known is None:
                continue
            if type(report).__name__ != "AttemptReturned":
                self.begin(attempt(known.template, report.task, report.attempt + 1))
            elif report.task + 1 in self.hoped:
                self.begin(self.hoped.pop(report.task + 1))

    def begin(self, request: AttemptRequest) -> None:
        self.wanted[request.task] = request
        self.world.start(request)

    def cancel(self) -> None:
        """Stop an attempt, and later begin another one in its place."""
        if self.wanted:
            task = self.rng.choice(sorted(self.wanted))
            stopped = self.wanted.pop(task)
            self.world.cancel(task)
            if self.rng.random() < 0.5:
                self.begin(attempt(stopped.template, task, stopped.attempt + 1))

    def learn(self) -> None:
        name = self.rng.choice(["f", "g", "timed"])
        self.world.known(name, seconds=self.rng.choice([SHORT, SHORT, SLOW]))

    def flush(self) -> None:
        self.world.flush()

    def end(self) -> None:
        if self.world.tasks:
            self.world.end_well(self.rng.choice(self.world.tasks))

    def die(self) -> None:
        if self.world.tasks:
            self.world.end(self.rng.choice(self.world.tasks), WorkerCrashedError())

    def report(self) -> None:
        asking = [task for task in self.world.tasks if task.asks and task.loads]
        if asking:
            self.world.report_first(self.rng.choice(asking))

    def hand_back(self) -> None:
        busy = [task for task in self.world.tasks if task.loads]
        if busy:
            self.world.hand_back(self.rng.choice(busy), self.rng.randint(0, 2))


DAMAGED = StorageCorruptError("package/a: The blob content is missing.")


@pytest.mark.parametrize("refusal", [DAMAGED, PackageTooLargeError("The package a", 3, 2)])
@pytest.mark.parametrize("unset", [True, False])
def test_attempts_whose_package_can_not_be_brought_stop_their_workflows(
    refusal: WorkflowError, unset: bool
) -> None:
    """Also where the node has what Ray unpacked before: then the worker starts, and what it was to
    wait for raises. They ran again and again, or failed."""
    world = Scheduling()
    world.known("f")
    for task in range(3):
        world.start(attempt(template("f"), task))
    world.flush()
    (ray_task,) = world.tasks
    if unset:
        world.cluster.refusal = refusal
        world.end(ray_task, RuntimeEnvSetupError("no such package"))
    else:
        world.end(ray_task, RayTaskError("bring", "traceback", refusal))
    world.settle()
    assert world.outcomes == [(n, "AttemptFoundCorruption") for n in range(3)]
    for report in world.reported:
        assert report.error.type_name == type(refusal).__name__
        for part in (str(refusal), "'w'", "resume('w')", "code='current'"):
            assert part in report.error.message
    assert not world.tasks


@pytest.mark.parametrize("seed", range(300))
def test_no_attempt_is_ever_in_no_queue_in_no_ray_task_and_without_a_report(seed: int) -> None:
    Walk(seed).run()


DEATHS = [
    (WorkerCrashedError(), Crash.KILLED),
    (NodeDiedError("it ended"), Crash.PREEMPTED),
    (OutOfMemoryError("Task was killed due to the node running low on memory."), Crash.PREEMPTED),
]


@pytest.mark.parametrize(("error", "crash"), DEATHS, ids=lambda each: type(each).__name__)
def test_what_a_death_is_charged_to(error: Exception, crash: Crash) -> None:
    """A node that is short of memory ends any of those that run there, as plain Ray knows."""
    world = Scheduling()
    world.start(attempt(template("f"), 0))
    world.flush()
    world.end(world.tasks[0], error)
    (report,) = world.reported
    assert isinstance(report, AttemptCrashed)
    assert report.crash is crash


#: What Ray says when it has not started a Ray task.
NOT_STARTED = [
    RuntimeEnvSetupError("pip has failed"),
    ObjectLostError("0" * 56, "", ""),
    RayTaskError("bring", "it has failed", OSError("no room")),
]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        *(
            (error, "preempted" if crash is Crash.PREEMPTED else "crashed")
            for error, crash in DEATHS
        ),
        *((error, "") for error in NOT_STARTED),
    ],
    ids=lambda each: type(each).__name__,
)
def test_members_that_may_have_run_with_a_worker_are_told_of_its_death(
    error: Exception, told: str
) -> None:
    world = Scheduling()
    world.known("f")
    for number in range(3):
        world.start(attempt(template("f"), number))
    world.flush()
    (task,) = world.tasks
    assert [request.last_end for request in requests_of(task)] == [""] * 3
    (sequence,) = task.sequences()
    world.end(task, error)
    again = world.tasks
    # Alone, so that the guilty one will be charged.
    assert [len(requests_of(each)) for each in again] == [1] * 3
    assert [request.last_end for each in again for request in requests_of(each)] == [told] * 3
    sequences = [number for each in again for number in each.sequences()]
    assert [sequence, *sequences] == sorted({sequence, *sequences})


def test_members_that_had_not_begun_are_told_of_nothing() -> None:
    world = Scheduling(capacity=1)
    world.known("f")
    for number in range(3):
        world.start(attempt(template("f"), number))
    world.flush()
    (task,) = world.tasks
    world.hand_back(task, 1)
    world.end_well(task)
    world.settle()
    (again,) = world.tasks
    assert [(each.task, each.last_end) for each in requests_of(again)] == [(1, ""), (2, "")]


def test_fused_attempts_that_may_have_run_with_a_worker_are_told_of_its_death() -> None:
    """Their executor forgets them until they are started anew, with what the journal says."""
    world = Scheduling()
    world.known("f")
    head, *rest = chain(template("f"), 0, 3)
    world.start(head, rest)
    world.flush()
    world.end(world.tasks[0], WorkerCrashedError())
    world.end_well(world.tasks[0])
    assert world.outcomes == [(0, "AttemptReturned")]
    # The next attempt of one of them is another story.
    later = attempt(template("f"), 2, attempt=2, upstream=(1,))
    for request in (rest[0], later):
        world.start(request)
        world.flush()
    told = [request.last_end for task in world.tasks for request in requests_of(task)]
    assert told == ["crashed", ""]
    world.executor.forget(INCARNATION)
    assert not world.executor.cut_off


def requests_of(task: RayTask) -> list[AttemptRequest]:
    return [request for _, requests in task.batches() for request in requests]
