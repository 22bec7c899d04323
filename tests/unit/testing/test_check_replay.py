"""check_replay: recorded histories against changed code."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest
import ray
from click.testing import CliRunner

import ray_workflows as workflow
from ray_workflows._client.outputs import read_row
from ray_workflows._client.reader import Reader
from ray_workflows._client.replay_checks import check_present_code
from ray_workflows.cli.check import check
from ray_workflows.storage import Storage
from ray_workflows.testing import Environment, check_replay

CALLS: list[str] = []


@ray.remote
def charge(order: str) -> str:
    return f"{order} is charged"


@ray.remote
def ship(order: str) -> str:
    return f"{order} is shipped"


def note(order: str) -> str:
    Path(order).touch()
    return "noted"


def version(changed: str = "") -> Any:
    """A durable function, as it was or changed."""

    @workflow.durable(strict=changed == "arguments")
    async def sell(order: str, mark: str) -> Any:
        if changed == "first":
            await workflow.step(ship, order)
        receipt = await workflow.step(charge, "other" if changed == "arguments" else order)
        if changed == "guarded" and workflow.patched("more"):
            await workflow.step(ship, order)
        number = workflow.random().random()
        if changed != "less":
            await workflow.step(note, mark)
        child = workflow.start(ship.bind(order), workflow_id=f"ship-{order}")
        answer = await workflow.wait_for_signal("go")
        await asyncio.gather(workflow.step(charge, "a"), workflow.step(ship, "b"))
        if changed == "more":
            await workflow.step(ship, "later")
        return receipt, number, child, answer

    return sell


@pytest.fixture
def env() -> Any:
    with Environment() as env:
        yield env


def run(env: Environment, mark: Path, *, to_its_end: bool = True) -> None:
    started = env.run_async(version().bind("A7", str(mark)), workflow_id="w")
    env.settle()
    env.advance(10.0)
    if to_its_end:
        env.signal("w", "go", 1)
        started.result()
    mark.unlink()


def test_the_same_code_and_what_is_only_new(env: Environment, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    run(env, mark)
    commits = len(env.commits)
    executions = len(env.executions)
    assert check_replay(env, version(), workflow_id="w") == 1
    assert check_replay(env, version("guarded")) == 1
    # Nothing ran, and nothing was written.
    assert not mark.exists()
    assert (len(env.commits), len(env.executions)) == (commits, executions)


@pytest.mark.parametrize(
    ("changed", "recorded", "asked"),
    [
        ("first", "step 'charge'", "step 'ship' of 'ship' at .*test_check_replay.py:"),
        ("less", "step 'note'|outcome of step 'note'", "."),
        ("arguments", "step 'charge' with other arguments", "test_check_replay.py:"),
    ],
)
def test_changed_code(
    env: Environment, tmp_path: Path, changed: str, recorded: str, asked: str
) -> None:
    run(env, tmp_path / "mark", to_its_end=False)
    with pytest.raises(workflow.NondeterminismError) as raised:
        check_replay(env, version(changed), workflow_id="w")
    assert re.search(recorded, raised.value.recorded)
    assert re.search(asked, raised.value.asked)
    assert "workflow 'w'" in raised.value.where


def test_more_at_the_end_of_one_that_has_ended(env: Environment, tmp_path: Path) -> None:
    """It has ended, so it asks nobody for what is new."""
    run(env, tmp_path / "mark")
    assert check_replay(env, version("more")) == 1


def test_a_storage_without_such_a_history(env: Environment, tmp_path: Path) -> None:
    @workflow.durable
    async def other() -> None:
        await workflow.step(note, "x")

    with pytest.raises(ValueError, match=r"no history of .*other"):
        check_replay(env, other)
    run(env, tmp_path / "mark")
    with pytest.raises(ValueError, match=r"It has histories of .*sell"):
        check_replay(env, other, workflow_id="w")
    with pytest.raises(workflow.WorkflowNotFoundError):
        check_replay(env, other, workflow_id="nobody")
    with pytest.raises(TypeError, match="durable function"):
        check_replay(env, charge)


@workflow.durable
def at_top_level(order: str) -> Any:
    first = workflow.step(charge, order)
    workflow.wait_for_signal("go")
    return first


def check_from_the_shell(monkeypatch: pytest.MonkeyPatch, storage: Storage) -> None:
    monkeypatch.setattr("ray_workflows.cli.check.find_reader", lambda spec: Reader(storage))
    runner = CliRunner()
    every = runner.invoke(check, ["--json"])
    assert every.exit_code == 1
    found = {each["workflow_id"]: each for each in json.loads(every.stdout)}
    assert {name: each["result"] for name, each in found.items()} == {
        "w": "differs",
        "local": "unknown",
    }
    assert "'charge'" in found["w"]["recorded"]
    assert "test_check_replay.py:" in found["w"]["asked"]
    one = runner.invoke(check, ["local", "--code", "current"])
    assert one.exit_code == 0
    assert "There is no durable function of this name here." in one.stdout
    none = runner.invoke(check, ["--filter", "id=x*"])
    assert (none.exit_code, none.stdout) == (0, "")
    assert runner.invoke(check, ["w", "--filter", "id=x*"]).exit_code == 2


def test_the_code_that_is_here(
    env: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    env.run_async(at_top_level.bind("A7"), workflow_id="w")
    env.run_async(version().bind("A8", str(tmp_path / "mark")), workflow_id="local")
    env.settle()
    storage = env.storage

    def results(workflow_id: str) -> list[tuple[bool, str]]:
        row = read_row(storage, workflow_id)
        return [(e.difference is None, e.problem) for e in check_present_code(storage, row)]

    assert results("w") == [(True, "")]
    assert results("local") == [
        (True, "There is no durable function of this name here. (One of a script: --script FILE.)")
    ]

    @workflow.durable
    def changed(order: str) -> Any:
        return workflow.step(ship, order)

    monkeypatch.setitem(globals(), "at_top_level", changed)
    assert results("w") == [(False, "")]
    check_from_the_shell(monkeypatch, storage)
    env.signal("w", "go", 1)
    env.settle()
    assert results("w") == []
