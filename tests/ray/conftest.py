"""What tests on the real cluster share."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ray.marks import Gate, Marks


def is_connected() -> bool:
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized()


@pytest.fixture(autouse=True)
def on_the_cluster(request: pytest.FixtureRequest) -> Iterator[None]:
    """All tests of this directory run on it that have no cluster of their own."""
    if request.node.get_closest_marker("own_cluster") is None:
        request.getfixturevalue("cluster")
        yield
        return
    before = is_connected()
    yield
    assert is_connected() == before, "This process needs no cluster for it."


@pytest.fixture
def marks(tmp_path: Path) -> Marks:
    """Counts executions by side effects on disk."""
    return Marks(str(tmp_path / "marks"))


@pytest.fixture
def wid(request: pytest.FixtureRequest) -> str:
    """A workflow id of the test's own."""
    return f"{request.node.name}-{uuid.uuid4().hex[:6]}"


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    gate = Gate(str(tmp_path / "gate"))
    yield gate
    gate.open()
