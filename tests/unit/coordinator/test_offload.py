"""Where blocking work of a coordinator runs, and which commits are made by the loop itself."""

from __future__ import annotations

import queue
import threading
from typing import Any

import pytest

from ray_workflows._coordinator.offload import Inbox, ThreadOffloader, work_off
from ray_workflows._coordinator.retrying_storage import SMALL_APPENDS, SMALL_BYTES, is_small
from ray_workflows._model.catalog import Append
from ray_workflows.storage import SqliteStorage
from ray_workflows.testing.builders import make_append
from tests.unit.coordinator.test_failover import Coordinator, World

HANG_SECONDS = 20.0


@pytest.mark.parametrize("brief", [True, False])
def test_what_is_brief_runs_where_it_is_asked_for(brief: bool) -> None:
    posted: Inbox = queue.SimpleQueue()
    io = ThreadOffloader(posted.put)
    results: list[Any] = []
    io.call(threading.get_ident, results.append, brief=brief)
    # Never before `call` is over: the loop is in the middle of something.
    assert results == []
    posted.get(timeout=HANG_SECONDS)()
    assert (results == [threading.get_ident()]) == brief
    io.close()


def test_all_that_has_come_in_is_done() -> None:
    inbox: Inbox = queue.SimpleQueue()
    done: list[int] = []
    for number in range(5):
        inbox.put(lambda number=number: done.append(number))
    work_off(inbox, HANG_SECONDS)
    assert done == [0, 1, 2, 3, 4]
    work_off(inbox, 0.0)


def test_what_never_ends_is_left_for_later() -> None:
    inbox: Inbox = queue.SimpleQueue()

    def again() -> None:
        inbox.put(again)

    again()
    work_off(inbox, HANG_SECONDS, 0.001)
    assert inbox.qsize() == 1


def test_an_error_of_what_is_brief_is_its_result() -> None:
    posted: Inbox = queue.SimpleQueue()
    results: list[Any] = []
    ThreadOffloader(posted.put).call(lambda: 1 // 0, results.append, brief=True)
    posted.get(timeout=HANG_SECONDS)()
    assert [type(result) for result in results] == [ZeroDivisionError]


class Panic(BaseException):
    """As native code raises it."""


@pytest.mark.parametrize("brief", [True, False])
@pytest.mark.parametrize("error", [Panic, SystemExit, KeyboardInterrupt])
def test_whatever_is_raised_is_a_result(error: type[BaseException], brief: bool) -> None:
    """Without a result each commit would wait until the process ends."""
    posted: Inbox = queue.SimpleQueue()
    results: list[Any] = []

    def work() -> None:
        raise error("no more")

    io = ThreadOffloader(posted.put)
    io.call(work, results.append, brief=brief)
    posted.get(timeout=HANG_SECONDS)()
    assert [str(result) for result in results] == [f"{error.__name__}: no more"]
    assert isinstance(results[0], Exception)
    io.close()


def entries(count: int, size: int) -> list[Append]:
    return [make_append(f"w{n}", 0, entry=b"x" * size) for n in range(count)]


def test_what_a_small_commit_is() -> None:
    assert is_small(entries(1, SMALL_BYTES))
    assert not is_small(entries(1, SMALL_BYTES + 1))
    assert is_small(entries(SMALL_APPENDS, 10))
    assert not is_small(entries(SMALL_APPENDS + 1, 10))


@pytest.mark.parametrize("at_once", [True, False])
def test_only_a_commit_that_takes_no_time_is_brief(
    at_once: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World()
    monkeypatch.setattr(type(world.storage.journals), "commits_at_once", at_once)
    owner = Coordinator(world, "owner", auto_resume=False)
    briefs: list[bool] = []
    call = owner.call

    def note(work: Any, then: Any, *, brief: bool = False) -> None:
        briefs.append(brief)
        call(work, then, brief=brief)

    monkeypatch.setattr(owner, "call", note)
    owner.submit("w")
    assert briefs == [at_once]


def test_which_storages_commit_at_once(tmp_path: Any) -> None:
    storage = SqliteStorage(tmp_path)
    assert storage.commits_at_once
    assert storage.with_codecs(()).commits_at_once
    assert not World().storage.commits_at_once
