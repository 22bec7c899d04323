"""What may be given as ``storage=``, and what the messages say about the rest."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from ray_workflows.exceptions import StorageConfigError
from ray_workflows.storage import MemoryStorage, SqliteStorage
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


@pytest.mark.parametrize("scheme", ["s3", "gs", "az", "shared", "memory", "sqlite"])
def test_unsupported_scheme(scheme):
    with pytest.raises(StorageConfigError, match=rf"'{scheme}'.*file:///directory"):
        storage_from_url(f"{scheme}://user:secret@host/x")


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


def test_variable(monkeypatch):
    monkeypatch.setenv("RAY_WORKFLOW_STORAGE", "file:///from/variable")
    assert storage_from_url().directory == "/from/variable"
    assert storage_from_url("/given").directory == "/given"
    monkeypatch.setenv("RAY_WORKFLOW_STORAGE", "s3://bucket")
    with pytest.raises(StorageConfigError, match="'s3'"):
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
