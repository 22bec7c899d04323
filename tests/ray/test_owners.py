"""Two clusters and one storage: each workflow has one owner, whatever happens to it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import ray

import ray_workflows as workflow
from ray_workflows._client.connection import LEASE_VARIABLE
from ray_workflows._coordinator.liveness import LEASE_SECONDS
from ray_workflows._model import events as ev
from ray_workflows._model.catalog import CatalogRow, Holder
from ray_workflows.storage import Storage
from ray_workflows.storage.histories import History
from ray_workflows.storage.urls import storage_from_url
from tests.ray.clusters import Cluster, here, stop_coordinator, stopped, use
from tests.ray.marks import Gate, Marks, wait_until
from tests.ray.processes import is_running
from tests.ray.test_crashes import chain
from tests.support.moto import CREDENTIALS, s3_server, storage_url

#: The lease of the coordinators, in seconds: short, so that nobody has to wait for 15 s.
LEASE = 3.0

#: How long after the death of its owner a workflow may have none, in seconds. Some are left to a
#: busy machine: this is measured by the clock, and coordinators wait for a processor too.
LAPSED_SECONDS = LEASE + 20.0

#: How soon it is when the death is proved: before the longest lease would lapse, busy or not.
PROVED_SECONDS = LEASE_SECONDS - 5.0


@pytest.fixture(scope="module")
def on_the_cluster() -> None:
    """Not on the cluster of all other tests: on two of their own."""


# -- the storages, and the clusters --------------------------------------------------------


@pytest.fixture(scope="module", params=["postgresql", "s3", "shared"])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if request.param == "postgresql":
        server = request.getfixturevalue("postgres_url")
        mark = "&" if "?" in server else "?"
        yield f"{server}{mark}schema=owners_{uuid.uuid4().hex[:8]}"
    elif request.param == "s3":
        with s3_server() as endpoint:
            yield storage_url(endpoint)
    else:
        yield f"shared://{tmp_path_factory.mktemp('owners')}/shared"


class Clusters:
    """Clusters by name. One that was killed is started anew when it is asked for."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.up: dict[str, Cluster] = {}
        self.count = 0

    def get(self, name: str) -> Cluster:
        cluster = self.up.get(name)
        if cluster is None or cluster.process.poll() is not None:
            self.count += 1
            directory = self.directory / f"{name}-{self.count}"
            settings = {**CREDENTIALS, LEASE_VARIABLE: str(LEASE)}
            self.up[name] = cluster = Cluster(directory, name, **settings)
        return cluster


@pytest.fixture(scope="module")
def clusters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clusters]:
    clusters = Clusters(tmp_path_factory.mktemp("clusters"))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        try:
            yield clusters
        finally:
            for cluster in clusters.up.values():
                cluster.__exit__(None, None, None)


class Pair:
    """Two clusters on one storage, with coordinators that drive no workflow."""

    def __init__(self, clusters: Clusters, url: str) -> None:
        self.clusters = clusters
        self.url = url
        self.storage: Storage = storage_from_url(url)
        self.owner = clusters.get("owner")
        self.other = clusters.get("other")

    @property
    def pids(self) -> dict[str, int]:
        """The processes of the coordinators."""
        return {"owner": self.owner.coordinator, "other": self.other.coordinator}

    def start(self, lease: float = LEASE, **of_the_other: Any) -> None:
        """Coordinators on this storage, the owner with this lease, and the other with these
        options of `init`. One that is so from the test before goes on."""
        wanted = [(self.owner, {"lease": lease}), (self.other, of_the_other)]
        for cluster, options in wanted:
            if cluster.used != (self.url, options) or not is_running(cluster.coordinator):
                cluster.send(use, self.url, **options)
        for cluster, options in wanted:
            if cluster.asked:
                cluster.coordinator = cluster.receive()
                cluster.used = (self.url, options)

    def row(self, workflow_id: str) -> CatalogRow:
        row = self.storage.read_catalog(workflow_id)
        assert row is not None
        return row

    def events(self, workflow_id: str) -> list[ev.AnyEvent]:
        return History(self.storage, self.row(workflow_id)).events()

    def holder(self, name: str) -> Holder:
        """The row of a cluster's coordinator."""
        pid = self.pids[name]
        (holder,) = [h for h in self.storage.read_holders() if h.pid == pid]
        return holder

    def takeover(self, workflow_id: str) -> ev.WorkflowClaimed:
        """The one event by which the other coordinator took it over by itself; waits for it."""

        def claims() -> list[ev.WorkflowClaimed]:
            found = self.events(workflow_id)
            return [event for event in found if isinstance(event, ev.WorkflowClaimed)]

        wait_until(lambda: bool(claims()), f"the takeover of {workflow_id}")
        (claim,) = claims()
        assert claim.holder == self.holder("other").holder_id
        return claim


