"""The provider of events by HTTP, without Ray Serve: what it remembers, and whom it takes events
from."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

provider = pytest.importorskip("ray_workflows.http_event_provider")


def test_what_it_remembers_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provider, "MAX_REMEMBERED", 100)
    early = provider.Early()
    for number in range(1_000):
        early.add(f"workflow {number % 300}", f"key {number}")
    assert len(early.keys) == 100
    assert sum(early.counts.values()) == 100
    assert len(early.counts) <= 100
    for number in range(1_000):
        early.discard(f"workflow {number % 300}", f"key {number}")
    assert not early.keys
    assert not early.counts


def test_a_key_counts_once_and_large_ones_are_not_kept() -> None:
    early = provider.Early()
    for _ in range(3):
        early.add("workflow", "\ud800" * 100_000)
    assert early.counts["workflow"] == 1
    assert all(len(key) == 16 for _, key in early.keys)


HEADERS = [
    ("", False),
    ("Bearer", False),
    ("Bearer ", False),
    ("Bearer t0ke", False),
    ("Bearer t0ken", True),
    ("bearer t0ken", True),
    ("Basic t0ken", False),
    ("t0ken", False),
    ("Bearer t0ken\xe9", False),
]


@pytest.mark.parametrize(("header", "taken"), HEADERS)
def test_only_who_has_the_token_sends_events(header: str, taken: bool) -> None:
    check = provider.HTTPEventProvider.func_or_class.check_token
    check(SimpleNamespace(token=None), header)
    guarded = SimpleNamespace(token="t0ken")
    if taken:
        check(guarded, header)
        return
    with pytest.raises(provider.Refused) as caught:
        check(guarded, header)
    assert caught.value.code == 401
    assert "t0ken" not in str(caught.value)
