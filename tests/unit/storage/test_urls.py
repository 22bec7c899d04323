"""What may be given as ``storage=``, and what the messages say about the rest."""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path

import pytest

import ray_workflows
from ray_workflows.exceptions import StorageConfigError
from ray_workflows.storage import LeaseStore, MemoryStorage, SqliteStorage, Storage
from ray_workflows.storage.objects import ObjectStorage, SharedStorage
from ray_workflows.storage.objects.bucket import VARIABLES
from ray_workflows.storage.urls import storage_from_url


@pytest.mark.parametrize(
    ("spec", "directory"),
    [
        ("/data/wf", "/data/wf"),
        ("/data/a%20b", "/data/a%20b"),
        ("/data/a?b#c", "/data/a?b#c"),
        (Path("/data/wf"), "/data/wf"),
        ("file:///data/wf", "/data/wf"),
        ("FILE:///data/wf/", "/data/wf"),
        ("file:/data/wf", "/data/wf"),
        ("file://localhost/data/wf", "/data/wf"),
        ("file:///data/a%20b%3Fc%23d%25", "/data/a b?c#d%"),
        ("file:///data/~me", "/data/~me"),
        ("file:///data/Gr%C3%B6%C3%9Fe", "/data/Größe"),
    ],
)
def test_directories(spec, directory):
    storage = storage_from_url(spec)
    assert type(storage) is SqliteStorage
    assert storage.directory == directory


@pytest.mark.parametrize("name", ["plain", "a b", "a%41", "ü", "a?b#c", "\udcff", "~x"])
def test_url_of_a_storage_leads_back_to_it(name):
    storage = SqliteStorage(f"/data/{name}")
    again = storage_from_url(storage.url)
    assert (again.directory, again.url) == (storage.directory, storage.url)
    assert storage.url.isascii()


def test_relative_paths_and_links_are_resolved(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    urls = {storage_from_url(spec).url for spec in ("real", "./link", tmp_path / "link" / ".")}
    assert urls == {f"file://{tmp_path}/real"}


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert storage_from_url("~/wf").directory == f"{tmp_path}/wf"
    assert storage_from_url(Path("~/wf")).directory == f"{tmp_path}/wf"


def test_storage_is_returned_as_it_is():
    storage = MemoryStorage()
    assert storage_from_url(storage) is storage


@pytest.mark.parametrize("scheme", ["hdfs", "memory", "sqlite"])
def test_unsupported_scheme(scheme):
    with pytest.raises(StorageConfigError, match=rf"'{scheme}'.*file:///directory"):
        storage_from_url(f"{scheme}://user:secret@host/x")


@pytest.mark.parametrize(
    ("url", "directory"),
    [
        ("shared:///mnt/wf", "/mnt/wf"),
        ("SHARED:///mnt/a%20b/", "/mnt/a b"),
        ("shared://localhost/mnt/wf", "/mnt/wf"),
    ],
)
def test_shared_directories(url, directory):
    storage = storage_from_url(url)
    assert type(storage) is SharedStorage
    assert storage.directory == directory
    assert storage_from_url(storage.url).directory == directory
    assert not storage.node_bound


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("shared://server/export", "host 'server'.*shared:///server/export"),
        ("shared://me:secret@server/export", "host 'server'"),
        ("shared:///mnt?x=1", "query"),
        ("shared://", "no absolute path"),
    ],
)
def test_bad_shared_urls(url, message):
    with pytest.raises(StorageConfigError, match=message) as caught:
        storage_from_url(url)
    assert "secret" not in str(caught.value)


NO_VARIABLES = [name for names in VARIABLES.values() for found in names.values() for name in found]


@pytest.fixture
def no_provider(monkeypatch):
    for name in NO_VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("s3://bucket", "s3://bucket"),
        ("S3://bucket/", "s3://bucket"),
        ("s3://bucket//a/b/", "s3://bucket/a/b"),
        ("s3://bucket/a%20b", "s3://bucket/a%20b"),
        ("s3://bucket/p?region=eu-west-1", "s3://bucket/p"),
        (
            "s3://bucket/p?region=x&endpoint=http://127.0.0.1:9000&allow_http=true",
            "s3://bucket/p?endpoint=http://127.0.0.1:9000",
        ),
        ("gs://bucket/p", "gs://bucket/p"),
        ("az://container/p?account_name=acc", "az://container/p?account_name=acc"),
    ],
)
def test_buckets(no_provider, url, expected):
    storage = storage_from_url(url)
    assert type(storage) is ObjectStorage
    assert storage.url == expected
    copy = pickle.loads(pickle.dumps(storage))
    options = storage.journals.home.options
    assert (copy.url, copy.journals.home.options) == (storage.url, options)
    assert storage_from_url(storage.url).url == expected


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://", "names no bucket"),
        ("s3:///prefix", "names no bucket"),
        ("s3://key:secret@bucket/p", "credentials"),
        ("s3://bucket/p?secret_access_key=secret", "environment"),
        ("s3://bucket/p?access_key_id=secret", "environment"),
        ("s3://bucket/p?sas_token=secret", "environment"),
        ("s3://bucket/p?endpoint=http://me:secret@host", "credentials"),
        ("s3://bucket/p?colour=red", "no option 'colour'.*endpoint"),
        ("s3://bucket/p?allow_http=yes", "true or false"),
        ("s3://bucket/a/../b", r"'\.\.'"),
        ("s3://bucket/p#x", "fragment"),
    ],
)
def test_bad_bucket_urls(no_provider, url, message):
    with pytest.raises(StorageConfigError, match=message) as caught:
        storage_from_url(url)
    assert "=secret" not in str(caught.value)
    assert ":secret" not in str(caught.value)


