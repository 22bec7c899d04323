"""Each kind of storage fails in the middle of workflows, and returns: the workflows go on.

Meanwhile verbs that need what fails answer with an error, and nothing that is committed runs again.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.ray.marks import Gate, Marks
from tests.ray.processes import DriverProcess
from tests.support.disks import small_disk
from tests.support.http_proxy import HttpProxy, Once
from tests.support.moto import CREDENTIALS, s3_server, storage_url
from tests.support.proxy import Proxy


class Fault(NamedTuple):
    """A trouble, its end, and what verbs say meanwhile: part of the message, empty if they work."""

    name: str
    begin: Callable[[], None]
    end: Callable[[], None]
    message: str = ""


#: Workflows by what all their results take together, in bytes: each fits into the journal, or is a
#: blob, which a worker writes.
SMALL, LARGE = {"small": 50_000}, {"large": 600_000}


class Home(NamedTuple):
    """A storage that fails in some ways, one after the other."""

    url: str
    faults: list[Fault]


CODE = """
    import ray, ray_workflows as workflow
    from tests.ray.marks import Gate, Marks
    from tests.ray.test_storage_faults import stages
    from tests.ray.start import start_cluster

    start_cluster(num_cpus=2)
    workflow.init({url!r})
    directory = {directory!r}
    messages = {messages!r}
    sizes = {sizes!r}
    refs = [
        workflow.run_async(stages(directory, name, len(messages) + 1, size), workflow_id=name)
        for name, size in sizes.items()
    ]
    # What is refused now may be there when the storage returns: nobody could say.
    other = ray.remote(lambda: None).bind()
    for number, message in enumerate(messages):
        Gate(f"{{directory}}/probe-{{number}}").wait()
        if not message:
            continue
        try:
            raise SystemExit(f"answered {{workflow.run_async(other, workflow_id=str(number))}}")
        except workflow.StorageUnavailableError as error:
            assert message in str(error), error
        print(f"said so {{number}}.", flush=True)
    assert [len(results) for results in ray.get(refs)] == [len(messages) + 1] * len(refs)
    assert {{workflow.get_status(name) for name in sizes}} == {{"SUCCESSFUL"}}
    print("all right", flush=True)
