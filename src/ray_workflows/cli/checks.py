"""The checks of `doctor`: each yields findings; a finding that is a problem has a remedy."""

from __future__ import annotations

import contextlib
import re
import shutil
import time
from collections.abc import Iterator
from enum import Enum
from typing import Any

import click
import msgspec
import ray

from ray_workflows._client import connection as connections
from ray_workflows._client.connection import Connection
from ray_workflows._client.reader import ACTIVE, Reader
from ray_workflows._codec.references import stored_parts
from ray_workflows._coordinator.liveness import LEASE_SECONDS
from ray_workflows._coordinator.recovery import Recovered, read_state, recover
from ray_workflows._engine.snapshots import save
from ray_workflows._engine.summary import is_row_of
from ray_workflows._environment import shared_items
from ray_workflows._environment.code.packages import item_name
from ray_workflows._model.catalog import CatalogRow
from ray_workflows._model.plan import Environment, Package
from ray_workflows._model.status import WorkflowStatus
from ray_workflows._model.values import Blob
from ray_workflows._version import __version__
from ray_workflows.cli.limits import unlimited
from ray_workflows.cli.messages import command
from ray_workflows.cli.waiting import CALL_SECONDS, CLUSTER_SECONDS, within
from ray_workflows.exceptions import (
    StorageCorruptError,
    StorageError,
    WorkflowError,
    WorkflowNotFoundError,
)
from ray_workflows.storage import Storage
from ray_workflows.storage.histories import History, unless_deleted
from ray_workflows.storage.sqlite.directory import SqliteDirectory

OLDEST_RAY = (2, 48)

#: Less free space than this is a problem: a few large results fill it.
FREE_BYTES = 256 * 1024**2

#: Clocks may differ by this much, in seconds.
CLOCK_SECONDS = 5.0

#: The most interrupted workflows that are named one by one.
NAMED = 20


ROW_REMEDY = (
    "Write it anew from its journal: ray-workflows repair ID. If that can't be done, restore the "
    "storage from a backup."
)


class Level(str, Enum):
    """The level of a finding."""

    OK = "ok"
    #: Worth knowing, without a remedy.
    NOTE = "note"
    PROBLEM = "problem"


class Finding(msgspec.Struct, frozen=True):
    """The result of a check."""

    name: str
    level: Level
    message: str
    remedy: str = ""


def ok(name: str, message: str) -> Finding:
    """A finding without a problem."""
    return Finding(name, Level.OK, message)


def note(name: str, message: str) -> Finding:
    """Something worth knowing."""
    return Finding(name, Level.NOTE, message)


def problem(name: str, message: str, remedy: str) -> Finding:
    """A problem and its remedy."""
    return Finding(name, Level.PROBLEM, message, remedy)


def check_ray(version: str) -> Iterator[Finding]:
    """The release of Ray."""
    oldest = ".".join(map(str, OLDEST_RAY))
    numbers = tuple(map(int, re.findall(r"\d+", version)[:2]))
    if numbers < OLDEST_RAY:
        remedy = f"Upgrade it: pip install 'ray>={oldest}'"
        yield problem("ray", f"Ray {version} is not supported.", remedy)
    else:
        yield ok("ray", f"Ray {version} is supported ({oldest} and newer are).")


def check_storage(storage: Storage) -> Iterator[Finding]:
    """Whether the storage can be written, and has free space and the right time."""
    yield ok("storage", f"{storage.url} can be read.")
    home = unlimited(storage).journals.home
    if isinstance(home, SqliteDirectory):
        try:
            within(CALL_SECONDS, f"the storage {storage.url}", home.check_writable)
        except StorageError as error:
            remedy = "Run as the user who owns it, or give this user the right to write it."
            yield problem("writable", str(error), remedy)
        else:
            yield ok("writable", "It can be written, and is on a local disk.")
        free = shutil.disk_usage(home.directory).free
        message = f"{free / 1e9:.1f} GB are free."
        if free < FREE_BYTES:
            remedy = "Free some space, for one with: ray-workflows prune --older-than 30d"
            yield problem("space", message, remedy)
        else:
            yield ok("space", message)
    yield from check_clock(storage, time.time())


