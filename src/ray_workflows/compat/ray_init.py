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

#: The variable from which ray.workflow read its storage.
OLD_VARIABLE = "RAY_STORAGE"

#: The original `ray.init`, while it is wrapped.
original: Callable[..., Any] | None = None


def wrap(ray_init: Callable[..., Any]) -> Callable[..., Any]:
    """``ray.init`` that also takes ``storage=``, and prepares workers."""

    @functools.wraps(ray_init)
    def init(*args: Any, storage: Any = None, **kwargs: Any) -> Any:
        if ray.is_initialized():
            # Ray decides: an error, or nothing with ignore_reinit_error.
            return ray_init(*args, **kwargs)
        # Before anything is started: a storage that can't be used raises here.
        home = storage_from_url(storage) if storage else from_environment()
        url = home if home is None or isinstance(home, str) else home.url
        address = args[0] if args else kwargs.get("address")
        with prepared(kwargs, url, address):
            context = ray_init(*args, **kwargs)
        # A Ray Client can't resolve a path of its cluster, so keep it as given.
        connection.default_storage = storage if storage and ray_client.is_connected() else home
        return context

    return init


def from_environment() -> str | None:
    """The storage of ray.workflow's variable, used without an argument. It is checked only when it
    is used, because the variable may be set for other programs."""
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
