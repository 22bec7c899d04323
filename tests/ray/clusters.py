"""Ray clusters that share a storage: each with a driver that does what the test asks of it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any

from ray import cloudpickle

from tests.ray.marks import wait_until
from tests.ray.processes import DriverProcess, descendants, is_running
from tests.ray.start import start_cluster

#: Names the cluster in its processes.
VARIABLE = "TEST_CLUSTER"

#: How long a driver may take for what it is asked, in seconds.
ANSWER_SECONDS = 150.0


def here() -> str:
    """The name of the cluster that this code runs in."""
    return os.environ[VARIABLE]


class Cluster(DriverProcess):
    """A cluster of its own. It comes up while the test goes on; the first `call` waits for it."""

    def __init__(self, directory: Path, name: str, **env: str) -> None:
        self.name = name
        self.connection: Connection | None = None
        self.asked = 0
        #: The process of its coordinator, and what `use` was asked for then.
        self.coordinator = -1
        self.used: tuple[str, dict[str, Any]] | None = None
        directory.mkdir(exist_ok=True)
        code = "from tests.ray.clusters import serve\nserve()\n"
        super().__init__(directory, code, **{VARIABLE: name, **env})

    @property
    def address(self) -> str:
        return os.path.join(self.ray_directory, "driver")

    def send(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Cluster:
        """Let the driver call a function of a module; `receive` has the result."""
        if self.connection is None:

            def is_up() -> bool:
                assert self.process.poll() is None, self.text()
                return os.path.exists(self.address)

            wait_until(is_up, f"the cluster {self.name} is up")
            self.connection = Client(self.address)
        while self.asked:
            # What a test that failed has not taken.
            self.answer()
        self.asked += 1
        self.connection.send_bytes(cloudpickle.dumps((function, args, kwargs)))
        return self

    def receive(self) -> Any:
        """What the function returns or raises that was sent last."""
        value, error = self.answer()
        if error is not None:
            raise error
        return value

    def answer(self) -> tuple[Any, Exception | None]:
        assert self.connection is not None
        if not self.connection.poll(ANSWER_SECONDS):
            raise AssertionError(f"no answer within {ANSWER_SECONDS} s: {self.text()}")
        self.asked -= 1
        answer: tuple[Any, Exception | None] = cloudpickle.loads(self.connection.recv_bytes())
        return answer

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a function in the driver; what it returns or raises."""
        return self.send(function, *args, **kwargs).receive()

    def pids(self) -> list[int]:
        """All its processes."""
        return [self.process.pid, *sorted(descendants(self.process.pid))]

    def kill_all(self) -> None:
        """SIGKILL everything, as when the power is cut."""
        super().kill_all()
        if self.connection is not None:
            self.connection.close()

    def log_of(self, pid: int) -> str:
        """What a worker or an actor has written."""
        logs = Path(self.ray_directory).glob(f"ray/session_2*/logs/worker-*-{pid}.err")
        return "".join(log.read_text(errors="replace") for log in logs)


@contextmanager
def stopped(pids: list[int]) -> Iterator[None]:
    """SIGSTOP processes, and SIGCONT them at the end."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in filter(is_running, pids):
            os.kill(pid, signal.SIGCONT)


# -- in the driver -------------------------------------------------------------------------


def serve() -> None:
    """Start the cluster, and do what is asked until the test hangs up."""
    start_cluster(num_cpus=4)
    address = os.path.join(os.environ["RAY_TMPDIR"], "driver")
    listener = Listener(address + ".new", "AF_UNIX")
    # The rename makes the socket visible only when it accepts connections.
    os.rename(address + ".new", address)
    with listener.accept() as connection:
        while True:
            try:
                function, args, kwargs = cloudpickle.loads(connection.recv_bytes())
            except EOFError:
                return
            try:
                answer = (function(*args, **kwargs), None)
            except Exception as error:
                answer = (None, error)
            connection.send_bytes(cloudpickle.dumps(answer))


def use(url: str, lease: float | None = None, **options: Any) -> int:
    """Go over to another storage: with a new coordinator, whose pid this is."""
    import ray_workflows as workflow
    from ray_workflows._client.connection import LEASE_VARIABLE, connect

    stop_coordinator()
    if lease is not None:
        os.environ[LEASE_VARIABLE] = str(lease)
    workflow.init(url, **options)
    pid: int = connect().call("describe")["holder"].pid
    return pid


def stop_coordinator() -> None:
    """Kill the coordinator of this cluster, if there is one, for good."""
    import ray

    from ray_workflows._client.connection import find_coordinator

    coordinator = find_coordinator()
    if coordinator is not None:
        pid = ray.get(coordinator.describe.remote())["holder"].pid
        ray.kill(coordinator)
        wait_until(
            lambda: find_coordinator() is None and not is_running(pid), "the coordinator is gone"
        )
