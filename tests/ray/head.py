"""A cluster as people start it, ``ray start --head``, with what takes jobs and Ray Clients."""

from __future__ import annotations

import re
from pathlib import Path

from tests.ray.processes import DriverProcess
from tests.support.ports import free_ports

# In the foreground, so that what it starts are its descendants, to be killed with it.
START = """
    import sys
    from ray.scripts.scripts import main
    from tests.ray.start import with_jobs
    sys.argv = ["ray", "start", "--head", "--block", "--disable-usage-stats", "--num-cpus=2",
                "--node-ip-address=127.0.0.1", "--port=0", "--ray-client-server-port={client}",
                "--include-dashboard=true", "--dashboard-host=127.0.0.1",
                "--dashboard-port={dashboard}", "--dashboard-agent-listen-port={agent}"]
    with with_jobs():
        main()
"""

#: Otherwise Ray takes tokens if this user has one, and wants all that joins to be told so.
AUTH_MODE = "disabled"


class Head(DriverProcess):
    """The head node of a cluster of its own. Its storage is the default one: its environment says
    where that is."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self.storage = directory / "store"
        client, dashboard, agent = free_ports(3)
        self.client = f"ray://127.0.0.1:{client}"
        self.dashboard = f"http://127.0.0.1:{dashboard}"
        code = START.format(client=client, dashboard=dashboard, agent=agent)
        super().__init__(
            directory, code, RAY_WORKFLOW_STORAGE=str(self.storage), RAY_AUTH_MODE=AUTH_MODE
        )

    def wait_until_up(self) -> None:
        self.wait_for_text("Ray runtime started")

    @property
    def joining(self) -> dict[str, str]:
        """The environment of another process on this node."""
        return {
            "RAY_TMPDIR": self.ray_directory,
            "RAY_WORKFLOW_STORAGE": str(self.storage),
            "RAY_AUTH_MODE": AUTH_MODE,
        }


def python_blocks(document: Path, heading: str) -> list[str]:
    """The Python code under a heading of a document."""
    _, _, rest = document.read_text().partition(f"\n## {heading}\n")
    assert rest, heading
    section = rest.partition("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)
