"""`PostgresStorage` when its server is killed, hangs, is full or far away, and when it refuses."""

from __future__ import annotations

import contextlib
import itertools
import logging
import pickle
import random
import signal
import threading
import time
from functools import partial

import psycopg
import pytest

from ray_workflows.exceptions import (
    StorageConfigError,
    StorageError,
    StorageUnavailableError,
    is_transient,
)
from ray_workflows.storage.postgres import PostgresStorage
from ray_workflows.storage.postgres import pool as postgres_pool
from ray_workflows.storage.postgres import schema as postgres_schema
from ray_workflows.storage.postgres import target as postgres_target
from ray_workflows.testing.builders import (
    OK,
    STALE,
    fill,
    in_threads,
    incarnation_of,
    list_ids,
    make_append,
    make_holder,
    state,
)
from tests.ray.marks import wait_until
from tests.support.postgres import GUARDED, PostgresServer
from tests.support.proxy import Proxy

SECRET = "s3cr3t-w0rd"
NUMBERS = itertools.count(1)

#: Few enough that a test can take them all; three of them are reserved.
CONNECTIONS = 12


@pytest.fixture(scope="module")
def server():
    """A server to which anything may be done. It would lose commits if it were let."""
    settings = (f"max_connections={CONNECTIONS}", "synchronous_commit=off", "wal_writer_delay=10s")
    with PostgresServer(*settings) as server:
        yield server


@pytest.fixture
def url(server):
    return f"{server.url}?schema=test_{next(NUMBERS)}"


@pytest.fixture
def storage(url):
    storage = PostgresStorage(url)
    storage.open()
    yield storage
    storage.close()


@pytest.fixture
def proxy(server):
    with Proxy(server.port) as proxy:
        yield proxy


@pytest.fixture
def far(storage, server, proxy):
    """The storage through the proxy."""
    parameters = {**storage.journals.home.target.parameters, "port": str(proxy.port)}
    target = postgres_target.Target(parameters, storage.journals.home.target.schema)
    far = PostgresStorage.__new__(PostgresStorage)
    far.connect_to(target)
    yield far
    far.close()


@pytest.fixture
def impatient(monkeypatch):
    """Silence is noticed sooner."""
    monkeypatch.setattr(postgres_pool.Connection, "silence_seconds", 0.4)
    monkeypatch.setitem(postgres_target.DEFAULTS, "connect_timeout", "2")


# -- connections ------------------------------------------------------------------------------


def test_lost_answer_is_ambiguous(far, storage, proxy):
    """The commit took effect; nobody heard of it."""
    fill(far, "w")
    proxy.loses_answer = True
    append = make_append("w", 1, commit_id="mine")
    with pytest.raises(StorageUnavailableError, match="can be repeated"):
        far.commit([append])
    proxy.loses_answer = False
    wait_until(lambda: len(state(storage, "w")[1]) == 2, "the commit is there")
    assert far.read_journal(incarnation_of("w"), 1)[0].commit_id == "mine"
    assert far.commit([append]) == [STALE]


def test_lost_request_is_ambiguous_too(far, proxy):
    fill(far, "w")
    proxy.swallows = True
    proxy.asked.clear()
    outcome = []

    def commit():
        try:
            far.commit([make_append("w", 1)])
        except StorageError as error:
            outcome.append(error)

    thread = threading.Thread(target=commit, daemon=True)
    thread.start()
    assert proxy.asked.wait(60.0)
    proxy.cut()
    thread.join(60.0)
    proxy.swallows = False
    assert [type(error) for error in outcome] == [StorageUnavailableError]
    assert len(state(far, "w")[1]) == 1
    assert far.commit([make_append("w", 1)]) == [OK]


def test_cut_connections_are_replaced(far, proxy):
    """What lay idle is seen to be dead before it is used."""
    in_threads([far.now] * 4)
    proxy.cut()
    assert far.commit([make_append("w", 0)]) == [OK]
    proxy.cut()
    assert len(state(far, "w")[1]) == 1


def test_reading_is_repeated_on_a_new_connection(far, proxy, monkeypatch):
    """A connection can die after it was looked at; reading once more does no harm."""
    fill(far, "w")
    monkeypatch.setattr(postgres_pool, "is_quiet", lambda connection: True)
    in_threads([far.now] * 4)
    proxy.cut()
    assert far.read_catalog("w") is not None
    proxy.cut()
    with pytest.raises(StorageUnavailableError):
        far.commit([make_append("w", 1)])


