"""Private names of Ray, each used here and nowhere else.

Ray has no public API for these. `tests/unit/ray/test_private.py` fails when Ray changes one, and
`tests/test_architecture.py` when other modules use one.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable, Iterable
from typing import Any

import ray
from ray._private.thirdparty.pathspec import PathSpec
from ray._raylet import PlacementGroupID
from ray.actor import ActorHandle, ActorMethod
from ray.cloudpickle import cloudpickle as pickling
from ray.core.generated.core_worker_pb2 import ActorHandle as ActorState
from ray.dag import FunctionNode, InputAttributeNode, InputNode
from ray.experimental.internal_kv import (
    _internal_kv_del,
    _internal_kv_exists,
    _internal_kv_get,
    _internal_kv_put,
)
from ray.remote_function import RemoteFunction
from ray.util.placement_group import PlacementGroup

#: The option that takes any strings: Ray rejects options that it does not know.
LABELS = "_labels"

#: Functions of Ray's cloudpickle that the pickle of a function calls: what makes a function; what
#: fills functions and classes; what stands for a type that has no name of its own; and what makes
#: classes, with how many arguments tell of the class: then comes its id, which is of a process.
MAKES_FUNCTION = "_make_function"
SET_STATE = ("_function_setstate", "_class_setstate")
NAMES_TYPE = "_builtin_type"
MAKE_CLASSES = {"_make_skeleton_class": 4, "_make_skeleton_enum": 5}
MAKES_TYPE_VARIABLE = "_make_typevar"
ARGUMENTS_OF_CLASS = {**MAKE_CLASSES, MAKES_TYPE_VARIABLE: 5}

#: Attributes of abstract classes and of actor classes that differ from process to process.
OF_PROCESS = ("_abc_impl", "__ray_metadata__")

#: Attributes in the pickle of a remote function that are its code, by the name of its class.
REMOTE_FUNCTION_PARTS = {
    f"{RemoteFunction.__module__}.{RemoteFunction.__qualname__}": ("_function", "_default_options")
}

#: The directory of a node, below that of the session, in which Ray unpacks packages.
UNPACKED = "runtime_resources"

#: Prefix of the names of Ray's packages; a digest of the contents follows.
PACKAGE_PREFIX = "_ray_pkg_"

#: Key that Ray adds to a runtime_env that installs packages: the commit of Ray.
RAY_COMMIT = "_ray_commit"

#: Tells workers what to call when they start: a function by its path, or by its key in the cluster.
SETUP_HOOK_VARIABLE = "__RAY_WORKER_PROCESS_SETUP_HOOK_ENV_VAR"
FUNCTION_PREFIX = "ray_runtime_env_func::"

#: Carries a job's runtime_env into the drivers it starts (``ray job submit``).
JOB_CONFIG_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"


def node_function(node: FunctionNode) -> Callable[..., Any]:
    """The function that a node calls."""
    function: Callable[..., Any] = node._body
    return function


def node_options(node: FunctionNode) -> dict[str, Any]:
    """The options that a node was bound with: one object for all nodes bound by one
    ``function.options(...)``, where ``get_options`` makes copies."""
    options: dict[str, Any] = node._bound_options
    return options


def node_input(node: InputAttributeNode) -> InputNode:
    """The input that a node takes a part of."""
    return node._dag_input_node


def takes_item(node: InputAttributeNode) -> bool:
    """Whether a node takes a part of its input as ``input[key]``, and not as ``input.key``."""
    return bool(node._accessor_method == "__getitem__")


def default_options(function: RemoteFunction) -> dict[str, Any]:
    """The options given to ``@ray.remote``; a change of them is a change of the function's."""
    options: dict[str, Any] = function._default_options
    return options


def method_name(method: ActorMethod) -> str:
    """The name of an actor's method."""
    name: str = method._method_name
    return name


def bootstrap_address(address: str) -> str | None:
    """An address in Ray's form."""
    from ray._private import services

    found: str | None = services.canonicalize_bootstrap_address(address)
    return found


def local_clusters() -> list[str]:
    """The addresses of the clusters of which this machine is a node, and of the one that ``ray
    start`` has started last. Some may be dead: Ray finds them by processes that outlive their head,
    and by a file that it does not remove."""
    from ray._private import services

    latest = services.find_bootstrap_address(None)
    return [*([latest] if latest else []), *sorted(services.find_gcs_addresses())]


def take_token() -> None:
    """Make this process send the user's token, if there is one, to the cluster that it connects
    to: ``ray.init("host:port")`` does not do so by itself, as ``ray.init("auto")`` does. An
    $RAY_AUTH_MODE that is set takes precedence."""
    try:
        from ray._private.authentication import authentication_token_setup as setup
    except ImportError:  # Older versions have no tokens.
        return
    take = getattr(setup, "maybe_enable_token_auth_if_token_available", None)
    if take is None:  # Older versions use tokens only where $RAY_AUTH_MODE says so.
        return
    level = setup.logger.level
    # Ray logs how to opt out, which concerns the owner of the cluster alone.
    setup.logger.setLevel(logging.ERROR)
    try:
        take(warn_if_disabled=False)
    finally:
        setup.logger.setLevel(level)