@pytest.fixture
def pair(clusters: Clusters, url: str) -> Pair:
    return Pair(clusters, url)


# -- what runs on the clusters -------------------------------------------------------------


@ray.remote
def once(marks: Marks, name: str, *rest: Any) -> str:
    marks.add(f"{name}@{here()}")
    return name


@ray.remote
def held(marks: Marks, gate: Gate, result: Any, *rest: Any) -> Any:
    marks.add(f"held@{here()}")
    gate.wait()
    return result


@ray.remote
def held_by_the_owner(marks: Marks, name: str, gate: Gate, *rest: Any) -> str:
    """Ends when the gate is open, and at once on any other cluster."""
    marks.add(f"{name}@{here()}")
    if here() == "owner":
        gate.wait()
    return name


@workflow.options(retry=workflow.RetryPolicy(max_attempts=5, backoff=LEASE + 1.0, jitter=0.0))
@ray.remote
def failing_on_the_owner(marks: Marks, gate: Gate) -> str:
    marks.add(f"failing@{here()}")
    if here() == "owner":
        gate.wait()
        raise ConnectionError("not here")
    return "failing"


@ray.remote
def make_objects() -> dict[str, Any]:
    return {"array": np.ones(2_000_000), "ref": ray.put(np.ones(300_000))}


@ray.remote
def use_objects(objects: dict[str, Any], *rest: Any) -> float:
    return float(objects["array"].sum() + ray.get(objects["ref"]).sum())


@ray.remote
def what_came(marks: Marks, large: dict[str, Any], *rest: Any) -> list[Any]:
    marks.add(f"what came@{here()}")
    return [float(large["array"].sum() + ray.get(large["ref"]).sum()), *rest]


def signal_large(workflow_id: str) -> None:
    """Twice, as who did not get the answer."""
    value = {"array": np.ones(100_000), "ref": ray.put(np.ones(20_000))}
    for _ in range(2):
        workflow.signal(workflow_id, "large", value, signal_id="large 1")


# -- what drivers are asked ----------------------------------------------------------------


def start_held(marks: Marks, gate: Gate, **results: Any) -> None:
    for workflow_id, result in results.items():
        workflow.run_async(held.bind(marks, gate, result), workflow_id=workflow_id)


def start_expecting(marks: Marks, workflow_id: str) -> None:
    waits = [workflow.wait_for_signal(name) for name in ("large", "again", "again", "after")]
    workflow.run_async(what_came.bind(marks, *waits), workflow_id=workflow_id)


def start_sleeping(marks: Marks, ids: list[str], seconds: float) -> None:
    for workflow_id in ids:
        nap = workflow.sleep(seconds)
        workflow.run_async(once.bind(marks, workflow_id, nap), workflow_id=workflow_id)


def start_failing(marks: Marks, gate: Gate, workflow_id: str) -> None:
    task = failing_on_the_owner.options(**workflow.options(retry=workflow.RetryPolicy(1)))
    with pytest.raises(workflow.WorkflowExecutionError):
        workflow.run(task.bind(marks, gate), workflow_id=workflow_id)


def start_many_sided(
    marks: Marks, reporting: Gate, endless: Gate, failing: Gate, workflow_id: str
) -> None:
    """Done; one that will report, and its follower; one that runs on; one to be tried again."""
    first = once.bind(marks, "first")
    branches = [
        once.bind(marks, "follower", held_by_the_owner.bind(marks, "reporting", reporting, first)),
        held_by_the_owner.bind(marks, "endless", endless, first),
        failing_on_the_owner.bind(marks, failing),
    ]
    workflow.run_async(once.bind(marks, "last", *branches), workflow_id=workflow_id)


def start_with_objects(marks: Marks, gate: Gate, workflow_id: str) -> None:
    objects = make_objects.bind()
    waiting = held.bind(marks, gate, 1, chain(marks, 5, objects))
    workflow.run_async(use_objects.bind(objects, waiting), workflow_id=workflow_id)


def resume_all() -> dict[str, Any]:
    return {workflow_id: ray.get(ref) for workflow_id, ref in workflow.resume_all()}


def statuses() -> dict[str, str]:
    return {workflow_id: str(status) for workflow_id, status in workflow.list_all()}


def run_step(marks: Marks, workflow_id: str) -> Any:
    return workflow.run(once.bind(marks, workflow_id), workflow_id=workflow_id)


