"""Tags and filters on a real cluster."""

from __future__ import annotations

import pytest
import ray

import ray_workflows as workflow
from ray_workflows._client import bulk
from ray_workflows._client.code_changes import CodeChanges
from ray_workflows._client.connection import connect
from ray_workflows._client.environments import ResumeOptions
from ray_workflows._model.catalog import CatalogRow
from ray_workflows._model.filters import parse_filter
from ray_workflows.exceptions import WorkflowNotFoundError, WorkflowStillActiveError


@workflow.options(task_id="train", tags={"team": "vision", "draft": True})
@ray.remote
def train(rate: float) -> float:
    if rate < 0:
        raise ValueError("rate")
    return rate


def ids(filter: str) -> list[str]:
    return [found.workflow_id for found in workflow.list_workflows(filter, order="oldest")]


def test_workflows_are_found_and_many_are_changed(cluster: None, wid: str) -> None:
    mine = f'id="{wid}"*'
    workflow.run(train.bind(0.5), workflow_id=f"{wid}a", tags={"draft": False, "rate": 0.5})
    with pytest.raises(ray.exceptions.RayTaskError):
        workflow.run(train.bind(-1.0), workflow_id=f"{wid}b")
    waiting = workflow.run_async_many(
        [workflow.wait_for_signal("go")] * 2,
        workflow_ids=[f"{wid}c", f"{wid}d"],
        tags={"team": "audio"},
    )
    # Of the root task, and what is given to run lies over them.
    assert ids(f"{mine} tag.team=vision") == [f"{wid}a", f"{wid}b"]
    assert ids(f"{mine} tag.draft=true") == [f"{wid}b"]
    assert ids(f"{mine} tag.rate>0.4 status=SUCCESSFUL") == [f"{wid}a"]
    (found,) = workflow.list_workflows(f"{mine} name=* status=FAILED")
    assert (found.kind, found.tags, found.status) == (
        "dag",
        {"team": "vision", "draft": True},
        workflow.FAILED,
    )
    assert found.name == "train"
    assert found.error is not None

    # A fork has them; so has what is driven, and what has ended.
    workflow.set_tags(f"{wid}a", {"draft": None, "score": 1})
    (forked,) = workflow.fork_many(f"id={wid}a", "train")
    assert workflow.get_output(forked.value) == 0.5
    (row,) = workflow.list_workflows(f"id={forked.value}")
    assert row.tags == {"team": "vision", "rate": 0.5, "score": 1}
    with pytest.raises(WorkflowNotFoundError):
        workflow.set_tags(f"{wid}nobody", {"a": 1})

    assert len(workflow.delete_many(f"{mine} tag.team=audio")) == 0
    refused = workflow.delete_many(f"{mine} status=RUNNING,PENDING")
    assert [type(each.error) for each in refused] == [WorkflowStillActiveError] * 2
    sent = workflow.signal_many(f"{mine} tag.team=audio", "go", {"lane": 4}, signal_id="1")
    assert [each.error for each in sent] == [None, None]
    assert ray.get(waiting) == [{"lane": 4}] * 2
    (resumed,) = workflow.resume_many(mine)
    assert resumed.workflow_id == f"{wid}b"
    with pytest.raises(ray.exceptions.RayTaskError):
        ray.get(resumed.value)
    assert workflow.cancel_many(mine, dry_run=True) == []
    gone = workflow.delete_many(mine)
    assert len(gone) == 4
    assert workflow.count_workflows(mine) == 0
    assert workflow.count_workflows(f"id={forked.value}") == 1
    workflow.delete(forked.value)


def test_a_workflow_that_was_made_again_since_the_listing_is_left_alone(wid: str) -> None:
    """By every verb, though its id is the same."""
    connection = connect()
    ready = ResumeOptions()
    verbs = (
        bulk.canceling(connection),
        bulk.deleting(connection),
        bulk.signaling(connection, "go", None, None),
        bulk.resuming(connection, True, ready, CodeChanges(connection.storage)),
        bulk.forking(connection, "train", ready, CodeChanges(connection.storage)),
    )
    waits = workflow.wait_for_signal("go")
    workflow.run_async(waits, workflow_id=wid)
    workflow.cancel(wid)
    listed: list[CatalogRow] = []

    def made_again(targets: list[CatalogRow]) -> bool:
        listed.extend(targets)
        workflow.delete(wid)
        workflow.run_async(waits, workflow_id=wid)
        return False

    everything = verbs[0]._replace(usual=(workflow.CANCELED,))
    bulk.do_many(connection, parse_filter(f"id={wid}"), everything, made_again)
    assert [row.workflow_id for row in listed] == [wid]
    for verb in verbs:
        (result,) = bulk.do_each(listed, verb)
        assert isinstance(result.error, WorkflowNotFoundError)
        assert result.error.replaced
    assert workflow.get_status(wid) == workflow.RUNNING
    assert workflow.count_workflows(f"id={wid}*") == 1
    (sent,) = workflow.signal_many(f"id={wid}", "go", 7)
    assert sent.error is None
    assert workflow.get_output(wid) == 7
    assert [each.error for each in workflow.delete_many(f"id={wid}")] == [None]
