"""What must hold of the scheduling after every step. Tests run `check`; nothing else reads it.

The law behind it: an attempt that was given to the executor waits in a queue, or is in a Ray task
whose end will be heard of, or was reported. What is in none of these would hang for ever.
"""

from __future__ import annotations

from ray_workflows._executor.executor import RayExecutor
from ray_workflows._executor.scheduling.dispatch import Dispatch
from ray_workflows._executor.scheduling.queues import Flight, Lane


def check(executor: RayExecutor) -> None:
    """Look at every attempt, queue, batch and Ray task; raise AssertionError with what is wrong."""
    with executor.lock:
        dispatch = executor.dispatch
        waiting = [flight for lane in dispatch.lanes.values() for flight in waiting_in(lane)]
        known = {flight for each in executor.flights.values() for flight in each.values()}
        queued = set(waiting)
        if len(queued) < len(waiting):
            twice = next(flight for flight in waiting if waiting.count(flight) > 1)
            raise AssertionError(f"{name(twice)} waits in {waiting.count(twice)} places")
        for flight in known:
            check_flight(executor, flight, flight in queued)
        for flight in waiting:
            assert flight in known, f"{name(flight)} waits in a queue, and nobody knows of it"
        for shape, lane in dispatch.lanes.items():
            check_lane(dispatch, shape, lane)
        check_batches(dispatch, known)
        check_carriers(dispatch)


def name(flight: Flight) -> str:
    request = flight.request
    return f"attempt {request.epoch}/{request.attempt} of {request.where}"


def waiting_in(lane: Lane) -> list[Flight]:
    """All that wait in a lane, with those that follow them."""
    return [
        flight
        for queue in lane.queues.values()
        for head in queue
        if not head.retired
        for flight in (head, *head.followers)
    ]


def check_flight(executor: RayExecutor, flight: Flight, waits: bool) -> None:
    assert not flight.retired, f"{name(flight)} is over, and still known"
    sent = None if flight.batch is None else executor.dispatch.sent.get(flight.batch)
    if waits:
        assert sent is None, f"{name(flight)} waits in a queue and travels in a Ray task"
    elif sent is None:
        unheard = flight.batch in executor.unsettled
        assert unheard, f"{name(flight)} is in no queue and in no Ray task, and was not reported"
    else:
        assert flight in sent.members, f"{name(flight)} is not in the batch that it names"
        assert sent.carrier is not None, f"the batch of {name(flight)} is in no Ray task"


def check_lane(dispatch: Dispatch, shape: str, lane: Lane) -> None:
    flying = [carrier for carrier in dispatch.carriers.flying if carrier.shape == shape]
    assert lane.submitted == len(flying), f"{lane.submitted} Ray tasks counted, {len(flying)} there"
    if any(not flight.retired for queue in lane.queues.values() for flight in queue):
        prepares = shape in dispatch.preparing
        goes_on = flying or lane.looks_again or shape in dispatch.grown or prepares
        assert goes_on, "attempts wait in a queue that nobody will look at again"


def check_batches(dispatch: Dispatch, known: set[Flight]) -> None:
    for number, sent in dispatch.sent.items():
        left = sent.left
        assert sent.number == number
        assert sent.open == len(left), f"batch {number}: {sent.open} open, {len(left)} left"
        for flight in left:
            assert flight in known, f"{name(flight)} travels in a batch, and nobody knows of it"
        carrier = sent.carrier
        assert carrier is not None, f"batch {number} is in no Ray task"
        assert sent in carrier.loads, f"batch {number} is not in the Ray task that it names"
        assert carrier.ref is not None, f"the Ray task of batch {number} was not submitted"
        assert sent.listens or carrier in dispatch.carriers.flying, f"batch {number} is lost"


def check_carriers(dispatch: Dispatch) -> None:
    carriers = dispatch.carriers
    for shape, waiting in carriers.waiting.items():
        assert waiting, f"no Ray task waits, and yet one is looked for: {shape}"
        for carrier in waiting:
            assert carrier.answer is not None, "a Ray task waits for a batch without having asked"
            assert not carrier.loads, "a Ray task waits for a batch and has one"
    assert carriers.leaving <= carriers.flying, "a Ray task leaves that has ended"
    for carrier in carriers.flying:
        for sent in carrier.loads:
            assert dispatch.sent.get(sent.number) is sent, f"batch {sent.number} is over"
