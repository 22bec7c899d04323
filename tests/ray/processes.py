"""Drivers in processes of their own, and their death."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from types import TracebackType

from tests.ray.marks import wait_until
from tests.support.directories import short_directory

#: Makes Ray listen on 127.0.0.1 only; `_node_ip_address` alone does not, Ray replaces it.
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}

ROOT = Path(__file__).parents[2]

#: For a driver whose own code these modules are, which storage and cluster have to carry.
OWN_CODE = {"PYTHONUSERBASE": ""}


class DriverProcess:
    """A driver script in its own process group; used as a context, it leaves nothing running."""

    def __init__(
        self, directory: Path, code: str, *, python: str | None = None, **env: str
    ) -> None:
        self.path = directory / "driver.py"
        self.path.write_text(textwrap.dedent(code))
        self.output = directory / "driver.log"
        # Ray notes there which cluster is this machine's; a killed one must not stay noted.
        self.ray_directory = short_directory()
        environment = {
            **os.environ,
            # The package of this tree, wherever another one is installed.
            "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "src"))),
            "PYTHONWARNINGS": "ignore",
            "RAY_TMPDIR": self.ray_directory,
            **tests_as_installed(Path(self.ray_directory)),
            **LOOPBACK,
            **env,
        }
        with self.output.open("wb") as log:
            self.process = subprocess.Popen(
                [python or sys.executable, str(self.path)],
                cwd=directory,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.started: set[int] = set()

    def __enter__(self) -> DriverProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill_all()
        shutil.rmtree(self.ray_directory, ignore_errors=True)

    def text(self) -> str:
        return self.output.read_text(errors="replace")

    def wait(self, seconds: float = 150.0) -> str:
        """Wait for a successful end; what it printed."""
        code = self.process.wait(seconds)
        assert code == 0, self.text()
        return self.text()

    def wait_for_text(self, text: str, seconds: float = 150.0) -> None:
        def found() -> bool:
            assert self.process.poll() in (None, 0), self.text()
            return text in self.text()

        wait_until(found, f"{text!r} in the output of the driver", seconds)

    def kill(self) -> None:
        """SIGKILL the driver alone."""
        self.process.kill()
        self.process.wait()

    def kill_all(self) -> None:
        """SIGKILL the driver and everything that it started: its whole cluster."""
        self.started |= descendants(self.process.pid)
        for pid in (self.process.pid, *self.started):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait()
        wait_until(lambda: not any(map(is_running, self.started)), "the cluster is gone")


def tests_as_installed(directory: Path) -> dict[str, str]:
    """What makes these modules no code of the driver's own, as if they were in site-packages.

    Otherwise each cluster would unpack them, and start its workers again for them. Every cluster
    has them by its path. `OWN_CODE` takes it back.
    """
    packages = directory / "base/lib" / "python{}.{}".format(*sys.version_info) / "site-packages"
    packages.parent.mkdir(parents=True)
    packages.symlink_to(ROOT / "tests")
    # Named, and not on the path: there are packages here with the names of others.
    return {"PYTHONUSERBASE": str(directory / "base"), "PYTHONNOUSERSITE": "1"}


def is_running(pid: int) -> bool:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return False
    return fields[0] != "Z"


def descendants(root: int) -> set[int]:
    """Processes below a process, from /proc."""
    parents: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(entry)] = int(fields[1])
    found: set[int] = set()
    frontier = {root}
    while frontier:
        frontier = {pid for pid, parent in parents.items() if parent in frontier} - found
        found |= frontier
    return found
