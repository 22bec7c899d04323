"""A resumption that changes where a workflow runs: the engine folds it, attempts have it."""

from __future__ import annotations

import json
import random
import tracemalloc
from pathlib import Path

import msgspec
import pytest
import ray

from ray_workflows._client.forks import Fork
from ray_workflows._codec.journal import encode_entry
from ray_workflows._codec.references import blobs_in
from ray_workflows._coordinator.workflow import Workflow
from ray_workflows._engine.summary import catalog_row
from ray_workflows._environment import shared_items
from ray_workflows._environment.attempts import packages_for, runtime_env_for
from ray_workflows._environment.code import packages
from ray_workflows._executor.protocol import AttemptTemplate
from ray_workflows._model import messages as msg
from ray_workflows._model.catalog import Append, CatalogQuery
from ray_workflows._model.plan import Environment, EnvironmentChange, Function, Package
from ray_workflows._model.status import WorkflowStatus
from ray_workflows._model.values import Blob
from ray_workflows.storage import MemoryStorage, SqliteStorage
from tests.unit.driver import Driver
from tests.unit.plans import plan

MIB = 1024 * 1024

PACKAGE = Package("gcs://a.zip", "i-package", Blob("content", 3, "sha256:0"))
OLD = Environment(runtime_env={"env_vars": {"A": "1"}}, packages=(PACKAGE,), code="gcs://a.zip")
NEW = msgspec.structs.replace(OLD, code="gcs://b.zip")
FUNCTION = Function("f2", "f", b"f2")
PLAN = msgspec.structs.replace(
    plan(("a", ()), ("b", (0,), {"ray": {"num_cpus": 1, "scheduling_strategy": "SPREAD"}})),
    environment=OLD,
)
CHANGE = EnvironmentChange(
    "current",
    "me@here",
    NEW,
    {"f": FUNCTION},
    {"b": {"scheduling_strategy": None, "memory": 7}},
)


def failed() -> Driver:
    driver = Driver(PLAN)
    driver.succeed("a")
    driver.fail("b")
    return driver


def template(driver: Driver, task_id: str) -> AttemptTemplate:
    workflow = Workflow(driver.state, len(driver.journal), None)
    return workflow.template(driver.state.tasks[driver.number(task_id)])


def resume(driver: Driver, change: EnvironmentChange | None) -> None:
    driver.send(msg.Resume(change=change))


def test_what_is_recorded_stays_by_default() -> None:
    driver = failed()
    resume(driver, None)
    assert template(driver, "b").environment == OLD
    assert template(driver, "b").function.digest == "f"


def test_a_change_holds_for_what_is_started_from_then_on() -> None:
    driver = failed()
    workflow = Workflow(driver.state, 3, None)
    a, b = (driver.state.tasks[driver.number(task_id)] for task_id in "ab")
    before, other = workflow.template(b), workflow.template(a)
    resume(driver, CHANGE)
    after = workflow.template(b)
    assert (before.environment, before.options.ray["num_cpus"]) == (OLD, 1)
    assert after.environment == NEW
    assert after.function == FUNCTION
    assert after.options.ray == {"num_cpus": 1, "memory": 7}
    # Another worker, that has not imported what it was.
    assert workflow.template(a).environment == NEW
    assert workflow.template(a).shape != other.shape


def test_a_change_stays_until_it_is_changed() -> None:
    driver = failed()
    resume(driver, CHANGE)
    driver.fail("b")
    resume(driver, EnvironmentChange("recorded", "you@there", None, {}, {"b": {"num_cpus": 2}}))
    found = template(driver, "b")
    assert found.environment == NEW
    assert found.options.ray == {"num_cpus": 2, "memory": 7}


def test_continuations_run_where_the_workflow_does() -> None:
    driver = Driver(PLAN)
    extra = msgspec.structs.replace(PACKAGE, uri="gcs://of-a-task.zip")
    inner = msgspec.structs.replace(plan(("c", ())), environment=Environment(packages=(extra,)))
    driver.go_on("a", inner)
    found = template(driver, "c").environment
    assert found.runtime_env == OLD.runtime_env
    assert found.packages == (PACKAGE, extra)


def test_packages_are_none_of_the_workflows_blobs() -> None:
    driver = failed()
    own = Blob("function-f2", 1, "sha256:1")
    resume(driver, msgspec.structs.replace(CHANGE, functions={"f": Function("f2", "f", own)}))
    assert list(blobs_in(driver.journal)) == [own]