def clean(pair: Pair) -> None:
    """Nothing that a test has left is in the way of the next."""
    for workflow_id in pair.other.call(statuses):
        pair.other.call(workflow.cancel, workflow_id)
        wait_until(
            lambda: pair.row(workflow_id).status not in ("RUNNING", "PENDING"),  # noqa: B023
            f"{workflow_id} has ended",
        )
        pair.other.call(workflow.delete, workflow_id)


# -- the tests -----------------------------------------------------------------------------


def test_verbs_work_on_the_cluster_that_is_not_the_owner(
    pair: Pair, marks: Marks, gate: Gate
) -> None:
    pair.start()
    owner, other = pair.owner, pair.other
    owner.call(start_held, marks, gate, canceled=1, waited=2, resumed=3)
    already_open = Gate(gate.path + "-open")
    already_open.open()
    owner.call(start_failing, marks, already_open, "failed")
    marks.wait_for("held@owner", 3)
    running = {"canceled": "RUNNING", "waited": "RUNNING", "resumed": "RUNNING"}
    assert other.call(statuses) == {**running, "failed": "FAILED"}
    assert other.call(workflow.get_status, "waited") == "RUNNING"

    other.call(workflow.cancel, "canceled")
    wait_until(lambda: owner.call(workflow.get_status, "canceled") == "CANCELED", "it is canceled")
    with pytest.raises(workflow.exceptions.OutputNotAvailableError, match="was canceled"):
        owner.call(workflow.get_output, "canceled")

    for verb in (workflow.resume, workflow.resume_async):
        with pytest.raises(RuntimeError, match="already running"):
            other.call(verb, "waited")
    with pytest.raises(RuntimeError, match="already running"):
        other.call(run_step, marks, "waited")
    with pytest.raises(workflow.WorkflowStillActiveError):
        other.call(workflow.delete, "waited")
    # What the owner has given up, the other goes on with, and the owner sees.
    assert other.call(workflow.resume, "failed") == "failing"
    assert owner.call(workflow.get_output, "failed") == "failing"
    assert owner.call(workflow.get_status, "failed") == "SUCCESSFUL"

    other.send(workflow.get_output, "waited")
    gate.open()
    assert other.receive() == 2
    assert other.call(workflow.get_output, "resumed") == 3
    assert marks.count("held@owner") == 3
    assert marks.count("held@other") == 0

    owner.call(start_expecting, marks, "expecting")
    other.call(signal_large, "expecting")
    # The same one, on both clusters.
    for cluster in (other, owner, other):
        cluster.call(workflow.signal, "expecting", "again", "once", signal_id="1")
    with pytest.raises(workflow.WorkflowNotFoundError):
        other.call(workflow.signal, "nobody", "again")
    owner.call(workflow.signal, "expecting", "again", "twice")
    other.call(workflow.signal, "expecting", "after")
    assert other.call(workflow.get_output, "expecting") == [120_000.0, "once", "twice", None]
    signals = [e for e in pair.events("expecting") if isinstance(e, ev.SignalReceived)]
    assert [e.name for e in signals] == ["large", "again", "again", "after"]
    assert marks.count("what came@owner") == 1
    with pytest.raises(workflow.SignalRefusedError, match="SUCCESSFUL"):
        other.call(workflow.signal, "expecting", "again")
    assert marks.count("failing@other") == 1


def test_resume_all_from_both_runs_each_workflow_once(pair: Pair, marks: Marks) -> None:
    pair.start()
    clean(pair)
    ids = [f"w{number}" for number in range(8)]
    pair.owner.call(start_sleeping, marks, ids, 3.0)
    pair.owner.call(stop_coordinator)
    assert pair.other.call(statuses) == dict.fromkeys(ids, "RESUMABLE")
    # As a new coordinator of another cluster; it does not know that these were its own.
    pair.start()
    pair.owner.send(resume_all)
    pair.other.send(resume_all)
    outputs = [pair.owner.receive(), pair.other.receive()]
    assert outputs[0] | outputs[1] == {name: name for name in ids}
    assert sum(marks.counts().values()) == len(ids), marks.counts()
    for workflow_id in ids:
        taken = [e for e in pair.events(workflow_id) if isinstance(e, ev.WorkflowResumed)]
        assert len(taken) == 1, taken
    assert {pair.row(workflow_id).status for workflow_id in ids} == {"SUCCESSFUL"}


