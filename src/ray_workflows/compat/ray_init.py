"""``ray.init`` with ``storage=``, and with a runtime_env that prepares workers."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import ray
from ray.util.client import ray as ray_client

from ray_workflows._client import connection
from ray_workflows.compat.workers import prepared
from ray_workflows.storage.urls import VARIABLE, storage_from_url

#: Where ray.workflow was told its storage too.
OLD_VARIABLE = "RAY_STORAGE"

#: `ray.init` as it was, while it is wrapped.
original: Callable[..., Any] | None = None


def wrap(ray_init: Callable[..., Any]) -> Callable[..., Any]:
    """``ray.init`` that also takes ``storage=``, and prepares workers."""

    @functools.wraps(ray_init)
    def init(*args: Any, storage: Any = None, **kwargs: Any) -> Any:
        if ray.is_initialized():
            # An error of Ray's, or, with ignore_reinit_error, nothing: in any case its decision.
            return ray_init(*args, **kwargs)
        # Before anything is started: a storage that can't be used raises here.
        home = storage_from_url(storage) if storage else from_environment()
        url = home if home is None or isinstance(home, str) else home.url
        address = args[0] if args else kwargs.get("address")
        with prepared(kwargs, url, address):
            context = ray_init(*args, **kwargs)
        # What a path names in its cluster is not for a Ray Client to say.
        connection.default_storage = storage if storage and ray_client.is_connected() else home
        return context

    return init


def from_environment() -> str | None:
    """What ray.workflow took if it was given no storage. It is looked at when it is used: the
    variable may be set for others."""
    if os.environ.get(VARIABLE):
        return None
    return os.environ.get(OLD_VARIABLE) or None


def install() -> None:
    """Wrap `ray.init`. Idempotent."""
    global original
    if original is None:
        original = ray.init
        ray.init = wrap(ray.init)


def uninstall() -> None:
    """Undo `install`."""
    global original
    if original is not None:
        ray.init = original
        original = None
        connection.default_storage = None
