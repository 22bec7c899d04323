"""The nodes of the cluster: how many tasks run at once, and which attempts no node can hold."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ray_workflows._executor.protocol import ReportSink
from ray_workflows._executor.scheduling.dispatch import Dispatch
from ray_workflows._executor.scheduling.in_flight import InFlightAttempt
from ray_workflows._model.messages import FoundUnplaceable
from ray_workflows._model.plan import FUNCTION

#: How often the executor reads the nodes of the cluster, in seconds.
CHECK_SECONDS = 1.0

#: Ray options that ask for an amount of a resource, and Ray's name of the resource.
AMOUNTS = {"num_cpus": "CPU", "num_gpus": "GPU", "memory": "memory"}

#: The CPUs of a task without an option for them.
DEFAULT_CPUS = 1.0

#: Each node has 1 of the resource that names its accelerator, and a task that asks for the
#: accelerator takes this part of it.
ACCELERATOR = "accelerator_type:"
ACCELERATOR_PART = 0.001

Resources = Mapping[str, float]


def demanded(options: Mapping[str, Any]) -> dict[str, float]:
    """The resources of a task with these Ray options, by Ray's names; memory in bytes."""
    amounts = {"num_cpus": DEFAULT_CPUS, **options}
    asked = {name: float(amounts.get(key) or 0.0) for key, name in AMOUNTS.items()}
    for name, amount in (options.get("resources") or {}).items():
        asked[name] = float(amount)
    if options.get("accelerator_type"):
        asked[f"{ACCELERATOR}{options['accelerator_type']}"] = ACCELERATOR_PART
    return {name: amount for name, amount in asked.items() if amount > 0}


def why_unplaceable(options: Mapping[str, Any], nodes: Iterable[Resources]) -> str:
    """Why no node can hold a task with these Ray options; empty if one can.

    Args:
        options: the task's Ray options as plain data.
        nodes: the total resources of each live node.
    """
    strategy = options.get("scheduling_strategy")
    if options.get("placement_group") or isinstance(strategy, dict):
        # A placement group has resources of its own; for a named node, Ray reports the error.
        return ""
    asked = demanded(options)
    found = list(nodes)
    if any(all(node.get(name, 0.0) >= amount for name, amount in asked.items()) for node in found):
        return ""
    most = {name: max((node.get(name, 0.0) for node in found), default=0.0) for name in asked}
    return (
        f"no node of the cluster has what it asks for: {listed(asked)}. The most that one node has "
        f"is {listed(most)}; it starts when such a node joins"
    )


def listed(resources: Resources) -> str:
    """Resources as text, in the order of their names."""
    return ", ".join(f"{name} {amount:g}" for name, amount in sorted(resources.items()))


class PlacementCheck:
    """Finds out how many tasks the cluster runs at once, and reports attempts that no node can
    hold, and those that a new node can.

    Args:
        dispatch: has the waiting attempts, and gets the size of the cluster.
        report: takes the reports.
    """

    def __init__(self, dispatch: Dispatch, report: ReportSink) -> None:
        self.dispatch = dispatch
        self.report = report
        #: Scheduling classes that no node could hold at the last check.
        self.unplaceable: set[str] = set()
        self.has_looked = False

    def look(self) -> None:
        """Check once, unless nothing waits or runs. Called without the executor's lock, because it
        asks the head for the nodes."""
        dispatch = self.dispatch
        if self.has_looked and not dispatch.ready_queues:
            return
        nodes = dispatch.cluster.nodes()
        with dispatch.lock:
            self.has_looked = True
            dispatch.resize(max(1, int(sum(node.get("CPU", 0.0) for node in nodes))))
            found: set[str] = set()
            for shape in dispatch.ready_queues:
                flights = self.waiting(shape)
                first = next(flights, None)
                if first is None or first.request.options.kind != FUNCTION:
                    continue
                reason = why_unplaceable(first.request.options.ray, nodes)
                if reason:
                    found.add(shape)
                if reason or shape in self.unplaceable:
                    self.tell([first, *flights], reason)
            self.unplaceable = found

    def waiting(self, shape: str) -> Iterator[InFlightAttempt]:
        """The attempts of a scheduling class that have not ended."""
        for queue in self.dispatch.ready_queues[shape].queues.values():
            yield from (flight for flight in queue if not flight.retired)
        for sent in self.dispatch.sent.values():
            if sent.shape == shape:
                yield from sent.left

    def tell(self, flights: list[InFlightAttempt], reason: str) -> None:
        """Report the attempts whose reason has changed."""
        news: dict[tuple[str, int], list[int]] = defaultdict(list)
        for flight in flights:
            if flight.unplaceable != reason:
                flight.unplaceable = reason
                request = flight.request
                news[request.incarnation, request.epoch].append(request.task)
        for (incarnation, epoch), tasks in news.items():
            self.report(incarnation, [FoundUnplaceable(epoch, tuple(tasks), reason)])
