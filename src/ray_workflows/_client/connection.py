"""This process's connection to the cluster's coordinator and its storage."""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_workflows._capture.values import ValueReader
from ray_workflows._client.launch import start_coordinator
from ray_workflows._client.reader import Reader
from ray_workflows._codec.journal import VERSION
from ray_workflows._coordinator.actor import ACTOR_NAME, NAMESPACE, Settings
from ray_workflows._coordinator.admission import UNLIMITED, Limits
from ray_workflows._coordinator.eviction import EVICT_SECONDS
from ray_workflows._coordinator.liveness import LEASE_SECONDS
from ray_workflows._environment.code.interpreter import check_python
from ray_workflows._environment.snapshot import remember_options, take_snapshot
from ray_workflows._executor.node_storage import NodeStorage
from ray_workflows._model.plan import Environment, Plan
from ray_workflows._ray.cluster import call_inside, is_outside
from ray_workflows._version import __version__
from ray_workflows.codec import PayloadCodec
from ray_workflows.exceptions import CoordinatorUnavailableError, StorageConfigError
from ray_workflows.storage import Storage
from ray_workflows.storage.retries import wait_out
from ray_workflows.storage.urls import storage_from_urls

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: How long `init` waits for a coordinator to come up, in seconds.
START_SECONDS = 60.0
#: How long a call may take before the coordinator counts as gone, in seconds. Longer than the
#: coordinator needs to report that the storage is away, and than Ray needs to restart it.
CALL_SECONDS = 90.0
#: How long a submission or a signal waits for a storage that is away, in seconds: as long as the
#: coordinator does.
PATIENCE_SECONDS = 20.0
#: The variable for how long Ray waits for the head of a cluster, in seconds.
HEAD_VARIABLE = "RAY_gcs_rpc_server_reconnect_timeout_s"
#: The variable for the lease of a coordinator that this process starts, in seconds.
LEASE_VARIABLE = "RAY_WORKFLOW_LEASE_SECONDS"
#: The variable for how long workflows are at rest before such a coordinator evicts them, in
#: seconds.
EVICT_VARIABLE = "RAY_WORKFLOW_EVICT_SECONDS"


