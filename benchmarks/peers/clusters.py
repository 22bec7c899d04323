"""A small Ray cluster for a peer, heard on this machine only."""

from __future__ import annotations

import os
from typing import Any

import ray

#: For the arrays, of which one is 2 GB; Ray would take a third of the memory for each of the peers'
#: clusters.
OBJECT_STORE_BYTES = 5_000_000_000


def start_cluster(**options: Any) -> None:
    ray.init(
        address="local",
        num_cpus=int(os.environ["BENCH_CPUS"]),
        object_store_memory=OBJECT_STORE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        _node_ip_address="127.0.0.1",
        **options,
    )
