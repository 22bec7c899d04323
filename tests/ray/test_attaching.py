"""Commands connect to clusters that take tokens, to those that don't, and to one that hangs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ray.processes import ROOT, DriverProcess, descendants

# Those of one head stay together, as it is started for them.
pytestmark = pytest.mark.own_cluster("attached")

HEAD = """
    import os
    import time

    {first}
    from tests.ray.start import start_cluster

    start_cluster(num_cpus=1)
    import ray
    import ray_workflows as workflow

    @ray.remote
    def one():
        return 1

    workflow.init("store")
    workflow.run(one.bind(), workflow_id="done")
    print("address:", ray.get_runtime_context().gcs_address, "end", flush=True)
    time.sleep(3600)
"""

#: As Ray does it by itself, and what turns it off.
TOKENS = {
    "tokens": 'os.environ.pop("RAY_AUTH_MODE", None)',
    "no tokens": 'os.environ["RAY_AUTH_MODE"] = "disabled"',
}


class Head(DriverProcess):
    """A cluster with a coordinator, and commands of a user with a token."""

    def __init__(self, directory: Path, home: Path, first: str) -> None:
        self.home = home
        for made in (directory, home):
            made.mkdir(exist_ok=True)
        super().__init__(directory, HEAD.format(first=first), HOME=str(home))

    @property
    def gcs(self) -> str:
        self.wait_for_text(" end\n")
        return self.text().partition("address: ")[2].split()[0]

    def command(self, *args: str, first: str = "") -> subprocess.CompletedProcess[str]:
        """Run the command line, of a shell that knows nothing of the cluster."""
        environment = {
            **{k: v for k, v in os.environ.items() if k != "RAY_AUTH_MODE"},
            "HOME": str(self.home),
            "PYTHONPATH": str(ROOT / "src"),
        }
        code = f"{first}\nfrom ray_workflows.cli.main import main\nmain()"
        return subprocess.run(
            [sys.executable, "-c", code, *args],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module", params=TOKENS)
def head(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, home: Path
) -> Iterator[Head]:
    directory = tmp_path_factory.mktemp("head") / "head"
    with Head(directory, home, TOKENS[request.param]) as head:
        yield head


def test_a_command_takes_the_address(head: Head) -> None:
    found = head.command("cancel", "nobody", "--address", head.gcs)
    assert "There is no workflow 'nobody'" in found.stderr, found.stderr
    resumed = head.command("resume", "done", "--address", head.gcs)
    assert resumed.stdout == "1\n", resumed.stderr


#: Limits that a test can wait for.
SOON = "from ray_workflows.cli import clusters; clusters.ATTACH_SECONDS = 3.0"


def test_a_cluster_that_hangs_is_given_up(head: Head) -> None:
    address = head.gcs
    (server,) = (
        pid
        for pid in descendants(head.process.pid)
        if Path(f"/proc/{pid}/comm").read_text() == "gcs_server\n"
    )
    os.kill(server, signal.SIGSTOP)
    try:
        found = head.command("doctor", "--json", "--address", address, first=SOON)
    finally:
        os.kill(server, signal.SIGCONT)
    assert found.returncode == 1
    checks = {check["name"]: check for check in json.loads(found.stdout)["checks"]}
    assert f"Waited 3 s for the Ray cluster at {address}" in checks["cluster"]["message"]
