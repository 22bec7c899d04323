"""Packages of the cluster in a storage: what they are called, and that their bytes are checked."""

from __future__ import annotations

import hashlib

import pytest

from ray_workflows._environment import packages, store
from ray_workflows.storage import MemoryStorage


def test_a_package_of_any_name_is_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    uri = "gcs://of_the_user.zip"
    data = bytes(range(256)) * 1000
    monkeypatch.setattr(packages.ray_private, "get_key", {uri: data}.get)
    storage = MemoryStorage()
    package = packages.fetch(storage, uri, packages.digest_in(uri), None)
    assert package.uri == uri
    name = packages.item_name(package)
    assert name == f"{store.PACKAGE}/{hashlib.sha256(data).hexdigest()[:32]}"
    item = store.find(storage, name)
    assert item is not None
    assert item.incarnation == package.incarnation
    assert storage.read_blob(package.incarnation, package.blob) == data
