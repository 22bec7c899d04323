"""Opens the storage of a command. Creates none."""

from __future__ import annotations

import os

import click

from ray_workflows._client.connection import Connection
from ray_workflows._client.reader import Reader
from ray_workflows.cli.limits import LimitedStorage
from ray_workflows.cli.messages import CODEC, GIVEN_BLOBS, ORIGIN, STORAGE, remember, remembered
from ray_workflows.cli.waiting import STORAGE_SECONDS, within
from ray_workflows.exceptions import StorageConfigError
from ray_workflows.storage import Storage
from ray_workflows.storage.urls import VARIABLE, storage_from_urls


def open_storage(spec: str | None) -> Storage:
    """The given or default storage, which must exist.

    Raises:
        click.ClickException: there is none; names the place, and why it was chosen.
    """
    try:
        storage = named(spec)
        remember(STORAGE, storage.url)
        within(STORAGE_SECONDS, f"the storage {storage.url}", storage.open_existing)
    except StorageConfigError as error:
        raise click.ClickException(f"{error}{origin(spec)}") from error
    remember(ORIGIN, origin(spec))
    return storage


def named(spec: str | None) -> Storage:
    """The storage that ``--storage`` and ``--blobs`` name, with the codec of ``--codec``."""
    storage = storage_from_urls(spec, remembered(GIVEN_BLOBS))
    codecs = click.get_current_context().find_root().meta.get(CODEC)
    return storage.with_codecs(codecs) if codecs else storage


def is_named(spec: str | None) -> bool:
    """Whether the command or the environment names a storage, so that the cluster is not asked."""
    return bool(spec is not None or remembered(GIVEN_BLOBS) or os.environ.get(VARIABLE))


def origin(spec: str | None) -> str:
    """Why this storage was chosen, if the command does not name it."""
    if spec is not None:
        return ""
    if os.environ.get(VARIABLE):
        return f" (It is the one in ${VARIABLE}.)"
    return (
        f" (It is the default, because there is no --storage and no running cluster with "
        f"workflows, and ${VARIABLE} is not set.)"
    )


def open_reader(spec: str | None) -> Reader:
    """A reader of the storage, without a cluster."""
    return Reader(LimitedStorage(open_storage(spec)))


def reader_of(connection: Connection) -> Reader:
    """A reader of a cluster's storage."""
    remember(STORAGE, connection.storage.url)
    remember(ORIGIN, " (It is that of the running cluster.)")
    return connection
