"""workflow_context outside of tasks; inside, see tests/ray/test_compat.py."""

from __future__ import annotations

import pytest

from ray_workflows import workflow_context


def test_outside_of_tasks() -> None:
    assert not workflow_context.in_workflow_execution()
    assert workflow_context.get_current_task_id() == ""
    for function in (workflow_context.get_current_workflow_id, workflow_context.get_name):
        with pytest.raises(AssertionError, match="No task of a workflow"):
            function()