def placement_group(hex_id: str) -> PlacementGroup:
    """The placement group of an id."""
    return PlacementGroup(PlacementGroupID(bytes.fromhex(hex_id)))


def session_name() -> str:
    """The name of the cluster that this process belongs to; no two have the same."""
    from ray._private.worker import global_worker

    return str(global_worker.node.session_name)


def owner_address(ref: ray.ObjectRef) -> bytes:
    """The address of the process that owns an object, the same in every process of the cluster.

    The public ``ref.owner_address()`` is empty in the owner itself on Ray 2.48. Empty here if Ray
    does not know the object, or this process is not connected.
    """
    from ray._private.worker import global_worker

    if not global_worker.connected:
        return b""
    try:
        return bytes(global_worker.core_worker.get_owner_address(ref))
    except ValueError:
        return b""


def actor_state(handle: ActorHandle) -> tuple[bytes, bool]:
    """A handle as bytes, and whether it is weak, that is, does not keep its actor alive."""
    state, _, weak = handle._serialization_helper()
    return bytes(state), bool(weak)


def handle_from_state(state: bytes, weak: bool) -> ActorHandle:
    """The handle of which `actor_state` has returned the state."""
    return ActorHandle._deserialization_helper(state, weak, None)


def named_actor(state: bytes) -> tuple[str, str]:
    """The name and the namespace of an actor, from its `actor_state`; empty without a name."""
    about = ActorState.FromString(state)
    return about.name, about.ray_namespace


#: The functions that the pickle of a class by value calls: two make it empty, one fills it. The
#: names of the first two begin with SKELETON.
SKELETON = b"_make_skeleton_"
MAKE_CLASS: Callable[..., type] = pickling._make_skeleton_class
MAKE_ENUM: Callable[..., type] = pickling._make_skeleton_enum
FILL_CLASS: Callable[..., type] = pickling._class_setstate

#: Position of the class id among the arguments of MAKE_CLASS and MAKE_ENUM.
CLASS_ID, ENUM_ID = 4, 5


def class_id(cls: type) -> str | None:
    """The id under which a class was pickled before; None if it was not."""
    with pickling._DYNAMIC_CLASS_TRACKER_LOCK:
        found: str | None = pickling._DYNAMIC_CLASS_TRACKER_BY_CLASS.get(cls)
        return found


def tracked_class(tracker_id: str) -> type | None:
    """The class that this process knows by an id."""
    with pickling._DYNAMIC_CLASS_TRACKER_LOCK:
        found: type | None = pickling._DYNAMIC_CLASS_TRACKER_BY_ID.get(tracker_id)
        return found


def know_class(cls: type, tracker_id: str) -> None:
    """Make pickles with this id mean the class, unless the id means another class already."""
    with pickling._DYNAMIC_CLASS_TRACKER_LOCK:
        pickling._DYNAMIC_CLASS_TRACKER_BY_ID.setdefault(tracker_id, cls)


def track_class(cls: type, tracker_id: str) -> None:
    """Pickle a class under this id from now on. Its earlier ids still mean it."""
    with pickling._DYNAMIC_CLASS_TRACKER_LOCK:
        pickling._DYNAMIC_CLASS_TRACKER_BY_CLASS[cls] = tracker_id
        pickling._DYNAMIC_CLASS_TRACKER_BY_ID[tracker_id] = cls


def registered_function(key: str) -> bytes:
    """The pickled function that a driver has given as ``worker_process_setup_hook``."""
    from ray._private.worker import global_worker

    registered = base64.b64decode(key.removeprefix(FUNCTION_PREFIX))
    found = global_worker.function_actor_manager.fetch_registered_method(registered, timeout=30)
    function: bytes = found.function
    return function


def put_key(key: str, data: bytes, *, overwrite: bool = True) -> None:
    """Store bytes in the cluster. ``overwrite``: replace what the key has already."""
    _internal_kv_put(key, data, overwrite=overwrite)


def get_key(key: str) -> bytes | None:
    """The bytes that the cluster has stored under a key."""
    data: bytes | None = _internal_kv_get(key)
    return data


def has_key(key: str) -> bool:
    """Whether the cluster has stored a key."""
    return bool(_internal_kv_exists(key))


def delete_key(key: str) -> None:
    """Remove a key from the cluster."""
    _internal_kv_del(key)


def largest_package() -> int:
    """Ray's limit for the size of a package, in bytes."""
    from ray._private.runtime_env.packaging import GCS_STORAGE_MAX_SIZE

    return int(GCS_STORAGE_MAX_SIZE)


def default_excludes() -> list[str]:
    """What Ray leaves out of every package."""
    try:
        from ray._private.ray_constants import get_runtime_env_default_excludes
    except ImportError:  # Older versions leave out nothing.
        return []
    return list(get_runtime_env_default_excludes())


def git_matcher(lines: Iterable[str]) -> Callable[[str], bool]:
    """A function that says whether lines of a ``.gitignore`` match a relative path."""
    spec = PathSpec.from_lines("gitwildmatch", list(lines))
    return lambda path: bool(spec.match_file(path))


def remote_body(function: RemoteFunction) -> Callable[..., Any]:
    """The function behind ``@ray.remote``."""
    body: Callable[..., Any] = function._function
    return body