@pytest.mark.parametrize("blackhole", ["kept", "new"])
def test_silence_ends_in_an_error(far, proxy, impatient, blackhole):
    fill(far, "w")
    if blackhole == "new":
        far.close()
    else:
        in_threads([far.now] * postgres_pool.LIMIT)
    proxy.swallows = True
    calls = [
        lambda: far.commit([make_append("w", 1)]),
        lambda: far.read_catalog("w"),
        lambda: far.renew_holder(make_holder("h"), 15.0),
        lambda: far.write_blob("i", "k", [b"x" * 3_000_000]),
        lambda: far.read_journal(incarnation_of("w")),
    ]

    def ask(call):
        started = time.monotonic()
        with pytest.raises(StorageUnavailableError, match="silent|timeout|does not answer"):
            call()
        assert time.monotonic() - started < 30.0

    # At once: each takes all the time that it is given.
    in_threads([partial(ask, call) for call in calls])
    proxy.swallows = False
    assert far.commit([make_append("w", 1)]) == [OK]
    assert far.find_blob("i", "k") is None


def test_upload_cut_in_the_middle_leaves_nothing(far, storage, proxy):
    def chunks():
        for number in range(8):
            if number == 5:
                proxy.cut()
            yield b"x" * 1_500_000

    with pytest.raises(StorageUnavailableError):
        far.write_blob("i", "k", chunks())
    assert storage.find_blob("i", "k") is None
    with storage.journals.home.pool.use() as connection:
        table = storage.journals.home.queries["read_chunks"].split("FROM ")[1].split()[0]
        wait_until(lambda: connection.first(f"SELECT count(*) FROM {table}")[0] == 0, "no chunk")


def test_slow_network_is_no_dead_one(far, storage, proxy, monkeypatch):
    """It takes longer than the server may be silent, and something comes all the time."""
    # Not so soon that a busy machine keeps the two ends silent for as long.
    monkeypatch.setattr(postgres_pool.Connection, "silence_seconds", 2.0)
    data = random.Random(1).randbytes(6_000_000)
    blob = storage.write_blob("i", "k", [data])
    far.now()
    proxy.delay = 0.4
    started = time.monotonic()
    assert bytes(far.read_blob("i", blob)) == data
    assert time.monotonic() - started > 1.5 * postgres_pool.Connection.silence_seconds


@pytest.mark.parametrize("appends", [1, 100, 1000])
def test_a_commit_is_one_trip(far, proxy, appends):
    far.commit([make_append(f"w{i}", 0) for i in range(appends)])
    before = proxy.trips
    assert far.commit([make_append(f"w{i}", 1) for i in range(appends)]) == [OK] * appends
    assert proxy.trips == before + 1
    # A transaction of several statements does not wait for each of them.
    chain = [make_append("w0", seq) for seq in range(2, 42)]
    assert far.commit(chain) == [OK] * 40
    assert proxy.trips < before + 20


def test_a_small_blob_is_one_trip(far, proxy):
    far.now()
    before = proxy.trips
    blob = far.write_blob("i", "k", [b"x" * 100_000])
    assert proxy.trips == before + 1
    far.read_blob("i", blob)
    assert proxy.trips == before + 3


def test_full_server_is_waited_for(server, url, monkeypatch):
    storage = PostgresStorage(url)
    storage.open()
    storage.close()
    taken = []
    with contextlib.suppress(psycopg.OperationalError):
        while True:
            taken.append(psycopg.connect(server.url))
    try:
        monkeypatch.setattr(postgres_pool, "FULL_SECONDS", 0.2)
        with pytest.raises(StorageUnavailableError, match="max_connections.*PgBouncer"):
            storage.now()
        monkeypatch.setattr(postgres_pool, "FULL_SECONDS", 30.0)
        timer = threading.Timer(0.5, taken.pop().close)
        timer.start()
        assert storage.commit([make_append("w", 0)]) == [OK]
        timer.join()
    finally:
        for connection in taken:
            connection.close()
    storage.close()


