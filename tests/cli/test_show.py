from __future__ import annotations

import pytest

from ray_workflows._model import messages as msg
from ray_workflows._model.outbox import OutboxMessage
from ray_workflows._model.values import ErrorInfo, Value
from tests.cli.conftest import Cli
from tests.cli.store import STEP, Store
from tests.unit.plans import plan


def test_tasks_with_state_attempts_and_durations(store: Store, cli: Cli) -> None:
    store.failed("broken")
    head, _, tasks = cli("show", "broken").stdout.partition("\n\n")
    fields = dict(line.split("\t") for line in head.splitlines())
    assert fields["workflow"] == "broken"
    assert fields["status"] == "FAILED"
    assert fields["error"] == "ValueError: boom"
    assert fields["duration"] == "2.0 s"
    assert [line.split("\t") for line in tasks.splitlines()] == [
        ["fetch", "SUCCESSFUL", "1", "2.0 s", "", ""],
        ["total", "FAILED", "2", "0 ms", "ValueError: boom", ""],
    ]


def test_attempts_are_shown_on_request(store: Store, cli: Cli) -> None:
    store.failed("broken")
    head, _, attempts = cli("show", "--attempts", "broken").stdout.rpartition("\n\n")
    assert "total\tFAILED" in head
    rows = [line.split("\t") for line in attempts.splitlines()]
    assert [(row[0], row[1], row[2], row[-1]) for row in rows] == [
        ("fetch", "1", "returned", ""),
        ("total", "1", "raised", "ValueError: boom"),
        ("total", "2", "raised", "ValueError: boom"),
    ]
    fetch, total = cli.json("show", "--attempts", "broken")["tasks"]
    assert fetch["history"][0]["duration"] == pytest.approx(STEP)
    assert [attempt["attempt"] for attempt in total["history"]] == [1, 2]
    assert "history" not in cli.json("show", "broken")["tasks"][0]


def test_a_task_says_why_it_waits(store: Store, cli: Cli) -> None:
    store.save(store.story("new"))
    store.hold()
    *_, fetch, total = cli("show", "new").stdout.splitlines()
    assert fetch.endswith("\tattempt 1 was handed to Ray and does not run yet")
    assert total.endswith("\tit waits for 'fetch'")


def test_json(store: Store, cli: Cli) -> None:
    row = store.successful("done")
    found = cli.json("show", "done")
    assert found["status"] == "SUCCESSFUL"
    assert found["ended_at"] == row.ended_at
    assert found["user_metadata"] == {}
    fetch, total = found["tasks"]
    assert fetch["upstream"] == []
    assert total["upstream"] == ["fetch"]
    assert total["attempts"] == 1
    assert total["duration"] == pytest.approx(STEP)
    assert total["error"] is None


def test_a_task_that_waits_and_one_that_runs(store: Store, cli: Cli) -> None:
    store.save(store.story("new"))
    store.hold()
    found = cli.json("show", "new")
    assert found["status"] == "RUNNING"
    assert [(t["status"], t["attempts"], t["duration"]) for t in found["tasks"]] == [
        ("QUEUED", 0, None),
        ("WAITING", 0, None),
    ]


def test_only_what_runs_has_a_growing_duration(store: Store, cli: Cli) -> None:
    story = store.story("cut off", plan=plan(("a", (), {"max_retries": 3})))
    start = story.flying[0]
    story.send(msg.AttemptRuns(start.task, start.epoch, start.attempt, started_at=story.now))
    store.save(story)
    (task,) = cli.json("show", "cut off")["tasks"]
    assert (task["status"], task["duration"]) == ("WAITING", None)
    store.hold()
    (task,) = cli.json("show", "cut off")["tasks"]
    assert task["status"] == "RUNNING"
    assert task["duration"] == pytest.approx(3600, abs=60)


def test_metadata_is_shown(store: Store, cli: Cli) -> None:
    story = store.story("w")
    # As `Submit` stores it, but with metadata.
    story.state.metadata["team"] = "ü"
    store.save(story)
    assert 'metadata\t{"team": "\\u00fc"}' in cli("show", "w").stdout
    assert cli.json("show", "w")["user_metadata"] == {"team": "ü"}


def test_a_damaged_journal_is_named(store: Store, cli: Cli) -> None:
    store.successful("w")
    with store.storage.journals.home.writer.transaction() as connection:
        connection.execute("UPDATE journal SET entry = x'00' WHERE seq = 2")
    error = cli("show", "w", code=1).stderr
    assert "2 of workflow 'w'" in error
    assert error.count("\n") == 1


def test_a_cancel_that_is_asked_for_is_no_end(store: Store, cli: Cli) -> None:
    story = store.story("w")
    story.send(msg.Cancel(), "h2", driven_elsewhere=True)
    store.save(story)
    store.hold()
    assert cli.json("show", "w")["status"] == "RUNNING"


def test_the_way_on_of_a_failed_one(store: Store, cli: Cli) -> None:
    store.failed("broken")
    store.successful("done")
    result = cli("show", "broken")
    assert f"ray-workflows resume --storage {store.directory} --code current broken" in (
        result.stderr
    )
    assert "--script FILE" in result.stderr
    assert "resume" not in result.stdout
    assert cli("show", "--json", "broken").stderr == ""
    assert cli("show", "done").stderr == ""


def test_what_a_task_has_started_in_vain(store: Store, cli: Cli) -> None:
    story = store.story("parent")
    messages = tuple(
        OutboxMessage(f"id-{name}", name, Value(b"submission"))
        for name in ("there", "id in use", "on its way")
    )
    story.report(msg.AttemptReturned, "fetch", value=Value(b"v"), messages=messages)
    refusal = ErrorInfo("WorkflowAlreadyExistsError", "Workflow 'id in use' exists already.")
    story.send(msg.Delivered("id-there"))
    story.send(msg.Delivered("id-id in use", refusal))
    store.save(story)
    _, _, starts = cli("show", "parent").stdout.rpartition("\n\n")
    why = "WorkflowAlreadyExistsError: Workflow 'id in use' exists already."
    assert [line.split("\t") for line in starts.splitlines()] == [
        ["fetch", "id in use", "REFUSED", why],
        ["fetch", "on its way", "PENDING", ""],
    ]
    fetch, total = cli.json("show", "parent")["tasks"]
    assert fetch["starts"] == [
        {"workflow_id": "there", "status": "STARTED", "error": None},
        {"workflow_id": "id in use", "status": "REFUSED", "error": why},
        {"workflow_id": "on its way", "status": "PENDING", "error": None},
    ]
    assert total["starts"] == []
