"""Attempts that no node of the cluster can hold are found, and said once."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import pytest

from ray_workflows._executor.executor import RayExecutor
from ray_workflows._executor.protocol import AttemptRequest, AttemptTemplate, News
from ray_workflows._executor.scheduling.placement import why_unplaceable
from ray_workflows._model.messages import FoundUnplaceable
from ray_workflows._model.plan import LISTENER, Environment, Function, TaskOptions
from ray_workflows._model.values import Value
from tests.unit.client.test_task_states import CHAIN, Driver, states

SMALL = {"CPU": 2.0, "memory": 1e9}
LARGE = {"CPU": 8.0, "GPU": 1.0, "memory": 8e9, "accelerator_type:A100": 1.0}


# -- one task ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "nodes", "placeable"),
    [
        ({}, [SMALL], True),
        ({}, [], False),
        ({"num_cpus": 2}, [SMALL], True),
        ({"num_cpus": 3}, [SMALL], False),
        ({"num_cpus": 3}, [SMALL, LARGE], True),
        # What two nodes have together is of no use.
        ({"num_cpus": 4}, [SMALL, SMALL], False),
        ({"num_gpus": 0.5}, [SMALL], False),
        ({"num_gpus": 0.5}, [LARGE], True),
        ({"num_cpus": 0, "memory": 2e9}, [SMALL], False),
        ({"num_cpus": 0, "memory": 1e9}, [SMALL], True),
        ({"resources": {"fpga": 1}}, [LARGE], False),
        ({"resources": {"fpga": 1}}, [{**SMALL, "fpga": 2.0}], True),
        ({"resources": {"fpga": 0}}, [SMALL], True),
        ({"accelerator_type": "A100"}, [LARGE], True),
        ({"accelerator_type": "H100"}, [LARGE], False),
        ({"num_cpus": 3, "scheduling_strategy": "SPREAD"}, [SMALL], False),
        # These have rules of their own, and Ray tells of nodes that are named.
        ({"num_cpus": 3, "placement_group": {"placement_group": "ab"}}, [SMALL], True),
        ({"num_cpus": 3, "scheduling_strategy": {"node_affinity": {}}}, [SMALL], True),
    ],
)
def test_a_task_is_placeable_if_one_node_has_all_of_it(
    options: dict[str, Any], nodes: list[dict[str, float]], placeable: bool
) -> None:
    assert (why_unplaceable(options, nodes) == "") is placeable


def test_the_reason_names_what_is_asked_for_and_what_there_is() -> None:
    assert why_unplaceable({"num_gpus": 2}, [SMALL, LARGE]) == (
        "no node of the cluster has what it asks for: CPU 1, GPU 2. The most that one node has is "
        "CPU 8, GPU 1; it starts when such a node joins"
    )


# -- the executor --------------------------------------------------------------------------


class IdleCluster:
    """Takes Ray tasks and runs none of them."""

    def __init__(self) -> None:
        self.has = [SMALL]

    def send(self, *args: Any) -> Any:
        return self

    def future(self) -> Future[Any]:
        return Future()

    def is_prepared(self, shape: str) -> bool:
        return True

    def nodes(self) -> list[dict[str, float]]:
        return self.has

    def cancel(self, ref: Any, *, force: bool) -> None:
        return

    def tidy(self) -> None:
        return


class World:
    def __init__(self) -> None:
        self.news: list[tuple[str, News]] = []
        self.cluster = IdleCluster()
        self.executor = RayExecutor(
            self.cluster,  # type: ignore[arg-type]
            self.report,
            later=lambda action: None,
            aside=lambda work, then: None,
        )

    def report(self, incarnation: str, news: Any) -> None:
        self.news += [(incarnation, each) for each in news]

    def start(
        self, *tasks: int, incarnation: str = "i", kind: str = "function", **ray: Any
    ) -> None:
        options = TaskOptions(ray=ray, kind=kind)
        function = Function("f", "f", b"")
        template = AttemptTemplate("w", incarnation, function, options, Environment(), ())
        for task in tasks:
            self.executor.start(AttemptRequest(template, task, f"t{task}", 0, 1, Value(b""), True))
        self.executor.flush()

    def look(self) -> list[tuple[str, tuple[int, ...], bool]]:
        """What is reported by one look: workflow, tasks, and whether there is a reason."""
        self.news.clear()
        self.executor.placement.look()
        found = []
        for incarnation, each in self.news:
            assert isinstance(each, FoundUnplaceable)
            found.append((incarnation, tuple(sorted(each.tasks)), bool(each.reason)))
        return sorted(found)


def test_what_waits_for_a_gpu_that_nobody_has_is_said_once() -> None:
    world = World()
    # Some are handed to Ray, and the rest wait for them in the executor.
    world.start(*range(10), num_gpus=1)
    world.start(20)
    assert world.look() == [("i", tuple(range(10)), True)]
    assert world.look() == []
    world.start(10, num_gpus=1)
    world.start(1, incarnation="j", num_gpus=1)
    assert world.look() == [("i", (10,), True), ("j", (1,), True)]


def test_it_is_said_when_a_node_joins_and_when_it_leaves() -> None:
    world = World()
    world.start(1, 2, num_gpus=1)
    assert world.look() == [("i", (1, 2), True)]
    world.cluster.has = [SMALL, LARGE]
    assert world.look() == [("i", (1, 2), False)]
    assert world.look() == []
    world.cluster.has = [SMALL]
    assert world.look() == [("i", (1, 2), True)]


def test_nothing_is_said_of_what_was_canceled() -> None:
    world = World()
    world.start(*range(10), num_gpus=1)
    for task in range(9):
        world.executor.cancel("i", task)
    assert world.look() == [("i", (9,), True)]


def test_a_listener_needs_no_node_of_its_own() -> None:
    world = World()
    world.start(1, kind=LISTENER, num_gpus=1)
    assert world.look() == []


# -- the journal ---------------------------------------------------------------------------


def test_the_reason_is_shown_while_it_holds() -> None:
    driver = Driver(CHAIN)
    driver.send(FoundUnplaceable(0, (0, 1), "no node has it"))
    # The second one waits for the first, whatever the cluster has.
    assert states(driver) == [("QUEUED", "no node has it"), ("WAITING", "it waits for 'a'")]
    driver.send(FoundUnplaceable(0, (0,), ""))
    assert states(driver)[0] == ("QUEUED", "attempt 1 was handed to Ray and does not run yet")


def test_what_an_earlier_coordinator_has_seen_counts_no_more() -> None:
    driver = Driver(CHAIN)
    driver.send(FoundUnplaceable(0, (0,), "no node has it"))
    driver.resume("h2")
    driver.resume("h1")
    assert states(driver)[0] == ("QUEUED", "attempt 1 was handed to Ray and does not run yet")
    assert driver.send(FoundUnplaceable(0, (0,), "no node has it")) == []


def test_a_new_attempt_has_not_been_looked_at() -> None:
    driver = Driver(CHAIN)
    driver.send(FoundUnplaceable(0, (0,), "no node has it"))
    driver.fail("a", retryable=True)
    assert states(driver)[0] == ("QUEUED", "attempt 2 was handed to Ray and does not run yet")
