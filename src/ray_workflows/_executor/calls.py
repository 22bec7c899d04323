"""What Ray is called with for a batch: the function with its options, the values, the packages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import msgspec
import ray

from ray_workflows._capture.options import decode_ray_options
from ray_workflows._codec.messages import message
from ray_workflows._environment.attempts import packages_for, runtime_env_for
from ray_workflows._executor.batch import Home, Live, Load
from ray_workflows._executor.carriers import Brought, SentBatch
from ray_workflows._executor.carry import remote_run_batches
from ray_workflows._executor.listener_hosts import Host, ListenerHosts
from ray_workflows._executor.listeners import listener_host_class
from ray_workflows._executor.live import LiveValues, direct_keys, nested_keys
from ray_workflows._executor.protocol import Scene, encode_batch
from ray_workflows._executor.rack import Rack
from ray_workflows._model.plan import Package
from ray_workflows.storage.base import Storage

#: Ray functions with their options, ready to be called: one for each shape and name.
MAX_REMOTES = 1_000


class Calls:
    """The `Cluster` that is Ray's: submits Ray tasks and calls listener hosts.

    Args:
        storage: what attempts read from and write to.
        coordinator: the handle that they are given, if it wants news.
    """

    def __init__(self, storage: Storage, coordinator: Any) -> None:
        self.home = Home(storage, coordinator)
        #: Bytes, and not an object of Ray's that each Ray task would have to have brought before it
        #: starts: between two Ray tasks of a worker, that took longer than all the rest.
        self.pickled_home: bytes | None = None
        self.rack = Rack(storage)
        self.listener_hosts = ListenerHosts(ray.kill)
        #: Ray functions with their options, and the packages that they need.
        self.remotes: dict[tuple[str, str, int], tuple[Any, tuple[Package, ...]]] = {}

    def send(
        self, sent: SentBatch, loads: list[Load], asks: bool, values: Brought
    ) -> ray.ObjectRef:
        """Submit a Ray task with batches, the first of which is this one and takes the values, or
        call a listener host; the result is that of `carry.run_batches`."""
        if self.pickled_home is None:
            self.pickled_home = ray.cloudpickle.dumps(self.home)
        scene = sent.members[0].request.scene
        if sent.listens:
            host = self.listener_host(sent, scene)
            (load,) = loads
            call = host.actor.listen.remote(load, self.pickled_home)
            self.listener_hosts.called(host, call)
            return call
        remote, sent.packages = self.remote(scene)
        waits = self.rack.need(sent.packages)
        home = self.pickled_home
        return remote.remote(loads, home, asks, list(values), *values.values(), *waits)

    def remote(self, scene: Scene) -> tuple[Any, tuple[Package, ...]]:
        """The Ray function for a shape and a name, and the packages that it needs. Ray parses
        options anew with each use."""
        options = decode_ray_options(scene.options.ray)
        name = options.setdefault("name", scene.function.name)
        max_calls = options.pop("max_calls", 0)
        key = (scene.shape, name, max_calls)
        found = self.remotes.get(key)
        if found is None:
            runtime_env = runtime_env_for(scene.environment, options.get("runtime_env"))
            packages = packages_for(scene.environment, runtime_env)
            self.rack.vary(runtime_env, packages)
            options["runtime_env"] = runtime_env
            options.update(max_retries=0, retry_exceptions=False)
            remote = remote_run_batches(max_calls).options(**options)
            if len(self.remotes) >= MAX_REMOTES:
                self.remotes.clear()
            found = self.remotes[key] = (remote, packages)
        return found

    def listener_host(self, sent: SentBatch, scene: Scene) -> Host:
        runtime_env = runtime_env_for(scene.environment, scene.options.ray.get("runtime_env"))
        sent.packages = packages_for(scene.environment, runtime_env)
        self.rack.vary(runtime_env, sent.packages)
        name = msgspec.json.encode(runtime_env).decode()

        def start() -> Any:
            waits = self.rack.need(sent.packages)
            return listener_host_class.options(runtime_env=runtime_env).remote(*waits)

        return self.listener_hosts.take(name, sent.members[0].request, start)

    def lacked(self, sent: SentBatch) -> bool:
        """Whether a package of it is not in the cluster after all: it is brought again."""
        missing = self.rack.missing(sent.packages)
        if missing:
            self.remotes.clear()
        return missing

    def why_missing(self, sent: SentBatch) -> Exception | None:
        """Why a package of it can't be brought into the cluster."""
        return self.rack.why_missing(sent.packages)

    def cancel(self, ref: Any, *, force: bool) -> None:
        """Stop a Ray task."""
        ray.cancel(ref, force=force)

    def slots(self) -> int:
        """What the nodes that are there have; at least one."""
        return max(1, int(ray.cluster_resources().get("CPU", 1)))

    def nodes(self) -> list[dict[str, float]]:
        """What each live node has."""
        return [node["Resources"] for node in ray.nodes() if node["Alive"]]

    def tidy(self) -> None:
        """Take packages out of the cluster."""
        self.rack.tidy()

    def ended(self, ref: Any, *, host_died: bool) -> None:
        """A listener host that serves nobody may end."""
        self.listener_hosts.ended(ref, host_died)

    def close(self) -> None:
        """End what was started here."""
        self.listener_hosts.close()


def load_of(sent: SentBatch, live: Mapping[str, LiveValues]) -> tuple[Load, Brought]:
    """What goes to the worker, and the live values that Ray has to bring there."""
    requests = [flight.request for flight in sent.members]
    values: Brought = {}
    if not live:
        # Most workflows have none.
        return encode_batch(sent.number, requests), values
    laden = [
        (request, live[request.incarnation]) for request in requests if request.incarnation in live
    ]
    nested: Live = {}
    taken = Counter(
        (request.incarnation, key) for request, _ in laden for key in direct_keys(request)
    )
    for request, here in laden:
        incarnation = request.incarnation
        found = here.among(nested_keys(request))
        for key, value in here.among(direct_keys(request)).items():
            # Ray brings one copy of a value: where several take it, each fetches its own, and so
            # does a listener, whose host is called with nothing but its batch.
            if taken[incarnation, key] == 1 and not sent.listens:
                values[incarnation, key] = value
            else:
                found[key] = value
        if found:
            nested.setdefault(incarnation, {}).update(found)
    return message(encode_batch(sent.number, requests), nested), values
