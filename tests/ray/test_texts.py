"""Subclasses of text and of numbers, as numpy and enums have them: taken as what they are."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

import ray_workflows as workflow
from ray_workflows._capture.dag import capture_plan
from ray_workflows._capture.values import ValueWriter
from ray_workflows._codec.journal import encode_plan
from ray_workflows._model.ids import validate_signal_text, validate_workflow_id
from ray_workflows._model.plan import Environment
from ray_workflows.storage import MemoryStorage


class Misleading(str):
    """One that shows itself as something else."""

    def __str__(self) -> str:
        return "something else"

    __repr__ = __format__ = lambda self, *spec: "something else"  # type: ignore[assignment]


def member(text: str) -> str:
    return enum.Enum("Texts", {"ONE": text}, type=str).ONE  # type: ignore[return-value]


MAKERS: list[Any] = [np.str_, Misleading, member]


@ray.remote(num_cpus=0)
def same(x):
    return x


@pytest.mark.parametrize("make", MAKERS)
def test_what_is_stored_is_plain(make: Any) -> None:
    for found in (validate_workflow_id(make("a")), validate_signal_text("name", make("a"))):
        assert type(found) is str
        assert found == "a"
    ours = workflow.options(task_id=make("t"), metadata={make("k"): make("v")})
    node = same.options(
        name=make("n"),
        memory=np.float64(2.0),
        max_retries=2,
        runtime_env={"env_vars": {make("A"): make("b")}},
        _labels={make("team"): make("x"), **ours["_labels"]},
    ).bind(workflow.wait_for_signal(make("s")))
    writer = ValueWriter(MemoryStorage(), "i1")
    plan = capture_plan(node, writer=writer, environment=Environment(), prefix="p")
    assert encode_plan(plan)
    signal, chosen = plan.options
    assert (signal.signal, plan.tasks[1].name, chosen.metadata) == ("s", "t", {"k": "v"})
    assert chosen.ray["_labels"] == {"team": "x"}
    assert chosen.ray["runtime_env"]["env_vars"] == {"A": "b"}


@pytest.mark.parametrize("make", MAKERS)
def test_every_verb_takes_them(make: Any, wid: str, tmp_path: Path) -> None:
    odd = make(wid)
    waiting = workflow.wait_for_signal(make("go"))
    ref = workflow.run_async(
        same.options(**workflow.options(task_id=make("t"))).bind(waiting), workflow_id=odd
    )
    workflow.cancel(odd)
    assert workflow.get_status(wid) == workflow.CANCELED
    again = workflow.resume_async(odd, canceled=True, code=make("recorded"))
    workflow.signal(odd, make("go"), 5, signal_id=make("first"))
    assert ray.get(again) == 5
    del ref
    assert workflow.get_output(odd) == workflow.resume(odd) == 5
    assert ray.get(workflow.get_output_async(odd, task_id=make("t"))) == 5
    assert workflow.get_metadata(odd, make("t"))["user_metadata"] == {}
    forked = workflow.fork(odd, from_task=make("t"), new_id=make(f"{wid}-fork"))
    assert workflow.get_output(forked) == 5
    assert workflow.copy(odd, target=tmp_path) == [wid]
    ids = [make(f"{wid}-{n}") for n in range(2)]
    refs = workflow.run_async_many([same.bind(n) for n in range(2)], workflow_ids=ids)
    assert ray.get(refs) == [0, 1]
    assert {i for i, _ in workflow.list_all(make("SUCCESSFUL"))} >= {wid, *map(str.__str__, ids)}
    for each in (odd, forked, *ids):
        workflow.delete(each)
