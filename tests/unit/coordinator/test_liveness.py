"""Liveness: what a reader and a coordinator conclude from the holders' rows."""

from __future__ import annotations

import os
import subprocess
import sys

import msgspec
import pytest

from ray_workflows._coordinator.liveness import (
    Liveness,
    ProcessProbe,
    probe_process,
    process_started,
    this_holder,
    this_host,
)
from ray_workflows._model.catalog import CatalogRow, Holder
from ray_workflows._model.status import WorkflowStatus


def holder(name: str, coordinator: str = "c", lease_until: float = 100.0) -> Holder:
    return Holder(name, coordinator, "elsewhere", 1, 1, lease_until)


def row(status: WorkflowStatus, holder_id: str = "h", released: bool = False) -> CatalogRow:
    return CatalogRow("w", "i", 1, status, holder_id, 0.0, released=released)


def alive(holder: Holder) -> None:
    return None


def dead(holder: Holder) -> bool:
    return False


def only(name: str) -> ProcessProbe:
    return lambda holder: holder.holder_id == name


RUNNING, PENDING = WorkflowStatus.RUNNING, WorkflowStatus.PENDING


@pytest.mark.parametrize("status", [RUNNING, PENDING])
def test_a_lease_that_holds(status: WorkflowStatus) -> None:
    claims = Liveness([holder("h")], 90.0, probe=alive)
    assert claims.status(row(status)) is status


@pytest.mark.parametrize("status", [RUNNING, PENDING])
def test_a_lease_longer_than_any_was_given_before_the_clock_was_set_back(
    status: WorkflowStatus,
) -> None:
    claims = Liveness([holder("h", lease_until=3600.0)], 90.0, probe=alive)
    assert claims.status(row(status)) is WorkflowStatus.RESUMABLE
    seen = Liveness([holder("h", lease_until=3600.0)], 90.0, probe=lambda holder: True)
    assert seen.status(row(status)) is status


@pytest.mark.parametrize(
    "claims",
    [
        Liveness([], 50.0),
        Liveness([holder("h")], 100.0, probe=alive),
        Liveness([holder("h")], 90.0, probe=dead),
        Liveness([holder("h"), holder("later", "other")], 90.0, probe=only("later")),
    ],
    ids=["no row", "lapsed", "process gone", "another coordinator lives"],
)
def test_dead_holders(claims: Liveness) -> None:
    assert claims.status(row(RUNNING)) is WorkflowStatus.RESUMABLE
    assert claims.status(row(WorkflowStatus.FAILED)) is WorkflowStatus.FAILED


def test_a_released_workflow_is_nobodys() -> None:
    claims = Liveness([holder("h")], 50.0, probe=alive)
    assert claims.status(row(RUNNING, released=True)) is WorkflowStatus.RESUMABLE


def test_readers_trust_the_coordinator_of_their_cluster_to_come_back() -> None:
    claims = Liveness([holder("h", "c")], 500.0, cluster="c", probe=dead)
    assert claims.status(row(RUNNING)) is RUNNING


def test_this_process_is_alive_and_a_dead_one_is_not() -> None:
    me = this_holder("c")
    assert probe_process(me) is True
    assert probe_process(msgspec.structs.replace(me, host="elsewhere")) is None
    assert probe_process(msgspec.structs.replace(me, started_ticks=me.started_ticks + 1)) is False
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    ticks = process_started(process.pid)
    other = msgspec.structs.replace(me, pid=process.pid, started_ticks=ticks)
    assert probe_process(other) is True
    process.kill()
    process.wait()
    assert probe_process(other) is False
    process.stdin.close()
    assert this_host() == this_host()
    assert process_started(os.getpid()) == me.started_ticks
