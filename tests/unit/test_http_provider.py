"""The provider of events by HTTP, without Ray Serve: what it remembers, and whom it takes events
from."""

from __future__ import annotations

import asyncio
from functools import partial
from types import SimpleNamespace

import pytest

from ray_workflows.exceptions import StorageCorruptError

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


def test_a_listener_is_told_of_an_event_that_is_damaged(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would ask for ever: the provider, its node and the storage may come back, and this not."""

    def payload(key: str) -> bytes:
        raise StorageCorruptError(f"{key} is not what was written.")

    row = SimpleNamespace(workflow_id="w", incarnation="i")
    found = row, SimpleNamespace(payload=payload)
    own = provider.HTTPEventProvider.func_or_class
    # Ray Serve has made a copy of what it uses.
    monkeypatch.setitem(own.poll_event.__globals__, "find_workflow", lambda workflow_id: found)
    me = SimpleNamespace(news=provider.News(), early=provider.Early())
    me.taken = partial(own.taken, me)
    with pytest.raises(provider.WorkflowEventHandleError, match="a-key is not what was written"):
        asyncio.run(own.poll_event(me, "w", "a-key"))
