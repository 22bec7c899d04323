"""Submits batches to Ray: the function with its options, the values, the packages."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

import msgspec
import ray
from ray.util.placement_group import PlacementGroup

from ray_workflows._capture.options import decode_ray_options
from ray_workflows._codec.transport import message
from ray_workflows._environment.attempts import packages_for, runtime_env_for
from ray_workflows._executor.live_values import LiveValues, direct_keys, nested_keys
from ray_workflows._executor.protocol import NOT_SHAPE, AttemptTemplate, encode_batch
from ray_workflows._executor.scheduling.hosts import Host, Hosts
from ray_workflows._executor.scheduling.package_cache import PackageCache
from ray_workflows._executor.scheduling.slots import Brought, SentBatch
from ray_workflows._executor.worker.batch import EncodedBatch, Home, Live
from ray_workflows._executor.worker.bodies.host import body_host_class
from ray_workflows._executor.worker.listeners import listener_host_class
from ray_workflows._executor.worker.loop import remote_run_batches
from ray_workflows._model.plan import BODY, LISTENER, Package
from ray_workflows._ray import private
from ray_workflows.storage.base import Storage

#: The most cached Ray functions with options, one for each shape and name; and the most shapes
#: whose needs are kept.
MAX_REMOTES = 1_000


#: The actors of hosted kinds.
HOST_CLASSES = {LISTENER: listener_host_class, BODY: body_host_class}


def kill(actor: Any) -> None:
    """Kill an actor, on a thread: `ray.kill` waits for the thread of Ray that reports the ends of
    calls, and that thread may be the caller, or wait for the executor's lock."""
    threading.Thread(target=ray.kill, args=(actor,), name="ray-workflows-kill", daemon=True).start()


class Needs(NamedTuple):
    """The needs of attempts of a shape, in Ray's form."""

    options: dict[str, Any]
    runtime_env: dict[str, Any]
    packages: tuple[Package, ...]


