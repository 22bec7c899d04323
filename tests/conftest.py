"""Settings that have to be made before anything imports Ray."""

from __future__ import annotations

import os

from tests.ray.processes import LOOPBACK

# Ray reads it when it is imported.
os.environ.update(LOOPBACK)
