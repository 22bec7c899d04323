"""Coordinators in the process of the tests."""

from __future__ import annotations

import threading

from ray_workflows._coordinator.actor import CoordinatorService


def stop(service: CoordinatorService) -> None:
    """Let it do nothing any more. A real one ends with its process; this one would go on beside
    later tests, and look at their cluster."""
    service.inbox.put(threading.Event().wait)