@pytest.mark.parametrize("what", ["coordinator", "cluster"])
def test_a_stopped_owner_is_replaced_and_gives_way(
    pair: Pair, marks: Marks, tmp_path: Path, what: str
) -> None:
    pair.start(auto_resume=True)
    clean(pair)
    owner, other = pair.owner, pair.other
    # Its own name: the log of a coordinator has the tests before too.
    w = f"of a stopped {what}"
    names = ("reporting", "endless", "failing")
    reporting, endless, failing = (Gate(str(tmp_path / name)) for name in names)
    owner.call(start_many_sided, marks, reporting, endless, failing, w)
    for name in names:
        marks.wait_for(f"{name}@owner")
    # From here on the owner has a while until it tries again.
    failing.open()
    wait_until(lambda: any(has_failed_once(e) for e in pair.events(w)), "the failure is noted")
    (pid,) = marks.pids("endless@owner")

    with stopped([pair.pids["owner"]] if what == "coordinator" else owner.pids()):
        stopped_at = time.time()
        # Of what it reports, the stopped coordinator hears when it goes on.
        reporting.open()
        taken_after = pair.takeover(w).at - stopped_at
        print(f"{what} of {pair.url.partition(':')[0]}: taken over after {taken_after:.2f} s")
        assert taken_after <= LAPSED_SECONDS
        assert other.call(workflow.get_output, w) == "last"
        # What the owner was to try again is due.
        wait_until(lambda: time.time() > stopped_at + LEASE + 1.1, "the pause is over")
        events, counts = pair.events(w), marks.counts()
        assert isinstance(events[-1], ev.WorkflowSucceeded)

    log = f"Workflow {w!r} was taken over by coordinator {pair.holder('other').holder_id}"
    wait_until(lambda: log in owner.log_of(pair.pids["owner"]), "the stale one says so")
    wait_until(lambda: not is_running(pid), "the attempt of the stale one is stopped")
    # It is not broken: it goes on with what is its own.
    assert owner.call(run_step, marks, "of its own") == "of its own"
    assert pair.events(w) == events
    assert marks.counts() == {**counts, "of its own@owner": 1}
    assert counts == {
        "first@owner": 1,
        "reporting@owner": 1,
        "reporting@other": 1,
        "follower@other": 1,
        "endless@owner": 1,
        "endless@other": 1,
        "failing@owner": 1,
        "failing@other": 1,
        "last@other": 1,
    }
    assert owner.call(workflow.get_output, w) == "last"
    assert pair.row(w).holder == pair.holder("other").holder_id


def has_failed_once(event: ev.AnyEvent) -> bool:
    return isinstance(event, ev.AttemptFailed)


def test_a_killed_owner_is_replaced_at_once(
    pair: Pair, marks: Marks, gate: Gate, request: pytest.FixtureRequest
) -> None:
    pair.start(LEASE_SECONDS, auto_resume=True)
    clean(pair)
    owner, other = pair.owner, pair.other
    owner.call(start_with_objects, marks, gate, "w")
    marks.wait_for("held@owner")
    other.send(workflow.get_output, "w")
    killed_at = time.time()
    owner.kill_all()
    taken_after = pair.takeover("w").at - killed_at
    marks.wait_for("held@other")
    went_on_after = time.time() - killed_at
    print(f"{pair.url.partition(':')[0]}: killed, taken over after {taken_after:.2f} s, ", end="")
    print(f"its task runs after {went_on_after:.2f} s")
    assert taken_after <= PROVED_SECONDS
    gate.open()
    # A caller that waited on the other cluster goes on waiting, and gets the output.
    assert other.receive() == 2_300_000.0
    steps = {f"step-{number}": 1 for number in range(5)}
    assert marks.counts() == {**steps, "held@owner": 1, "held@other": 1}
    other.call(workflow.delete, "w")
    assert other.call(statuses) == {}


# That a lease lapses is tested on each storage by the owner that is stopped.
@pytest.mark.parametrize("url", ["shared"], indirect=True)
def test_an_owner_whose_death_can_not_be_proved(pair: Pair, marks: Marks, gate: Gate) -> None:
    """Its row says that it was on another machine."""
    pair.start(auto_resume=True)
    clean(pair)
    owner, other = pair.owner, pair.other
    owner.call(start_held, marks, gate, w="result")
    marks.wait_for("held@owner")
    with stopped([pair.pids["owner"]]):
        elsewhere = msgspec.structs.replace(pair.holder("owner"), host="elsewhere")
        pair.storage.renew_holder(elsewhere, LEASE)
        killed_at = time.time()
        owner.kill_all()
    taken_after = pair.takeover("w").at - killed_at
    print(f"{pair.url.partition(':')[0]}: lapsed, taken over after {taken_after:.2f} s")
    # The clock of S3 has whole seconds.
    assert LEASE - 1.0 <= taken_after <= LAPSED_SECONDS
    gate.open()
    assert other.call(workflow.get_output, "w") == "result"
