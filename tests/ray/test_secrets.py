"""No secret of a runtime_env reaches the storage, an error, or a log of our own processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.ray.processes import DriverProcess

SECRET = "s3cr3tw0rd"

#: The second task names a module at an address that Ray can't fetch it from, and says so.
PROGRAM = """
    import os, ray, ray_workflows as workflow
    from pathlib import Path
    from ray._private.worker import global_worker
    from tests.ray.start import few_processes

    SECRET = os.environ["THE_WORD"]
    with few_processes():
        ray.init(num_cpus=2, log_to_driver=False, _node_ip_address="127.0.0.1", runtime_env={{
            "env_vars": {{"MY_TOKEN": SECRET, "DB": f"postgresql://me:{{SECRET}}@host/db"}}}})
    workflow.init({storage!r})

    @ray.remote
    def values():
        return [len(os.environ[name]) for name in ("MY_TOKEN", "DB", "BROKER")]

    @ray.remote(max_retries=0)
    def never(values):
        return values

    given = {{"env_vars": {{"BROKER": f"redis://:{{SECRET}}@host"}}}}
    away = {{"py_modules": [f"https://me:{{SECRET}}@127.0.0.1:1/a.zip?sig={{SECRET}}"]}}
    dag = never.options(runtime_env=away).bind(values.options(
        runtime_env=given, **workflow.options(task_id="values")).bind())
    try:
        workflow.run(dag, workflow_id="w")
    except workflow.WorkflowExecutionError as error:
        said = f"{{error}} {{error.__cause__!r}}"
        assert isinstance(error.__cause__, ray.exceptions.RuntimeEnvSetupError)
    assert "a.zip?sig=<secret>" in said, said
    assert SECRET not in said, said
    assert workflow.get_output("w", task_id="values") == [10, 34, 24]
    shown = repr(workflow.get_environment("w"))
    assert shown.count("<secret>") == 5, shown
    assert SECRET not in shown + repr(workflow.get_tasks("w", attempts=True))
    stored = [path for path in Path({storage!r}).rglob("*") if path.is_file()]
    assert not [path for path in stored if SECRET.encode() in path.read_bytes()]
    # Those of the coordinator and the workers. Ray's own have what Ray was given.
    logs = Path(global_worker.node.get_logs_dir_path())
    ours = [*logs.glob("worker-*.out"), *logs.glob("worker-*.err")]
    assert len(ours) >= 4
    assert not [path for path in ours if SECRET.encode() in path.read_bytes()]
"""


@pytest.mark.own_cluster
def test_secrets_are_in_the_cluster_alone(tmp_path: Path) -> None:
    code = PROGRAM.format(storage=str(tmp_path / "storage"))
    with DriverProcess(tmp_path, code, THE_WORD=SECRET) as driver:
        driver.wait()