"""


def stages(directory: str, name: str, count: int, size: int):
    """Tasks in a chain, each held by a gate, that run once or not at all. Results need space."""
    import ray

    @ray.remote(max_retries=0)
    def stage(number: int, before: list[bytes]) -> list[bytes]:
        Marks(f"{directory}/marks").add(f"{name}-{number}")
        Gate(f"{directory}/gate-{number}").wait()
        return [bytes(size // count) for _ in range(len(before) + 1)]

    dag = []
    for number in range(count):
        dag = stage.bind(number, dag)
    return dag


@contextmanager
def embedded(tmp_path: Path, server: str) -> Iterator[Home]:
    with small_disk(tmp_path / "disk") as disk, ExitStack() as opened:
        database = disk.path / "store" / "workflows.sqlite"

        def lock() -> None:
            rival = sqlite3.connect(database, isolation_level=None, check_same_thread=False)
            rival.execute("BEGIN IMMEDIATE")
            opened.callback(rival.close)

        yield Home(
            str(disk.path / "store"),
            [
                Fault("full", disk.fill, disk.free, "Free some space"),
                Fault("locked", lock, opened.close, "locked"),
            ],
        )


@contextmanager
def shared(tmp_path: Path, server: str) -> Iterator[Home]:
    with small_disk(tmp_path / "disk") as disk:
        (disk.path / "store").mkdir()
        yield Home(
            f"shared://{disk.path}/store",
            [
                Fault("full", disk.fill, disk.free, "Free some space"),
                Fault(
                    "read-only",
                    lambda: disk.remount("ro"),
                    lambda: disk.remount("rw"),
                    "Read-only file system",
                ),
            ],
        )


@contextmanager
def s3(tmp_path: Path, server: str) -> Iterator[Home]:
    with s3_server() as endpoint, HttpProxy(endpoint) as proxy:

        def plan(what: str) -> Callable[[], None]:
            return lambda: setattr(proxy, "plan", lambda method, path: what)

        def well() -> None:
            proxy.plan = lambda method, path: None
            proxy.delay = 0.0

        yield Home(
            storage_url(proxy.endpoint),
            [
                Fault("503", plan("503"), well, "does not answer"),
                Fault("refused", plan("refused"), well, "does not answer"),
                Fault("slow", lambda: setattr(proxy, "delay", 0.3), well),
                Fault(
                    "ambiguous",
                    # The answer to the commit is lost, which the store has taken.
                    lambda: setattr(proxy, "plan", Once("lost", "PUT", "/journal/")),
                    well,
                ),
                Fault(
                    "500 after success",
                    lambda: setattr(proxy, "plan", Once("500 after", "PUT", "/journal/")),
                    well,
                ),
            ],
        )


@contextmanager
def postgres(tmp_path: Path, server: str) -> Iterator[Home]:
    import psycopg

    place = psycopg.conninfo.conninfo_to_dict(server)
    with Proxy(int(place["port"])) as proxy:
        found = server.replace(f":{place['port']}", f":{proxy.port}")
        schema = f"faults_{tmp_path.name}".replace("-", "_")[-40:]

        yield Home(
            f"{found}{'&' if '?' in found else '?'}schema={schema}",
            [
                Fault("cut", proxy.cut, lambda: None),
                Fault(
                    "slow",
                    lambda: setattr(proxy, "delay", 0.1),
                    lambda: setattr(proxy, "delay", 0.0),
                ),
                Fault(
                    "lost answers",
                    lambda: setattr(proxy, "loses_answer", True),
                    lambda: setattr(proxy, "loses_answer", False),
                    "can be repeated",
                ),
            ],
        )


# Some faults are waited for until a time is over, in each of several processes.
@pytest.mark.timeout(400)
@pytest.mark.own_cluster
@pytest.mark.parametrize(
    ("home", "sizes"),
    [
        pytest.param(embedded, SMALL | LARGE, marks=pytest.mark.administrator),
        pytest.param(shared, SMALL, marks=pytest.mark.administrator),
        (s3, SMALL | LARGE),
        (postgres, SMALL),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else value.__name__,
)
def test_workflows_outlive_the_troubles_of_their_storage(
    home: Callable[[Path, str], object],
    sizes: dict[str, int],
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    server = request.getfixturevalue("postgres_url") if home is postgres else ""
    marks = Marks(str(tmp_path / "marks"))

    def wait_for_stage(number: int) -> None:
        for name in sizes:
            marks.wait_for(f"{name}-{number}", seconds=120)

    with home(tmp_path, server) as (url, faults):
        messages = [fault.message for fault in faults]
        code = CODE.format(url=url, directory=str(tmp_path), messages=messages, sizes=sizes)
        (tmp_path / "driver").mkdir()
        with DriverProcess(tmp_path / "driver", code, **CREDENTIALS) as driver:
            for number, fault in enumerate(faults):
                wait_for_stage(number)
                fault.begin()
                try:
                    Gate(str(tmp_path / f"gate-{number}")).open()
                    Gate(str(tmp_path / f"probe-{number}")).open()
                    if fault.message:
                        driver.wait_for_text(f"said so {number}.", 120)
                    else:
                        # They go on in spite of it.
                        wait_for_stage(number + 1)
                finally:
                    fault.end()
            wait_for_stage(len(faults))
            Gate(str(tmp_path / f"gate-{len(faults)}")).open()
            assert "all right" in driver.wait(120)
    assert marks.counts() == {f"{name}-{n}": 1 for n in range(len(faults) + 1) for name in sizes}
