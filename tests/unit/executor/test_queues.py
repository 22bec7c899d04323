"""Which attempts travel together: the policy, without Ray and without a clock."""

from __future__ import annotations

import pytest

from ray_workflows._executor.protocol import (
    AttemptRequest,
    AttemptTemplate,
    decode_batch,
    encode_batch,
)
from ray_workflows._executor.scheduling.durations import (
    SMOOTHING,
    TARGET_SECONDS,
    Durations,
    least,
)
from ray_workflows._executor.scheduling.in_flight import InFlightAttempt
from ray_workflows._executor.scheduling.queues import AT_ONCE, MAX_IN_FLIGHT, ReadyQueue
from ray_workflows._model.plan import Environment, Function, TaskOptions
from ray_workflows._model.values import Value


def template(name: str = "f", **options) -> AttemptTemplate:
    return AttemptTemplate(
        "w", "i", Function(name, name, b""), TaskOptions(**options), Environment(), ()
    )


def fill(
    ready_queue: ReadyQueue, count: int, of: AttemptTemplate | None = None
) -> list[InFlightAttempt]:
    of = of or template()
    requests = [AttemptRequest(of, n, f"t{n}", 0, 1, Value(b""), True) for n in range(count)]
    flights = [InFlightAttempt(request) for request in requests]
    for flight in flights:
        ready_queue.add(flight, Durations(), 1)
    return flights


def submit_all(ready_queue: ReadyQueue, durations: Durations, capacity: int) -> list[int]:
    """Sizes of the batches that go out when nothing comes back."""
    sizes = []
    while batch := ready_queue.next_batch(durations, capacity, 0.0, slots=len(sizes)):
        ready_queue.submitted += 1
        sizes.append(len(batch))
    return sizes


def known(seconds: float, name: str = "f") -> Durations:
    durations = Durations()
    durations.learn(name, seconds)
    return durations


def test_an_unknown_function_is_tried_on_every_slot_first() -> None:
    ready_queue, durations = ReadyQueue(), Durations()
    fill(ready_queue, 1000)
    assert submit_all(ready_queue, durations, capacity=4) == [1] * 4
    ready_queue.landed("f")
    durations.learn("f", 0.0001)
    assert submit_all(ready_queue, durations, capacity=4)[0] == 125


def test_a_trial_that_turns_out_long_opens_the_window() -> None:
    ready_queue, durations = ReadyQueue(), Durations()
    fill(ready_queue, 3000)
    submit_all(ready_queue, durations, capacity=2)
    durations.at_least("f", 0.25)
    assert submit_all(ready_queue, durations, capacity=2) == [1] * (MAX_IN_FLIGHT - 2)


@pytest.mark.parametrize(
    ("seconds", "count", "capacity", "sizes"),
    [
        (0.01, 400, 2, [5] * 4),
        (0.01, 8, 2, [2, 2]),
        (0.01, 2, 2, [1, 1]),
        (0.0001, 400, 2, [100, 75]),
        (0.0001, 10, 2, [10]),
        (0.0001, 10_000, 2, [500] * 2),
        (0.1, 5, 2, [1] * 5),
        (0.04, 5, 2, [1] * 2),
        (0.03, 40, 2, [2] * 2),
        (0.02, 40, 1, [2]),
    ],
)
def test_batches_keep_every_slot_busy_and_are_worth_it(
    seconds: float, count: int, capacity: int, sizes: list[int]
) -> None:
    ready_queue = ReadyQueue()
    fill(ready_queue, count)
    assert submit_all(ready_queue, known(seconds), capacity) == sizes


def test_batches_end_with_the_target_and_wait_for_carriers() -> None:
    # With much work as many slots again wait for a slot, and show that there is a need of more.
    for count, slots in ((30_000, 8), (100_000, 16)):
        ready_queue = ReadyQueue()
        fill(ready_queue, count)
        sizes = submit_all(ready_queue, known(0.0002), capacity=8)
        assert len(sizes) == slots
        assert all(size * 0.0002 == pytest.approx(TARGET_SECONDS, rel=0.01) for size in sizes)
        assert ready_queue.next_batch(known(0.0002), 8, 0.0, slots, waits=True)


