"""`PostgresStorage` keeps the contract on a real server, and its own promises: several processes,
the fence, groups of appends, and news."""

from __future__ import annotations

import contextlib
import itertools
import pickle
import random
import threading
from functools import partial

import psycopg
import pytest

from ray_workflows._model.catalog import CatalogQuery
from ray_workflows._model.status import WorkflowStatus
from ray_workflows.storage import Storage
from ray_workflows.storage.postgres import PostgresStorage
from ray_workflows.storage.postgres import appends as postgres_appends
from ray_workflows.storage.postgres import listener as postgres_news
from ray_workflows.storage.postgres import schema as postgres_schema
from ray_workflows.storage.postgres.appends import make_statements
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
from tests.contract.schemas import TABLES, count, schema_of, with_parameter
from tests.ray.marks import wait_until
from tests.support.children import HANG_SECONDS, child, receive


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
    # A coordinator that has read the rival's entry goes on, with a row that is again what it was.
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
    for statement in make_statements(appends, storage.journals.ends):
        connection.execute(storage.journals.home.queries[statement.query], statement.parameters)


@pytest.mark.parametrize("committed", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("theirs", KINDS)
def test_of_two_that_append_at_once_the_first_that_commits_is_there(
    storage, rival, admin, postgres_url, kind, theirs, committed
):
    fill_group(storage, "several", 2)
    rival.journals.ends = pickle.loads(pickle.dumps(storage.journals.ends))
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
        other.execute(storage.journals.home.queries["lock_end"], key)
        found = other.execute(
            storage.journals.home.queries["delete_workflow"], {**key, "locked_seq": 2}
        )
        assert found.fetchone()[0] == 1
        with in_the_background(lambda: storage.commit(make_group(kind, 2)), admin) as results:
            (other.commit if committed else other.rollback)()
    assert results[0][0] is (STALE if committed else OK)
    assert len(state(storage, "w")[1]) == (0 if committed else 3)


def test_a_deletion_that_has_not_locked_the_end_deletes_nothing(storage, admin):
    """Somebody appended after it had looked for the end, and somebody else goes on from there."""
    fill(storage, "w", 3)
    key = {"workflow_id": "w", "incarnation": incarnation_of("w"), "expected_seq": 3}
    found = admin.execute(
        storage.journals.home.queries["delete_workflow"], {**key, "locked_seq": 2}
    )
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
    assert list(storage.journals.ends.ends) == [
        incarnation_of(f"w{number}") for number in (7, 8, 9)
    ]
    assert storage.commit([make_append(f"w{number}", 2) for number in range(10)]) == [OK] * 10
    assert storage.delete("w9", incarnation_of("w9"), 3) is OK
    assert incarnation_of("w9") not in storage.journals.ends.ends


def test_transaction_that_the_server_gave_up_is_begun_again(storage):
    fill(storage, "a")
    fill(storage, "b")
    refused = []
    commit = storage.journals.execute_commit

    def clash(connection, statements):
        if len(refused) < 2:
            refused.append(1)
            raise psycopg.errors.DeadlockDetected("deadlock detected")
        return commit(connection, statements)

    storage.journals.execute_commit = clash
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
    with other.journals.home.pool.use() as connection:
        connection.execute("BEGIN")
        connection.execute(
            storage.journals.home.queries["configure_transaction"].replace("15s", "300ms")
        )
        connection.execute(f"SELECT * FROM {schema_of(storage)}.journal FOR UPDATE")
        assert storage.commit([make_append("w", 1)]) == [OK]
        with pytest.raises(psycopg.Error, match="idle|clos"):
            connection.execute("COMMIT")


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


def test_owners_are_told_of_what_their_earlier_lives_hold(storage, schema_url):
    owner = PostgresStorage(schema_url)
    news = threading.Semaphore(0)
    try:
        owner.listen("h2", news.release, ["h1"])
        assert news.acquire(timeout=HANG_SECONDS)
        storage.listen("h3", lambda: None)
        fill(storage, "w")
        assert news.acquire(timeout=HANG_SECONDS)
    finally:
        owner.close()


def test_listening_goes_on_after_the_connection_was_lost(storage, owner, admin, monkeypatch):
    owner, news = owner
    monkeypatch.setattr(postgres_news, "RETRY_SECONDS", 0.05)
    fill(storage, "w")
    storage.listen("h2", lambda: None)
    listening = f"LISTEN {owner.journals.home.listener.channel}"
    ended = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE query = %s"
    wait_until(lambda: admin.execute(ended, (listening,)).fetchone()[0] >= 2, "both are cut off")
    # What was said meanwhile is looked for.
    assert news.acquire(timeout=HANG_SECONDS)
    assert storage.commit([make_append("w", 1)]) == [OK]
    assert news.acquire(timeout=HANG_SECONDS)


def test_listening_ends_with_the_storage(owner, admin, monkeypatch):
    owner, _ = owner
    listening = (f"LISTEN {owner.journals.home.listener.channel}",)
    query = "SELECT count(*) FROM pg_stat_activity WHERE query = %s"
    assert admin.execute(query, listening).fetchone() == (1,)
    owner.close()
    wait_until(lambda: admin.execute(query, listening).fetchone() == (0,), "nobody listens")
