"""Which tests keep together in one process when pytest-xdist shares them out among several.

Those of a file do that share a server, and those of a file that need a cluster and bring none:
each process has one for all of them. A test that starts a cluster of its own goes where there is
time.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parents[1]

#: Where each test has what it needs for itself, and some take long.
APART = ("simulation", "docs")

#: The fixture of the cluster that each process has, once a test asks for it.
CLUSTER = "cluster"

#: What has to come before its process connects to Ray.
BEFORE_RAY = TESTS / "unit" / "public" / "test_compat.py"


def unit_of(item: pytest.Item) -> str:
    """What a test keeps together with; its own id for one that stands alone."""
    own = item.get_closest_marker("own_cluster")
    if own is not None:
        return own.args[0] if own.args else item.nodeid
    if needs_cluster(item):
        return f"{CLUSTER} {item.path}"
    place, *_ = item.path.relative_to(TESTS).parts
    return item.nodeid if place in APART else str(item.path)


def needs_cluster(item: pytest.Item) -> bool:
    """Whether a test runs on the cluster of its process."""
    if item.get_closest_marker("own_cluster") is not None:
        return False
    place, *_ = item.path.relative_to(TESTS).parts
    return CLUSTER in getattr(item, "fixturenames", ()) or (
        place == "ray" and not has_clusters(item)
    )


def has_clusters(item: pytest.Item) -> bool:
    """Whether a file has other clusters than all the others: in place of theirs."""
    return hasattr(getattr(item, "module", None), "on_the_cluster")


def rank(item: pytest.Item) -> int:
    """What takes longest begins first, so that all processes end at about the same time."""
    if item.path == BEFORE_RAY:
        return 0
    if item.get_closest_marker("own_cluster") is not None or has_clusters(item):
        return 1
    if needs_cluster(item):
        return 2
    return 4 if unit_of(item) == item.nodeid else 3


class SharingOut:
    """What the processes that run tests tell the one that shares these out: their units."""

    def __init__(self) -> None:
        self.directory = tempfile.TemporaryDirectory(prefix="rw-units-")

    def pytest_configure_node(self, node: Any) -> None:
        path = Path(self.directory.name, node.workerinput["workerid"])
        node.workerinput["units"] = str(path)

    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Any) -> Any:
        from xdist.scheduler import LoadScopeScheduling

        directory = Path(self.directory.name)
        # The order is ours.
        config.option.loadscopereorder = False

        class UnitScheduling(LoadScopeScheduling):
            def schedule(self) -> None:
                # All have told theirs by now, and it is the same.
                path = next(directory.iterdir())
                self.units = json.loads(path.read_text())
                super().schedule()

            def _split_scope(self, nodeid: str) -> str:
                return self.units[nodeid]

        return UnitScheduling(config, log)

    def pytest_unconfigure(self) -> None:
        self.directory.cleanup()


def tell_units(items: list[pytest.Item], path: str) -> None:
    """Order the tests, and tell their units."""
    items.sort(key=rank)
    Path(path).write_text(json.dumps({item.nodeid: unit_of(item) for item in items}))
