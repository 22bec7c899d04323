"""A store that lets nobody in: a mistake when a storage is opened, and a trouble that may pass once
it was open. A name is not resolved for a moment, a password is changed, a socket is gone while its
server starts anew; whoever is in the middle of something waits for that.
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
        StorageConfigError: the store refuses; nobody is to wait for that.
    """
    try:
        yield
    except StorageAccessError as error:
        raise StorageConfigError(str(error)) from None
