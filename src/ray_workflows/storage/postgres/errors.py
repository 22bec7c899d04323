"""Translates errors of PostgreSQL to ours, with a remedy where one is known.
psycopg's own errors do not leave the storage: processes without psycopg must unpickle ours.
"""

from __future__ import annotations

import psycopg
from psycopg import errors

from ray_workflows.exceptions import (
    StorageCorruptError,
    StorageError,
    StorageUnavailableError,
)
from ray_workflows.storage.access import StorageAccessError

#: Messages of a server whose connections are all in use: transient.
FULL = ("too many clients", "too many connections", "connection slots", "no more connections")

#: Parts of permanent errors of a server or libpq while connecting, and the remedy. All other errors
#: count as transient. A server with messages in other languages gets the general remedy.
REFUSALS = {
    "password authentication failed": (
        "Check user and password; special characters in them are percent-encoded in a URL. A "
        "password can also come from PGPASSWORD or ~/.pgpass, on every node."
    ),
    "no password supplied": (
        "Give one in the URL, in PGPASSWORD, or in ~/.pgpass (which only its owner may read), on "
        "every node."
    ),
    "no pg_hba.conf entry": (
        "The server's pg_hba.conf does not let this user in from this machine; perhaps it wants "
        "TLS: ?sslmode=require."
    ),
    "authentication failed": "Check the user, and the server's pg_hba.conf.",
    "permission denied for database": "Grant this user CONNECT on the database.",
    "is not permitted to log in": "Give the role the LOGIN attribute.",
    'role "': "Create the role, or give another user in the URL.",
    'database "': "Create the database (createdb), or name another one in the URL.",
    "could not translate host name": "Check the host in the URL, and name resolution here.",
    "failed to resolve host": "Check the host in the URL, and name resolution here.",
    "name or service not known": "Check the host in the URL, and name resolution here.",
    "nodename nor servname": "Check the host in the URL, and name resolution here.",
    "no such file or directory": (
        "No server has its socket there. Name a host in the URL, or start the server."
    ),
    "does not support ssl": "Leave sslmode=require out, or set up TLS in the server.",
    "certificate": "Check sslrootcert, sslcert and sslkey.",
    "definition of service": "Check the service name and pg_service.conf.",
    "invalid": "Check the parameters in the URL and in the PG* variables.",
}


def reason_of(error: BaseException) -> str:
    """The text of an error, on one line and without the final period."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def is_full(error: psycopg.Error) -> bool:
    """Whether all connections of the server are in use now."""
    return any(part in str(error).lower() for part in FULL)


def connect_error(error: psycopg.Error, url: str) -> StorageError:
    """Our error for a failed connection."""
    reason = reason_of(error)
    lowered = reason.lower()
    if is_full(error):
        return StorageUnavailableError(
            f"{url} has no connection to spare: {reason}. Raise max_connections of the server, or "
            f"put a pooler such as PgBouncer before it. The operation can be repeated."
        )
    for part, remedy in REFUSALS.items():
        if part in lowered and "starting up" not in lowered:
            return StorageAccessError(f"{url} can't be used: {reason}. {remedy}")
    return StorageUnavailableError(
        f"{url} does not answer: {reason}. Check that the server runs and that this machine may "
        f"reach it (localhost is another machine on every node). The operation can be repeated."
    )


def translate(error: psycopg.Error, url: str) -> StorageError | None:
    """Our error for a failed statement; None for a mistake in our own use."""
    reason = reason_of(error)
    if isinstance(error, errors.UndefinedTable | errors.InvalidSchemaName | errors.UndefinedColumn):
        return StorageUnavailableError(
            f"Tables of {url} are missing: {reason}. Were they dropped while in use? Restore them "
            f"from a backup; nothing is created in their place. Call init() to start anew."
        )
    if isinstance(error, errors.InsufficientPrivilege):
        return StorageUnavailableError(
            f"{url} can't be used now: {reason}. Give this user the right; the operation can then "
            f"be repeated."
        )
    if isinstance(error, errors.ReadOnlySqlTransaction):
        return StorageUnavailableError(
            f"{url} takes no changes: {reason}. It may be a standby; name the primary, or all "
            f"servers with commas between. The operation can be repeated."
        )
    if isinstance(error, errors.DiskFull):
        return StorageUnavailableError(
            f"The disk of {url} is full: {reason}. Free some space; work then goes on."
        )
    if isinstance(error, psycopg.DataError | errors.ProgramLimitExceeded):
        return StorageError(f"{url} can't take a value: {reason}.")
    if isinstance(error, psycopg.IntegrityError | errors.DataCorrupted | errors.IndexCorrupted):
        return StorageCorruptError(f"{url} is damaged: {reason}. Restore it from a backup.")
    if isinstance(error, psycopg.OperationalError | psycopg.InterfaceError | psycopg.InternalError):
        return StorageUnavailableError(
            f"{url} can't be used now: {reason}. The operation can be repeated."
        )
    return None
