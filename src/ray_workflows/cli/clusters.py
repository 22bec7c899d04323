"""Connects to a running cluster. Only `local_cluster` starts one."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from typing import Any

import click
import ray

from ray_workflows._client import connection as connections
from ray_workflows._client.connection import Connection
from ray_workflows._client.reader import Reader
from ray_workflows._ray.private import bootstrap_address, local_clusters, take_token
from ray_workflows.cli.limits import limited
from ray_workflows.cli.printing import note
from ray_workflows.cli.stores import (
    is_named,
    named,
    open_reader,
    open_storage,
    origin,
    reader_of,
)
from ray_workflows.cli.waiting import (
    ATTACH_SECONDS,
    CLUSTER_SECONDS,
    LEAVE_SECONDS,
    NoAnswerError,
    within,
)
from ray_workflows.storage.urls import VARIABLE

#: How long a cluster may take to accept a connection, in seconds. Ray itself waits for minutes for
#: a dead cluster whose address it still finds.
KNOCK_SECONDS = 3.0

NO_CLUSTER = (
    "No Ray cluster runs here. Start one with `ray start --head`, or name one with --address or "
    "$RAY_ADDRESS."
)


class NoClusterError(click.ClickException):
    """There is no cluster to connect to."""


class SeveralClustersError(click.ClickException):
    """None is named, and several clusters on this machine answer."""

    def __init__(self, addresses: list[str]) -> None:
        super().__init__(
            f"{len(addresses)} Ray clusters run here: {', '.join(addresses)}. Name one with "
            f"--address or $RAY_ADDRESS."
        )


def find(address: str | None) -> str:
    """The address of a cluster that answers.

    Raises:
        NoClusterError: there is none.
        SeveralClustersError: there are several, and none is named.
    """
    named = address or os.environ.get("RAY_ADDRESS") or "auto"
    if "://" in named:
        return named
    if named == "auto":
        return find_here()
    if named == "local":
        raise NoClusterError(
            "--address local would start a cluster; only `resume --local` does that."
        )
    return knock(named)


def find_here() -> str:
    """The cluster on this machine that answers. Ray would take the one started last, or any, which
    may be dead."""
    found: list[str] = []
    why_not: NoClusterError | None = None
    for address in local_clusters():
        try:
            found.append(knock(address))
        except NoClusterError as error:
            why_not = why_not or error
    found = list(dict.fromkeys(found))
    if len(found) > 1:
        raise SeveralClustersError(found)
    if not found:
        raise why_not or NoClusterError(NO_CLUSTER)
    return found[0]


def knock(named: str) -> str:
    """The address of a cluster in Ray's form. Something answers there.

    Raises:
        NoClusterError: nothing does.
    """
    try:
        found = bootstrap_address(named) or ""
    except ConnectionError as error:
        raise NoClusterError(str(error)) from error
    except ValueError:
        found = ""
    host, colon, port = found.rpartition(":")
    if not colon or not port.isdigit() or not 0 < int(port) < 65536:
        raise NoClusterError(f"{named!r} is not the address of a cluster. Write HOST:PORT.")
    try:
        socket.create_connection((host, int(port)), KNOCK_SECONDS).close()
    except OSError as error:
        raise NoClusterError(
            f"The Ray cluster at {found} does not answer: {error.strerror or error}. Check that "
            f"it runs, or name another with --address or $RAY_ADDRESS."
        ) from error
    return found


def attach(address: str | None) -> None:
    """Connect this process to a running cluster, as ``ray.init("auto")`` does.

    Raises:
        NoClusterError: there is none that answers.
        SeveralClustersError: several do, and none is named.
        click.ClickException: it can't be used, for example because its versions differ.
    """
    if ray.is_initialized():
        return
    found = find(address)
    within(ATTACH_SECONDS, f"the Ray cluster at {found}", init, found)
    click.get_current_context().call_on_close(leave)


def init(address: str) -> None:
    """Connect this process to a cluster, with the token of its user, if there is one."""
    take_token()
    try:
        # Output of tasks goes to the logs of the cluster, not between our results.
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise click.ClickException(
            f"The Ray cluster at {address} can't be used: {error}. If it takes tokens, as those "
            f"started by Ray 2.60 do, this user needs its token: in $RAY_AUTH_TOKEN, or in "
            f"~/.ray/auth_token, which `ray get-auth-token` prints on its head node."
        ) from error


def leave() -> None:
    """Disconnect from the cluster that this process was connected to."""
    # Ignore a cluster that does not answer.
    with contextlib.suppress(NoAnswerError):
        within(LEAVE_SECONDS, "the cluster, to disconnect", ray.shutdown)


def connect(spec: str | None, address: str | None) -> Connection:
    """The coordinator of the running cluster, which has this storage. Starts the coordinator if
    there is none, for an existing storage."""
    attach(address)
    return within(CLUSTER_SECONDS, "the coordinator of the cluster", find_connection, spec)


def find_connection(spec: str | None) -> Connection:
    """As `connect`, in the cluster that this process is connected to."""
    exists = connections.find_coordinator() is not None
    if not exists:
        open_storage(spec)
    connection = connections.init(None if exists else named(spec), None, None, None)
    check_same(connection, spec)
    reader_of(connection)
    return connection


def check_same(connection: Connection, spec: str | None) -> None:
    """Raise if the cluster has another storage than the requested one."""
    if is_named(spec) and named(spec).url != connection.storage.url:
        given = "leave --storage out" if spec is not None else f"unset ${VARIABLE}"
        raise click.ClickException(
            f"The workflows of this cluster are in {connection.storage.url}, not in "
            f"{named(spec).url}.{origin(spec)} To take those of this cluster, {given}; else name "
            f"the cluster that uses the other one with --address."
        )


def find_reader(spec: str | None, address: str | None = None, *, changes: bool = False) -> Reader:
    """The storage of a command that needs no cluster: the one named by an option or by
    $RAY_WORKFLOW_STORAGE, else that of the running cluster, else the default one. `connect` uses
    the same order.

    Args:
        spec: the storage named by an option.
        address: the named cluster.
        changes: the command deletes or copies: then a cluster that does not answer is an error, and
            so are several, and the default storage is not used in its place.
    """
    if is_named(spec):
        return open_reader(spec)
    variable = os.environ.get("RAY_ADDRESS")
    try:
        if address or variable or reaches():
            attach(address)
            connection = within(CLUSTER_SECONDS, "the coordinator", running_connection)
            if connection is not None:
                return limited(reader_of(connection))
    except click.ClickException as error:
        if changes or address:
            raise
        note(f"The cluster is not asked for its storage: {error.message}")
    return open_reader(spec)


def running_connection() -> Connection | None:
    """The coordinator of the cluster that this process is connected to, if it has one."""
    if connections.find_coordinator() is None:
        return None
    return connections.init(None, None, None, None)


def reaches() -> bool:
    """Whether there is a cluster on this machine that answers.

    Raises:
        SeveralClustersError: there are several.
    """
    if ray.is_initialized():
        return True
    try:
        find(None)
    except NoClusterError:
        return False
    return True


@contextlib.contextmanager
def local_cluster(spec: str | None) -> Iterator[Any]:
    """A cluster of this process's own, while the body runs, with a coordinator of the storage."""
    if ray.is_initialized():
        raise click.ClickException("This process is connected to a cluster: leave --local out.")
    storage = open_storage(spec)
    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        yield connections.init(storage, None, None, None)
    finally:
        ray.shutdown()
