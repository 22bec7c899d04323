"""Actor handles as values: stored in Ray's own pickled form, with the name of the actor.

A stored handle does not keep its actor alive; no pickled handle does. A named actor is looked up by
its name again, and may be a new one; any other exists in its own cluster alone.

Stored bytes name `restored_handle` by this module's path, so neither may ever move.
"""

from __future__ import annotations

from typing import Any

import ray
from ray.actor import ActorHandle

from ray_workflows._ray.private import (
    actor_state,
    handle_from_state,
    named_actor,
    session_name,
)
from ray_workflows.exceptions import SerializationError

#: The class's name, because it can be imported only where Ray Client is installed.
CLIENT_HANDLE = "ClientActorHandle"


def is_handle(value: object) -> bool:
    """Whether a value is the handle of an actor."""
    return isinstance(value, ActorHandle) or type(value).__name__ == CLIENT_HANDLE


def reduce_handle(handle: Any) -> tuple[Any, tuple[Any, ...]]:
    """The reduced form of a handle in a pickle.

    Raises:
        SerializationError: this process is a Ray Client, which has tokens instead of handles.
    """
    if type(handle).__name__ == CLIENT_HANDLE:
        raise SerializationError(
            f"the actor handle {handle!r} of a Ray Client can't be stored: it means nothing in "
            f"another process. Give the actor a name, and call ray.get_actor(name) in the task."
        )
    state, weak = actor_state(handle)
    name, namespace = named_actor(state)
    return restored_handle, (state, weak, name, namespace, repr(handle), session_name())


def restored_handle(
    state: bytes, weak: bool, name: str, namespace: str, label: str, session: str
) -> Any:
    """The stored handle, or that of the actor with its name now.

    Raises:
        ray.exceptions.RayActorError: there is no such actor here; says which.
    """
    if name:
        try:
            return ray.get_actor(name, namespace=namespace)
        except ValueError:
            raise ray.exceptions.RayActorError(
                None,
                f"The stored handle {label} is of an actor named {name!r} in the namespace "
                f"{namespace!r}, and there is none in this cluster. Start an actor of this name, "
                f"then resume the workflow.",
            ) from None
    if session != session_name():
        raise ray.exceptions.RayActorError(
            None,
            f"The stored handle {label} is of an actor that ended with its cluster ({session}). "
            f"Give actors a name that a workflow is to find again in another cluster: "
            f"Class.options(name=..., namespace=...), and start one of this name there.",
        )
    return handle_from_state(state, weak)