@pytest.mark.parametrize("capacity", [1, 2, 8])
@pytest.mark.parametrize(("seconds", "count"), [(0.01, 100), (0.0001, 10_000), (0.01, 7)])
def test_who_has_one_ahead_has_no_more_than_his_share(
    seconds: float, count: int, capacity: int
) -> None:
    ready_queue, durations = ReadyQueue(), known(seconds)
    fill(ready_queue, count)
    while count:
        first = ready_queue.next_batch(durations, capacity, 0.0, capacity, waits=True)
        ahead = ready_queue.next_ahead(durations, capacity)
        assert first
        if ahead:
            share = max(-(-count // capacity) + 1, AT_ONCE * least(seconds))
            assert len(first) + len(ahead) <= share
        count -= len(first) + len(ahead)
    assert ready_queue.idle


@pytest.mark.parametrize("capacity", [1, 2, 8])
@pytest.mark.parametrize("seconds", [0.0005, 0.01, 0.03, 0.045])
def test_who_has_one_ahead_leaves_one_to_each_other_slot(seconds: float, capacity: int) -> None:
    ready_queue, durations = ReadyQueue(), known(seconds)
    fill(ready_queue, 300)
    count, ahead = 300, 0
    while batch := ready_queue.next_ahead(durations, capacity):
        count -= len(batch)
        ahead += 1
        assert count >= (capacity - 1) * least(seconds)
    # As long as it could be.
    assert ahead
    assert count < capacity * least(seconds)


def test_many_that_are_added_say_when_there_is_a_batch_for_each_slot() -> None:
    ready_queue, (first, *_) = ReadyQueue(), fill(ReadyQueue(), 1)
    said = [count for count in range(1, 1_001) if ready_queue.add(first, known(0.001), capacity=4)]
    assert said == [200, 400, 600, 800, 1000]
    assert not any(ready_queue.add(first, Durations(), capacity=1) for _ in range(100))


@pytest.mark.parametrize("seconds", [None, 0.1])
def test_what_is_long_or_not_known_waits_behind_nothing(seconds: float | None) -> None:
    ready_queue = ReadyQueue()
    fill(ready_queue, 1_000)
    assert not ready_queue.next_ahead(Durations() if seconds is None else known(seconds), 2)


def test_what_never_travels_with_others_does_not_wait_behind_them() -> None:
    ready_queue = ReadyQueue()
    fill(ready_queue, 1_000, template("f", batch=False))
    assert not ready_queue.next_ahead(known(0.001), 2)


def test_what_was_put_back_is_the_next_and_waits_behind_nothing() -> None:
    ready_queue, durations = ReadyQueue(), known(0.001)
    flights = fill(ready_queue, 1_000)
    flights[3].behind = InFlightAttempt(flights[3].request)
    flights[3].behind.follows = True
    for size in (3, 2):
        batch = ready_queue.next_ahead(durations, 2)
        assert len(batch) == size
        ready_queue.put_back(batch)
        assert not ready_queue.next_ahead(durations, 2)
        assert ready_queue.next_batch(durations, 2, 0.0) == batch
    assert len(ready_queue.queues["f"]) == 996


@pytest.mark.parametrize(
    "options",
    [
        {"batch": False},
        {"timeout": 1.0},
        {"max_retries": 0},
        {"kind": "listener"},
        {"ray": {"num_cpus": 1}},
        {"ray": {"resources": {"special": 1}}},
        {"ray": {"scheduling_strategy": "SPREAD"}},
    ],
)
def test_what_never_travels_with_others(options: dict) -> None:
    ready_queue = ReadyQueue()
    fill(ready_queue, 20, template(**options))
    assert submit_all(ready_queue, known(0.001), capacity=2) == [1] * 20


@pytest.mark.parametrize(
    "ray", [{"name": "n"}, {"runtime_env": {"env_vars": {"A": "1"}}}, {"enable_task_events": False}]
)
def test_options_that_change_nothing_of_that(ray: dict) -> None:
    ready_queue = ReadyQueue()
    fill(ready_queue, 20, template(ray=ray))
    assert submit_all(ready_queue, known(0.0001), capacity=2) == [20]


def test_little_work_waits_for_who_asks_for_it_soon() -> None:
    ready_queue, durations = ReadyQueue(), known(0.0005)
    (first,) = fill(ready_queue, 1)
    assert ready_queue.next_batch(durations, 2, 10.0) == [first]
    ready_queue.submitted += 1
    ready_queue.expect(7, [first], durations, now=10.0)
    fill(ready_queue, 1)
    assert ready_queue.next_batch(durations, 2, 10.0) == []
    # Not when who was expected is late, when it is known to be late, or when there is more to do.
    assert len(ready_queue.next_batch(durations, 2, 10.1)) == 1
    fill(ready_queue, 1)
    assert ready_queue.next_batch(durations, 2, 10.0) == []
    ready_queue.expects_no_more(7)
    assert len(ready_queue.next_batch(durations, 2, 10.0)) == 1
    ready_queue.expect(8, [first], durations, now=10.0)
    fill(ready_queue, 20)
    assert len(ready_queue.next_batch(durations, 2, 10.0)) == 10
    # Nor if there is one that waits for it.
    ready_queue.next_batch(durations, 2, 10.1)
    fill(ready_queue, 1)
    assert len(ready_queue.next_batch(durations, 2, 10.0, 1, waits=True)) == 1


def test_functions_take_turns_and_are_not_mixed() -> None:
    ready_queue, durations = ReadyQueue(), known(0.01)
    durations.learn("g", 0.01)
    fill(ready_queue, 100)
    fill(ready_queue, 100, template("g"))
    names = []
    while batch := ready_queue.next_batch(durations, 4, 0.0, slots=len(names)):
        (name,) = {flight.request.function.name for flight in batch}
        names.append(name)
    assert names == ["f", "g"] * 2


def test_what_was_canceled_is_skipped_and_what_is_alone_stays_alone() -> None:
    ready_queue = ReadyQueue()
    flights = fill(ready_queue, 10)
    for index in (0, 3, 9):
        flights[index].retired = True
    flights[5].alone = True
    sizes = submit_all(ready_queue, known(0.0001), capacity=1)
    assert sizes == [3, 1]  # Another one would have to wait for a slot.
    ready_queue.submitted = 0
    assert submit_all(ready_queue, known(0.0001), capacity=1) == [3]
    ready_queue.submitted = 0
    assert ready_queue.idle


def test_durations_follow_what_was_seen_last() -> None:
    durations = known(1.0)
    durations.learn("f", 0.0)
    assert durations.get("f") == pytest.approx(1 - SMOOTHING, rel=1e-3)
    durations.at_least("f", 0.1)
    assert durations.get("f") == pytest.approx(1 - SMOOTHING, rel=1e-3)
    durations.at_least("f", 5.0)
    assert durations.get("f") == 5.0
    assert durations.get("g") is None


def test_a_batch_survives_the_wire_with_its_scenes_shared() -> None:
    first, second = template("f"), template("g", batch=False)
    requests = [
        AttemptRequest(of, n, f"t{n}", 2, 3, Value(b"args"), n == 1, (7,), (0,))
        for n, of in enumerate([first, second, first])
    ]
    data = encode_batch(5, 2, requests)
    number, sequence, decoded = decode_batch(data)
    assert (number, sequence, decoded) == (5, 2, requests)
    assert decoded[0].template is decoded[2].template
    assert data.count(b"f") < 2 * encode_batch(5, 2, requests * 2).count(b"f")


def test_an_attempt_that_was_kept_waiting_says_nothing_about_hundreds() -> None:
    """The last one of a batch took a second, because the machine had other work."""
    durations = known(0.0001)
    durations.learn("f", (499 * 0.0001 + 1.0) / 500, count=500)
    assert durations.get("f") == pytest.approx(0.0021, rel=0.01)
    ready_queue = ReadyQueue()
    fill(ready_queue, 1_000)
    assert submit_all(ready_queue, durations, capacity=2) == [24] * 2


def test_one_attempt_of_a_short_function_that_runs_long_is_no_rule() -> None:
    durations = known(0.0001)
    durations.at_least("f", 0.25)
    assert durations.get("f") == 0.0001
    durations.at_least("f", 0.25)
    assert durations.get("f") == 0.25
    durations = known(0.0001)
    durations.at_least("f", 0.25)
    durations.learn("f", 0.0001)
    durations.at_least("f", 0.25)
    assert durations.get("f") == 0.0001
