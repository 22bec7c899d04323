"""An application as it was written for ray.workflow 2.47. Its first run is killed."""

import sys

import ray
import steplib
from ray import workflow


@ray.remote
def plain(workflow_id):
    """A task of no workflow, and by value: it is defined in the script."""
    import ray.workflow.common

    assert workflow.RUNNING is ray.workflow.common.WorkflowStatus.RUNNING
    return steplib.status_or_none(workflow_id)


@ray.remote
class Watcher:
    def status(self, workflow_id):
        return steplib.status_or_none(workflow_id)

    def run_another(self, directory):
        return workflow.run(steplib.step.bind(directory, "another"), workflow_id="another")


@workflow.options(catch_exceptions=True)
@ray.remote
def fail():
    raise workflow.WorkflowError("on purpose")


class Listener(steplib.FileListener):
    """By value."""


def main(storage, path, directory):
    ray.init(
        "local",
        storage=storage,
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        _node_ip_address="127.0.0.1",
    )
    workflow.init(max_running_workflows=10)
    before = steplib.status_or_none("main")
    print("before:", before and before.value, flush=True)
    try:
        workflow.resume("nobody")
    except ray.workflow.exceptions.WorkflowNotResumableError as error:
        print("resume:", error.message.split(".")[0], flush=True)
    value, error = workflow.run(fail.bind())
    print("caught:", isinstance(error, workflow.WorkflowError), flush=True)
    ref = workflow.run_async(steplib.pipeline(Listener, path, directory), workflow_id="main")
    print("in a task:", ray.get(plain.remote("main")).value, flush=True)
    watcher = Watcher.remote()
    print("in an actor:", ray.get(watcher.status.remote("main")).value, flush=True)
    print("run by an actor:", ray.get(watcher.run_another.remote(directory)), flush=True)
    print("result:", ray.get(ref), flush=True)
    print("listed:", sorted(i for i, s in workflow.list_all() if len(i) < 10), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
