"""Actor handles as values: wherever a function or a value has one, and in another cluster."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import ray
from ray.util.queue import Queue

import ray_workflows as workflow
from ray_workflows._capture import handles
from ray_workflows._capture.pickling import pickle_value
from ray_workflows._capture.unpickling import unpickle_value
from ray_workflows._ray import private
from tests.ray.marks import wait_until


@ray.remote(num_cpus=0)
class Progress:
    def __init__(self):
        self.seen = []

    def add(self, what):
        self.seen.append(what)
        return len(self.seen)

    def all(self):
        return self.seen


@ray.remote(num_cpus=0)
def report(what, to):
    ray.get(to["deep"][0].add.remote(what))
    return to["deep"][0]


def test_wherever_they_are(wid: str) -> None:
    """In an argument, a closure, a default, a global, another object, a result."""
    progress = Progress.remote()
    queue = Queue(actor_options={"num_cpus": 0})
    names = {"ray": ray, "shared": progress, "__name__": "__main__"}
    exec("def by_global(*before): return ray.get(shared.add.remote('global'))", names)

    def by_closure(*before):
        return ray.get(progress.add.remote("closure"))

    def by_default(*before, to=progress):
        return ray.get(to.add.remote("default"))

    def by_queue(*before):
        queue.put("queue")
        return queue

    node = report.bind("argument", {"deep": [progress]})
    for function in (by_closure, by_default, names["by_global"], by_queue):
        node = ray.remote(num_cpus=0)(function).bind(node)
    result = workflow.run(node, workflow_id=wid)
    assert ray.get(progress.all.remote()) == ["argument", "closure", "default", "global"]
    assert result.get(timeout=10) == "queue"
    queue.put("again")
    assert workflow.get_output(wid).get(timeout=10) == "again"


def test_a_named_actor_is_looked_up_again() -> None:
    options = {"name": "progress", "namespace": "of-this-test"}
    first = Progress.options(**options).remote()
    pickled = pickle_value([first], where="x")
    ray.get(first.add.remote("first"))
    assert ray.get(unpickle_value(pickled.data, [])[0].all.remote()) == ["first"]
    ray.kill(first)
    named = ray.util.list_named_actors
    wait_until(lambda: options not in named(all_namespaces=True), "a name that is free again")
    with pytest.raises(ray.exceptions.RayActorError, match=r"named 'progress' .*'of-this-test'"):
        unpickle_value(pickled.data, [])
    second = Progress.options(**options).remote()
    assert ray.get(unpickle_value(pickled.data, [])[0].all.remote()) == []
    ray.kill(second)


def test_an_actor_of_another_cluster_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    progress = Progress.remote()
    monkeypatch.setattr(handles, "session_name", lambda: "session of yesterday")
    pickled = pickle_value([progress], where="x")
    monkeypatch.undo()
    with pytest.raises(ray.exceptions.RayActorError) as caught:
        unpickle_value(pickled.data, [])
    for part in (repr(progress), "session of yesterday", "Class.options(name="):
        assert part in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_what_ray_calls_private() -> None:
    """As `tests/unit/ray/test_private.py`, of what needs a cluster."""
    unnamed: Any = Progress.remote()
    state, weak = private.actor_state(unnamed)
    assert private.named_actor(state) == ("", ray.get_runtime_context().namespace)
    assert private.handle_from_state(state, weak) == unnamed
    assert private.session_name().startswith("session_")
    named = Progress.options(name="a-name", namespace="a-space").remote()
    assert private.named_actor(private.actor_state(named)[0]) == ("a-name", "a-space")