def check_clock(storage: Storage, here: float) -> Iterator[Finding]:
    """Whether the storage's clock, on which leases are measured, is right."""
    now = storage.now()
    ahead = [
        holder.lease_until - LEASE_SECONDS - now
        for holder in storage.read_holders()
        if holder.lease_until - LEASE_SECONDS > now + CLOCK_SECONDS
    ]
    if abs(now - here) > CLOCK_SECONDS:
        message = f"The storage's clock and this machine's differ by {abs(now - here):.0f} s."
        yield problem("clock", message, "Set both clocks, best by NTP.")
    elif ahead:
        message = (
            f"A coordinator renewed its lease {max(ahead):.0f} s in the future: the clock was set "
            f"back since, and its workflows read as running until then."
        )
        yield problem("clock", message, "Set the clock, or wait until that time has passed.")
    else:
        yield ok("clock", "The storage's clock agrees with this machine's.")


def check_coordinator(connection: Connection, description: dict[str, Any]) -> Iterator[Finding]:
    """The coordinator of the cluster, by its own description."""
    version = description["version"]
    message = (
        f"It answers, drives {description['workflows']} workflows in {connection.storage.url}, "
        f"and is of release {version}."
    )
    trouble = description["storage_error"] or description["unexpected_error"]
    if version != __version__:
        remedy = (
            f"This is release {__version__}. Install the same in the cluster and here, and "
            f"restart the cluster when its workflows have finished."
        )
        yield problem("coordinator", message, remedy)
    elif trouble:
        remedy = "Mend the cause; the coordinator goes on by itself."
        yield problem("coordinator", f"{message} It has trouble: {trouble}", remedy)
    else:
        yield ok("coordinator", message)


def find_coordinator() -> Iterator[Connection | Finding]:
    """The coordinator of the cluster that this process is connected to."""
    try:
        found = within(CLUSTER_SECONDS, "the coordinator of the cluster", describe_coordinator)
    except (WorkflowError, ray.exceptions.RayError, click.ClickException) as error:
        remedy = "Check that cluster and node of the storage are alive; look into the actor's log."
        yield problem("coordinator", f"It does not answer: {error}", remedy)
        return
    if found is None:
        yield note("coordinator", "The cluster has none: no workflow was run in it yet.")
        return
    connection, description = found
    yield connection
    yield from check_coordinator(connection, description)


def describe_coordinator() -> tuple[Connection, dict[str, Any]] | None:
    """The coordinator of the cluster, if it has one, and its own description."""
    actor = connections.find_coordinator()
    if actor is None:
        return None
    description = connections.describe(actor)
    return Connection(actor, description), description


def check_workflows(reader: Reader) -> Iterator[Finding]:
    """The interrupted workflows, and the numbers of others."""
    counts = dict.fromkeys(WorkflowStatus, 0)
    interrupted: list[CatalogRow] = []
    for row, status in reader.rows({*ACTIVE, WorkflowStatus.RESUMABLE}):
        counts[status] += 1
        if status is WorkflowStatus.RESUMABLE and len(interrupted) < NAMED:
            interrupted.append(row)
    message = (
        f"{counts[WorkflowStatus.RUNNING]} are running, {counts[WorkflowStatus.PENDING]} pending, "
        f"{counts[WorkflowStatus.RESUMABLE]} interrupted."
    )
    if not interrupted:
        yield ok("workflows", message)
        return
    more = "" if counts[WorkflowStatus.RESUMABLE] <= NAMED else f" The first {NAMED} are named."
    remedy = "Resume them all from Python: ray_workflows.resume_all()"
    yield problem("workflows", message + more, remedy)
    for row in interrupted:
        why = f": {row.error}" if row.error else "."
        message = f"{row.workflow_id!r} was interrupted{why}"
        yield problem("workflow", message, command("resume", row.workflow_id))


