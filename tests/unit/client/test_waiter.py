"""The waiter of a driver and the coordinator that it polls: no ref waits for ever, and nobody is
asked without a pause."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from ray_workflows import __version__
from ray_workflows._client import connection as connection_module
from ray_workflows._client import waiter as waiter_module
from ray_workflows._client.connection import check_release
from ray_workflows._client.outputs import Awaited
from ray_workflows._client.reader import Reader
from ray_workflows._client.waiter import Waiter
from ray_workflows._codec.journal import VERSION, encode_plan
from ray_workflows._coordinator import actor as host_module
from ray_workflows._coordinator.actor import CoordinatorService as Host
from ray_workflows._coordinator.actor import Settings
from ray_workflows._coordinator.long_polls import SIT_SECONDS
from ray_workflows._coordinator.protocol import (
    ENCODER,
    POLLED,
    OutputWanted,
    Poll,
    Polled,
    Submissions,
    decode_submitted,
)
from ray_workflows._coordinator.requests import Submission, Watched
from ray_workflows._model.answers import Accepted
from ray_workflows._model.plan import TIMER
from ray_workflows.exceptions import StorageConfigError, WorkflowNotFoundError
from ray_workflows.storage.memory import MemoryStorage
from tests.support.coordinators import stop
from tests.unit.plans import plan

HANG_SECONDS = 20.0

#: Ends when it is canceled, and needs no Ray.
PLAN = plan(("sleep", (), {"kind": TIMER, "duration": 1e6}))


class Context:
    current_actor = None

    def get_actor_id(self) -> str:
        return "actor"


class Handle:
    """A coordinator as its clients have it, which notes what they call."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.calls: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        handle, method = self, getattr(self.host, name)

        class Method:
            def remote(self, *arguments: Any) -> Any:
                handle.calls[name] += 1
                return asyncio.to_thread(method, *arguments)

        return Method()


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    monkeypatch.setattr(host_module.ray, "get_runtime_context", Context)
    monkeypatch.setattr(waiter_module, "was_restarted", lambda: False)
    monkeypatch.setattr(waiter_module, "POLL_SECONDS", 0.01)
    host = Host(MemoryStorage(), Settings(), "0")
    yield host
    stop(host)


def submit(host: Host, client: str, workflow_id: str, incarnation: str = "") -> OutputWanted:
    incarnation = incarnation or f"i-{workflow_id}"
    submission = Submission(workflow_id, incarnation, encode_plan(PLAN), {}, None, incarnation)
    submitted, _ = decode_submitted(host.submit(ENCODER.encode(Submissions([submission], client))))
    (accepted,) = submitted.answers
    assert isinstance(accepted, Accepted)
    return OutputWanted(workflow_id, accepted.incarnation, submitted.holder_id)


def forget(host: Host, client: str) -> None:
    """As when the client has not polled for long and another one comes."""
    host.polls.lists[client].polled_at -= 4 * SIT_SECONDS
    host.polls.subscribe("another", "life", [])
    assert client not in host.polls.lists


def new_waiter(host: Host) -> tuple[Waiter, Handle]:
    handle = Handle(host)
    waiter = Waiter(handle, "client")
    reader: Any = Reader(host.storage, cluster="actor")
    reader.resumes_orphans = False
    waiter.connection = reader
    return waiter, handle


async def end_of(host: Host, waiter: Waiter, wanted: OutputWanted) -> Any:
    """What a ref gets whose workflow is canceled while it waits."""
    output = asyncio.create_task(waiter.submitted_output(ENCODER.encode(wanted)))
    while not waiter.waiting:
        await asyncio.sleep(0.001)
    assert await asyncio.to_thread(host.cancel, wanted.workflow_id) is None
    return await asyncio.wait_for(output, HANG_SECONDS)


@pytest.mark.parametrize("again", [False, True], ids=["late", "late, and has submitted since"])
def test_a_ref_whose_driver_came_late_becomes_ready(host: Host, again: bool) -> None:
    """Its watches are forgotten, and answer to nobody."""
    wanted = submit(host, "client", "w")
    forget(host, "client")
    if again:
        submit(host, "client", "x")
    waiter, handle = new_waiter(host)
    result = asyncio.run(end_of(host, waiter, wanted))
    assert "id=w" in str(result)
    assert handle.calls["poll"] < 5


