"""`PostgresStorage` keeps the contract on a real server, and its own promises: several processes,
few connections, pages from indexes, whole blobs, and one schema for old and new releases."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pickle
import random
import threading
import time
from functools import partial
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from ray_workflows._model.catalog import CatalogQuery
from ray_workflows._model.status import WorkflowStatus
from ray_workflows.exceptions import (
    StorageConfigError,
    StorageCorruptError,
    StorageUnavailableError,
)
from ray_workflows.storage import Storage
from ray_workflows.storage.postgres import PostgresStorage
from ray_workflows.storage.postgres import appends as postgres_appends
from ray_workflows.storage.postgres import blobs as postgres_blobs
from ray_workflows.storage.postgres import listener as postgres_news
from ray_workflows.storage.postgres import pool as postgres_pool
from ray_workflows.storage.postgres import schema as postgres_schema
from ray_workflows.storage.postgres.appends import Ends, make_statements
from ray_workflows.storage.queries import read_sql
from ray_workflows.testing import StorageContract
from ray_workflows.testing.builders import (
    OK,
    STALE,
    fill,
    in_threads,
    incarnation_of,
    list_ids,
    make_append,
    state,
)
from tests.children import HANG_SECONDS, child, receive
from tests.ray.marks import wait_until

SCHEMA_NUMBERS = itertools.count(1)

TABLES = ("catalog", "journal", "holders", "blobs", "blob_chunks", "tombstones")


@pytest.fixture
def schema_url(postgres_url):
    """A schema that does not exist yet, and is gone afterwards."""
    name = f"test_{os.getpid()}_{next(SCHEMA_NUMBERS)}"
    yield with_parameter(postgres_url, f"schema={name}")
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"SET client_min_messages = error; DROP SCHEMA IF EXISTS {name} CASCADE")


def with_parameter(url, parameter):
    return f"{url}{'&' if '?' in url else '?'}{parameter}"


@pytest.fixture
def storage(schema_url):
    storage = PostgresStorage(schema_url)
    storage.open()
    yield storage
    storage.close()


class TestPostgresStorage(StorageContract):
    @pytest.fixture
    def storage(self, schema_url: str):
        storage: Storage = PostgresStorage(schema_url)
        storage.open()
        yield storage
        storage.close()


@pytest.fixture
def admin(postgres_url, schema_url):
    """A connection of its own whose search path is the schema of the test."""
    schema = schema_url.rpartition("schema=")[2]
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"SET search_path = {schema}")
        yield connection


def sessions(admin, storage):
    """How many connections the storages of this schema have."""
    found = admin.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s",
        (storage.target.parameters["application_name"],),
    )
    return found.fetchone()[0]


@pytest.fixture
def named(schema_url):
    """A storage whose connections can be counted."""
    name = f"counted_{os.getpid()}_{next(SCHEMA_NUMBERS)}"
    storage = PostgresStorage(with_parameter(schema_url, f"application_name={name}"))
    storage.open()
    yield storage
    storage.close()


def count(admin, table):
    return admin.execute(f"SELECT count(*) FROM {table}").fetchone()[0]


# -- several processes ------------------------------------------------------------------------


def append_as_rival(pipe, url, name, until):
    storage = PostgresStorage(url)
    pipe.recv()
    mine = []
    while True:
        row = storage.read_catalog("w")
        if row.seq >= until:
            break
        commit_id = f"{name}-{row.seq}"
        if storage.commit([make_append("w", row.seq, commit_id=commit_id)]) == [OK]:
            mine.append((row.seq + 1, commit_id))
    storage.close()
    pipe.send(mine)


def test_two_processes_append_to_one_journal(storage, schema_url):
    fill(storage, "w", 1)
    with contextlib.ExitStack() as stack:
        pipes = [
            stack.enter_context(child(append_as_rival, schema_url, name, 150))[1]
            for name in ("a", "b")
        ]
        for pipe in pipes:
            pipe.send("go")
        # Meanwhile a driver reads, and sees every state whole.
        row = storage.read_catalog("w")
        while row.seq < 150:
            row = storage.read_catalog("w")
            assert len(storage.read_journal(incarnation_of("w"))) >= row.seq
        acknowledged = [receive(pipe) for pipe in pipes]
    _, journal = state(storage, "w")
    stored = {(entry.seq, entry.commit_id) for entry in journal[1:]}
    assert stored == {*acknowledged[0], *acknowledged[1]}
    assert len(stored) == len(acknowledged[0]) + len(acknowledged[1])
    assert len(journal) == 150


def commit_groups(pipe, url, name, names, rounds):
    """Append to all workflows at once, in another order each time, as a coordinator that believes
    that they are its own."""
    storage = PostgresStorage(url)
    chance = random.Random(name)
    pipe.recv()
    mine = []
    for number in range(rounds):
        chance.shuffle(names)
        rows = {n: storage.read_catalog(n) for n in names}
        appends = [make_append(n, rows[n].seq, commit_id=f"{name}-{number}") for n in names]
        # And one that is new: a creation holds its row too.
        appends.append(make_append(f"new{number}", 0, commit_id=f"{name}-{number}"))
        chance.shuffle(appends)
        for append, outcome in zip(appends, storage.commit(appends), strict=True):
            assert outcome in (OK, STALE)
            if outcome is OK:
                mine.append((append.workflow_id, append.catalog.seq, append.commit_id))
    storage.close()
    pipe.send(mine)


def test_groups_of_rivals_do_not_wait_in_a_ring(storage, schema_url, admin):
    names = [f"w{i}" for i in range(30)]
    for name in names:
        fill(storage, name)
    deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    before = admin.execute(deadlocks).fetchone()[0]
    with contextlib.ExitStack() as stack:
        pipes = [
            stack.enter_context(child(commit_groups, schema_url, name, list(names), 40))[1]
            for name in ("a", "b", "c")
        ]
        for pipe in pipes:
            pipe.send("go")
        acknowledged = list(itertools.chain(*(receive(pipe) for pipe in pipes)))
    stored = {
        (row.workflow_id, entry.seq, entry.commit_id)
        for row in storage.list_catalog(CatalogQuery()).rows
        for entry in state(storage, row.workflow_id)[1]
        if entry.commit_id != "commit-1"
    }
    assert stored == set(acknowledged)
    assert len(stored) == len(acknowledged)
    assert admin.execute(deadlocks).fetchone()[0] == before


# -- the fence --------------------------------------------------------------------------------


@pytest.fixture
def rival(storage):
    """The storage as another process has it: it knows nothing of what this one appended."""
    return pickle.loads(pickle.dumps(storage))


#: What a commit is made of: one append or several, of rows that stay as they are or change, and
#: with a workflow that is new. Each is a query of its own, or another part of one.
KINDS = ["one", "several", "one changed", "several changed", "one beside a new one"]


def make_group(kind, expected_seq, **fields):
    """Appends of a kind, of which the first is to "w"."""
    if "changed" in kind:
        fields = {"ended_at": float(expected_seq), **fields}
    group = [make_append("w", expected_seq, **fields)]
    if "several" in kind:
        group += [make_append(f"w{number}", expected_seq, **fields) for number in range(3)]
    if "new" in kind:
        group.append(make_append(f"new{expected_seq}", 0))
    return group


def fill_group(storage, kind, entries):
    """Create the workflows of a kind, by commits after which the storage knows their rows."""
    for seq in range(entries):
        assert set(storage.commit(make_group(kind.replace(" changed", ""), seq))) == {OK}


def test_appends_that_change_no_row_leave_it_alone(storage, admin):
    places = "SELECT ctid, xmin, xmax, seq FROM catalog ORDER BY workflow_id"
    fill_group(storage, "several", 1)
    before = admin.execute(places).fetchall()
    for seq in range(1, 5):
        assert set(storage.commit(make_group("several", seq))) == {OK}
    assert storage.commit(make_group("one", 5)) == [OK]
    assert admin.execute(places).fetchall() == before
    assert storage.commit(make_group("one beside a new one", 6)) == [OK, OK]
    after = admin.execute(places).fetchall()
    assert [place for place in after if place in before] == before


@pytest.mark.parametrize("kind", KINDS)
def test_a_rivals_row_is_not_taken_for_ours(storage, rival, kind):
    """We know the row as it was before the rival; nothing of ours comes after the rival's entry."""
    fill_group(storage, kind, 2)
    theirs = make_append("w", 2, holder="rival", commit_id="theirs")
    assert rival.commit([theirs]) == [OK]
    ours = make_group(kind, 2)
    assert storage.commit(ours) == [STALE] + [OK] * (len(ours) - 1)
    assert state(storage, "w")[0] == theirs.catalog
    # Whoever has read the rival's entry goes on, with a row that is again what it was.
    ours = make_append("w", 3)
    assert storage.commit([ours]) == [OK]
    assert state(storage, "w")[0] == ours.catalog


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_numbers_after_a_deletion_are_not_ours(storage, rival, kind):
    """Another process deleted the workflow and wrote it again, as a copy does."""
    fill_group(storage, kind, 2)
    assert rival.delete("w", incarnation_of("w"), 2) is OK
    again = [make_append("w", seq, holder="rival", commit_id=f"theirs-{seq}") for seq in range(2)]
    assert rival.commit(again) == [OK, OK]
    outcome = storage.commit(make_group(kind, 2))[0]
    # An append with its row is as good as any; without, it would be a wrong one from then on.
    assert outcome is (OK if "changed" in kind else STALE)
    ours = make_append("w", 3 if outcome is OK else 2)
    assert storage.commit([ours]) == [OK]
    assert state(storage, "w")[0] == ours.catalog


