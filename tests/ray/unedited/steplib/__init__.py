"""A small library as it was written for ray.workflow 2.47. It knows of no other home."""

import asyncio
import os

import ray
import ray.workflow.exceptions
from ray import workflow
from ray.workflow import workflow_context
from ray.workflow.common import WorkflowStatus
from ray.workflow.event_listener import EventListener, EventListenerType


def note(directory, name):
    os.makedirs(directory, exist_ok=True)
    with open(os.path.join(directory, name), "a") as file:
        file.write(f"{os.getpid()}\n")


class FileListener(EventListener):
    async def poll_for_event(self, path, directory):
        note(directory, "polled")
        while not os.path.exists(path):
            await asyncio.sleep(0.02)
        with open(path) as file:
            return {"path": path, "text": file.read()}

    async def event_checkpointed(self, event):
        os.rename(event["path"], event["path"] + ".taken")


@ray.remote
def step(directory, name, *previous):
    note(directory, name)
    where = f"{workflow_context.get_current_workflow_id()}/{workflow_context.get_current_task_id()}"
    return [*sum(previous, []), where]


@ray.remote
def rest(directory, previous, count):
    if count == 0:
        return previous
    again = step.options(**workflow.options(task_id=f"loop-{count}"))
    node = again.bind(directory, f"loop-{count}", previous)
    return workflow.continuation(rest.bind(directory, node, count - 1))


@ray.remote
def finish(event, previous):
    return event["text"], previous


def pipeline(listener: EventListenerType, path, directory):
    first = step.options(**workflow.options(task_id="first")).bind(directory, "first")
    event = workflow.wait_for_event(listener, path, directory)
    return finish.bind(event, rest.bind(directory, first, 2))


def status_or_none(workflow_id):
    try:
        return WorkflowStatus(workflow.get_status(workflow_id))
    except ray.workflow.exceptions.WorkflowNotFoundError as error:
        return None if workflow_id in error.message else error