def test_a_client_that_nobody_knows_is_told_so_once(host: Host) -> None:
    poll = ENCODER.encode(Poll("client", "life"))
    assert POLLED.decode(host.poll(poll)).unknown
    submit(host, "client", "w")
    forget(host, "client")
    submit(host, "client", "x")
    assert POLLED.decode(host.poll(poll)).unknown
    host.cancel("x")
    polled = POLLED.decode(host.poll(poll))
    assert not polled.unknown
    assert [workflow_id for workflow_id, _ in polled.seen] == ["x"]


def test_a_coordinator_that_answers_nothing_is_asked_with_pauses(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one of another release, which does not know the client and does not say so."""
    pauses: list[float] = []
    sleep = asyncio.sleep

    async def noting(seconds: float) -> None:
        pauses.append(seconds)
        await sleep(0)

    def poll(encoded: bytes) -> bytes:
        if len(pauses) == 10:
            waiter.waiting.clear()
        return ENCODER.encode(Polled(host.holder.holder_id, [], turned_away=False))

    async def hang() -> None:
        waiting = asyncio.create_task(waiter.wait("w", None))
        while waiter.poller is None or not waiter.poller.done():
            await sleep(0)
        waiting.cancel()

    waiter, handle = new_waiter(host)
    monkeypatch.setattr(waiter_module, "POLL_SECONDS", HANG_SECONDS)
    monkeypatch.setattr(host, "poll", poll)
    monkeypatch.setattr(waiter_module.asyncio, "sleep", noting)
    asyncio.run(hang())
    assert handle.calls["poll"] == 11
    assert pauses[:10] == [HANG_SECONDS] * 10


def test_what_waits_for_an_output_is_about_one_workflow(host: Host) -> None:
    """Not about what has its id when it is deleted and another one runs."""
    submit(host, "client", "w")
    reader = Reader(host.storage, cluster="actor")
    awaited = Awaited(reader, "w", None, fresh=True)
    old = awaited.row
    assert awaited.look() == (False, None)
    host.cancel("w")
    assert host.delete("w") is None
    submit(host, "client", "w", incarnation="another")
    new = host.storage.read_catalog("w")
    assert [awaited.is_about(Watched(row)) for row in (old, new, None)] == [True, False, False]
    with pytest.raises(WorkflowNotFoundError):
        awaited.look()
    with pytest.raises(WorkflowNotFoundError):
        Awaited(reader, "w", None, fresh=True, incarnation=old.incarnation)


# -- releases ------------------------------------------------------------------------------


def test_what_a_coordinator_says_of_its_release(host: Host) -> None:
    """By the code that it runs, which may be newer than what it was created with."""
    description = host.describe()
    assert description["version"] == __version__
    assert description["started_by"] == "0"
    assert description["journal_version"] == VERSION
    check_release(description)


@pytest.mark.parametrize("version", ["0.1.0", "0.1.9", "0"])
def test_an_older_coordinator_is_warned_of(version: str, caplog: pytest.LogCaptureFixture) -> None:
    check_release({"version": version})
    (record,) = caplog.records
    assert version in record.message
    assert __version__ in record.message
    assert "no_restart=False" in record.message


@pytest.mark.parametrize("version", [__version__, "9.0.0", "0.10.0"])
def test_others_are_not(version: str, caplog: pytest.LogCaptureFixture) -> None:
    check_release({"version": version, "journal_version": VERSION})
    assert not caplog.records


def test_a_coordinator_whose_journals_cant_be_read_is_refused() -> None:
    with pytest.raises(StorageConfigError, match=r"pip install ray-workflows==9\.0\.0"):
        check_release({"version": "9.0.0", "journal_version": VERSION + 1})


def test_a_connection_checks_the_release(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "reachable", lambda storage: storage)
    description: dict[str, Any] = {
        "storage": MemoryStorage(),
        "holder": host_module.this_holder("actor"),
        "settings": Settings(),
        "version": "9.0.0",
        "journal_version": VERSION + 1,
    }
    with pytest.raises(StorageConfigError):
        connection_module.Connection(None, description)
