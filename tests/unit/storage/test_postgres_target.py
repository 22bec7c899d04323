"""What a PostgreSQL URL means, and what is shown of it."""

from __future__ import annotations

import os
import pickle

import pytest

if "CI" not in os.environ:
    pytest.importorskip("psycopg", reason="the extra postgres is not installed")

from ray_workflows.exceptions import StorageConfigError
from ray_workflows.storage.postgres import PostgresStorage
from ray_workflows.storage.postgres.target import parse_target
from ray_workflows.storage.urls import storage_from_url

SECRET = "s3cr3t-w0rd"


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith("PG")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (f"postgresql://me:{SECRET}@db/work", "postgresql://db:5432/work"),
        (f"postgres://me:{SECRET}@DB.Example.com/work", "postgresql://db.example.com:5432/work"),
        ("POSTGRESQL://me@db/work", "postgresql://db:5432/work"),
        ("postgresql://me@db:6000/work?sslmode=require", "postgresql://db:6000/work"),
        ("postgresql://me@db", "postgresql://db:5432/me"),
        ("postgresql://db/a%20b?schema=mine", "postgresql://db:5432/a%20b?schema=mine"),
        (
            "postgresql://db/w?schema=Gr%C3%B6%C3%9Fe",
            "postgresql://db:5432/w?schema=Gr%C3%B6%C3%9Fe",
        ),
        ("postgresql://db/w?schema=ray_workflows", "postgresql://db:5432/w"),
        ("postgresql://a:1,b:2/w", "postgresql://a:1,b:2/w"),
        ("postgresql://a,b/w", "postgresql://a:5432,b:5432/w"),
        ("postgresql://[::1]:6000/w", "postgresql://[::1]:6000/w"),
        (
            "postgresql:///w?host=/var/run/postgresql",
            "postgresql:///w?host=%2Fvar%2Frun%2Fpostgresql&port=5432",
        ),
        ("postgresql://?service=prod", "postgresql:///?service=prod"),
        (f"postgresql://db/w?password={SECRET}&sslpassword={SECRET}", "postgresql://db:5432/w"),
    ],
)
def test_what_is_shown(url, shown):
    storage = storage_from_url(url)
    assert type(storage) is PostgresStorage
    assert storage.url == shown
    assert repr(storage) == f"PostgresStorage({shown!r})"
    assert not storage.node_bound
    assert storage_from_url(shown).url == shown
    everything = [
        repr(storage.journals.home.target),
        str(vars(storage)),
        str(storage.journals.home.schema.names),
    ]
    assert not [text for text in everything if SECRET in text]


def test_users_do_not_make_another_storage():
    urls = ("postgresql://a@db/w", f"postgresql://b:{SECRET}@db:5432/w?connect_timeout=3")
    assert len({storage_from_url(url).url for url in urls}) == 1


def test_variables_complete_the_url_and_travel(monkeypatch):
    monkeypatch.setenv("PGHOST", "db")
    monkeypatch.setenv("PGPORT", "6000")
    monkeypatch.setenv("PGUSER", "me")
    monkeypatch.setenv("PGDATABASE", "work")
    monkeypatch.setenv("PGPASSWORD", SECRET)
    storage = storage_from_url("postgresql://")
    assert storage.url == "postgresql://db:6000/work"
    data = pickle.dumps(storage)
    for name in ("PGHOST", "PGPORT", "PGUSER", "PGDATABASE", "PGPASSWORD"):
        monkeypatch.delenv(name)
    copy = pickle.loads(data)
    assert copy.url == storage.url
    parameters = copy.journals.home.target.connect_parameters()
    assert (parameters["user"], parameters["password"]) == ("me", SECRET)
    assert storage_from_url("postgresql://other@host/x").target.parameters["user"] == "other"


def test_service_of_the_environment_travels(monkeypatch, tmp_path):
    (tmp_path / "services").write_text("[prod]\nhost=db\ndbname=work\nuser=me\n")
    monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))
    monkeypatch.setenv("PGSERVICE", "prod")
    storage = storage_from_url("postgresql://")
    assert storage.url == "postgresql://db:5432/work"
    assert "service" not in storage.journals.home.target.parameters


def test_a_gone_server_is_noticed_within_seconds():
    parameters = parse_target("postgresql://db/w?tcp_user_timeout=77").connect_parameters()
    assert parameters["tcp_user_timeout"] == "77"
    assert int(parameters["connect_timeout"]) <= 10
    idle, interval, count = (
        int(parameters[f"keepalives_{name}"]) for name in ("idle", "interval", "count")
    )
    assert idle + interval * count <= 30
    assert "target_session_attrs" not in parameters


def test_of_several_servers_the_one_that_can_be_written():
    parameters = parse_target("postgresql://a,b/w").connect_parameters()
    assert parameters["target_session_attrs"] == "read-write"
    parameters = parse_target("postgresql://a,b/w?target_session_attrs=any").connect_parameters()
    assert parameters["target_session_attrs"] == "any"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (f"postgresql://me:{SECRET}@db/w?shcema=x", "unknown parameter 'shcema'.*schema"),
        (f"postgresql://me:{SECRET}/@db/w", "%2F"),
        (f"postgresql://me:123/{SECRET}@db/w", "%2F"),
        (f"postgresql://me:x?{SECRET}@db/w", "%3F"),
        (f"postgresql://me:x?{SECRET}=y@db/w", "%3F"),
        (f"postgresql://me:{SECRET}%zz@db/w", "can't be read"),
        (f"postgresql://me:{SECRET}@db:a b/w", "can't be read"),
        (f"postgresql://me:{SECRET}@[::1/w", "can't be read"),
        (f"postgresql://me:{SECRET}@db/w?schema=", "can't be the name"),
        (f"postgresql://me:{SECRET}@db/w?schema=pg_x", "pg_"),
        (f"postgresql://me:{SECRET}@db/w?schema={'x' * 64}", "63 bytes"),
        (f"postgresql://me:{SECRET}@db/w?schema=a%25b", "can't be the name"),
        (f"postgresql://me:{SECRET}@db/w?schema=a%00b", "can't be the name"),
    ],
)
def test_bad_urls(url, message):
    with pytest.raises(StorageConfigError, match=message) as caught:
        storage_from_url(url)
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_missing_extra_names_the_command(monkeypatch):
    import builtins

    real = builtins.__import__

    def without_psycopg(name, *args, **kwargs):
        if name.split(".")[0] == "psycopg" or name == "ray_workflows.storage.postgres":
            raise ImportError("No module named 'psycopg'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_psycopg)
    with pytest.raises(StorageConfigError, match=r'pip install "ray-workflows\[postgres\]"'):
        storage_from_url("postgresql://db/w")
