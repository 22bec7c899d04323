"""A run: clusters and drivers on a storage, faults, a healing, and the laws at the end."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec

from ray_workflows._client.connection import LEASE_VARIABLE
from ray_workflows._environment.shared_items import collect
from ray_workflows._model.values import Value
from ray_workflows.storage.objects import deletion as objects_deletion
from ray_workflows.storage.urls import storage_from_url
from tests.chaos import log as kinds
from tests.chaos.checker import History, Violation, check
from tests.chaos.driver import Orders
from tests.chaos.faults import KILL, LEASE, Fault, Kind, belonging, processes, schedule
from tests.chaos.journals import read_journals, read_value
from tests.chaos.log import Log
from tests.chaos.places import Place
from tests.chaos.stories import number_of, story
from tests.ray.clusters import Cluster, use
from tests.ray.head import AUTH_MODE
from tests.ray.processes import DriverProcess, descendants, is_running
from tests.support.moto import CREDENTIALS

#: How long the healing may take, in seconds: so long nothing is found missing.
HEAL_SECONDS = 240.0

#: For how long workflows are deleted before the next question how many are left, in seconds.
DELETE_SECONDS = 60.0

#: The environment of clusters and drivers.
SETTINGS = {**CREDENTIALS, LEASE_VARIABLE: str(LEASE), "RAY_AUTH_MODE": AUTH_MODE}

DRIVER = """
    from tests.chaos.driver import main
    import sys
    sys.argv = ["driver", {orders!r}]
    main()
