"""The listener host: an actor in which thousands of event listeners wait, without a CPU.

User code runs in it, so it is not the coordinator. If a listener blocks its event loop, the others
go on with a new loop. If a listener ends the process, the other listeners are started again, and
`hosts.share` separates them then.
"""

from __future__ import annotations

import inspect
from typing import Any

import ray

from ray_workflows._codec.transport import message, opened
from ray_workflows._environment.attempts import prefer_packages
from ray_workflows._executor.protocol import (
    ENCODER,
    AnyReport,
    BatchReport,
    decode_batch,
)
from ray_workflows._executor.worker import context
from ray_workflows._executor.worker.attempt import PATIENCE_SECONDS, AttemptRun
from ray_workflows._executor.worker.batch import EncodedBatch, Home, WireReport, home_of
from ray_workflows._executor.worker.event_loops import Loops, OneLoop, UserError
from ray_workflows._executor.worker.running import RunningAttempt
from ray_workflows._executor.worker.watchdog import watching

#: The most listeners of one host at once.
MAX_LISTENERS = 10_000


class ListenerHost:
    """Runs listeners of one environment; owned by the coordinator."""

    def __init__(self, *brought: None) -> None:
        """``brought``: the results of the Ray tasks that uploaded its packages."""
        prefer_packages()
        self.loops = Loops()

    async def run(self, load: EncodedBatch, pickled_home: bytes) -> list[WireReport]:
        """Run one attempt of a listener task: as `loop.run_batches`, but awaiting."""
        return await listen(load, home_of(pickled_home), self.loops)


async def listen(
    load: EncodedBatch, home: Home, loops: Loops | OneLoop, patience: float = PATIENCE_SECONDS
) -> list[WireReport]:
    """Run one attempt of a listener task from a home."""
    encoded, nested = opened(load)
    number, sequence, (request,) = decode_batch(encoded)
    process = home.process
    live = (nested or {}).get(request.incarnation, {})
    running = RunningAttempt(request, home.coordinator, process)
    run = AttemptRun(request, home.storage, live, process, number, sequence, patience, running)
    with watching(running, process.watch):
        report = await run_listener(run, loops)
    wire = ENCODER.encode(BatchReport(number, ((0, report),), (0.0,)))
    return [message(wire, {request.incarnation: run.made} if run.made else None)]


async def run_listener(run: AttemptRun, loops: Loops | OneLoop) -> AnyReport:
    """Run user code on the loops, and reading and writing on threads, so that neither blocks other
    listeners."""
    try:
        function, args, kwargs = await loops.call(run.loaded)
        result = await loops.run(lambda: awaited(run, function, args, kwargs))
        return await loops.call(run.returned, result)
    except UserError as raised:
        return await loops.call(run.raised, raised.error)


async def awaited(
    run: AttemptRun, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Call the user's function of a listener task, and await its result."""
    context.awaits_coroutines.set(True)
    with context.running(run.request, run.sequence) as scope:
        result = function(*args, **kwargs)
        if inspect.isawaitable(result):
            result = await result
    run.metadata, run.outgoing = scope.metadata, scope.outgoing
    return result


listener_host_class = ray.remote(
    num_cpus=0, max_concurrency=MAX_LISTENERS, max_restarts=0, max_task_retries=0
)(ListenerHost)
