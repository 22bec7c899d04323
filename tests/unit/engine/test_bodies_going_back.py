"""Bodies that are tried again after the error of a step."""

from __future__ import annotations

import asyncio

from ray_workflows._model.status import WorkflowStatus
from tests.unit.body_driver import DURABLE, BodyDriver, step
from tests.unit.plans import plan


async def cancels_after_an_error() -> bytes:
    slow = asyncio.create_task(step("slow"))
    try:
        await step("fast")
    except BaseException:
        slow.cancel()
        raise
    return await slow


def test_a_step_that_was_canceled_after_its_outcome_has_it_still() -> None:
    options = {**DURABLE, "retry_exceptions": True}
    driver = BodyDriver(plan(("f", (), options)), {"f": cancels_after_an_error})
    driver.fail("f/fast")
    # It ends before the body has the error, and cancels it.
    driver.act(driver.succeed, "f/slow", b"slow")
    assert driver.running == ["f/fast_1"]
    driver.finish("f/fast_1")
    assert driver.state.status is WorkflowStatus.SUCCESSFUL
    assert driver.state.output.value.data == b"slow"
