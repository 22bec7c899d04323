"""Starts a coordinator from a driver of its own, without a runtime_env.

Actors and the tasks they submit inherit the runtime_env of the driver that created them, and
can't be created without it. A coordinator serves every driver of the cluster, and must be able
to restart when the packages of the driver that started it are long deleted.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import ray
from ray import cloudpickle

from ray_workflows._coordinator.actor import coordinator_class
from ray_workflows._ray.private import JOB_CONFIG_VARIABLE
from ray_workflows.exceptions import CoordinatorUnavailableError

#: How long the separate driver may take to start the coordinator, in seconds.
LAUNCH_SECONDS = 60.0


def create(options: dict[str, Any], args: tuple[Any, ...]) -> Any:
    """Create the coordinator actor, unless it exists."""
    return coordinator_class.options(**options).remote(*args)


def start_coordinator(options: dict[str, Any], args: tuple[Any, ...]) -> None:
    """Create the coordinator actor, in this process if it has no runtime_env.

    Raises:
        CoordinatorUnavailableError: the driver that was to start it failed; says how.
    """
    context = ray.get_runtime_context()
    if not context.runtime_env:
        create(options, args)
        return
    environment = {k: v for k, v in os.environ.items() if k != JOB_CONFIG_VARIABLE}
    environment["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
    try:
        subprocess.run(
            [sys.executable, "-m", __name__],
            input=cloudpickle.dumps((context.gcs_address, options, args)),
            env=environment,
            check=True,
            capture_output=True,
            timeout=LAUNCH_SECONDS,
        )
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", None) or b"").decode(errors="replace")[-2000:]
        raise CoordinatorUnavailableError(
            f"The coordinator could not be started from a driver of its own: {error}. {said}"
        ) from error


def main() -> None:
    """Read the actor's options from standard input, create it, and wait until it is up."""
    address, options, args = cloudpickle.load(sys.stdin.buffer)
    ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    ray.get(create(options, args).describe.remote(), timeout=LAUNCH_SECONDS)
    ray.shutdown()


if __name__ == "__main__":
    main()