class Connection(Reader):
    """The coordinator of a cluster and its storage, as seen from this process."""

    def __init__(self, coordinator: Any, description: dict[str, Any]) -> None:
        storage = reachable(description["storage"])
        super().__init__(storage, cluster=description["holder"].coordinator)
        self.coordinator = coordinator
        self.settings: Settings = description["settings"]
        self.resumes_orphans = self.settings.auto_resume
        check_release(description)
        #: Whether calls name incarnations: a coordinator of 0.1.0 knows ids alone.
        self.names_incarnations = "journal_version" in description
        self.session = session_id()
        #: Whether it was logged that the coordinator is away.
        self.said_away = False

    def adopt(self, coordinator: Any) -> bool:
        """Use another coordinator, or the restarted one. Returns whether it has the same
        storage."""
        description = describe(coordinator)
        if description["url"] != self.storage.url:
            return False
        self.coordinator = coordinator
        self.cluster = description["holder"].coordinator
        self.resumes_orphans = description["settings"].auto_resume
        self.said_away = False
        return True

    def say_away(self, workflow_id: str) -> None:
        """Log, once, that the coordinator is away."""
        if not self.said_away:
            self.said_away = True
            logger.warning(
                "The coordinator does not answer: its process, its node or the head of the cluster "
                "is gone. Workflow '%s' is kept in %s. Waiting until its coordinator is back, or "
                "another one has finished it. (Ray itself ends a process whose head stays away for "
                "60 s, or $%s. If that happens: get_output(%r) in another one.)",
                workflow_id,
                self.storage.url,
                HEAD_VARIABLE,
                workflow_id,
            )

    def call(self, method: str, *args: Any) -> Any:
        """Call the coordinator and return its answer; raises an error that is the answer."""
        return self.answer(getattr(self.coordinator, method).remote(*args))

    def ask(self, method: str, workflow_id: str, *args: Any, incarnation: str) -> Any:
        """As `call`, about one incarnation. Ray repeats a call whose coordinator died before it
        answered: by then, the id may belong to another workflow."""
        if self.names_incarnations:
            return self.call(method, workflow_id, *args, incarnation)
        return self.call(method, workflow_id, *args)

    def answer(self, ref: ray.ObjectRef, seconds: float = CALL_SECONDS) -> Any:
        """The coordinator's answer to a call; raises an error that is the answer."""
        try:
            return self.take(ref, seconds)
        except ray.exceptions.GetTimeoutError:
            raise CoordinatorUnavailableError(
                f"The coordinator did not answer within {seconds:.0f} s. It is restarted by "
                f"Ray when its process dies; check that its node is alive, then try again."
            ) from None

    def take(self, ref: ray.ObjectRef, seconds: float) -> Any:
        try:
            answer = ray.get(ref, timeout=seconds)
        except ray.exceptions.RayActorError as error:
            raise CoordinatorUnavailableError(
                f"The coordinator is gone: {error}. Call ray_workflows.init() to start another."
            ) from None
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def patiently(self, work: Callable[[], T]) -> T:
        """Write values of a submission or a signal; while the storage is away, retry, but not for
        as long as a worker does, because the user waits for the call."""
        return wait_out(
            work,
            PATIENCE_SECONDS,
            lambda error: logger.warning("Waiting for the storage: %s", error),
        )

    def snapshot(self) -> Environment:
        """The environment of this process; stores all packages that it names."""
        return take_snapshot(self.storage, self.storage.url)

    def remember(self, plan: Plan, user: tuple[str, str]) -> Plan:
        """A plan whose tasks' runtime_envs have stored packages; ``user``: id and incarnation."""
        return remember_options(self.storage, plan, user)

    def values(self, incarnation: str) -> ValueReader:
        """Reads the values of a workflow; ObjectRefs come back as such."""
        return ValueReader(self.storage, incarnation)


lock = threading.Lock()
current: Connection | None = None

#: The storage for an `init` without one: from `ray.init(storage=...)` under `compat`.
default_storage: Storage | str | None = None

#: The replacement of the connection while a `testing.Environment` is entered.
stand_in: Any = None

#: Why this process may not connect now; empty if it may.
refused = ""


def check_not_refused() -> None:
    """Raise if this process may not connect now."""
    if refused:
        raise RuntimeError(refused)


def session_id() -> str:
    """Changes when this process connects to another cluster, or again to the same."""
    context = ray.get_runtime_context()
    return f"{context.gcs_address}/{context.get_job_id()}"


def find_coordinator() -> Any | None:
    try:
        return ray.get_actor(ACTOR_NAME, namespace=NAMESPACE)
    except ValueError:
        return None


def describe(coordinator: Any) -> dict[str, Any]:
    try:
        description: dict[str, Any] = ray.get(coordinator.describe.remote(), timeout=START_SECONDS)
    except ray.exceptions.GetTimeoutError:
        raise CoordinatorUnavailableError(
            f"The coordinator did not come up within {START_SECONDS:.0f} s. It is pinned to the "
            f"node of its storage; check that the node is alive and takes actors."
        ) from None
    except ray.exceptions.RayActorError as error:
        raise CoordinatorUnavailableError(why_it_died(error)) from error
    return description


