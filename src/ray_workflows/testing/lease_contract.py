"""The tests of `LeaseStoreContract`.
Uses the public methods of a lease store only.
"""

from __future__ import annotations

import msgspec

from ray_workflows.storage.parts import LeaseStore
from ray_workflows.testing.builders import make_holder


class LeaseContract:
    """Holders and their leases."""

    def test_holders(self, leases: LeaseStore) -> None:
        """A lease counts from the storage's own time; all other fields come back."""
        assert leases.read_holders() == []
        holder = make_holder("h1", host="boot-1/ns'2", pid=2**31 - 1, started_ticks=2**53)
        before = leases.now()
        leases.renew_holder(holder, 15.0)
        after = leases.now()
        (found,) = leases.read_holders()
        assert before + 15.0 <= found.lease_until <= after + 15.0
        assert msgspec.structs.replace(found, lease_until=0.0) == holder

    def test_renewing_a_holder(self, leases: LeaseStore) -> None:
        """A renewal moves the end of the lease, also backwards; there is one row per holder."""
        leases.renew_holder(make_holder("h1"), 100.0)
        leases.renew_holder(make_holder("h2", coordinator="c2"), 100.0)
        leases.renew_holder(make_holder("h1", pid=18), 5.0)
        found = {holder.holder_id: holder for holder in leases.read_holders()}
        assert sorted(found) == ["h1", "h2"]
        assert (found["h1"].pid, found["h2"].coordinator) == (18, "c2")
        assert found["h1"].lease_until < found["h2"].lease_until - 50.0

    def test_removing_a_holder(self, leases: LeaseStore) -> None:
        """Removing a holder removes no other; removing it twice does nothing."""
        for holder_id in ("h1", "h2"):
            leases.renew_holder(make_holder(holder_id), 15.0)
        leases.remove_holder("h1")
        leases.remove_holder("h1")
        assert [holder.holder_id for holder in leases.read_holders()] == ["h2"]

    def test_expired_holders_stay_readable(self, leases: LeaseStore) -> None:
        """The storage returns expired leases too: readers decide what they mean."""
        leases.renew_holder(make_holder("h1"), -5.0)
        (found,) = leases.read_holders()
        assert found.lease_until < leases.now()

    def test_clock(self, leases: LeaseStore) -> None:
        """The clock returns seconds as a float, and never runs backwards."""
        first = leases.now()
        assert isinstance(first, float)
        assert leases.now() >= first
