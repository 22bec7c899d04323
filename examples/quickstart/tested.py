"""How a workflow is tested: in this process, without a cluster and without waiting.

`crash_everywhere` runs it once for each commit with a cluster that dies just before it, and once
with one that dies just after it. docs/testing.md has more.
"""

from __future__ import annotations

import ray

import ray_workflows as workflow
from ray_workflows.testing import CrashReport, Environment, crash_everywhere


@ray.remote(max_retries=2, retry_exceptions=[ConnectionError])
def charge(order: int) -> str:
    """Takes money. In the test it has no network at first."""
    return f"order {order} is charged"


@ray.remote
def ship(receipt: str, approval: str) -> str:
    """Comes when somebody has approved it."""
    return f"{receipt}, {approval}"


def ship_when_approved(env: Environment) -> str:
    """An order that is approved after a day, while the first two charges fail."""
    env.mock(charge, raises=ConnectionError("no network"), times=2)
    approval = workflow.wait_for_signal("approval", timeout=7 * 86_400)
    started = env.run_async(ship.bind(charge.bind(5), approval), workflow_id="order-5")
    env.advance(86_400)
    env.signal("order-5", "approval", "approved by Ada")
    result: str = started.result()
    return result


def run_test() -> CrashReport:
    """Run the test with a crash at each place where one can matter."""
    report = crash_everywhere(ship_when_approved)
    assert report.result == "order 5 is charged, approved by Ada"
    return report
