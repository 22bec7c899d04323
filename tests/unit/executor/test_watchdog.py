"""What looks at attempts from time to time does not hold them when they are over."""

from __future__ import annotations

import threading
import time
import weakref

from ray_workflows._executor.worker.watchdog import Watchdog

#: How long to wait for what happens within a moment.
PATIENCE_SECONDS = 10.0


class Attempt:
    """Something to watch."""

    def __init__(self) -> None:
        self.looked_at = threading.Event()

    def check(self, now: float) -> bool:
        self.looked_at.set()
        return True


def test_what_was_looked_at_is_let_go() -> None:
    watch = Watchdog()
    attempt = Attempt()
    reference = weakref.ref(attempt)
    watch.add(attempt)
    assert attempt.looked_at.wait(PATIENCE_SECONDS)
    watch.remove(attempt)
    del attempt
    deadline = time.monotonic() + PATIENCE_SECONDS
    while reference() is not None:
        assert time.monotonic() < deadline, "the watch holds what it looked at last"
        time.sleep(0.001)
