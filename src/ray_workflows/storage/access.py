"""Refused access to a store: a configuration error when a storage is opened, but a transient error
once it was open. A name may fail to resolve for a moment, a password may be changed, a socket may
be gone while its server restarts. Running work waits for that.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ray_workflows.exceptions import StorageConfigError, StorageUnavailableError


class StorageAccessError(StorageConfigError, StorageUnavailableError):
    """The store refuses. The message says what to do."""


@contextlib.contextmanager
def opening() -> Iterator[None]:
    """Scope in which a storage is opened.

    Raises:
        StorageConfigError: the store refuses access; the caller must not wait for it.
    """
    try:
        yield
    except StorageAccessError as error:
        raise StorageConfigError(str(error)) from None
