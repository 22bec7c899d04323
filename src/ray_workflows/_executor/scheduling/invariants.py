"""Invariants of the scheduling after every step. Tests run `check`; nothing else uses it.

The law behind them: an attempt that was given to the executor waits in a queue, or is in a Ray task
whose end will be noticed, or was reported. Any other attempt would hang for ever.
"""

from __future__ import annotations

from ray_workflows._executor.executor import RayExecutor
from ray_workflows._executor.scheduling.dispatch import Dispatch
from ray_workflows._executor.scheduling.in_flight import InFlightAttempt
from ray_workflows._executor.scheduling.queues import ReadyQueue


def check(executor: RayExecutor) -> None:
    """Check every attempt, queue, batch and Ray task; raise AssertionError with what is wrong."""
    with executor.lock:
        dispatch = executor.dispatch
        waiting = [
            flight
            for ready_queue in dispatch.ready_queues.values()
            for flight in waiting_in(ready_queue)
        ]
        known = {flight for each in executor.flights.values() for flight in each.values()}
        queued = set(waiting)
        if len(queued) < len(waiting):
            twice = next(flight for flight in waiting if waiting.count(flight) > 1)
            raise AssertionError(f"{name(twice)} waits in {waiting.count(twice)} places")
        for flight in known:
            check_flight(executor, flight, flight in queued)
        for flight in waiting:
            assert flight in known, f"{name(flight)} waits in a queue, and nobody knows of it"
        for shape, ready_queue in dispatch.ready_queues.items():
            check_queue(dispatch, shape, ready_queue)
        check_batches(dispatch, known)
        check_slots(dispatch)


def name(flight: InFlightAttempt) -> str:
    request = flight.request
    return f"attempt {request.epoch}/{request.attempt} of {request.where}"


def waiting_in(ready_queue: ReadyQueue) -> list[InFlightAttempt]:
    """All attempts in a ready queue, with their fused followers."""
    return [
        flight
        for queue in ready_queue.queues.values()
        for head in queue
        if not head.retired
        for flight in (head, *head.followers)
    ]


def check_flight(executor: RayExecutor, flight: InFlightAttempt, waits: bool) -> None:
    assert not flight.retired, f"{name(flight)} is over, and still known"
    sent = None if flight.batch is None else executor.dispatch.sent.get(flight.batch)
    if waits:
        assert sent is None, f"{name(flight)} waits in a queue and travels in a Ray task"
    elif sent is None:
        # The end of a body may be held until all of its progress is here.
        unheard = flight.batch in executor.unsettled or flight.end is not None
        assert unheard, f"{name(flight)} is in no queue and in no Ray task, and was not reported"
    else:
        assert flight in sent.members, f"{name(flight)} is not in the batch that it names"
        assert sent.slot is not None, f"the batch of {name(flight)} is in no Ray task"


def check_queue(dispatch: Dispatch, shape: str, ready_queue: ReadyQueue) -> None:
    flying = [slot for slot in dispatch.slots.flying if slot.shape == shape]
    assert ready_queue.submitted == len(flying), (
        f"{ready_queue.submitted} Ray tasks counted, {len(flying)} there"
    )
    if any(not flight.retired for queue in ready_queue.queues.values() for flight in queue):
        prepares = shape in dispatch.preparing
        goes_on = flying or ready_queue.looks_again or shape in dispatch.grown or prepares
        assert goes_on, "attempts wait in a queue that nobody will look at again"


def check_batches(dispatch: Dispatch, known: set[InFlightAttempt]) -> None:
    for number, sent in dispatch.sent.items():
        left = sent.left
        assert sent.number == number
        assert sent.open == len(left), f"batch {number}: {sent.open} open, {len(left)} left"
        for flight in left:
            assert flight in known, f"{name(flight)} travels in a batch, and nobody knows of it"
        slot = sent.slot
        assert slot is not None, f"batch {number} is in no Ray task"
        assert sent in slot.loads, f"batch {number} is not in the Ray task that it names"
        assert slot.ref is not None, f"the Ray task of batch {number} was not submitted"
        assert sent.hosted or slot in dispatch.slots.flying, f"batch {number} is lost"


def check_slots(dispatch: Dispatch) -> None:
    slots = dispatch.slots
    for shape, waiting in slots.waiting.items():
        assert waiting, f"no Ray task waits, and yet one is looked for: {shape}"
        for slot in waiting:
            assert slot.answer is not None, "a Ray task waits for a batch without having asked"
            assert not slot.loads, "a Ray task waits for a batch and has one"
    assert slots.leaving <= slots.flying, "a Ray task leaves that has ended"
    for slot in slots.flying:
        for sent in slot.loads:
            assert dispatch.sent.get(sent.number) is sent, f"batch {sent.number} is over"
