"""The listener host: an actor in which event listeners wait, thousands at a time, on no CPU.

User code runs in it, so it is not the coordinator: a listener that blocks or crashes harms only
listeners of the same environment, which are started again elsewhere.
"""

from __future__ import annotations

import inspect

import ray

from ray_workflows._codec.messages import message, opened
from ray_workflows._environment.attempts import prefer_packages
from ray_workflows._executor import context
from ray_workflows._executor.batch import Home, Load, WireReport, home_of
from ray_workflows._executor.protocol import ENCODER, AnyReport, BatchReport, decode_batch
from ray_workflows._executor.running import RunningAttempt
from ray_workflows._executor.watch import watching
from ray_workflows._executor.worker import AttemptRun

#: Listeners that one host serves at once.
MAX_LISTENERS = 10_000


class ListenerHost:
    """Waits for events. One for each environment, owned by the coordinator and gone with it."""

    def __init__(self, *brought: None) -> None:
        """``brought``: something for each package that Ray had to bring into the cluster before."""
        prefer_packages()

    async def listen(self, load: Load, pickled_home: bytes) -> list[WireReport]:
        """Run one attempt of a listener task: as `carry.run_batches`, but awaiting."""
        return await listen(load, home_of(pickled_home))


async def listen(load: Load, home: Home) -> list[WireReport]:
    """Run one attempt of a listener task from a home."""
    encoded, nested = opened(load)
    number, (request,) = decode_batch(encoded)
    process = home.process
    live = (nested or {}).get(request.incarnation, {})
    # It must not wait: thousands of others are served by the same thread.
    run = AttemptRun(request, home.storage, live, process, number, patience=0.0)
    with watching(RunningAttempt(request, home.coordinator, process), process.watch):
        report = await run_listener(run)
    wire = ENCODER.encode(BatchReport(number, ((0, report),), (0.0,)))
    return [message(wire, {request.incarnation: run.made} if run.made else None)]


async def run_listener(run: AttemptRun) -> AnyReport:
    token = context.awaits_coroutines.set(True)
    try:
        function, args, kwargs = run.loaded()
        with context.running(run.request):
            result = function(*args, **kwargs)
            if inspect.isawaitable(result):
                result = await result
        return run.returned(result)
    except GeneratorExit:
        # The host is going away.
        raise
    except BaseException as error:
        # `SystemExit` would end the host, with all who wait in it.
        return run.raised(error)
    finally:
        context.awaits_coroutines.reset(token)


listener_host_class = ray.remote(
    num_cpus=0, max_concurrency=MAX_LISTENERS, max_restarts=0, max_task_retries=0
)(ListenerHost)