def numbers(version: str) -> tuple[int, ...]:
    """A version as numbers that compare."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])


def check_release(description: dict[str, Any]) -> None:
    """Warn if the coordinator is of an older release than this process; raise if this process can't
    read its journals. A coordinator of 0.1.0 does not name its journal version.

    Raises:
        StorageConfigError: it writes journals that this release can't read.
    """
    version = description["version"]
    if description.get("journal_version", VERSION) > VERSION:
        raise StorageConfigError(
            f"The coordinator of this cluster is of ray-workflows {version} and writes journals "
            f"that {__version__}, which is installed here, can't read. Install {version} here: "
            f"pip install ray-workflows=={version}"
        )
    if numbers(version) < numbers(__version__):
        logger.warning(
            "The coordinator of this cluster is of ray-workflows %s, and %s is installed here. "
            "Options that the older release does not know are ignored. Install %s on all nodes, "
            "then let Ray start the coordinator anew, which goes on with what it was driving: "
            "ray.kill(ray.get_actor(%r, namespace=%r), no_restart=False)",
            version,
            __version__,
            __version__,
            ACTOR_NAME,
            NAMESPACE,
        )


def why_it_died(error: ray.exceptions.RayActorError) -> str:
    """Why the coordinator died, and what to do."""
    if "No module named 'ray_workflows'" in str(error):
        return (
            f"The coordinator could not start: ray_workflows is not installed on the nodes of this "
            f"cluster. Nothing was submitted. Install the same release on every node, best in the "
            f"image that they run: pip install ray-workflows=={__version__}"
        )
    return (
        f"The coordinator died: {error}. Look into the log of the actor '{ACTOR_NAME}' "
        f"({NAMESPACE}), then call ray_workflows.init() to start another."
    )


def reachable(storage: Storage) -> Storage:
    """The cluster's storage, in a form that this process can use."""
    if is_outside() and not isinstance(storage, NodeStorage):
        return NodeStorage(storage, None)
    return storage


def seconds_given(variable: str, default: float, least: float, most: float, why: str) -> float:
    """The seconds in an environment variable.

    Raises:
        StorageConfigError: it is not a number, or not from ``least`` to ``most``.
    """
    given = os.environ.get(variable, "")
    try:
        seconds = float(given) if given else default
    except ValueError:
        seconds = float("nan")
    if not least <= seconds <= most:
        raise StorageConfigError(
            f"${variable} is {given!r}. {why}: it must be a number of seconds from {least:g} to "
            f"{most:g}, or not be set."
        )
    return seconds


def lease_seconds() -> float:
    """The lease of a coordinator started here, in seconds."""
    why = "Others rely on it that no lease is longer"
    return seconds_given(LEASE_VARIABLE, LEASE_SECONDS, 1.0, LEASE_SECONDS, why)


def evict_seconds() -> float:
    """How long workflows are at rest before a coordinator started here evicts them, in seconds."""
    why = "It says how long workflows that wait stay in memory"
    return seconds_given(EVICT_VARIABLE, EVICT_SECONDS, 0.0, 86400.0, why)


def start(storage: Storage, limits: Limits, auto_resume: bool) -> None:
    """Open the storage and start the coordinator. Called in the cluster."""
    settings = Settings(limits, auto_resume, lease_seconds(), evict_seconds())
    storage.open()
    options: dict[str, Any] = {
        "name": ACTOR_NAME,
        "namespace": NAMESPACE,
        "lifetime": "detached",
        "get_if_exists": True,
    }
    if storage.node_bound:
        node_id = ray.get_runtime_context().get_node_id()
        storage = NodeStorage(storage, node_id)
        options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(node_id, soft=False)
    start_coordinator(options, (storage, settings, __version__))


def check_absolute(spec: str | os.PathLike[str] | Storage | None) -> None:
    """Raise for a relative path, which would name a directory of an arbitrary worker."""
    if isinstance(spec, (str, os.PathLike)):
        path = os.fspath(spec)
        if not path.startswith(("/", "~")) and ":" not in path:
            raise StorageConfigError(
                f"{path!r} is a relative path, which means nothing in the cluster that this Ray "
                f"Client is connected to. Give an absolute path of its head node."
            )


