"""The listener host: an actor in which event listeners wait, thousands at a time, on no CPU.

User code runs in it, so it is not the coordinator: a listener that blocks or crashes harms only
listeners of the same environment, which are started again elsewhere.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import ray

from ray_workflows._executor import context
from ray_workflows._executor.protocol import REQUEST_DECODER
from ray_workflows._executor.worker import AttemptRun, Home, WireReport

#: Listeners that one host serves at once.
MAX_LISTENERS = 10_000


class ListenerHost:
    """Waits for events. One for each environment, owned by the coordinator and gone with it."""

    async def listen(self, encoded: bytes, home: Home, nested: Mapping[str, Any]) -> WireReport:
        """Run one attempt of a listener task: as `worker.run_attempt`, but awaiting."""
        request = REQUEST_DECODER.decode(encoded)
        run = AttemptRun(request, home, dict(nested))
        token = context.awaits_coroutines.set(True)
        try:
            function, args, kwargs = run.load()
            with run.scope():
                result = function(*args, **kwargs)
                if inspect.isawaitable(result):
                    result = await result
            return run.wire(run.returned(result))
        except Exception as error:
            return run.wire(run.raised(error))
        finally:
            context.awaits_coroutines.reset(token)


listener_host_class = ray.remote(
    num_cpus=0, max_concurrency=MAX_LISTENERS, max_restarts=0, max_task_retries=0
)(ListenerHost)