def test_threads_wait_for_a_connection_for_a_limited_time(storage, monkeypatch):
    monkeypatch.setattr(postgres_pool, "TURN_SECONDS", 0.1)
    hold = [storage.journals.home.pool.use() for _ in range(postgres_pool.LIMIT)]
    for context in hold:
        context.__enter__()
    with pytest.raises(StorageUnavailableError, match="connections of this process"):
        storage.now()
    for context in hold:
        context.__exit__(None, None, None)
    assert storage.now() > 0


# -- the server -------------------------------------------------------------------------------


def test_killed_in_mid_commit_and_restarted(server, storage):
    """No acknowledged commit is lost, although the server's default would lose it; the one commit
    without an answer is stored completely or not at all."""
    chance = random.Random(20260720)
    names = [f"w{i}" for i in range(3)]
    ends = dict.fromkeys(names, 0)
    blobs = {}
    for _ in range(4):
        stop = threading.Event()
        failures = []

        def work(stop=stop, failures=failures):
            number = len(blobs)
            while not stop.is_set():
                try:
                    appends = [
                        make_append(n, ends[n] + i, entry=b"e" * 2000)
                        for n in names
                        for i in range(2)
                    ]
                    assert storage.commit(appends) == [OK] * 6
                    for name in names:
                        ends[name] += 2
                    blobs[f"b{number}"] = storage.write_blob("i", f"b{number}", [b"x" * 100_000])
                    number += 1
                except StorageError as error:
                    failures.append(error)
                    return

        thread = threading.Thread(target=work, daemon=True)
        before = sum(ends.values())
        thread.start()
        wait_until(lambda: sum(ends.values()) > before + 60, "some commits")
        # Not a wait for anything: it moves the kill to any point of a commit.
        time.sleep(chance.random() * 0.005)
        server.kill()
        thread.join(30.0)
        stop.set()
        assert [type(error) for error in failures] == [StorageUnavailableError]
        with pytest.raises(StorageUnavailableError, match="does not answer"):
            storage.read_catalog("w0")
        server.start()
        seen = {name: len(state(storage, name)[1]) for name in names}
        assert all(seen[name] in (ends[name], ends[name] + 2) for name in names)
        assert len({seen[name] - ends[name] for name in names}) == 1
        ends.update(seen)
        for blob in blobs.values():
            assert bytes(storage.read_blob("i", blob)) == b"x" * 100_000
    assert sum(ends.values()) > 240


def many_rounds(storage):
    assert storage.commit([make_append("w", seq) for seq in range(1, 9)]) == [OK] * 8
    return lambda: len(state(storage, "w")[1]) == 9


def one_round(storage):
    assert storage.commit([make_append("w", 1), make_append("w2", 0)]) == [OK, OK]
    return lambda: len(list_ids(storage)) == 2


def deletion(storage):
    assert storage.delete("w", incarnation_of("w"), 1) is OK
    return lambda: storage.read_catalog("w") is None


def small_blob(storage):
    storage.write_blob("i", "k", [b"small"])
    return lambda: storage.find_blob("i", "k") is not None


def large_blob(storage):
    blob = storage.write_blob("i", "k", [b"x" * 3_000_000])
    return lambda: len(storage.read_blob("i", blob)) == 3_000_000


@pytest.mark.parametrize("act", [many_rounds, one_round, deletion, small_blob, large_blob])
def test_what_is_acknowledged_is_on_the_disk(server, storage, act):
    """The server's own default would lose each of them."""
    fill(storage, "w")
    is_there = act(storage)
    server.kill()
    server.start()
    assert is_there()


def test_restart_is_not_noticed_when_nothing_is_under_way(server, storage):
    fill(storage, "w")
    in_threads([storage.now] * 4)
    server.kill()
    server.start()
    assert storage.commit([make_append("w", 1)]) == [OK]


def test_hanging_server(server, storage, impatient):
    fill(storage, "w")
    server.signal(signal.SIGSTOP)
    try:
        for call in (storage.now, lambda: storage.commit([make_append("w", 1)])):
            started = time.monotonic()
            with pytest.raises(StorageUnavailableError):
                call()
            assert time.monotonic() - started < 30.0
    finally:
        server.signal(signal.SIGCONT)
    # It took the request: whether it took effect is for the caller to find out.
    assert storage.commit([make_append("w", storage.read_catalog("w").seq)]) == [OK]