def wanted_storage(
    storage: str | os.PathLike[str] | Storage | None,
    blobs: str | os.PathLike[str] | Storage | None,
) -> Storage:
    """The storage that ``storage=`` and ``blobs=`` name. Under a Ray Client, variables, home and
    links are resolved on the node of its server.

    Raises:
        StorageConfigError: it can't be used, or is a relative path under a Ray Client.
    """
    if not ray.is_initialized() or not is_outside():
        return storage_from_urls(storage, blobs)
    check_absolute(storage)
    check_absolute(blobs)
    found: Storage = call_inside(storage_from_urls, storage, blobs)
    return found


def init(
    storage: str | os.PathLike[str] | Storage | None,
    blobs: str | os.PathLike[str] | Storage | None,
    max_running: int | None,
    max_pending: int | None,
    auto_resume: bool | None = None,
    codecs: tuple[PayloadCodec, ...] = (),
) -> Connection:
    """Connect to the cluster's coordinator, and start it if there is none.

    Raises:
        StorageConfigError: the storage can't be used, or the cluster uses another one, or another
            codec.
        ValueError: a setting differs from that of the running coordinator.
    """
    global current
    check_not_refused()
    if stand_in is not None:
        return stand_in  # type: ignore[no-any-return]
    with lock:
        if storage is None:
            storage = default_storage
        wanted = wanted_storage(storage, blobs)
        starts_ray = not ray.is_initialized()
        if starts_ray:
            ray.init()
        try:
            if is_outside():
                if starts_ray:
                    wanted = wanted_storage(storage, blobs)
            else:
                check_python(ray.get_runtime_context().runtime_env)
            coordinator = find_coordinator()
            if coordinator is None:
                limits = Limits(
                    max_running=UNLIMITED if max_running is None else max_running,
                    max_pending=UNLIMITED if max_pending is None else max_pending,
                )
                if codecs:
                    wanted = wanted.with_codecs(codecs)
                call_inside(start, wanted, limits, bool(auto_resume))
                coordinator = ray.get_actor(ACTOR_NAME, namespace=NAMESPACE)
            connection = Connection(coordinator, describe(coordinator))
            if storage is not None or blobs is not None:
                check_same_storage(connection, wanted)
            check_same_codecs(connection, codecs)
            check_same_settings(
                connection.settings,
                max_running_workflows=max_running,
                max_pending_workflows=max_pending,
                auto_resume=auto_resume,
            )
        except BaseException:
            if starts_ray:
                ray.shutdown()
            raise
        current = connection
        return connection


def check_same_storage(connection: Connection, wanted: Storage) -> None:
    if wanted.url != connection.storage.url:
        raise StorageConfigError(
            f"storage={wanted.url} was asked for, but workflows of this cluster are in "
            f"{connection.storage.url}. One cluster has one storage: call init() without storage=, "
            f"or with the same one, or use another cluster."
        )


def check_same_codecs(connection: Connection, codecs: tuple[PayloadCodec, ...]) -> None:
    asked = [codec.name for codec in codecs]
    actual = [codec.name for codec in connection.storage.codecs]
    if asked and asked != actual:
        raise StorageConfigError(
            f"codec={', '.join(asked)} was asked for, but this cluster's coordinator was started "
            f"with {', '.join(actual) or 'none'}. Leave codec out, or restart the cluster to "
            f"change it."
        )


def check_same_settings(settings: Settings, **asked: int | None) -> None:
    actual = {
        "max_running_workflows": settings.limits.max_running,
        "max_pending_workflows": settings.limits.max_pending,
        "auto_resume": settings.auto_resume,
    }
    for name, value in asked.items():
        if value is not None and value != actual[name]:
            raise ValueError(
                f"The workflow init is called again but the init options do not match the "
                f"original ones: {name}={value}, originally {actual[name]}. Leave {name} out, or "
                f"restart the cluster to change it."
            )


def connect() -> Connection:
    """The connection of this process; initializes with defaults if there is none."""
    check_not_refused()
    if stand_in is not None:
        return stand_in  # type: ignore[no-any-return]
    connection = current
    if connection is not None and ray.is_initialized() and connection.session == session_id():
        return connection
    return init(None, None, None, None)