@pytest.mark.parametrize("kind", KINDS)
def test_who_knows_more_than_the_server_is_stale(storage, admin, kind):
    """It was restored from a backup, or another server took over that had not got everything."""
    fill_group(storage, kind, 5)
    admin.execute("DELETE FROM journal WHERE incarnation = %s AND seq > 2", (incarnation_of("w"),))
    assert storage.commit(make_group(kind, 5))[0] is STALE
    assert state(storage, "w")[0].seq == 2
    assert storage.commit([make_append("w", 2)]) == [OK]


@contextlib.contextmanager
def in_the_background(work, admin):
    """Run it in a thread, until it waits for a lock; leaving waits for its result."""
    results = []
    thread = threading.Thread(target=lambda: results.append(work()), daemon=True)
    thread.start()
    waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
    wait_until(lambda: admin.execute(waiting).fetchone()[0], "it waits for a lock")
    yield results
    thread.join(HANG_SECONDS)
    assert not thread.is_alive()


def execute_first(storage, connection, appends):
    """What the storage would send for a commit, in a transaction that has not ended."""
    for statement in make_statements(appends, storage.ends):
        connection.execute(storage.queries[statement.query], statement.parameters)


@pytest.mark.parametrize("committed", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("theirs", KINDS)
def test_of_two_that_append_at_once_the_first_that_commits_is_there(
    storage, rival, admin, postgres_url, kind, theirs, committed
):
    fill_group(storage, "several", 2)
    rival.ends = pickle.loads(pickle.dumps(storage.ends))
    with psycopg.connect(postgres_url) as other:
        execute_first(rival, other, make_group(theirs, 2, commit_id="theirs", holder="h1"))
        with in_the_background(lambda: storage.commit(make_group(kind, 2)), admin) as results:
            (other.commit if committed else other.rollback)()
    assert results[0][0] is (STALE if committed else OK)
    row, journal = state(storage, "w")
    assert journal[-1].commit_id == ("theirs" if committed else "commit-3")
    assert row.ended_at == (2.0 if "changed" in (theirs if committed else kind) else None)


@pytest.mark.parametrize("committed", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_deletion_waits_for_an_append(storage, admin, postgres_url, kind, committed):
    fill_group(storage, kind, 2)
    with psycopg.connect(postgres_url) as other:
        execute_first(storage, other, make_group(kind, 2))
        delete = partial(storage.delete, "w", incarnation_of("w"), 2)
        with in_the_background(delete, admin) as results:
            (other.commit if committed else other.rollback)()
    assert results == [STALE if committed else OK]
    assert len(state(storage, "w")[1]) == (3 if committed else 0)


@pytest.mark.parametrize("committed", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_an_append_waits_for_a_deletion(storage, admin, postgres_url, kind, committed):
    fill_group(storage, kind, 2)
    key = {"workflow_id": "w", "incarnation": incarnation_of("w"), "expected_seq": 2}
    with psycopg.connect(postgres_url) as other:
        other.execute(storage.queries["lock_end"], key)
        found = other.execute(storage.queries["delete_workflow"], {**key, "locked_seq": 2})
        assert found.fetchone()[0] == 1
        with in_the_background(lambda: storage.commit(make_group(kind, 2)), admin) as results:
            (other.commit if committed else other.rollback)()
    assert results[0][0] is (STALE if committed else OK)
    assert len(state(storage, "w")[1]) == (0 if committed else 3)


def test_a_deletion_that_has_not_locked_the_end_deletes_nothing(storage, admin):
    """Somebody appended after it had looked for the end, and somebody else goes on from there."""
    fill(storage, "w", 3)
    key = {"workflow_id": "w", "incarnation": incarnation_of("w"), "expected_seq": 3}
    found = admin.execute(storage.queries["delete_workflow"], {**key, "locked_seq": 2})
    assert found.fetchone()[0] == 0
    assert len(state(storage, "w")[1]) == 3


def test_a_journal_without_its_last_entries_can_be_deleted(storage, admin):
    fill(storage, "w", 3)
    assert storage.commit([make_append("w", 3, holder="h2")]) == [OK]
    for left in (2, 0):
        admin.execute("DELETE FROM journal WHERE seq > %s", (left,))
        row = storage.read_catalog("w")
        assert row.seq == 4
    assert storage.delete("w", row.incarnation, 4) is OK
    assert count(admin, "catalog") == 0


def test_what_is_remembered_is_bounded(storage, monkeypatch):
    monkeypatch.setattr(postgres_appends, "KNOWN_ENDS", 3)
    for number in range(10):
        fill(storage, f"w{number}", 2)
    assert list(storage.ends.ends) == [incarnation_of(f"w{number}") for number in (7, 8, 9)]
    assert storage.commit([make_append(f"w{number}", 2) for number in range(10)]) == [OK] * 10
    assert storage.delete("w9", incarnation_of("w9"), 3) is OK
    assert incarnation_of("w9") not in storage.ends.ends


def test_transaction_that_the_server_gave_up_is_begun_again(storage):
    fill(storage, "a")
    fill(storage, "b")
    refused = []
    commit = storage.execute_commit

    def clash(connection, statements):
        if len(refused) < 2:
            refused.append(1)
            raise psycopg.errors.DeadlockDetected("deadlock detected")
        return commit(connection, statements)

    storage.execute_commit = clash
    assert storage.commit([make_append("a", 1), make_append("b", 1)]) == [OK, OK]
    assert len(refused) == 2


def test_strict_isolation_of_the_server_is_no_hindrance(schema_url):
    option = "options=-c%20default_transaction_isolation%3Dserializable"
    storage = PostgresStorage(with_parameter(schema_url, option))
    storage.open()
    for round_number in range(5):
        name = f"w{round_number}"
        fill(storage, name)
        rivals = [make_append(name, 1, commit_id=f"r{i}") for i in range(6)]
        outcomes = in_threads([partial(storage.commit, [rival]) for rival in rivals])
        assert sorted(outcomes) == [[OK]] + [[STALE]] * 5
    storage.close()


def test_a_stopped_process_holds_no_workflow(storage):
    """It was cut off between two statements of its transaction; the server gives up for it."""
    fill(storage, "w")
    other = pickle.loads(pickle.dumps(storage))
    with other.pool.use() as connection:
        connection.execute("BEGIN")
        connection.execute(storage.queries["configure_transaction"].replace("15s", "300ms"))
        connection.execute(f"SELECT * FROM {schema_of(storage)}.journal FOR UPDATE")
        assert storage.commit([make_append("w", 1)]) == [OK]
        with pytest.raises(psycopg.Error, match="idle|clos"):
            connection.execute("COMMIT")


def schema_of(storage):
    return sql.Identifier(storage.target.schema).as_string(None)


def open_and_create(pipe, url, name):
    pipe.recv()
    storage = PostgresStorage(url)
    storage.open()
    pipe.send(storage.commit([make_append(name, 0)]))
    storage.close()


def test_processes_and_threads_open_a_new_storage_at_once(schema_url, admin):
    with contextlib.ExitStack() as stack:
        pipes = [
            stack.enter_context(child(open_and_create, schema_url, f"p{i}"))[1] for i in range(3)
        ]
        for pipe in pipes:
            pipe.send("go")
        ours = [PostgresStorage(schema_url) for _ in range(4)]
        in_threads([storage.open for storage in ours])
        assert [receive(pipe) for pipe in pipes] == [[OK]] * 3
    assert len(list_ids(ours[0])) == 3
    assert count(admin, "schema_version") == len(postgres_schema.MIGRATIONS)
    ours[0].close()


# -- connections ------------------------------------------------------------------------------


def test_a_process_has_few_connections(named, admin):
    """Whatever the number of threads, and of storages that its tasks brought along."""
    copies = [pickle.loads(pickle.dumps(named)) for _ in range(12)]
    peak = []

    def write(number):
        for seq in range(100):
            assert copies[number].commit([make_append(f"w{number}", seq)]) == [OK]
            if seq % 20 == 0:
                peak.append(sessions(admin, named))

    # psycopg lets threads share a connection in turns.
    in_threads([partial(write, number) for number in range(12)])
    assert max(peak) <= postgres_pool.LIMIT
    assert [len(state(named, f"w{number}")[1]) for number in range(12)] == [100] * 12


def test_idle_connections_are_closed(named, admin, monkeypatch):
    named.close()
    monkeypatch.setattr(postgres_pool, "IDLE_SECONDS", 0.05)
    in_threads([named.now] * 4)
    wait_until(lambda: sessions(admin, named) == 0, "no connection is left")

    def threads():
        return {thread.name for thread in threading.enumerate()}

    wait_until(lambda: "ray-workflows-postgres" not in threads(), "nobody waits to close one")
    assert named.read_holders() == []
    wait_until(lambda: sessions(admin, named) == 0, "no connection is left")


def test_a_storage_that_is_not_used_has_no_connection(named, admin):
    named.close()
    wait_until(lambda: sessions(admin, named) == 0, "no connection is left")
    copy = pickle.loads(pickle.dumps(named))
    assert copy.url == named.url
    assert sessions(admin, named) == 0


def test_an_old_connection_is_replaced(named, admin, monkeypatch):
    monkeypatch.setattr(postgres_pool, "LIFE_SECONDS", -1.0)
    named.now()
    wait_until(lambda: sessions(admin, named) == 0, "no connection is left")


def test_connections_that_the_server_ended_are_replaced(named, admin):
    in_threads([named.now] * 4)
    ended = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = %s"
    admin.execute(ended, (named.target.parameters["application_name"],))
    wait_until(lambda: sessions(admin, named) == 0, "they are ended")
    # Not even the first commit fails: nobody knows what would have become of it.
    assert named.commit([make_append("w", 0)]) == [OK]


def test_an_interrupted_call_leaves_no_answer_to_the_next(named):
    class Interrupt(BaseException):
        pass

    with named.pool.use() as connection:
        connection.pgconn.send_query(b"SELECT 1")
        with pytest.raises(Interrupt):
            connection.wait(interrupting(Interrupt))
    assert connection.closed
    assert named.read_catalog("w") is None


def interrupting(error):
    raise error
    yield


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_fork_while_another_thread_commits(storage):
    fill(storage, "w", 1)
    # Some lie idle: a child that used one would speak in its parent's session.
    in_threads([storage.now] * 4)
    stop = threading.Event()

    def commit_until_stopped():
        seq = 1
        while not stop.is_set():
            assert storage.commit([make_append("w", seq)]) == [OK]
            seq += 1
        return seq

    def fork_children():
        codes = []
        for number in range(5):
            pid = os.fork()
            if pid == 0:
                code = 1
                with contextlib.suppress(BaseException):
                    assert storage.pool.idle == []
                    assert storage.commit([make_append(f"child{number}", 0)]) == [OK]
                    storage.close()
                    code = 0
                os._exit(code)
            codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        stop.set()
        return codes

    seq, codes = in_threads([commit_until_stopped, fork_children])
    assert codes == [0] * 5
    assert len(state(storage, "w")[1]) == seq
    assert len(list_ids(storage)) == 6


# -- commits ----------------------------------------------------------------------------------


def test_many_appends_in_one_commit(storage):
    appends = [make_append(f"w{i}", 0, status=WorkflowStatus.PENDING) for i in range(10_000)]
    assert storage.commit(appends) == [OK] * 10_000
    assert len(list_ids(storage, statuses=(WorkflowStatus.PENDING,), limit=3000)) == 10_000


def test_large_entries_in_one_commit(storage):
    """More bytes than one statement carries; what is stale is so in any of them."""
    entries = [bytes([65 + i]) * 3_000_000 for i in range(8)]
    fill(storage, "w3")
    appends = [make_append(f"w{i}", 0, entry=entry) for i, entry in enumerate(entries)]
    assert storage.commit(appends) == [OK] * 3 + [STALE] + [OK] * 4
    (stored,) = storage.read_journal(incarnation_of("w7"))
    assert stored.entry == entries[7]


def test_incarnations_of_one_id_and_ids_of_one_incarnation_in_one_commit(storage):
    appends = [
        make_append("a", 0, incarnation="i1"),
        make_append("a", 0, incarnation="i2"),
        make_append("b", 0, incarnation="i1"),
        make_append("b", 0, incarnation="i2"),
        make_append("a", 1, incarnation="i1"),
    ]
    assert storage.commit(appends) == [OK, STALE, STALE, OK, OK]
    assert [len(storage.read_journal(name)) for name in ("i1", "i2")] == [2, 1]


def test_text_that_postgres_cannot_hold_does_no_harm(storage):
    fill(storage, "w", error="zero: \0 and \udcff", metadata={"k": "\0\ud800"})
    row = storage.read_catalog("w")
    assert row.error == "zero: \\x00 and \\udcff"
    assert row.metadata == {"k": "\0\ud800"}


def test_clock_is_the_servers(storage, admin):
    before = admin.execute("SELECT extract(epoch FROM clock_timestamp())::float8").fetchone()[0]
    now = storage.now()
    after = admin.execute("SELECT extract(epoch FROM clock_timestamp())::float8").fetchone()[0]
    assert before <= now <= after


def test_delete_leaves_nothing(storage, admin):
    row = fill(storage, "w", 5)
    for key in ("a", "b"):
        storage.write_blob(row.incarnation, key, [b"x" * 3_000_000])
    storage.write_blob(row.incarnation, "c", [b"small"])
    assert storage.delete("w", row.incarnation, 5) is OK
    assert {table: count(admin, table) for table in TABLES} == dict.fromkeys(TABLES, 0)


# -- news -------------------------------------------------------------------------------------


@pytest.fixture
def owner(schema_url, storage):
    """Another process's storage, as far as the server can tell, and what it heard."""
    owner = PostgresStorage(schema_url)
    news = threading.Semaphore(0)
    owner.listen("h1", news.release)
    # It looks once when it begins to listen.
    assert news.acquire(timeout=HANG_SECONDS)
    yield owner, news
    owner.close()


def test_owners_are_told_of_what_others_append(storage, owner):
    owner, news = owner
    storage.listen("h2", lambda: None)
    assert owner.commit([make_append("w", 0), make_append("w2", 0, holder="h2")]) == [OK, OK]
    assert storage.commit([make_append("w", 5)]) == [STALE]
    assert storage.commit([make_append("w2", 1, holder="h2")]) == [OK]
    assert not news.acquire(timeout=0.2)
    assert storage.commit([make_append("w", 1), make_append("w2", 2, holder="h2")]) == [OK, OK]
    assert news.acquire(timeout=HANG_SECONDS)
    # Once for a commit, and never for one's own.
    assert owner.commit([make_append("w", 2)]) == [OK]
    assert not news.acquire(timeout=0.2)


def test_listening_goes_on_after_the_connection_was_lost(storage, owner, admin, monkeypatch):
    owner, news = owner
    monkeypatch.setattr(postgres_news, "RETRY_SECONDS", 0.05)
    fill(storage, "w")
    storage.listen("h2", lambda: None)
    listening = f"LISTEN {owner.listener.channel}"
    ended = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE query = %s"
    wait_until(lambda: admin.execute(ended, (listening,)).fetchone()[0] >= 2, "both are cut off")
    # What was said meanwhile is looked for.
    assert news.acquire(timeout=HANG_SECONDS)
    assert storage.commit([make_append("w", 1)]) == [OK]
    assert news.acquire(timeout=HANG_SECONDS)


def test_listening_ends_with_the_storage(owner, admin, monkeypatch):
    owner, _ = owner
    listening = (f"LISTEN {owner.listener.channel}",)
    query = "SELECT count(*) FROM pg_stat_activity WHERE query = %s"
    assert admin.execute(query, listening).fetchone() == (1,)
    owner.close()
    wait_until(lambda: admin.execute(query, listening).fetchone() == (0,), "nobody listens")


# -- blobs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("extra", [-1, 0, 1])
@pytest.mark.parametrize("chunks", [1, 3])
def test_blobs_around_the_size_of_a_chunk(storage, admin, chunks, extra):
    size = chunks * postgres_blobs.CHUNK_BYTES + extra
    data = random.Random(7).randbytes(size)
    pieces = [data[:10], data[10 : size - 5], data[size - 5 :]]
    blob = storage.write_blob("i", "k", pieces)
    assert bytes(storage.read_blob("i", blob)) == data
    assert count(admin, "blob_chunks") == chunks + (extra > 0)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            "UPDATE blob_chunks SET data = overlay(data placing 'X' from 9) WHERE number = 1",
            "check",
        ),
        ("UPDATE blob_chunks SET data = substr(data, 9) WHERE number = 1", "bytes, expected"),
        ("UPDATE blob_chunks SET data = data || '0123'::bytea WHERE number = 2", "bytes, expected"),
        ("DELETE FROM blob_chunks WHERE number = 1", "bytes, expected"),
        ("DELETE FROM blob_chunks", "0 bytes, expected"),
        ("UPDATE blobs SET size = size + 1", "was written with"),
        ("DELETE FROM blobs", "missing"),
    ],
)
def test_damaged_blob_is_corrupt(storage, admin, damage, message):
    blob = storage.write_blob("inc", "key", [b"x" * 2_500_000])
    admin.execute(damage)
    with pytest.raises(
        StorageCorruptError, match=f"'key' of workflow incarnation 'inc'.*{message}"
    ):
        storage.read_blob("inc", blob)
    assert storage.find_blob("inc", "other") is None