def check_journals(reader: Reader) -> Iterator[Finding]:
    """Read every journal and every blob that it names."""
    count = 0
    damaged: list[str] = []
    shared = Shared(reader.storage)
    for row, _ in reader.rows(set(WorkflowStatus) - {WorkflowStatus.NONE}, damaged=damaged):
        count += 1
        remedy = (
            f"Restore the storage from a backup, or give the workflow up: "
            f"{command('delete', row.workflow_id)}"
        )
        try:
            trouble = check_journal(reader.storage, row, shared)
        except DamagedCodeError as error:
            yield damaged_code(row.workflow_id, error)
            continue
        except StorageError as error:
            trouble = str(error)
        except Exception as error:
            trouble = f"It can't be replayed: {type(error).__name__}: {error}"
        else:
            remedy = command("repair", row.workflow_id)
        if trouble:
            yield problem("journal", f"{row.workflow_id!r}: {trouble}", remedy)
    for message in damaged:
        yield problem("catalog", message, ROW_REMEDY)
    yield ok("journals", f"{count} journals were read, with their blobs.")


class DamagedCodeError(StorageCorruptError):
    """An item that workflows share is damaged."""


def damaged_code(workflow_id: str, error: DamagedCodeError) -> Finding:
    """The finding for a workflow whose code is damaged."""
    remedy = (
        f"Restore it from a backup, or submit any workflow with the same files: that stores them "
        f"again. Where the files have changed since: "
        f"{command('resume', workflow_id, '--code', 'current')}"
    )
    return problem("code", f"{workflow_id!r}: {error}", remedy)


class Shared:
    """Reads the packages and documents that workflows share, each once."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.trouble: dict[tuple[str, Blob], DamagedCodeError | None] = {}

    def check(self, name: str, incarnation: str, blob: Blob) -> None:
        """Read an item, unless it was read before.

        Raises:
            DamagedCodeError: it is damaged or missing.
        """
        key = (incarnation, blob)
        if key not in self.trouble:
            try:
                for _ in self.storage.stream_blob(incarnation, blob):
                    pass
            except StorageCorruptError as error:
                self.trouble[key] = DamagedCodeError(
                    f"'{shared_items.PREFIX}{name}' is damaged: {error}"
                )
            else:
                self.trouble[key] = None
        trouble = self.trouble[key]
        if trouble is not None:
            raise trouble

    def check_document(self, environment: Environment) -> None:
        """As `check`, for the document about an environment."""
        name = f"{shared_items.DOCUMENT}/{environment.record}"
        item = shared_items.find(self.storage, name) if environment.record else None
        if item is not None:
            self.check(name, item.incarnation, item.blob)


def is_what_all_entries_say(storage: Storage, found: Recovered) -> bool:
    """Whether a state read from a snapshot equals the fold of all entries."""
    again = read_state(storage, msgspec.structs.replace(found.row, snapshot=0))
    if again.seq != found.seq:
        return True  # The workflow went on meanwhile.
    return again.row == found.row and save(again.state, 0.0, None) == save(found.state, 0.0, None)


def check_journal(storage: Storage, row: CatalogRow, shared: Shared) -> str:
    """Describe what is wrong with a journal; empty if nothing is.

    Raises:
        StorageError: an entry or a blob is damaged.
    """
    found = recover(storage, row.workflow_id)
    if found is None or found.row.incarnation != row.incarnation:
        return ""  # Deleted meanwhile.
    if found.seq == row.seq and not is_row_of(row, found.row):
        return f"The catalog says {row.status}, its journal {found.row.status}, or other details."
    if found.row.snapshot and not is_what_all_entries_say(storage, found):
        return (
            f"Its snapshots, the last one in entry {found.row.snapshot}, do not say what its "
            f"entries say. What it does next may be wrong: fork it, or delete it."
        )
    with contextlib.suppress(WorkflowNotFoundError), unless_deleted(storage, row):
        for _, events in History(storage, row).read():
            for part in stored_parts(events):
                if isinstance(part, Package):
                    shared.check(item_name(part), part.incarnation, part.blob)
                else:
                    for _ in storage.stream_blob(row.incarnation, part):
                        pass
        shared.check_document(found.state.environment)
    return ""
