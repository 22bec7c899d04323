"""The ways in which people reach a cluster: jobs, ``address="auto"``, Ray Client, notebooks.

They share one cluster. The examples are those of docs/running.md.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ray.head import Head, python_blocks
from tests.ray.marks import Gate, Marks, wait_until
from tests.ray.processes import ROOT, DriverProcess

RUNNING = ROOT / "docs" / "running.md"
NOTEBOOK = ROOT / "examples" / "notebook.ipynb"

pytestmark = pytest.mark.own_cluster("head")


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    with Head(tmp_path_factory.mktemp("head") / "node") as head:
        head.wait_until_up()
        yield head


def cli(head: Head, *args: str, cwd: Path) -> str:
    """Run Ray's command line tool; what it said."""
    done = subprocess.run(
        [str(Path(sys.executable).with_name("ray")), *args],
        cwd=cwd,
        env={**os.environ, **head.joining, "RAY_ADDRESS": head.dashboard},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# The first of this module: the coordinator of the cluster is started by a job with a runtime_env.
def test_a_job(head: Head, tmp_path: Path) -> None:
    (main,) = python_blocks(RUNNING, "A job")
    (tmp_path / "main.py").write_text(main)
    (tmp_path / "beside.py").write_text("def double(n):\n    return 2 * n\n")
    (command,) = re.findall(r"```sh\n(ray job .*?)```", RUNNING.read_text(), re.DOTALL)
    command = command.replace("\\\n", " ").replace("http://127.0.0.1:8265", head.dashboard)
    words = shlex.split(command.replace("-- python", f"-- {sys.executable}"))
    assert "(8, 'vanilla')" in cli(head, *words[1:], cwd=tmp_path)


STOPPED = """
    import ray, ray_workflows as workflow
    from tests.ray.test_crashes import chain, held
    from tests.ray.marks import Gate, Marks
    ray.init()
    marks, gate = Marks({marks!r}), Gate({gate!r})
    workflow.run(chain(marks, 1, held.bind(marks, gate, None)), workflow_id="stopped job")
"""


def test_a_workflow_outlives_its_job(head: Head, tmp_path: Path, marks: Marks, gate: Gate) -> None:
    from ray.job_submission import JobStatus, JobSubmissionClient

    script = tmp_path / "stopped.py"
    code = STOPPED.format(marks=marks.directory, gate=gate.path)
    script.write_text(textwrap.dedent(code))
    # What the command line calls, without its start.
    jobs = JobSubmissionClient(head.dashboard)
    jobs.submit_job(entrypoint=shlex.join([sys.executable, str(script)]), submission_id="s")
    marks.wait_for("held")
    jobs.stop_job("s")
    wait_until(lambda: jobs.get_job_status("s") == JobStatus.STOPPED, "the job is stopped")
    # Another driver, which joins this machine's cluster, runs the examples and sees it.
    headings = ("A cluster that is there", "Several drivers at once", "A workflow inside a task")
    blocks = [block for heading in headings for block in python_blocks(RUNNING, heading)]
    code = "\n".join(
        [
            *blocks,
            "from tests.ray.marks import Gate",
            "assert dict(workflow.list_all())['stopped job'] == workflow.RUNNING",
            f"Gate({gate.path!r}).open()",
            "print('stopped job:', workflow.get_output('stopped job'))",
        ]
    )
    with DriverProcess(tmp_path, code, **head.joining) as driver:
        printed = [line for line in driver.wait().splitlines() if " -- " not in line]
    assert printed == ["3", "7", "26", "stopped job: 0"]
    assert marks.counts() == {"held": 1, "step-0": 1}


RACER = """
    import ray, ray_workflows as workflow
    from tests.ray.test_crashes import held
    from tests.ray.marks import Gate, Marks
    ray.init(address="auto", log_to_driver=False)
    dag = held.bind(Marks({marks!r}), Gate({gate!r}), "output")
    Gate({start!r}).wait()
    try:
        print(workflow.run(dag, workflow_id="race"), flush=True)
    except workflow.WorkflowAlreadyRunningError:
        print("already running", flush=True)
        print(workflow.get_output("race"), flush=True)
"""


def test_of_two_drivers_one_dies(head: Head, tmp_path: Path, marks: Marks, gate: Gate) -> None:
    start = Gate(str(tmp_path / "start"))
    code = RACER.format(marks=marks.directory, gate=gate.path, start=start.path)
    directories = [tmp_path / "a", tmp_path / "b"]
    for directory in directories:
        directory.mkdir()
    one, two = (DriverProcess(directory, code, **head.joining) for directory in directories)
    with one, two:
        start.open()
        marks.wait_for("held")

        def second() -> DriverProcess | None:
            return next((d for d in (one, two) if "already running" in d.text()), None)

        wait_until(second, "one of them comes second")
        waiting = second()
        assert waiting is not None
        creator = two if waiting is one else one
        creator.kill()
        gate.open()
        assert waiting.wait().splitlines()[-1] == "output"
    assert marks.counts() == {"held": 1}


def test_ray_client(head: Head, tmp_path: Path, gate: Gate) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / "shipped.py").write_text("NAME = 'shipped'\n")
    (example,) = python_blocks(RUNNING, "Ray Client")
    assert "ray://127.0.0.1:10001" in example
    names = {
        "example": example.replace("ray://127.0.0.1:10001", head.client),
        "address": head.client,
        "storage": str(head.storage),
        "project": str(project),
        "file": str(tmp_path / "file"),
        "gate": gate.path,
    }
    environment = {
        **head.joining,
        "NAMES": json.dumps(names),
        # What this process takes for the default storage is not that of the cluster.
        "RAY_WORKFLOW_STORAGE": str(tmp_path / "elsewhere"),
    }
    code = (ROOT / "tests" / "ray" / "client_program.py").read_text()
    with DriverProcess(tmp_path, code, **environment) as driver:
        printed = driver.wait(150).splitlines()
    assert [line for line in printed if line in ("3", "all right")] == ["3", "3", "all right"]
    assert not (tmp_path / "elsewhere").exists()


def test_a_notebook(head: Head, tmp_path: Path) -> None:
    code = (ROOT / "tests" / "ray" / "notebook_program.py").read_text()
    with DriverProcess(tmp_path, code, NOTEBOOK=str(NOTEBOOK), **head.joining) as driver:
        assert "all right" in driver.wait(150)
