"""What a client is told that comes to ask later, or never."""

from __future__ import annotations

from ray_workflows._coordinator.host import WatchList
from ray_workflows._coordinator.requests import Watched


def test_a_live_copy_is_not_kept_for_a_client_that_may_be_gone() -> None:
    watches = WatchList()
    watches.tell("w", Watched(None, live="ref"))
    ((workflow_id, watched),) = watches.answered
    assert (workflow_id, watched.live) == ("w", None)
