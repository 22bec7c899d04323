"""Object stores and shared directories: events/s against bare puts, latency, 100,000 workflows.

    python benchmarks/storage_objects.py [--workflows 100000] [--gigabytes 1]

On S3 over HTTP from a local server (moto, which answers some hundred requests a second: look at
the ratios and the counts of requests, not at its times) and on a directory of the local disk.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from ray_workflows._model.catalog import CatalogQuery
from ray_workflows._model.status import WorkflowStatus
from ray_workflows.storage.objects import ObjectStorage
from ray_workflows.storage.operations import Operations
from ray_workflows.storage.put_once import PutOnceStorage
from ray_workflows.storage.segments import new_nonce
from ray_workflows.storage.shared import SharedStorage
from ray_workflows.testing.builders import make_append, make_holder
from tests.http_proxy import HttpProxy
from tests.moto import CREDENTIALS, s3_server, storage_url

ROUNDS = 5


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workflows", type=int, default=100_000)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    options = parser.parse_args()
    os.environ.update(CREDENTIALS)
    with tempfile.TemporaryDirectory() as directory, s3_server() as endpoint:
        shared = SharedStorage(directory)
        remote = ObjectStorage(storage_url(endpoint))
        for storage in (shared, remote):
            storage.open()
            print(f"== {storage.url.partition(':')[0]}")
            appends_against_puts(storage)
            storage.close()
        latency(endpoint)
        listing(SharedStorage(tempfile.mkdtemp(dir=directory)), options.workflows)
        listing(ObjectStorage(storage_url(endpoint)), options.workflows)
        blob(ObjectStorage(storage_url(endpoint)), options.gigabytes)


def appends_against_puts(storage: PutOnceStorage, count: int = 200) -> None:
    """One journal, entry by entry, and as many bare puts of as many bytes, in turn."""
    storage.renew_holder(make_holder("h1"), 3600.0)
    entry = b"x" * 300
    ratios, rates = [], []
    for number in range(ROUNDS):
        name = f"w{number}"
        storage.commit([make_append(name, 0)])

        def appends(name: str = name) -> None:
            for seq in range(1, count + 1):
                storage.commit([make_append(name, seq, entry=entry)])

        def puts(number: int = number) -> None:
            bare(storage.operations, f"bare{number}", count, entry)

        ours, theirs = seconds(appends), seconds(puts)
        ratios.append(theirs / ours)
        rates.append(count / ours)
    print(
        f"appends to one journal: {statistics.median(rates):.0f}/s, "
        f"{statistics.median(ratios):.2f} of bare puts"
    )
    ratios = []
    for number in range(ROUNDS):
        names = [f"m{number}-{i}" for i in range(200)]
        storage.commit([make_append(name, 0) for name in names])
        many = [make_append(name, 1, entry=entry) for name in names]
        ours = seconds(lambda many=many: storage.commit(many))
        keys = [f"many{number}/{i}" for i in range(200)]
        data = [entry + new_nonce().encode() + b"x" * 200 for _ in keys]
        works = [
            lambda key=key, value=value: storage.operations.create(key, value)
            for key, value in zip(keys, data, strict=True)
        ]
        theirs = seconds(lambda works=works: storage.crew.groups(works))
        ratios.append(theirs / ours)
    print(f"one commit of 200 workflows: {statistics.median(ratios):.2f} of bare parallel puts")


def bare(operations: Operations, prefix: str, count: int, entry: bytes) -> None:
    for number in range(count):
        operations.create(f"{prefix}/{number}", entry + new_nonce().encode() + b"x" * 200)


def latency(endpoint: str) -> None:
    """Behind a proxy that holds every request for 50 ms."""
    with HttpProxy(endpoint) as proxy:
        storage = ObjectStorage(storage_url(proxy.endpoint))
        storage.open()
        storage.renew_holder(make_holder("h1"), 3600.0)
        proxy.delay = 0.05
        print("== s3 at 50 ms a request")
        print(f"create: {seconds(lambda: storage.commit([make_append('w', 0)])) * 1e3:.0f} ms")
        print(f"append: {seconds(lambda: storage.commit([make_append('w', 1)])) * 1e3:.0f} ms")
        # A fan-out of 1,000 tasks: results gather while a commit is away, say 50 in each.
        took = seconds(
            lambda: [
                storage.commit([make_append("w", seq, entry=b"x" * 50 * 300)])
                for seq in range(2, 22)
            ]
        )
        print(f"1,000 results in 20 commits of 50: {took:.2f} s")
        done = make_append("w", 22, status=WorkflowStatus.SUCCESSFUL)
        print(f"finish: {seconds(lambda: storage.commit([done])) * 1e3:.0f} ms")
        many = [make_append(f"many{i}", 0) for i in range(1000)]
        print(
            f"1,000 workflows created in one commit: {seconds(lambda: storage.commit(many)):.1f} s"
        )
        many = [make_append(f"many{i}", 1) for i in range(1000)]
        print(f"1,000 workflows in one commit: {seconds(lambda: storage.commit(many)):.1f} s")
        print(f"read_catalog: {seconds(lambda: storage.read_catalog('w')) * 1e3:.0f} ms")
        storage.close()


def listing(storage: PutOnceStorage, count: int) -> None:
    """Index entries and rows as commits leave them, written without their journals."""
    from concurrent.futures import ThreadPoolExecutor

    from ray_workflows.storage.entries import entry_key
    from ray_workflows.testing.builders import make_row

    storage.open()
    storage.renew_holder(make_holder("h1"), 3600.0)
    print(f"== {storage.url.partition(':')[0]}, {count} workflows")

    def put(number: int) -> None:
        status = WorkflowStatus.FAILED if number % 100 == 0 else WorkflowStatus.SUCCESSFUL
        if number % 1000 == 1:
            status = WorkflowStatus.RUNNING
        row = make_row(
            f"workflow-{number:07d}",
            f"i-{number}",
            3,
            status=status,
            submitted_at=1.7e9 + number * 10.0,
        )
        storage.index.put(entry_key(row, new_nonce()), row)

    with ThreadPoolExecutor(16) as pool:
        took = seconds(lambda: list(pool.map(put, range(count))))
    print(f"written in {took:.0f} s")
    queries = {
        "first page of 20, newest first": CatalogQuery(limit=20, newest_first=True),
        "first page of 20, oldest first": CatalogQuery(limit=20),
        "first page of 20 failed": CatalogQuery(limit=20, statuses=(WorkflowStatus.FAILED,)),
        "first page of 1,000": CatalogQuery(limit=1000),
        "all running": CatalogQuery(statuses=(WorkflowStatus.RUNNING,)),
        "running, again": CatalogQuery(statuses=(WorkflowStatus.RUNNING,)),
    }
    for name, query in queries.items():
        took = seconds(lambda query=query: storage.list_catalog(query))
        print(f"{name}: {took * 1e3:.0f} ms")

    def names() -> int:
        return sum(1 for _ in storage.burial.index.entries("index/open")) + len(
            storage.burial.visit_entries(storage.fresh_now())
        )

    print(f"all names (a sweep): {seconds(names):.1f} s")
    storage.close()


def blob(storage: ObjectStorage, gigabytes: float) -> None:
    """A large result: written from pieces, read back, and the memory that took."""
    storage.open()
    size = int(gigabytes * 2**30)
    piece = os.urandom(2**24)

    def chunks():
        for _ in range(size // len(piece)):
            yield piece

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = []
    took = seconds(lambda: found.append(storage.write_blob("i", "k", chunks())))
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"== a blob of {gigabytes} GiB on s3")
    print(f"written at {size / took / 1e6:.0f} MB/s with {(after - before) / 1024:.0f} MiB more")
    took = seconds(lambda: storage.read_blob("i", found[0]))
    last = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    extra = (last - after) / 1024 - size / 2**20
    print(f"read at {size / took / 1e6:.0f} MB/s with {max(0, extra):.0f} MiB beyond the value")
    storage.close()


if __name__ == "__main__":
    main()