def test_thousands_of_small_commits(storage):
    def write(name):
        return [storage.commit([make_append(name, seq)])[0] for seq in range(500)]

    names = [f"w{i}" for i in range(6)]
    assert in_threads([partial(write, name) for name in names]) == [[OK] * 500] * 6
    assert [len(state(storage, name)[1]) for name in names] == [500] * 6


# -- open -------------------------------------------------------------------------------------


def changed(server, **parts):
    """The server's URL with other parts."""
    parts = {"user": "postgres", "password": "", "host": "127.0.0.1", "port": server.port, **parts}
    parts = {"database": "postgres", "query": "", **parts}
    return "postgresql://{user}:{password}@{host}:{port}/{database}{query}".format(**parts)


@pytest.fixture(scope="module")
def roles(server):
    """A role that needs its password and may create nothing."""
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {GUARDED} LOGIN PASSWORD '{SECRET}'")
        connection.execute("CREATE DATABASE latin ENCODING 'SQL_ASCII' TEMPLATE template0")


@pytest.mark.parametrize(
    ("parts", "kind", "message"),
    [
        ({"user": GUARDED, "password": "wr0ng"}, StorageConfigError, "password.*percent-encoded"),
        ({"user": GUARDED, "password": ""}, StorageConfigError, "password.*PGPASSWORD"),
        ({"user": "nobody-here"}, StorageConfigError, "role.*Create the role"),
        ({"database": "nowhere"}, StorageConfigError, "nowhere.*createdb"),
        ({"database": "latin"}, StorageConfigError, "SQL_ASCII.*createdb --encoding=UTF8"),
        ({"host": "no-such-host.invalid"}, StorageConfigError, "Check the host"),
        ({"query": "?sslmode=require"}, StorageConfigError, "SSL.*sslmode"),
        ({"query": "?sslmode=perhaps"}, StorageConfigError, "sslmode.*Check the parameters"),
        ({"query": "?service=absent"}, StorageConfigError, "service"),
        ({"query": "?host=/nowhere/at/all"}, StorageConfigError, "socket|start the server"),
        ({"port": 1}, StorageUnavailableError, "refused.*server runs"),
        (
            {"query": "?options=-c%20default_transaction_read_only%3Don"},
            StorageConfigError,
            "standby.*primary",
        ),
        ({"user": GUARDED, "password": SECRET}, StorageConfigError, "CREATE SCHEMA.*GRANT"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_open_says_what_is_wrong(server, roles, caplog, parts, kind, message, monkeypatch):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setitem(postgres_target.DEFAULTS, "connect_timeout", "2")
    url = changed(server, **{"password": SECRET, **parts})
    storage = PostgresStorage(url)
    for check in (storage.open, storage.open_existing):
        if check == storage.open_existing and ("options" in url or "CREATE SCHEMA" in message):
            continue
        with pytest.raises(kind, match=message) as caught:
            check()
        shown = [str(caught.value), repr(caught.value), repr(vars(caught.value)), caplog.text]
        assert not [text for text in shown if SECRET in text or "wr0ng" in text]
        assert caught.value.__cause__ is None
        assert "\n" not in str(caught.value)
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    storage.close()


def test_what_lets_nobody_in_any_more_is_waited_for(server):
    """As while a server on this machine starts anew: its socket is gone for a moment."""
    query = f"?host={server.directory}&schema=test_{next(NUMBERS)}"
    storage = PostgresStorage(changed(server, query=query))
    storage.open()
    fill(storage, "w")
    socket = server.directory / f".s.PGSQL.{server.port}"
    away = socket.rename(server.directory / "away")
    storage.journals.home.pool.drop_idle()
    for work in (
        lambda: storage.read_catalog("w"),
        lambda: storage.commit([make_append("w", 1)]),
        lambda: storage.write_blob("i", "key", [b"data"]),
    ):
        with pytest.raises(StorageUnavailableError, match="its socket") as caught:
            work()
        assert is_transient(caught.value)
    away.rename(socket)
    assert storage.commit([make_append("w", 1)]) == [OK]
    storage.close()


def test_old_server_is_refused(server, monkeypatch):
    monkeypatch.setattr(postgres_schema, "OLDEST_SERVER", 990000)
    storage = PostgresStorage(server.url)
    with pytest.raises(StorageConfigError, match=r"PostgreSQL \d+; .*needs 99.*Upgrade the server"):
        storage.open()
    storage.close()


def test_password_works_and_travels(server, roles, url, caplog):
    caplog.set_level(logging.DEBUG)
    schema = url.rpartition("=")[2]
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {schema} AUTHORIZATION {GUARDED}")
    storage = PostgresStorage(
        changed(server, user=GUARDED, password=SECRET, query=f"?schema={schema}")
    )
    storage.open()
    copy = pickle.loads(pickle.dumps(storage))
    fill(copy, "w")
    assert list_ids(storage) == ["w"]
    with storage.journals.home.pool.use() as connection:
        shown = [repr(connection), str(connection.info.dsn), repr(storage), storage.url]
    assert not [
        text for text in [*shown, caplog.text, repr(storage.journals.home.target)] if SECRET in text
    ]
    storage.close()


def test_password_file(server, roles, url, monkeypatch, tmp_path):
    schema = url.rpartition("=")[2]
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {schema} AUTHORIZATION {GUARDED}")
    path = tmp_path / "passwords"
    path.write_text(f"127.0.0.1:{server.port}:*:{GUARDED}:{SECRET}\n")
    path.chmod(0o600)
    monkeypatch.setenv("PGPASSFILE", str(path))
    target = f"postgresql://{GUARDED}@127.0.0.1:{server.port}/postgres?schema={schema}"
    storage = PostgresStorage(target)
    storage.open()
    assert SECRET not in repr(pickle.dumps(storage))
    storage.close()


def test_user_who_may_only_read(server, roles, storage):
    fill(storage, "w")
    schema = storage.journals.home.target.schema
    reader = PostgresStorage(
        changed(server, user=GUARDED, password=SECRET, query=f"?schema={schema}")
    )
    with pytest.raises(StorageConfigError, match="GRANT"):
        reader.open_existing()
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute(f"GRANT USAGE ON SCHEMA {schema} TO {GUARDED}")
        connection.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {GUARDED}")
    reader.open_existing()
    assert list_ids(reader) == ["w"]
    with pytest.raises(StorageConfigError, match="lacks rights.*journal: SELECT, INSERT, UPDATE"):
        reader.open()
    with pytest.raises(StorageUnavailableError, match="Give this user the right"):
        reader.commit([make_append("w", 1)])
    reader.close()


def test_rights_that_the_message_names_are_enough(server, roles, storage):
    schema = storage.journals.home.target.schema
    user = PostgresStorage(
        changed(server, user=GUARDED, password=SECRET, query=f"?schema={schema}")
    )
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute(f"GRANT USAGE ON SCHEMA {schema} TO {GUARDED}")
        connection.execute(
            f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {GUARDED}"
        )
    user.open()
    row = fill(user, "w", 3)
    for size in (10, 3_000_000):
        user.write_blob(row.incarnation, f"k{size}", [b"x" * size])
        user.write_blob(f"orphan{size}", "k", [b"x" * size])
    assert user.sweep(0.0) == 2
    user.renew_holder(make_holder("h"), 15.0)
    user.remove_holder("h")
    assert user.delete("w", row.incarnation, 3) is OK
    user.close()


def test_unsafe_server_is_warned_of(server, url, caplog):
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET fsync = off")
        connection.execute("SELECT pg_reload_conf()")
        try:
            wait_until(
                lambda: connection.execute("SHOW fsync").fetchone() == ("off",), "fsync is off"
            )
            storage = PostgresStorage(url)
            storage.open()
            storage.close()
        finally:
            connection.execute("ALTER SYSTEM RESET fsync")
            connection.execute("SELECT pg_reload_conf()")
    assert "Turn fsync on" in caplog.text


def test_oldest_server_there_is_to_test_with(tmp_path):
    """The wheel has an older release beside the newest."""
    with PostgresServer(version=16) as server:
        storage = PostgresStorage(server.url)
        storage.open()
        fill(storage, "w", 3)
        blob = storage.write_blob("i", "k", [b"x" * 3_000_000])
        assert len(storage.read_blob("i", blob)) == 3_000_000
        assert storage.commit([make_append("w", 3), make_append("w2", 0)]) == [OK, OK]
        assert list_ids(storage, holders=("h1",)) == ["w", "w2"]
        assert storage.sweep(0.0) == 1
        storage.close()