class RayCluster:
    """The `Cluster` that is Ray's: submits Ray tasks and calls listener hosts.

    Args:
        storage: the storage of the attempts.
        coordinator: the handle to which workers report, or None.
    """

    def __init__(self, storage: Storage, coordinator: Any) -> None:
        self.home = Home(storage, coordinator)
        #: Pickled bytes, not an ObjectRef: fetching an object before each Ray task took longer than
        #: all the rest between two Ray tasks of a worker.
        self.pickled_home: bytes | None = None
        self.package_cache = PackageCache(storage)
        self.hosts = Hosts(kill)
        #: By shape.
        self.needs: dict[str, Needs] = {}
        #: Ray functions with their options, by shape, name and `max_calls`.
        self.remotes: dict[tuple[str, str, int], Any] = {}

    def prepare(self, template: AttemptTemplate) -> Needs:
        """Look up the needs of a shape: values of secrets, the bundles of a placement group.

        Changes nothing here: it runs without the executor's lock, beside all other methods.

        Raises:
            LookupError: this cluster does not have the value of a secret.
        """
        options = decode_ray_options(template.options.ray)
        for name in NOT_SHAPE:
            options.pop(name, None)
        runtime_env = runtime_env_for(template.environment, options.pop("runtime_env", None))
        strategy = options.get("scheduling_strategy")
        for group in (options.get("placement_group"), getattr(strategy, "placement_group", None)):
            if isinstance(group, PlacementGroup):
                # Ray looks them up on this access, and caches them in the object.
                _ = group.bundle_specs
        return Needs(options, runtime_env, packages_for(template.environment, runtime_env))

    def keep(self, shape: str, needs: Needs) -> None:
        """Remember the needs of a shape, at least until those of the next shape: meanwhile the
        waiting attempts of this shape are sent."""
        if len(self.needs) >= MAX_REMOTES:
            # Drop only the oldest: shapes that are dropped have to ask the head again.
            del self.needs[next(iter(self.needs))]
        self.needs[shape] = needs

    def is_prepared(self, shape: str) -> bool:
        """Whether attempts of a shape can be sent."""
        return shape in self.needs

    def missing(self, batches: Iterable[SentBatch]) -> set[str]:
        """The URIs of the batches' packages that are not in the cluster."""
        uris = {package.uri for sent in batches for package in sent.packages}
        return {uri for uri in uris if not private.has_key(uri)}

    def send(
        self, sent: SentBatch, loads: list[EncodedBatch], asks: bool, values: Brought
    ) -> ray.ObjectRef:
        """Submit a Ray task with batches, the first of which is ``sent`` and takes the values, or
        call a listener host. The result is that of `worker.loop.run_batches`."""
        if self.pickled_home is None:
            self.pickled_home = ray.cloudpickle.dumps(self.home)
        template = sent.members[0].request.template
        if sent.hosted:
            host = self.host(sent, template)
            (load,) = loads
            call = host.actor.run.remote(load, self.pickled_home)
            self.hosts.called(host, call)
            return call
        sent.packages = self.needs[template.shape].packages
        remote = self.remote(template)
        waits = self.package_cache.need(sent.packages)
        home = self.pickled_home
        return remote.remote(loads, home, asks, list(values), *values.values(), *waits)

    def remote(self, template: AttemptTemplate) -> Any:
        """The Ray function for a shape and a name. Cached, because Ray parses options each time."""
        given = template.options.ray
        name = given.get("name", template.function.name)
        max_calls = given.get("max_calls", 0)
        key = (template.shape, name, max_calls)
        remote = self.remotes.get(key)
        if remote is None:
            needs = self.needs[template.shape]
            options = {**given, **needs.options, "name": name}
            options.pop("max_calls", None)
            options["runtime_env"] = self.package_cache.varied(needs.runtime_env, needs.packages)
            options.update(max_retries=0, retry_exceptions=False)
            remote = remote_run_batches(max_calls).options(**options)
            if len(self.remotes) >= MAX_REMOTES:
                self.remotes.clear()
            self.remotes[key] = remote
        return remote

    def host(self, sent: SentBatch, template: AttemptTemplate) -> Host:
        """The process for an attempt of a hosted kind."""
        needs = self.needs[template.shape]
        sent.packages = needs.packages
        runtime_env = self.package_cache.varied(needs.runtime_env, needs.packages)
        kind = template.options.kind
        name = f"{kind} {msgspec.json.encode(runtime_env).decode()}"

        def start() -> Any:
            waits = self.package_cache.need(sent.packages)
            return HOST_CLASSES[kind].options(runtime_env=runtime_env).remote(*waits)

        return self.hosts.take(name, sent.members[0].request, start)

    def give(self, ref: Any, given: bytes) -> None:
        """Send a body encoded `GivenOutcomes`."""
        host = self.hosts.calls.get(ref)
        if host is not None:
            host.actor.give.remote(given)

    def lacked(self, sent: SentBatch, missing: Collection[str]) -> bool:
        """Whether a package of the batch is missing; then it will be uploaded again."""
        lacked = self.package_cache.lacked(sent.packages, missing)
        if lacked:
            self.remotes.clear()
        return lacked

    def why_missing(self, sent: SentBatch, missing: Collection[str]) -> Exception | None:
        """Why a package of the batch can't be uploaded."""
        return self.package_cache.why_missing(sent.packages, missing)

    def cancel(self, ref: Any, *, force: bool) -> None:
        """Stop a Ray task."""
        ray.cancel(ref, force=force)

    def nodes(self) -> list[dict[str, float]]:
        """The total resources of each live node."""
        return [node["Resources"] for node in ray.nodes() if node["Alive"]]

    def tidy(self) -> None:
        """Remove unused packages from the cluster."""
        self.package_cache.tidy()

    def ended(self, ref: Any, *, host_died: bool) -> bool:
        """Note that a call has ended; an idle listener host may end then."""
        return self.hosts.ended(ref, host_died)

    def close(self) -> None:
        """End what was started here."""
        self.hosts.close()


def load_of(sent: SentBatch, live: Mapping[str, LiveValues]) -> tuple[EncodedBatch, Brought]:
    """The encoded batch, and the live values that Ray has to bring to the worker."""
    requests = [flight.request for flight in sent.members]
    values: Brought = {}
    if not live:
        # Most workflows have no live values.
        return encode_batch(sent.number, sent.sequence, requests), values
    needs_objects = [
        (request, live[request.incarnation]) for request in requests if request.incarnation in live
    ]
    nested: Live = {}
    taken = Counter(
        (request.incarnation, key) for request, _ in needs_objects for key in direct_keys(request)
    )
    for request, here in needs_objects:
        incarnation = request.incarnation
        found = here.among(nested_keys(request))
        for key, value in here.among(direct_keys(request)).items():
            # Ray brings one copy of a value, so if several members take it, each fetches its own.
            # So does a listener, because its host's call has no arguments but the batch.
            if taken[incarnation, key] == 1 and not sent.hosted:
                values[incarnation, key] = value
            else:
                found[key] = value
        if found:
            nested.setdefault(incarnation, {}).update(found)
    return message(encode_batch(sent.number, sent.sequence, requests), nested), values
