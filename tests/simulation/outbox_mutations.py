"""Broken outboxes, registered beside the other mutations."""

from __future__ import annotations

from typing import Any

import msgspec

from ray_workflows._coordinator import deletion as deletion_module
from ray_workflows._coordinator.outbox import Deliveries
from ray_workflows._engine import attempts as attempts_module
from ray_workflows._engine import commands as commands_module
from ray_workflows._engine import outbox as outbox_module
from ray_workflows._model.status import WorkflowStatus
from tests.simulation.mutations import breaks


@breaks("stuck", "replies", world="parents")
def what_is_not_delivered_is_forgotten_by_a_crash(patch: Any) -> None:
    patch.setattr(commands_module, "deliveries", lambda state: [])


@breaks("children", world="parents")
def a_message_has_another_id_each_time(patch: Any) -> None:
    original = Deliveries.decode

    def decode(self: Any, *arguments: Any) -> Any:
        submission = original(self, *arguments)
        return msgspec.structs.replace(
            submission, request_id=f"{submission.request_id} {id(self)}", history=None
        )

    patch.setattr(Deliveries, "decode", decode)


@breaks("children", world="parents")
def a_message_goes_into_a_workflow_that_is_there(patch: Any) -> None:
    original = Deliveries.decode

    def decode(self: Any, *arguments: Any) -> Any:
        return msgspec.structs.replace(original(self, *arguments), history=None)

    patch.setattr(Deliveries, "decode", decode)


@breaks("invariant", world="parents")
def a_workflow_ends_before_its_messages_are_delivered(patch: Any) -> None:
    patch.setattr(outbox_module, "keep_end", lambda state, decision, now, around: decision)


@breaks("invariant", "children", world="parents")
def what_has_failed_sends_messages(patch: Any) -> None:
    patch.setattr(attempts_module, "ACTIVE", [*attempts_module.ACTIVE, WorkflowStatus.FAILED])


@breaks("children", "unexpected", "stuck", world="parents")
def a_message_is_said_to_be_delivered_when_it_is_sent(patch: Any) -> None:
    original = Deliveries.send

    def send(self: Any, letter: Any) -> None:
        said = outbox_module.msg.Delivered(letter.message.message_id)
        self.report(letter.incarnation, [said])
        original(self, letter)

    patch.setattr(Deliveries, "send", send)


TROUBLE = {"until": 30.0, "commit_unsaid": 0.3, "commit_lost": 0.3, "crash_within_step": 0.03}


@breaks("stuck", "children", world="parents", **TROUBLE)
def what_is_deleted_may_be_started_again(patch: Any) -> None:
    patch.setattr(deletion_module, "is_awaited", lambda storage, row: False)
