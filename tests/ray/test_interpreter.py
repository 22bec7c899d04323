"""A virtual environment in a directory whose name a shell would take apart: plain Ray works there
as long as there is no runtime_env, and attempts have one as soon as there is code beside the
script."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.ray.processes import OWN_CODE, DriverProcess

DRIVER = """
    import ray, ray_workflows as workflow
    import beside
    from tests.ray.start import start_cluster
    start_cluster(num_cpus=2)
    workflow.init({storage!r})

    @ray.remote
    def python(*before):
        import beside, sys
        return beside.NAME, sys.executable

    @ray.remote
    def nested():
        return workflow.run(python.bind(), workflow_id="nested")

    print(workflow.run(python.bind(python.bind())))
    print(workflow.run(nested.bind()))
    print("py_executable" in workflow.get_environment("nested").runtime_env)
"""


@pytest.mark.own_cluster
def test_workflows_run_in_a_path_with_spaces(tmp_path: Path) -> None:
    directory = tmp_path / "a path with ä"
    directory.mkdir()
    (directory / "environment").symlink_to(sys.prefix)
    python = directory / "environment" / "bin" / "python"
    (directory / "beside.py").write_text("NAME = 'beside'\n")
    code = DRIVER.format(storage=str(tmp_path / "storage"))
    with DriverProcess(directory, code, python=str(python), **OWN_CODE) as driver:
        said = driver.wait().splitlines()
    one = str(("beside", str(python)))
    assert said == [one, one, "False"]
