"""Clusters with as few processes as do the work: starting is what most tests on Ray pay for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

#: In place of the agent that each node has for the dashboard. Ray waits for the ports of its
#: services, of which this has none; and it ends with the raylet, as that does with it.
AGENT = """
for port in metrics_agent_port metrics_export_port dashboard_agent_listen_port; do
    printf %s -1 > "$1/$port.$$"
    mv "$1/$port.$$" "$1/${port}_$2"
done
exec tail --pid=$PPID -f /dev/null
"""

AGENT_OPTION = "--dashboard_agent_command="

#: Of the dashboard, which otherwise has ten processes: takes jobs, and finds the head for them.
JOBS_ALONE = "--modules-to-load=JobHead,NodeHead"


@contextmanager
def few_processes() -> Iterator[None]:
    """Ray starts no dashboard, agent for it, log monitor or autoscaler, which only people look at.

    Each of them is a Python process, which takes as long to start as a worker. Ray has an option
    for none of them.
    """
    from ray._private import services
    from ray._private.node import Node

    start_process = services.start_ray_process

    def start(command: list[str], *args: Any, **kwargs: Any) -> Any:
        return start_process([*map(without_agent, command)], *args, **kwargs)

    with ExitStack() as patched:
        for name in ("start_api_server", "start_log_monitor", "start_monitor"):
            patched.enter_context(patch.object(Node, name, nothing))
        patched.enter_context(patch.object(services, "start_ray_process", start))
        yield


@contextmanager
def with_jobs() -> Iterator[None]:
    """Ray starts a dashboard that takes jobs alone, and neither log monitor nor autoscaler."""
    from ray._private import ray_constants, services
    from ray._private.node import Node

    start_process = services.start_ray_process

    def start(command: list[str], process_type: str, *args: Any, **kwargs: Any) -> Any:
        jobs = [JOBS_ALONE] if process_type == ray_constants.PROCESS_TYPE_DASHBOARD else []
        return start_process([*command, *jobs], process_type, *args, **kwargs)

    with ExitStack() as patched:
        for name in ("start_log_monitor", "start_monitor"):
            patched.enter_context(patch.object(Node, name, nothing))
        patched.enter_context(patch.object(services, "start_ray_process", start))
        yield


def nothing(*args: Any, **kwargs: Any) -> None:
    """Instead of starting a process."""


def without_agent(argument: str) -> str:
    """An argument of the raylet, which has the agent's command line in one of them."""
    if not argument.startswith(AGENT_OPTION):
        return argument
    told = dict(re.findall(r"--(session-dir|node-id)=(\S+)", argument))
    script = Path(told["session-dir"], "agent.sh")
    script.write_text(AGENT)
    # An older Ray names no node, and waits for no ports.
    return f"{AGENT_OPTION}/bin/sh {script} {told['session-dir']} {told.get('node-id', 'node')}"


def start_cluster(**options: Any) -> Any:
    """`ray.init` of a cluster of this process's own, which listens on 127.0.0.1 only."""
    import ray

    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
    with few_processes():
        return ray.init(address="local", _node_ip_address="127.0.0.1", **quiet, **options)
