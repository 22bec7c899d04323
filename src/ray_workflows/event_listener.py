"""`EventListener` and `TimerListener`, where ``ray.workflow`` had them."""

from __future__ import annotations

from ray_workflows.events import Event, EventListener, EventListenerType, TimerListener

__all__ = ["Event", "EventListener", "EventListenerType", "TimerListener"]