"""


class Fleet:
    """The clusters of a run, and one driver on each of them."""

    def __init__(self, directory: Path, place: Place, seed: int) -> None:
        self.directory = directory
        self.place = place
        self.seed = seed
        self.log = Log(str(directory / "log"))
        self.stop = directory / "stop"
        self.count = 0
        self.clusters: dict[int, Cluster] = {}
        self.drivers: dict[int, DriverProcess] = {}
        #: Each cluster's, by `RAY_TMPDIR`: what is left over is known by it.
        self.ray_directories: list[str] = []

    def start(self, *, auto_resume: bool = True) -> Cluster:
        """A new cluster, with its coordinator."""
        self.count += 1
        cluster = Cluster(self.directory / f"c{self.count}", f"c{self.count}", **SETTINGS)
        self.clusters[self.count] = cluster
        self.ray_directories.append(cluster.ray_directory)
        cluster.call(use, self.place.url, auto_resume=auto_resume)
        return cluster

    def drive(self, slot: int, cluster: Cluster, **orders: Any) -> DriverProcess:
        """A new driver on a cluster, which goes on with the stories of the one before."""
        self.count += 1
        directory = self.directory / f"d{self.count}"
        directory.mkdir()
        begun, done = set(), set()
        for line in self.log.read():
            if line.kind == kinds.TRY:
                begun.add(number_of(line.workflow))
            elif line.kind == kinds.DONE:
                done.add(number_of(line.workflow))
        stride = orders.setdefault("stride", self.place.clusters)
        mine = {number for number in begun if not stride or number % stride == slot}
        first = max(mine, default=slot - stride) + stride if stride else 0
        path = directory / "orders.json"
        path.write_bytes(
            msgspec.json.encode(
                Orders(
                    address=cluster.call(address_of_cluster),
                    url=self.place.url,
                    log=self.log.path,
                    seed=self.seed,
                    begun=sorted(mine - done),
                    first=first,
                    stop=str(self.stop),
                    **orders,
                )
            )
        )
        driver = DriverProcess(directory, DRIVER.format(orders=str(path)), **SETTINGS)
        self.ray_directories.append(driver.ray_directory)
        self.drivers[slot] = driver
        return driver

    def end(self) -> None:
        """SIGKILL all that was started, stopped processes too."""
        for process in (*self.drivers.values(), *self.clusters.values()):
            process.__exit__(None, None, None)
        self.drivers.clear()
        self.clusters.clear()
        for pid in self.left_processes():
            os.kill(pid, signal.SIGKILL)

    def left_processes(self) -> list[int]:
        """What runs though its cluster has ended: marked by a variable, its parent may be dead."""
        found = []
        for directory in self.ray_directories:
            found += belonging("RAY_TMPDIR", directory)
        return [pid for pid in found if is_running(pid)]


def address_of_cluster() -> str:
    import ray

    address: str = ray.get_runtime_context().gcs_address
    return address


class Run:
    """One run, from the start to the verdict."""

    def __init__(self, place: Place, directory: Path, seed: int, seconds: float) -> None:
        self.place = place
        self.seed = seed
        self.seconds = seconds
        self.fleet = Fleet(directory, place, seed)
        self.log = self.fleet.log
        self.faults: list[str] = []
        self.counts: Counter[str] = Counter()
        #: Which cluster is in which slot.
        self.slots: dict[int, Cluster] = {}
        #: Processes that are to go on at a time of the monotonic clock.
        self.stopped: list[tuple[float, list[int]]] = []
        self.server_back: float | None = None
        self.healed_after = 0.0
        self.left: list[str] = []
        #: How many submissions have left blobs and never arrived.
        self.swept = 0

    def live(self) -> list[Violation]:
        with ExitStack() as stack:
            stack.callback(self.fleet.end)
            # Before the processes are killed, in case that this is interrupted.
            stack.callback(self.go_on)
            self.begin()
            self.hurt()
            self.heal()
            found = self.judge()
            self.clean_up()
        self.count_left_processes()
        return found + [Violation("nothing is left over", "", text) for text in self.left]

    # -- the parts of a run ----------------------------------------------------------------

    def begin(self) -> None:
        for slot in range(self.place.clusters):
            self.slots[slot] = self.fleet.start()
        for slot, cluster in self.slots.items():
            self.fleet.drive(slot, cluster)
        self.say("the faults begin")

    def hurt(self) -> None:
        """Do what the schedule says, until the time is over."""
        until = time.monotonic() + self.seconds
        for fault in schedule(self.seed, self.place.faults):
            if not self.rest(fault.gap, until):
                break
            self.inject(fault)
            self.replace_the_dead()

    def heal(self) -> None:
        """Let nothing survive but the storage; then one new cluster ends what was begun."""
        self.fleet.stop.touch()
        self.say("everything is killed")
        self.go_on()
        self.fleet.end()
        began = time.monotonic()
        # By one of the two ways.
        automatic = self.seed % 2 == 0
        cluster = self.fleet.start(auto_resume=automatic)
        driver = self.fleet.drive(0, cluster, stride=0, width=16, resumes=not automatic)
        self.say(f"healing by {'auto_resume' if automatic else 'resume_all'}")
        try:
            driver.process.wait(HEAL_SECONDS)
        except Exception:
            self.say("the healing driver has not ended")
        else:
            if driver.process.returncode:
                self.left.append(f"the healing driver failed: {driver.text()[-2000:]}")
        self.healed_after = time.monotonic() - began
        self.slots = {0: cluster}

    def judge(self) -> list[Violation]:
        """Hold the laws against what is stored now."""
        self.say("the laws are checked")
        storage = storage_from_url(self.place.url)
        lines = self.log.read()
        numbers = sorted({number_of(line.workflow) for line in lines if line.workflow})
        journals, damage = read_journals(storage)

        def made(workflow_id: str, value: Value) -> Any:
            return read_value(storage, rows[workflow_id], value)

        rows = {name: row.incarnation for name, (row, _) in journals.items()}
        history = History(
            lines,
            [story(self.seed, number) for number in numbers],
            {name: journal for name, (_, journal) in journals.items()},
            made,
        )
        found = check(history)
        found += [Violation("stored bytes are readable", name, text) for name, text in damage]
        self.say(f"{len(found)} violations; all workflows are deleted")
        self.history = history
        return found

    def clean_up(self) -> None:
        """Delete all workflows; what is there then is left over."""
        cluster = self.slots[0]
        left = cluster.call(delete_some, DELETE_SECONDS)
        while left:
            before, left = left, cluster.call(delete_some, DELETE_SECONDS)
            assert left < before, f"{left} workflows can't be deleted"
        # What they shared, and blobs of submissions that never arrived: else they stay for a while.
        storage = storage_from_url(self.place.url)
        collect(storage, unused_seconds=0.0)
        # Nor what is left of creations that a kill cut short: no writer lives that could go on.
        objects_deletion.READING_SECONDS = 0.0
        self.swept = storage.sweep(0.0)
        self.left += [f"stored: {name}" for name in self.place.left()[:20]]
        bytes_used, actors = cluster.call(count_in_cluster)
        if bytes_used:
            self.left.append(f"{bytes_used} bytes in the object store")
        # The coordinator, and the waiter of this driver.
        if len(actors) > 2:
            self.left.append(f"actors: {actors}")

    def count_left_processes(self) -> None:
        pids = self.fleet.left_processes()
        if pids:
            self.left.append(f"processes: {pids}")

    # -- the faults ------------------------------------------------------------------------

    def inject(self, fault: Fault) -> None:
        kind, target = fault.kind, fault.kind.target
        if target == "server":
            pids = self.hurt_server(fault)
        elif target == "driver":
            pids = [fault.pick([driver.process.pid for driver in self.fleet.drivers.values()])]
            self.hit(kind, pids, fault.seconds)
        elif target == "cluster":
            cluster = fault.pick(list(self.slots.values()))
            # From the leaves to the root would let it notice; a power cut does not.
            pids = cluster.pids()
            self.hit(kind, pids, fault.seconds)
        else:
            roots = [cluster.process.pid for cluster in self.slots.values()]
            if target == "waiter":
                roots = [*roots, *(d.process.pid for d in self.fleet.drivers.values())]
            found = [pid for root in roots for pid in processes(root, target)]
            if not found:
                return
            pids = [fault.pick(found)]
            self.hit(kind, pids, fault.seconds)
        self.note(fault, pids)
        if kind.replaced_after is not None:
            victim = next(
                slot for slot, cluster in self.slots.items() if set(pids) & self.family(cluster)
            )
            self.rest(kind.replaced_after)
            self.replace(victim)

    def family(self, cluster: Cluster) -> set[int]:
        cluster.started |= descendants(cluster.process.pid)
        return {cluster.process.pid, *cluster.started}

    def hit(self, kind: Kind, pids: list[int], seconds: float) -> None:
        if kind.replaced_after is not None:
            # While their parents live: afterwards the parent of a process can't be found out.
            for cluster in self.slots.values():
                self.family(cluster)
        number = signal.SIGKILL if kind.action == KILL else signal.SIGSTOP
        for pid in pids:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue
        if kind.action != KILL:
            self.stopped.append((time.monotonic() + seconds, pids))

    def hurt_server(self, fault: Fault) -> list[int]:
        if self.server_back is not None:
            return []
        if fault.kind.action == KILL:
            self.place.kill()
            self.server_back = time.monotonic() + fault.seconds
            return []
        pids = self.place.stop(fault)
        self.stopped.append((time.monotonic() + fault.seconds, pids))
        return pids

    def rest(self, seconds: float, until: float = float("inf")) -> bool:
        """Let time pass, and let go on what is due; False if the run is over."""
        end = min(time.monotonic() + seconds, until)
        while time.monotonic() < end:
            self.go_on(time.monotonic())
            time.sleep(0.02)
        return end < until

    def go_on(self, now: float = float("inf")) -> None:
        """Let the processes go on that were stopped until now, and the server come back."""
        for due, pids in [each for each in self.stopped if each[0] <= now]:
            self.stopped.remove((due, pids))
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGCONT)
                except ProcessLookupError:
                    continue
        if self.server_back is not None and self.server_back <= now:
            self.server_back = None
            self.place.start()

    def replace(self, slot: int) -> None:
        """Another cluster in place of one that is lost, and another driver with it."""
        lost = self.slots.pop(slot)
        self.fleet.drivers.pop(slot).__exit__(None, None, None)
        lost.__exit__(None, None, None)
        self.fleet.clusters = {
            number: each for number, each in self.fleet.clusters.items() if each is not lost
        }
        # It starts only if there is a storage.
        self.go_on()
        self.slots[slot] = self.fleet.start()
        self.fleet.drive(slot, self.slots[slot])
        self.say(f"cluster {self.slots[slot].name} has taken the place of {lost.name}")

    def replace_the_dead(self) -> None:
        """Drivers that were killed, and clusters that are gone by what was done to their parts."""
        for slot in sorted(self.slots):
            if self.slots[slot].process.poll() is not None or not processes(
                self.slots[slot].process.pid, "raylet"
            ):
                self.replace(slot)
            driver = self.fleet.drivers[slot]
            code = driver.process.poll()
            if code is not None:
                if code != -signal.SIGKILL:
                    self.say(f"a driver ended by itself: {driver.text()[-1500:]}")
                self.fleet.drivers.pop(slot).__exit__(None, None, None)
                self.go_on()
                self.fleet.drive(slot, self.slots[slot])

    def note(self, fault: Fault, pids: list[int]) -> None:
        self.counts[fault.kind.name] += 1
        self.faults.append(str(fault))
        self.log.add(kinds.FAULT, text=f"{fault} pids {pids[:3]}")

    def say(self, text: str) -> None:
        self.log.add(kinds.PHASE, text=text)
        print(f"chaos: {text}", flush=True)


# -- in the driver of a cluster ------------------------------------------------------------


def delete_some(seconds: float) -> int:
    """Delete workflows for so long, as soon as their coordinators are known to be dead; how many
    are left. An S3 takes seconds for each."""
    import ray_workflows as workflow

    deadline = time.monotonic() + seconds
    while left := workflow.list_all():
        for name, _ in left:
            if time.monotonic() > deadline:
                return len(workflow.list_all())
            try:
                workflow.delete(name)
            except workflow.WorkflowStillActiveError:
                time.sleep(0.2)
    return 0


def count_in_cluster() -> tuple[int, list[str]]:
    """Bytes in the object store once it has come to rest, and the actors that live."""
    import ray
    from ray._private.internal_api import node_stats
    from ray._private.state import actors

    deadline = time.monotonic() + 30.0
    while True:
        (node,) = ray.nodes()
        stats = node_stats(node["NodeManagerAddress"], node["NodeManagerPort"], False)
        used = int(stats.store_stats.object_store_bytes_used)
        alive = [
            str(actor.get("ActorClassName") or actor.get("Name") or name)
            for name, actor in actors().items()
            if actor.get("State") == "ALIVE"
        ]
        if (not used and len(alive) <= 2) or time.monotonic() > deadline:
            return used, alive
        time.sleep(0.2)
