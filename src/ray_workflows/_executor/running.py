"""An attempt that runs in this process, and what the coordinator is told of it meanwhile."""

from __future__ import annotations

from typing import Any

from ray_workflows._executor.process import Process
from ray_workflows._executor.protocol import AttemptRequest

#: How long an attempt runs before the coordinator is told, in seconds.
TOLD_AFTER_SECONDS = 0.25


class RunningAttempt:
    """An attempt that runs: the coordinator hears of it when it has run for a while."""

    __slots__ = ("began", "coordinator", "process", "request", "told")

    def __init__(self, request: AttemptRequest, coordinator: Any, process: Process) -> None:
        self.request = request
        #: None: nobody wants to know.
        self.coordinator = coordinator
        self.process = process
        self.began = process.monotonic()
        self.told = coordinator is None
        if request.scene.options.timeout is not None:
            # Its time runs from here.
            self.tell()

    def check(self, now: float) -> bool:
        if now - self.began >= TOLD_AFTER_SECONDS:
            self.tell()
        return not self.told

    def tell(self) -> None:
        """Nobody waits for it to arrive: if it gets lost, less is shown."""
        if not self.told:
            self.told = True
            request, process = self.request, self.process
            started_at = process.time() - (process.monotonic() - self.began)
            self.coordinator.attempt_runs.remote(
                *(request.incarnation, request.task, request.epoch, request.attempt, started_at),
                process.node_id,
            )
