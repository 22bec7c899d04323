"""The provider of events by HTTP, without Ray Serve: what it remembers, what it answers, and from
whom it takes events. The coordinator behind it is real."""

from __future__ import annotations

import asyncio
import inspect
import json
import math
import pydoc
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from ray.cloudpickle import dumps, loads
from ray.exceptions import RayTaskError

from ray_workflows._client import http_waiting
from ray_workflows.exceptions import (
    StorageCorruptError,
    StorageUnavailableError,
    WorkflowNotFoundError,
)
from tests.unit.client.test_http_events import HostInHere, events_of
from tests.unit.coordinator.test_failover import Coordinator, World

provider = pytest.importorskip("ray_workflows.http_event_provider")

#: Ray Serve has made a copy of what it uses.
OWN = provider.HTTPEventProvider.func_or_class


class Provider:
    """The provider as its replica has it, behind the HTTP server."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, find: Callable[[str], Any]) -> None:
        monkeypatch.setitem(OWN.poll_event.__globals__, "find_workflow", find)
        # An instance of the class would want a server to end with it.
        self.own = SimpleNamespace(
            token=None, news=provider.News(), takers=provider.Takers(), failed=set()
        )
        self.own.check_token = partial(OWN.check_token, self.own)

    async def post(
        self, payload: object, key: str = "key", *, to: str = "w", wait: float = 0
    ) -> tuple[int, Any]:
        """Code and body of the answer to an event."""
        body = json.dumps({"event_key": key, "event_payload": payload}).encode()

        async def stream() -> AsyncIterator[bytes]:
            yield body

        request = SimpleNamespace(headers={"prefer": f"wait={wait}"}, stream=stream)
        try:
            response = await OWN.receive(self.own, to, request)
        except provider.Refused as refused:
            return refused.code, str(refused)
        return response.status_code, json.loads(response.body)

    def poll(self, task_id: str | None = "t", key: str = "key") -> Coroutine[Any, Any, Any]:
        """What a listener calls."""
        return OWN.poll_event(self.own, "w", key, task_id)  # type: ignore[no-any-return]

    def report(self, confirmation: bool = True, key: str = "key") -> Coroutine[Any, Any, str]:
        """What a listener calls when its result is durable, or can't be."""
        return OWN.report_checkpointed(self.own, "w", key, confirmation)  # type: ignore[no-any-return]


@pytest.fixture
def coordinator() -> Coordinator:
    coordinator = Coordinator(World(), "one", auto_resume=False)
    coordinator.submit("w")
    return coordinator


@pytest.fixture
def served(coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch) -> Provider:
    events = events_of(coordinator)
    return Provider(monkeypatch, lambda workflow_id: events if workflow_id == "w" else None)


def test_what_it_remembers_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_waiting, "MAX_REMEMBERED", 100)
    takers = provider.Takers()
    for number in range(1_000):
        takers.take(f"workflow {number % 300}", f"key {number}", "t")
    assert len(takers.tasks) == 100
    for number in range(1_000):
        takers.forget(f"workflow {number % 300}", f"key {number}")
    assert not takers.tasks


def test_a_key_is_for_the_task_that_asked_first_and_large_ones_are_not_kept() -> None:
    takers = provider.Takers()
    key = "\ud800" * 100_000
    for _ in range(2):
        assert takers.take("i", key, "t") == "t"
    assert takers.take("i", key, "another") == "t"
    assert takers.take("i", key, None) is None
    assert takers.take("another", key, "another") == "another"
    assert all(len(name) < 100 for _, name in takers.tasks)
    takers.forget("i", key)
    assert takers.take("i", key, "another") == "another"


def test_a_sender_is_answered_when_the_listener_has_the_event(served: Provider) -> None:
    async def story() -> None:
        listener = asyncio.create_task(served.poll())
        sender = asyncio.create_task(served.post({"paid": 10}, wait=60))
        assert await listener == ("key", {"paid": 10})
        assert not sender.done()
        # As after a crash: nothing was acknowledged.
        assert await served.poll() == ("key", {"paid": 10})
        assert await served.report() == "OK"
        assert await sender == (200, {})
        assert await served.post({"paid": 10}, wait=60) == (200, {})
        assert (await served.post({"paid": 99}))[0] == 409

    asyncio.run(story())


def test_an_event_that_comes_too_early_stays(served: Provider) -> None:
    async def story() -> None:
        code, body = await served.post("early")
        assert code == 202
        assert "'key'" in body["message"]
        assert await served.poll() == ("key", "early")

    asyncio.run(story())


