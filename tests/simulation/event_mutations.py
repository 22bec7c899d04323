"""Broken events by HTTP, registered beside the other mutations."""

from __future__ import annotations

from typing import Any

from ray_workflows._engine import decide as decide_module
from ray_workflows._engine import evolve as evolve_module
from ray_workflows._engine import lifecycle as lifecycle_module
from ray_workflows._engine.decision import Decision
from ray_workflows._model import events as ev
from ray_workflows._model import messages as msg
from tests.simulation.mutations import breaks


@breaks("signals")
def a_name_may_have_two_events(patch: Any) -> None:
    patch.setattr(lifecycle_module, "has_another", lambda state, name: False)


@breaks("events")
def an_acknowledgement_is_only_said(patch: Any) -> None:
    patch.setitem(
        decide_module.ASKED, msg.AcknowledgeSignals, lambda state, input, now, around: Decision([])
    )


@breaks("signals")
def what_was_acknowledged_is_forgotten(patch: Any) -> None:
    def apply(state: Any, event: ev.SignalAcknowledged) -> None:
        del state.signals[event.name]

    patch.setattr(lifecycle_module, "apply_signal_acknowledged", apply)
    patch.setitem(lifecycle_module.APPLIERS, ev.SignalAcknowledged, apply)
    patch.setitem(
        evolve_module.APPLIERS, ev.SignalAcknowledged, lambda state, event, _: apply(state, event)
    )