@pytest.mark.parametrize("changed", [False, True])
def test_a_fork_starts_with_what_its_origin_has(changed: bool) -> None:
    driver = failed()
    if changed:
        resume(driver, CHANGE)
    storage = MemoryStorage(name=f"fork-{changed}")
    storage.open()
    state = driver.state
    row = catalog_row(state, 1)
    entry = encode_entry(driver.journal, state.workflow_id, state.incarnation, 1)
    storage.commit([Append(state.workflow_id, state.incarnation, 0, "c", entry, row)])
    origin = Fork(storage, row, "b")
    submitted = origin.submitted.plan
    assert submitted.environment == (NEW if changed else OLD)
    assert submitted.functions[0].digest == ("f2" if changed else "f")
    before = PLAN.options[PLAN.tasks[1].options].ray
    found = submitted.options[submitted.tasks[1].options].ray
    assert found == ({"num_cpus": 1, "memory": 7} if changed else before)
    assert submitted.tasks[0] == PLAN.tasks[0]
    origin.copy_blobs("other")


FIELDS = [
    ("pip", ["numpy==2.1"]),
    ("uv", ["numpy==2.1"]),
    ("conda", "an-environment"),
    ("image_uri", "docker.io/somebody/image:1"),
    ("py_executable", "uv run"),
]


@pytest.mark.parametrize("of_the_task", [False, True])
@pytest.mark.parametrize(("field", "value"), FIELDS, ids=[name for name, _ in FIELDS])
def test_what_brings_packages_is_given_to_ray_again(
    field: str, value: object, of_the_task: bool
) -> None:
    """And Ray takes it, with the code, in whatever cluster it is."""
    runtime_env = {"env_vars": {"A": "b"}, **({} if of_the_task else {field: value})}
    environment = Environment(runtime_env, ("/first",), "d", (PACKAGE,), PACKAGE.uri)
    given = runtime_env_for(environment, {field: value} if of_the_task else None)
    taken = ray.runtime_env.RuntimeEnv(**given)
    assert json.dumps(value)[1:-1] in json.dumps(taken[field])
    assert taken["env_vars"]["A"] == "b"
    assert taken["env_vars"]["PYTHONPATH"] == "/first"
    assert packages_for(environment, given) == (PACKAGE,)


def test_items_are_copied_under_their_incarnation() -> None:
    """Which journals name, also where the same contents are already."""
    source, target = MemoryStorage(name="copy-source"), MemoryStorage(name="copy-target")
    item = shared_items.keep(source, "package/a", lambda: [b"code"])
    other = shared_items.keep(target, "package/a", lambda: [b"code"])
    for _ in range(2):
        shared_items.copy_item(source, target, item, ("w", "1-a"))
        assert bytes(target.read_blob(item.incarnation, item.blob)) == b"code"
    assert shared_items.find(target, "package/a") == other
    # Both, and what says that the workflow uses the copy.
    assert len(target.list_catalog(CatalogQuery(statuses=(WorkflowStatus.NONE,))).rows) == 3


def test_large_packages_are_never_whole_in_memory(tmp_path: Path) -> None:
    """A directory is packed, stored and copied piece by piece."""
    project = tmp_path / "project"
    project.mkdir()
    data = random.Random(1).randbytes(MIB)
    with (project / "data.bin").open("wb") as file:
        for _ in range(24):
            file.write(data)  # What zip sees of it at once is too little to notice.
    source, target = (SqliteStorage(tmp_path / name) for name in ("source", "target"))
    for storage in (source, target):
        storage.open()
    tracemalloc.start()
    try:
        package = packages.from_directory(source, str(project), ())
        assert package.blob.size > 20 * MIB
        item = shared_items.find(source, packages.item_name(package))
        assert item is not None
        shared_items.copy_item(source, target, item, ("w", "1-a"))
        _, most = tracemalloc.get_traced_memory()
        assert most < 16 * MIB, most
        # Ray takes it whole, so it is once.
        tracemalloc.reset_peak()
        assert len(packages.read_whole(target, package)) == package.blob.size
        _, most = tracemalloc.get_traced_memory()
        assert most < 1.5 * package.blob.size, most
    finally:
        tracemalloc.stop()
