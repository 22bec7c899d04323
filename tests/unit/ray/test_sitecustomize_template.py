"""Packages come first on the path of a worker, also of one that knows nothing of us."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ray_workflows._ray import sitecustomize_template

PACKAGES = ["/s/runtime_resources/py_modules_files/a", "/s/runtime_resources/py_modules_files/b"]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (["x", "/job", *PACKAGES, "/job", "y"], ["x", *PACKAGES, "/job", "/job", "y"]),
        (["/job", "/mine", *PACKAGES], ["/mine", *PACKAGES, "/job"]),
        ([*PACKAGES, "/job"], [*PACKAGES, "/job"]),
        (["/job", "y"], ["/job", "y"]),
    ],
)
def test_what_ray_puts_first_comes_after_the_packages(path: list[str], expected: list[str]) -> None:
    assert sitecustomize_template.packages_first(path, ["/job"]) == expected


@pytest.mark.parametrize("worker", [True, False])
def test_it_is_imported_before_the_one_that_is_installed(tmp_path: Path, worker: bool) -> None:
    # A workflow that a task submits has its own package, and that of the task.
    package, other, installed = (tmp_path / name for name in ("package", "other", "installed"))
    for directory in (package, other, installed):
        directory.mkdir()
        shutil.copy(
            sitecustomize_template.__file__, directory / f"{sitecustomize_template.NAME}.py"
        )
    (installed / f"{sitecustomize_template.NAME}.py").write_text("print('installed')\n")
    script = tmp_path / (sitecustomize_template.WORKER if worker else "main.py")
    script.write_text(
        "import sys, sitecustomize\n"
        "print(sitecustomize.__file__, [type(finder).__name__ for finder in sys.meta_path][:1])\n"
    )
    paths = os.pathsep.join([str(package), str(other), str(installed)])
    printed = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert printed[0] == "installed"
    assert printed[1].startswith(str(installed))
    assert ("WhenTheTaskIsThere" in printed[1]) is worker


def test_what_it_asks_of_ray() -> None:
    from ray._private import worker
    from ray._private.workers import default_worker
    from ray._raylet import CoreWorker

    assert hasattr(worker.Worker(), "_cached_job_id")
    assert hasattr(CoreWorker, "get_job_config")
    assert Path(str(default_worker.__file__)).name == sitecustomize_template.WORKER
