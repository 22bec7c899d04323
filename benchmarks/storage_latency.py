"""A store at 50 ms: how long the commits of a fan-out take, and those of very many workflows."""

from __future__ import annotations

import contextlib
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.storage_parts import Context, Part, judged, seconds
from ray_workflows._model.catalog import Append
from ray_workflows._model.status import WorkflowStatus
from ray_workflows.storage.base import Storage
from ray_workflows.storage.objects import ObjectStorage
from ray_workflows.testing.builders import OK, make_append, make_holder
from tests.ray.processes import DriverProcess
from tests.support.fast_s3 import fast_s3
from tests.support.moto import CREDENTIALS, storage_url
from tests.support.proxy import Proxy

LATENCY = 0.05
TARGET_SECONDS = 3.0
TASKS = 1000

#: Run on a cluster of its own. The storage notes how long each of its commits took.
FAN_OUT = """
    import ray, ray_workflows as workflow
    from benchmarks.storage_latency import timed_storage

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False,
             _node_ip_address="127.0.0.1")
    workflow.init(timed_storage({url!r}, {log!r}))

    @ray.remote
    def square(number):
        return number * number

    @ray.remote
    def total(*numbers):
        return sum(numbers)

    def fan_out(count):
        return total.bind(*[square.bind(number) for number in range(count)])

    # Workers start, and the function shows that it is short.
    workflow.run(fan_out(200), workflow_id="before")
    open({log!r}, "w").close()
    for round in range({rounds}):
        open({log!r}, "a").write("round\\n")
        assert workflow.run(fan_out({tasks})) == sum(n * n for n in range({tasks}))
    print("all right", flush=True)
"""


def timed_storage(url: str, log: str) -> Storage:
    """The storage of a URL, of a class that notes its commits."""
    from ray_workflows.storage.urls import storage_from_url

    found = storage_from_url(url)
    kind: Any = type(found)

    class Timed(kind):  # type: ignore[misc]
        def commit(self, appends: Sequence[Append]) -> list[Any]:
            outcomes: list[Any] = []
            took = seconds(lambda: outcomes.extend(kind.commit(self, appends)))
            with Path(log).open("a") as file:
                file.write(f"{took} {len(appends)}\n")
            return outcomes

        def __reduce__(self) -> tuple[Any, ...]:
            return timed_storage, (url, log)

    found.__class__ = Timed
    return found


def fan_out(url: str, rounds: int) -> tuple[float, float]:
    """Seconds in commits, and commits, of a fan-out: medians of the rounds."""
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory) / "commits"
        code = FAN_OUT.format(url=url, log=str(log), tasks=TASKS, rounds=rounds)
        with DriverProcess(Path(directory), code, **CREDENTIALS) as driver:
            driver.wait(600)
        parts = log.read_text().split("round\n")[1:]
    took = [[float(line.split()[0]) for line in part.splitlines()] for part in parts]
    return statistics.median(map(sum, took)), statistics.median(map(len, took))


@contextlib.contextmanager
def slow_postgres(context: Context) -> Iterator[Any]:
    """A schema behind a proxy that takes half of the latency each way."""
    url = context.postgres_url()
    port = urlsplit(url).port
    with Proxy(port) as proxy, context.schema(url.replace(f":{port}", f":{proxy.port}")) as found:
        proxy.delay = LATENCY / 2
        yield found[0]
        proxy.delay = 0.0


def measure(context: Context) -> Iterator[Part]:
    fans = Part(
        f"A fan-out of {TASKS:,} tasks on a store at 50 ms",
        ["storage", "seconds in commits", "commits", "target"],
        before=(
            "End to end on Ray with 2 CPUs, from `run` to the result. Every request takes 50 ms "
            "more. Results gather while a commit is away, so that few commits have them all."
        ),
    )
    many = Part(
        "A thousand workflows in one commit on a store at 50 ms",
        ["storage", "created", "one append each", "finished"],
        before=(
            "On S3 a creation is 5 requests, 3 of them one after the other; an append is one; an "
            "end is 4, 3 of them one after the other. 128 are under way at once."
        ),
    )
    rounds = 3
    with slow_postgres(context) as storage:
        # A storage's URL has no user. A server of a test asks for no password.
        place = urlsplit(context.postgres_url())
        url = f"postgresql://{place.username}@{storage.url.removeprefix('postgresql://')}"
        add_fan_out(fans, "PostgreSQL", url, rounds)
        add_many(many, "PostgreSQL", storage)
    with fast_s3(LATENCY) as endpoint:
        add_fan_out(fans, "S3", storage_url(endpoint), rounds)
        remote = ObjectStorage(storage_url(endpoint))
        remote.open()
        remote.renew_holder(make_holder("h1"), 3600.0)
        add_many(many, "S3", remote)
        remote.close()
    yield fans
    yield many


def add_fan_out(part: Part, name: str, url: str, rounds: int) -> None:
    took, commits = fan_out(url, rounds)
    text = judged(took, took < TARGET_SECONDS, f"{took:.2f}")
    part.rows.append([name, text, f"{commits:.0f}", f"under {TARGET_SECONDS:.0f} s"])
    print(*part.rows[-1], flush=True)


def add_many(part: Part, name: str, storage: Storage) -> None:
    cells = []
    for seq, fields in enumerate(({}, {}, {"status": WorkflowStatus.SUCCESSFUL})):
        group = [make_append(f"many{number}", seq, **fields) for number in range(1000)]
        outcomes: list[Any] = []
        took = seconds(lambda group=group, into=outcomes: into.extend(storage.commit(group)))
        assert outcomes == [OK] * 1000
        cells.append(f"{took:.2f} s")
    part.rows.append([name, *cells])
    print(*part.rows[-1], flush=True)
