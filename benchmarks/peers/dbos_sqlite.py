"""DBOS with SQLite, as it sets it up itself: every commit synced. Steps run in this process."""

from __future__ import annotations

import importlib.metadata
import os

from dbos import DBOS, DBOSConfig

from peers.serving import Round, serve, timed


@DBOS.step()
def identity(value: int) -> int:
    return value


@DBOS.step()
def increment(value: int) -> int:
    return value + 1


@DBOS.workflow()
def fan_out_workflow(size: int) -> int:
    return sum(identity(i) for i in range(size))


@DBOS.workflow()
def chain_workflow(size: int) -> int:
    value = 0
    for _ in range(size):
        value = increment(value)
    return value


@DBOS.workflow()
def one_task_workflow(value: int) -> int:
    return identity(value)


def fan_out(size: int) -> Round:
    with timed() as clock:
        result = fan_out_workflow(size)
    return Round(clock.seconds, result)


def chain(size: int) -> Round:
    with timed() as clock:
        result = chain_workflow(size)
    return Round(clock.seconds, result)


def one_task(size: int) -> Round:
    with timed() as clock:
        result = sum(one_task_workflow(i) for i in range(size))
    return Round(clock.seconds, result)


def submit_loop(size: int) -> Round:
    with timed() as clock:
        handles = [DBOS.start_workflow(one_task_workflow, i) for i in range(size)]
        with timed() as rest:
            result = sum(handle.get_result() for handle in handles)
    return Round(clock.seconds, result, {"acknowledged_seconds": clock.seconds - rest.seconds})


if __name__ == "__main__":
    config: DBOSConfig = {
        "name": "benchmark",
        "system_database_url": f"sqlite:///{os.path.abspath('dbos.sqlite')}",
        "run_admin_server": False,
        "log_level": "ERROR",
    }
    DBOS(config=config)
    DBOS.launch()
    serve(
        {"dbos": importlib.metadata.version("dbos")},
        {
            "fan_out": fan_out,
            "chain": chain,
            "local_steps": chain,
            "one_task": one_task,
            "submit_loop": submit_loop,
        },
    )
    DBOS.destroy()
