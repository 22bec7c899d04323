"""Packages in a storage: what they are called, and what happens when their bytes are damaged."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from ray_workflows._environment import shared_items
from ray_workflows._environment.code import packages
from ray_workflows._model.plan import Package
from ray_workflows.exceptions import StorageCorruptError
from ray_workflows.storage import MemoryStorage, SqliteStorage, Storage


def test_a_package_of_any_name_is_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    uri = "gcs://of_the_user.zip"
    data = bytes(range(256)) * 1000
    monkeypatch.setattr(packages.private, "get_key", {uri: data}.get)
    storage = MemoryStorage()
    package = packages.fetch(storage, uri, packages.digest_in(uri), None)
    assert package.uri == uri
    name = packages.item_name(package)
    assert name == f"{shared_items.PACKAGE}/{hashlib.sha256(data).hexdigest()[:32]}"
    item = shared_items.find(storage, name)
    assert item is not None
    assert item.incarnation == package.incarnation
    assert storage.read_blob(package.incarnation, package.blob) == data


# -- damage --------------------------------------------------------------------------------


class Place:
    """A storage whose blobs can be damaged behind its back."""

    def __init__(self, storage: Storage, directory: Path | None = None) -> None:
        self.storage = storage
        self.directory = directory
        storage.open()

    def read(self, incarnation: str) -> bytes:
        if self.directory is not None:
            return (self.directory / "blobs" / incarnation / shared_items.KEY).read_bytes()
        return self.storage.blobs.home.blobs[incarnation][shared_items.KEY].data

    def replace(self, incarnation: str, data: bytes | None) -> None:
        """Put other bytes in the place of an item's, or none."""
        if self.directory is not None:
            path = self.directory / "blobs" / incarnation / shared_items.KEY
            path.unlink()
            if data is not None:
                path.write_bytes(data)
            return
        blobs = self.storage.blobs.home.blobs[incarnation]
        stored = blobs.pop(shared_items.KEY)
        if data is not None:
            blobs[shared_items.KEY] = msgspec.structs.replace(stored, data=data)


@pytest.fixture(params=["memory", "sqlite"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "memory":
        return Place(MemoryStorage())
    return Place(SqliteStorage(tmp_path / "store"), tmp_path / "store")


DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "gone": lambda data: None,
    "cut": lambda data: data[: len(data) // 2],
    "flipped": lambda data: data[:50] + bytes([data[50] ^ 1]) + data[51:],
    "another's": lambda data: bytes(reversed(data)),
}


@pytest.fixture
def code(tmp_path: Path) -> dict[str, str]:
    path = tmp_path / "mine.py"
    path.write_text("# mine\n" * 100)
    return {"mine.py": str(path)}


def keep(place: Place, code: dict[str, str]) -> Package:
    return packages.from_files(place.storage, code, what="code")


def stored(place: Place, package: Package) -> bytes:
    return bytes(place.storage.read_blob(package.incarnation, package.blob))


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """What the cluster has by key."""
    there: dict[str, bytes] = {}
    monkeypatch.setattr(packages.private, "has_key", there.__contains__)
    monkeypatch.setattr(packages.private, "put_key", there.__setitem__)
    return there


def bring(place: Place, package: Package) -> None:
    """As a Ray task does."""
    packages.private.remote_body(packages.bring)(place.storage, package)


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_package_is_never_used_and_is_mended_by_who_has_the_same_files(
    place: Place, code: dict[str, str], cluster: dict[str, bytes], how: str
) -> None:
    package = keep(place, code)
    whole = stored(place, package)
    place.replace(package.incarnation, DAMAGES[how](whole))
    with pytest.raises(StorageCorruptError) as caught:
        bring(place, package)
    assert not cluster
    # It names what it is, and the key of the bytes.
    for part in (packages.item_name(package), package.incarnation, shared_items.KEY):
        assert part in str(caught.value)
    # A driver with the same files stores them again, in the same place.
    assert keep(place, code) == package
    assert place.read(package.incarnation) == whole
    bring(place, package)
    assert cluster == {package.uri: whole}


def test_a_package_that_was_put_back_is_used_as_it_is(
    place: Place, code: dict[str, str], cluster: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    package = keep(place, code)
    whole = stored(place, package)
    place.replace(package.incarnation, b"")
    with pytest.raises(StorageCorruptError):
        bring(place, package)
    place.replace(package.incarnation, whole)
    with monkeypatch.context() as patched:
        patched.setattr(type(place.storage), "write_blob", None)
        assert keep(place, code) == package
    item = shared_items.find(place.storage, packages.item_name(package))
    assert item is not None
    assert not item.damaged


def test_files_that_pack_otherwise_take_the_place_of_damaged_ones(place: Place) -> None:
    """Another zlib makes other bytes of the same files: the workflows of before stay damaged, those
    that come now are not."""
    before = shared_items.keep(place.storage, "package/a", lambda: [b"packed"])
    place.replace(before.incarnation, None)
    shared_items.note_damage(place.storage, "package/a", before.incarnation)
    after = shared_items.keep(place.storage, "package/a", lambda: [b"packed otherwise"])
    assert bytes(place.storage.read_blob(after.incarnation, after.blob)) == b"packed otherwise"
    with pytest.raises(StorageCorruptError):
        place.storage.read_blob(before.incarnation, before.blob)


def test_a_copy_mends_what_is_damaged_where_it_goes(place: Place) -> None:
    source, user = MemoryStorage(), ("w", "i")
    item = shared_items.keep(source, "package/a", lambda: [b"packed"])
    shared_items.copy_item(source, place.storage, item, user)
    place.replace(item.incarnation, b"other!")
    shared_items.note_damage(place.storage, "package/a", item.incarnation)
    shared_items.copy_item(source, place.storage, item, user)
    assert bytes(place.storage.read_blob(item.incarnation, item.blob)) == b"packed"
