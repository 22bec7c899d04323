"""Retries while a storage is away: the same rule for workers and for drivers."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from ray_workflows._model.errors import text_of
from ray_workflows.exceptions import StorageUnavailableError, is_transient

T = TypeVar("T")

#: The pauses between tries, in seconds; they double.
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.1, 5.0


def wait_out(
    work: Callable[[], T],
    patience: float,
    failed: Callable[[Exception], None],
    *,
    monotonic: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """Call ``work``, and call it again after a pause while the storage is away.

    Args:
        work: uses the storage, and may be repeated.
        patience: for how long to retry, in seconds.
        failed: is called with each error, before the pause that follows it.
        monotonic: returns seconds of a monotonic clock.
        sleep: waits for some seconds.

    Raises:
        StorageUnavailableError: the storage was away for longer than ``patience``.
    """
    end, pause = monotonic() + patience, FIRST_PAUSE_SECONDS
    while True:
        try:
            return work()
        except Exception as error:
            if not is_transient(error):
                raise
            if monotonic() >= end:
                raise StorageUnavailableError(text_of(error)) from error
            failed(error)
        sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