def test_a_writer_that_fails_or_loses_leaves_nothing(storage, admin):
    def chunks():
        yield b"x" * 5_000_000
        raise OSError("the producer failed")

    with pytest.raises(OSError, match="the producer failed"):
        storage.write_blob("i", "k", chunks())
    assert count(admin, "blobs") == count(admin, "blob_chunks") == 0

    def overtaken():
        yield b"x" * 5_000_000
        storage.write_blob("i", "k", [b"faster"])

    blob = storage.write_blob("i", "k", overtaken())
    assert bytes(storage.read_blob("i", blob)) == b"faster"
    assert (count(admin, "blobs"), count(admin, "blob_chunks")) == (1, 1)


def peak_memory():
    """The most that this process ever had, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError


def write_and_read(pipe, url, size):
    storage = PostgresStorage(url)
    piece = bytes(range(256)) * 4096
    storage.read_blob("i", storage.write_blob("i", "warm", [piece, piece]))
    start = peak_memory()
    blob = storage.write_blob("i", "k", (piece for _ in range(size // len(piece))))
    written = peak_memory()
    view = storage.read_blob("i", blob)
    pipe.send((blob.size, written - start, peak_memory() - written, len(view)))


def test_large_blobs_are_in_memory_once_at_most(storage, schema_url):
    size = 256 * 1024 * 1024
    with child(write_and_read, schema_url, size) as (_, pipe):
        stored, writing, reading, length = receive(pipe)
    assert stored == length == size
    assert writing < 32 * 1024 * 1024
    assert reading < size + 32 * 1024 * 1024


# -- sweep ------------------------------------------------------------------------------------


def test_swept_submission_does_not_become_a_workflow(storage, admin):
    storage.write_blob("i", "k", [b"x"])
    assert storage.sweep(0.0) == 1
    assert storage.commit([make_append("w", 0, incarnation="i")]) == [STALE]
    assert storage.sweep(0.0) == 0
    assert count(admin, "tombstones") == 1
    admin.execute("UPDATE tombstones SET buried_at = now() - interval '31 days'")
    assert storage.sweep(0.0) == 0
    assert count(admin, "tombstones") == 0


def test_sweep_goes_by_the_newest_blob(storage, admin):
    for key in ("a", "b"):
        storage.write_blob("i", key, [b"x"])
    old = "UPDATE blobs SET written_at = now() - interval '1000 seconds' WHERE key = %s"
    admin.execute(old, ("a",))
    assert storage.sweep(500.0) == 0
    admin.execute(old, ("b",))
    assert storage.sweep(1500.0) == 0
    assert storage.sweep(500.0) == 1


def test_sweep_spares_what_is_being_created(storage, admin, postgres_url):
    """A creation that began before the tombstone was there keeps its blobs."""
    blob = storage.write_blob("i", "k", [b"x"])
    swept = []
    with psycopg.connect(postgres_url) as creator:
        # As `commit` does it, stopped before its end.
        creator.execute(
            f"INSERT INTO {schema_of(storage)}.catalog VALUES "
            "('w', 'i', 1, 'RUNNING', 'h', 0, NULL, NULL, '{}', '', NULL, false)"
        )
        sweeper = threading.Thread(target=lambda: swept.append(storage.sweep(0.0)), daemon=True)
        sweeper.start()
        waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
        wait_until(lambda: admin.execute(waiting).fetchone()[0], "the sweep waits for the creation")
        creator.commit()
    sweeper.join(HANG_SECONDS)
    assert swept == [0]
    assert bytes(storage.read_blob("i", blob)) == b"x"
    assert count(admin, "tombstones") == 0


def test_interrupted_sweep_is_finished_by_the_next(storage, admin):
    storage.write_blob("i", "k", [b"x"])
    admin.execute("INSERT INTO tombstones (incarnation) VALUES ('i')")
    assert storage.sweep(3600.0) == 1
    assert count(admin, "blobs") == 0


# -- queries ----------------------------------------------------------------------------------

MANY = 100_000


@pytest.fixture(scope="module")
def crowded(postgres_url):
    """A storage with many workflows, most of them over."""
    name = f"test_{os.getpid()}_crowded"
    storage = PostgresStorage(with_parameter(postgres_url, f"schema={name}"))
    storage.open()
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(
            f"""
            INSERT INTO {name}.catalog
            SELECT 'w' || i, 'i' || i, 3,
                CASE WHEN i %% 1000 = 0 THEN 'FAILED' WHEN i %% 100 = 0 THEN 'RUNNING'
                    ELSE 'SUCCESSFUL' END,
                'holder' || i %% 7, i / 10, i, NULL, '{{"a": 1}}', 'd', NULL, false
            FROM generate_series(1, %s) AS i
            """,
            (MANY,),
        )
        connection.execute(
            f"""
            INSERT INTO {name}.journal
            SELECT 'i' || i, 4, 'c', '' FROM generate_series(1, %s) AS i
            """,
            (MANY,),
        )
        yield storage
        storage.close()
        connection.execute(f"DROP SCHEMA {name} CASCADE")


LISTINGS = {
    "list_catalog": {},
    "list_catalog_by_status": {"statuses": ("FAILED", "RUNNING")},
    "list_catalog_by_holder": {"holders": ("holder3",)},
}


@pytest.fixture(params=["never counted", "counted"])
def planned(request, crowded):
    """The crowded storage before and after the server has counted what is in it."""
    with crowded.pool.use() as connection:
        for table in ("catalog", "journal"):
            if request.param == "counted":
                connection.execute(f"ANALYZE {schema_of(crowded)}.{table}")
            else:
                name = (f"{crowded.target.schema}.{table}",)
                connection.execute("DELETE FROM pg_statistic WHERE starelid = %s::regclass", name)
                connection.execute(
                    "UPDATE pg_class SET reltuples = -1, relpages = 0 WHERE oid = %s::regclass",
                    name,
                )
    return crowded


@pytest.mark.parametrize("newest", [False, True])
@pytest.mark.parametrize("name", list(LISTINGS))
def test_listing_reads_a_page_from_its_index(planned, name, newest):
    crowded = planned
    query = {"holders": (), "statuses": [s.value for s in WorkflowStatus], "limit": 101}
    query.update({key: list(value) for key, value in LISTINGS[name].items()})
    query.update(submitted_at=MANY / 20, workflow_id="w0")
    if newest:
        name = name.replace("list_catalog", "list_catalog_newest")
    explain = "EXPLAIN (ANALYZE, FORMAT JSON) " + without_comments(crowded.queries[name])
    with crowded.pool.use() as connection:
        (plan,) = connection.first(explain, query)
    nodes = list(walk(plan[0]["Plan"]))
    scans = [node for node in nodes if node.get("Relation Name") == "catalog"]
    assert {node["Node Type"] for node in scans} <= {"Index Scan", "Index Only Scan"}
    # Only what is on the page is read, and nothing is read and thrown away.
    assert all(node["Actual Rows"] <= 101 for node in scans)
    assert not any(node.get("Rows Removed by Filter") for node in scans)
    # The ends of the journals on the page, each by one look.
    ends = [node for node in nodes if node.get("Relation Name") == "journal"]
    assert {node["Node Type"] for node in ends} == {"Index Only Scan"}
    assert all(node["Actual Rows"] <= 1 and node["Actual Loops"] <= 101 for node in ends)


@pytest.mark.parametrize("count", [1, 3, 1000])
@pytest.mark.parametrize("query", ["unchanged", "changed", "some new"])
def test_commit_reads_nothing_but_what_it_appends_to(planned, query, count):
    """However large the tables are, and whatever the server knows of them."""
    ends = Ends()
    numbers = [MANY - 90 * i for i in range(count)]
    group = [make_append(f"w{i}", 4, incarnation=f"i{i}") for i in numbers]
    if query == "unchanged":
        before = [make_append(f"w{i}", 3, incarnation=f"i{i}", commit_id="c") for i in numbers]
        ends.learn(before, [OK] * count)
    if query == "some new":
        group.append(make_append("new", 0))
    (statement,) = make_statements(group, ends)
    explain = "EXPLAIN (ANALYZE, FORMAT JSON) " + without_comments(planned.queries[statement.query])
    with planned.pool.use() as connection, connection.transaction(force_rollback=True):
        (plan,) = connection.first(explain, statement.parameters)
    nodes = list(walk(plan[0]["Plan"]))
    scans = [node for node in nodes if node.get("Relation Name") and "Scan" in node["Node Type"]]
    assert {node["Relation Name"] for node in scans} >= {"journal"}
    assert all(node["Actual Rows"] * node["Actual Loops"] <= count for node in scans)
    assert not any(node.get("Rows Removed by Filter") for node in scans)
    written = [node for node in nodes if node.get("Operation") == "Insert"]
    assert written[-1]["Relation Name"] == "journal"


def walk(node):
    yield node
    for inner in node.get("Plans", ()):
        yield from walk(inner)


def without_comments(query):
    return "\n".join(line for line in query.splitlines() if not line.startswith("--"))


def test_first_page_of_many_workflows(crowded):
    queries = [
        CatalogQuery(limit=100),
        CatalogQuery(limit=100, newest_first=True),
        CatalogQuery(limit=100, statuses=(WorkflowStatus.FAILED,)),
        CatalogQuery(limit=100, statuses=(WorkflowStatus.RUNNING, WorkflowStatus.FAILED)),
        CatalogQuery(limit=100, statuses=(WorkflowStatus.RUNNING,), holders=("holder3",)),
    ]
    for query in queries:

        def took() -> float:
            started = time.perf_counter()
            assert len(crowded.list_catalog(query).rows) == 100
            return time.perf_counter() - started

        # Others may keep the server waiting for a processor.
        wait_until(lambda: took() < 0.1, f"a page within 0.1 s: {query}")  # noqa: B023


# -- schema -----------------------------------------------------------------------------------


def names_in(admin):
    found = admin.execute(
        "SELECT relname FROM pg_class WHERE relnamespace = %s::regnamespace",
        (admin.execute("SHOW search_path").fetchone()[0],),
    )
    return {name for (name,) in found}


def test_everything_is_in_the_schema(schema_url, admin):
    relations = "SELECT relnamespace::regnamespace::text, relname FROM pg_class"
    before = set(admin.execute(relations).fetchall())
    storage = PostgresStorage(schema_url)
    storage.open()
    made = set(admin.execute(relations).fetchall()) - before
    # Large values lie in tables that PostgreSQL makes for them.
    schemas = {schema for schema, _ in made} - {"pg_toast"}
    assert schemas == {storage.target.schema}
    assert {"schema_version", *TABLES} <= {name for _, name in made}
    storage.close()


def test_odd_schema_names(postgres_url):
    for name in ("Gr%C3%B6%C3%9Fe", "a%22b", "a%27b%3B--", "select", "a%7Bb"):
        storage = PostgresStorage(with_parameter(postgres_url, f"schema={name}"))
        storage.open()
        storage.open()
        fill(storage, "w", 2)
        storage.write_blob("i", "k", [b"x" * 3_000_000])
        assert list_ids(storage) == ["w"]
        with storage.pool.use() as connection:
            connection.execute(f"DROP SCHEMA {schema_of(storage)} CASCADE")
        storage.close()


def test_only_open_creates(schema_url, admin):
    storage = PostgresStorage(schema_url)
    calls = [
        lambda: storage.commit([make_append("w", 0)]),
        lambda: storage.read_catalog("w"),
        lambda: storage.list_catalog(CatalogQuery()),
        lambda: storage.write_blob("i", "k", [b"x"]),
        lambda: storage.sweep(0.0),
    ]
    for call in calls:
        with pytest.raises(StorageUnavailableError, match="missing"):
            call()
    with pytest.raises(StorageConfigError, match="no workflows.*init"):
        storage.open_existing()
    assert admin.execute("SELECT current_schemas(false)").fetchone() == ([],)
    storage.close()


def test_open_again_changes_nothing(storage, admin):
    version = "SELECT xmin, * FROM schema_version"
    before = admin.execute(version).fetchall()
    storage.open()
    storage.open_existing()
    assert admin.execute(version).fetchall() == before


def test_newer_schema_is_refused(storage, admin):
    admin.execute("INSERT INTO schema_version (version) VALUES (99)")
    again = pickle.loads(pickle.dumps(storage))
    for check in (again.open, again.open_existing):
        with pytest.raises(StorageConfigError, match=r"newer release.*99.*Upgrade"):
            check()
    # Whoever was here before goes on.
    assert storage.commit([make_append("w", 0)]) == [OK]


def test_a_migration_and_a_running_coordinator(storage, admin, monkeypatch):
    """The next release adds what it needs; the one that runs does not notice."""
    fill(storage, "w", 2)
    step = (
        "ALTER TABLE {schema}.catalog ADD COLUMN priority integer NOT NULL DEFAULT 0;"
        "CREATE INDEX catalog_by_priority ON {schema}.catalog (priority);"
    )
    texts = {"step_3.sql": step}
    monkeypatch.setattr(postgres_schema, "MIGRATIONS", (*postgres_schema.MIGRATIONS, "step_3.sql"))
    monkeypatch.setattr(postgres_schema, "read_sql", lambda name: texts.get(name) or read_sql(name))
    with pytest.raises(StorageConfigError, match=r"version 2.*init\(\)"):
        storage.open_existing()
    stop = threading.Event()

    def go_on():
        seq = 2
        while not stop.is_set():
            assert storage.commit([make_append("w", seq)]) == [OK]
            seq += 1
        return seq

    def migrate():
        try:
            copies = [pickle.loads(pickle.dumps(storage)) for _ in range(3)]
            for copy in copies:
                copy.open()
        finally:
            stop.set()

    seq, _ = in_threads([go_on, migrate])
    versions = admin.execute("SELECT version FROM schema_version ORDER BY 1")
    assert [version for (version,) in versions] == [1, 2, 3]
    assert len(state(storage, "w")[1]) == seq
    monkeypatch.undo()
    assert storage.commit([make_append("w", seq)]) == [OK]
    with pytest.raises(StorageConfigError, match="newer release"):
        storage.open()


def test_failed_migration_changes_nothing(storage, admin, monkeypatch):
    before = names_in(admin)
    monkeypatch.setattr(postgres_schema, "MIGRATIONS", (*postgres_schema.MIGRATIONS, "step_3.sql"))
    step = "CREATE TABLE {schema}.more (); CREATE TABLE {schema}.catalog ();"
    monkeypatch.setattr(postgres_schema, "read_sql", lambda name: step)
    with pytest.raises(StorageConfigError, match="Something else"):
        storage.open()
    assert names_in(admin) == before
    monkeypatch.undo()
    storage.open()


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ("CREATE TABLE catalog (x integer)", "Something else is in it.*schema="),
        ("CREATE TABLE schema_version (x integer)", "not of ray-workflows.*schema="),
        ("CREATE TABLE schema_version (version text)", "not of ray-workflows.*schema="),
    ],
)
def test_foreign_tables_are_left_alone(schema_url, admin, made, message):
    schema = admin.execute("SHOW search_path").fetchone()[0]
    admin.execute(f"CREATE SCHEMA {schema}")
    admin.execute(made)
    before = names_in(admin)
    storage = PostgresStorage(schema_url)
    with pytest.raises(StorageConfigError, match=message):
        storage.open()
    assert names_in(admin) == before
    storage.close()


def test_dropped_while_in_use(storage, admin):
    fill(storage, "w")
    admin.execute("SET client_min_messages = error; DROP TABLE journal")
    with pytest.raises(StorageUnavailableError, match="dropped while in use"):
        storage.commit([make_append("w", 1)])


def test_pickle_is_small(storage):
    assert len(pickle.dumps(storage)) < 500
    assert json.dumps(storage.url)
