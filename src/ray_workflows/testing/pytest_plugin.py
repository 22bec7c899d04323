"""Fixtures for the tests of users: ``pytest_plugins = ["ray_workflows.testing.pytest_plugin"]`` in
the ``conftest.py`` of the top directory.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ray_workflows.testing.environment import Environment


@pytest.fixture
def workflow_environment() -> Iterator[Environment]:
    """An entered `Environment`, one for each test."""
    with Environment() as env:
        yield env