def test_where_a_bucket_is_travels_and_credentials_stay(no_provider, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9000")
    monkeypatch.setenv("AWS_ALLOW_HTTP", "TRUE")
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "my-key-id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "my-secret")
    storage = storage_from_url("s3://bucket/p")
    pickled = pickle.dumps(storage)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    assert pickle.loads(pickled).url == "s3://bucket/p?endpoint=http://127.0.0.1:9000"
    assert pickle.loads(pickled).journals.home.options["region"] == "eu-west-1"
    for shown in (storage.url, repr(storage), repr(vars(storage)), pickled.decode("latin-1")):
        assert "my-secret" not in shown
        assert "my-key-id" not in shown


def test_message_keeps_credentials():
    with pytest.raises(StorageConfigError) as caught:
        storage_from_url("mysql://user:secret@host/x")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("file://server/data", "host 'server'.*file:///server/data"),
        ("file://~/data", "host '~'"),
        ("file://", "no absolute path"),
        ("file:", "no absolute path"),
        ("file:data", "no absolute path"),
        ("file:///data?mode=ro", "query"),
        ("file:///data#x", "fragment"),
        ("", "not the path of a directory"),
        ("file:///a%00b", "not the path of a directory"),
    ],
)
def test_bad_urls(url, message):
    with pytest.raises(StorageConfigError, match=message):
        storage_from_url(url)


@pytest.mark.parametrize("spec", [5, b"/data", ["x"], object()])
def test_other_types(spec):
    with pytest.raises(TypeError, match="file:///directory"):
        storage_from_url(spec)


def test_a_part_that_lacks_a_method():
    class Half(LeaseStore):
        def now(self):
            return 0.0

    missing = "read_holders, remove_holder, renew_holder"
    with pytest.raises(
        StorageConfigError,
        match=f"Half can't be a LeaseStore: it lacks {missing}.*LeaseStoreContract",
    ):
        Half()


def test_a_storage_of_a_release_with_one_class_for_all():
    """Whatever it has itself would be seen by callers of the storage and not by its parts."""

    class Old(Storage):
        @property
        def url(self):
            return "old://"

        def commit(self, appends):
            return []

    class Empty(Storage):
        def __init__(self):
            pass

    advice = r"JournalStore, BlobStore and LeaseStore.*docs/storage-own\.md"
    with pytest.raises(TypeError, match=rf"The storage Old has commit, url,.*{advice}"):
        ray_workflows.init(Old())
    with pytest.raises(TypeError, match=rf"The storage Empty does not call .*{advice}"):
        ray_workflows.init(Empty())


def test_variable(monkeypatch):
    monkeypatch.setenv("RAY_WORKFLOW_STORAGE", "file:///from/variable")
    assert storage_from_url().directory == "/from/variable"
    assert storage_from_url("/given").directory == "/given"
    monkeypatch.setenv("RAY_WORKFLOW_STORAGE", "hdfs://bucket")
    with pytest.raises(StorageConfigError, match="'hdfs'"):
        storage_from_url(None)


@pytest.mark.parametrize(
    ("platform", "xdg", "expected"),
    [
        ("linux", None, "/home/me/.local/share/ray_workflows"),
        ("linux", "", "/home/me/.local/share/ray_workflows"),
        ("linux", "/xdg", "/xdg/ray_workflows"),
        ("linux", "relative", "/home/me/.local/share/ray_workflows"),
        ("darwin", "/xdg", "/home/me/Library/Application Support/ray_workflows"),
    ],
)
@pytest.mark.parametrize("variable", [None, ""])
def test_default(monkeypatch, platform, xdg, expected, variable):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setenv("HOME", "/home/me")
    for name, value in (("XDG_DATA_HOME", xdg), ("RAY_WORKFLOW_STORAGE", variable)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert storage_from_url().directory == os.path.realpath(expected)
