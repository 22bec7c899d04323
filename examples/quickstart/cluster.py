"""Ray clusters of this example's own: starting one, and taking its power away.

The program that uses a cluster runs in a process of its own, because it must die with the cluster.
Only processes that this process has started are ever signaled, each by its id.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

PR_SET_CHILD_SUBREAPER = 36

#: How long a program may take, in seconds: ten times what it needs on a laptop.
LIMIT_SECONDS = 180

#: What Ray is told through the environment.
RAY_ENVIRONMENT = {
    # Listen on 127.0.0.1 only. Despite its name it works on Linux; ray.init(_node_ip_address=...)
    # would not do, because Ray replaces a loopback address by one that others can reach.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Silences a warning about accelerators.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Else Ray makes one and keeps it in the home directory, which may be missing or read-only.
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
}


def start_ray(directory: Path) -> None:
    """Start a Ray cluster with its files in a directory. See also `RAY_ENVIRONMENT`."""
    # Imported here because the process that cuts the power, which also imports this module, has
    # no need of Ray.
    import ray

    ray.init(
        address="local",  # Never a cluster that happens to run on this machine.
        num_cpus=os.cpu_count(),
        object_store_memory=256 * 1024 * 1024,
        include_dashboard=False,
        logging_level="ERROR",
        log_to_driver=False,
        _temp_dir=str(directory),
    )


class Machine:
    """A program and the Ray cluster it starts, as a machine that can lose its power.

    Leaving the ``with`` block always cuts the power, so that nothing is left running: after
    success there is nothing to kill any more, after a failure or Ctrl-C there may be much.

    Args:
        command: the program and its arguments; run by this Python.
    """

    def __init__(self, command: list[str]) -> None:
        self.command = command

    def __enter__(self) -> Machine:
        adopt_orphans()
        self.deadline = time.monotonic() + LIMIT_SECONDS
        self.process = subprocess.Popen(
            [sys.executable, *self.command],
            env={**os.environ, **RAY_ENVIRONMENT},
            # Ctrl-C reaches this process alone, which then ends the others in order.
            start_new_session=True,
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.cut_power()

    def is_running(self) -> bool:
        """Whether the program is still at work.

        Raises:
            SystemExit: it has failed (its own message is on the terminal above), or hangs.
        """
        status = self.process.poll()
        if status:
            raise SystemExit(f"FAILED: {self.command} ended with exit status {status}")
        if status is None and time.monotonic() > self.deadline:
            raise SystemExit(f"FAILED: {self.command} did not end within {LIMIT_SECONDS} s")
        return status is None

    def cut_power(self) -> int:
        """SIGKILL the program and the whole cluster; return how many processes that were.

        When it returns, none of them runs any more.
        """
        victims: set[int] = set()
        with signals_held():
            # Frozen first, killed then: a process that stands still can't start another while the
            # list is read, and none gets to see the others die and to react. Like a power cut, it
            # hits all of them in the middle of whatever they are doing.
            while found := descendants(os.getpid()) - victims:
                for pid in found:
                    send(pid, signal.SIGSTOP)
                victims |= found
            for pid in victims:
                send(pid, signal.SIGKILL)
            while descendants(os.getpid()):
                time.sleep(0.01)
            self.process.wait()
            reap_children()
        return len(victims)


@contextlib.contextmanager
def signals_held() -> Iterator[None]:
    """Let Ctrl-C wait until the end: an impatient second one must not leave frozen processes."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def adopt_orphans() -> None:
    """Make processes whose parent has ended children of this one, instead of process 1.

    So everything this process ever started, directly or not, stays a descendant of it and is
    found by `descendants`. Elsewhere than on Linux orphans are left to Ray, which ends workers
    that have lost their cluster.
    """
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def reap_children() -> None:
    """Take note of the end of adopted processes, which would stay as zombies otherwise."""
    with contextlib.suppress(ChildProcessError):  # Raised when there is no child left.
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def descendants(ancestor: int) -> set[int]:
    """The ids of all living processes that descend from a process."""
    parents = read_parents()
    found: set[int] = set()
    newest = {ancestor}
    while newest:
        newest = {pid for pid, parent in parents.items() if parent in newest} - found
        found |= newest
    return found


def read_parents() -> dict[int, int]:
    """The parent of each living process of this machine, by process id."""
    if not sys.platform.startswith("linux"):
        ps = subprocess.Popen(
            ["ps", "-A", "-o", "pid=,ppid=,stat="], stdout=subprocess.PIPE, text=True
        )
        rows = [line.split() for line in ps.communicate()[0].splitlines()]
        living = {int(pid): int(parent) for pid, parent, state in rows if state[0] != "Z"}
        del living[ps.pid]  # It saw itself.
        return living
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # It has ended meanwhile.
                # The second field is a name in parentheses, which may hold anything.
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                state, parent = fields[0], int(fields[1])
                if state not in "ZX":
                    parents[int(entry.name)] = parent
    return parents


def send(pid: int, number: signal.Signals) -> None:
    """Send a signal, to a process that may be gone by now."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
