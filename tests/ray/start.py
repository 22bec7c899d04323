"""Clusters with as few processes as do the work: starting is what most tests on Ray pay for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch


@contextmanager
def few_processes() -> Iterator[None]:
    """Ray starts no dashboard, log monitor or autoscaler, which only people look at.

    Each of them is a Python process, which takes as long to start as a worker. Ray has an option
    for none of them.
    """
    from ray._private import utils
    from ray._private.node import Node

    def nothing(*args: Any, **kwargs: Any) -> None:
        pass

    # Whether the dashboard can be imported: what is wrong with it, and in Ray 2.48, whether it can.
    asked, answer = "get_dashboard_dependency_error", ImportError("left out by the tests")
    if not hasattr(utils, asked):
        asked, answer = "check_dashboard_dependencies_installed", False

    with ExitStack() as patched:
        for name in ("start_api_server", "start_log_monitor", "start_monitor"):
            patched.enter_context(patch.object(Node, name, nothing))
        # The agent of the node goes without a server of its own, as in an install without it.
        patched.enter_context(patch.object(utils, asked, lambda: answer))
        yield


def start_cluster(**options: Any) -> Any:
    """`ray.init` of a cluster of this process's own, which listens on 127.0.0.1 only."""
    import ray

    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
    with few_processes():
        return ray.init(address="local", _node_ip_address="127.0.0.1", **quiet, **options)