def test_a_listener_gives_up(served: Provider) -> None:
    async def story() -> None:
        sender = asyncio.create_task(served.post(1, wait=60))
        assert await served.poll() == ("key", 1)
        while not served.own.news.waiting:
            await asyncio.sleep(0)
        await served.report(confirmation=False)
        assert await sender == (500, "event processing failed")
        assert not served.own.failed

    asyncio.run(story())


def test_what_is_kept_has_a_bound_but_not_what_is_waited_for(
    served: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(OWN.receive.__globals__, "MAX_EARLY_EVENTS", 3)

    async def story() -> None:
        assert [(await served.post(1, f"key {n}"))[0] for n in range(4)] == [202, 202, 202, 429]
        listener = asyncio.create_task(served.poll())
        while not served.own.news.waiting:
            await asyncio.sleep(0)
        assert (await served.post(1))[0] == 202
        assert await listener == ("key", 1)

    asyncio.run(story())


def test_a_workflow_that_has_ended_or_never_was(served: Provider, coordinator: Coordinator) -> None:
    async def story() -> None:
        assert (await served.post(1, "before"))[0] == 202
        HostInHere(coordinator).cancel("w")
        for key in ("before", "key"):
            with pytest.raises(provider.SignalRefusedError) as caught:
                await served.post(1, key)
            assert "was canceled" in provider.why_refused(caught.value)
        with pytest.raises(WorkflowNotFoundError):
            await served.post(1, to="nobody")

    asyncio.run(story())


def test_a_second_task_hears_that_it_waits_in_vain(served: Provider) -> None:
    async def story() -> None:
        first = asyncio.create_task(served.poll("first"))
        while not served.own.news.waiting:
            await asyncio.sleep(0)
        with pytest.raises(provider.WorkflowEventHandleError, match="'first'.*Wait once"):
            await served.poll("second")
        assert (await served.post(1))[0] == 202
        assert await first == ("key", 1)
        with pytest.raises(provider.WorkflowEventHandleError, match="'first'.*Wait once"):
            await served.poll("second")
        await served.report()
        for task_id in ("second", None):
            with pytest.raises(provider.WorkflowEventHandleError, match="acknowledged"):
                await served.poll(task_id)

    asyncio.run(story())


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

    def find(key: str) -> bytes:
        raise StorageCorruptError(f"{key} is not what was written.")

    found = SimpleNamespace(incarnation="i", find=find)
    served = Provider(monkeypatch, lambda workflow_id: found)
    with pytest.raises(provider.WorkflowEventHandleError, match="key is not what was written"):
        asyncio.run(served.poll())


def test_a_provider_that_listeners_would_not_find_is_refused() -> None:
    """Its senders would wait, and its events reach no task for minutes."""
    provider.check_application(provider.HTTP_EVENT_PROVIDER_NAME, 1)
    with pytest.raises(RuntimeError, match="named 'events'.* name='WorkflowHttpEventProvider'"):
        provider.check_application("events", 1)
    with pytest.raises(RuntimeError, match="one replica, not 2"):
        provider.check_application(provider.HTTP_EVENT_PROVIDER_NAME, 2)


def test_help_is_about_the_provider() -> None:
    """And not about what Serve has made of it, also in a copy that goes to another process."""
    for found in (provider.HTTPEventProvider, loads(dumps(provider.HTTPEventProvider))):
        text = pydoc.render_doc(found, renderer=pydoc.plaintext)
        assert "Receives events for workflows" in text
        assert "decorated with the `@serve.deployment` decorator" not in text
        assert str(inspect.signature(found)) == "(token: str | None = None) -> None"


def test_a_provider_that_is_away_does_not_flood_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(provider, "warned_at", -math.inf)
    taken = provider.serve.exceptions.RayServeException("Prefix /event is being used")
    for _ in range(100):
        provider.warn_of_silence(RayTaskError("deploy", "many lines", taken).as_instanceof_cause())
    (said,) = caplog.messages
    assert "RayServeException: Prefix /event is being used" in said
    assert "deploy an HTTPEventProvider at another one" in said
    assert "many lines" not in said
    monkeypatch.setattr(provider, "warned_at", time.monotonic() - provider.WARNING_SECONDS)
    provider.warn_of_silence(StorageUnavailableError("It is away."))
    assert caplog.messages[1].endswith("StorageUnavailableError: It is away.")
