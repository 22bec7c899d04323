"""Packages in the cluster: brought once, brought again when they are gone, and taken out."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import ray

from ray_workflows._environment.attempts import packages_for, runtime_env_for
from ray_workflows._environment.code.packages import from_files
from ray_workflows._executor.scheduling import package_cache
from ray_workflows._executor.scheduling.package_cache import AGAIN_VARIABLE, PackageCache
from ray_workflows._model.plan import Environment, Package
from ray_workflows._ray.private import delete_key, get_key, has_key
from ray_workflows.storage import SqliteStorage
from tests.ray.marks import wait_until


@pytest.fixture
def storage(tmp_path: Path) -> SqliteStorage:
    storage = SqliteStorage(tmp_path / "racked")
    storage.open()
    return storage


@pytest.fixture
def package(storage: SqliteStorage, tmp_path: Path) -> Package:
    path = tmp_path / "racked.py"
    path.write_text(f"# {tmp_path}\n")
    return from_files(storage, {"racked.py": str(path)}, what="code")


def bring(rack: PackageCache, package: Package) -> None:
    ray.get(rack.need([package]))
    wait_until(lambda: rack.need([package]) == [], "it is known to be there")


def test_a_package_is_brought_once(storage: SqliteStorage, package: Package) -> None:
    rack = PackageCache(storage)
    assert not has_key(package.uri)
    bring(rack, package)
    stored = storage.read_blob(package.incarnation, package.blob)
    assert get_key(package.uri) == bytes(stored)
    runtime_env = {"env_vars": {"A": "b"}}
    assert not rack.lacked([package], ())
    assert rack.varied(runtime_env, [package]) == {"env_vars": {"A": "b"}}


def test_a_package_that_is_gone_is_brought_again(storage: SqliteStorage, package: Package) -> None:
    rack = PackageCache(storage)
    bring(rack, package)
    delete_key(package.uri)
    assert rack.lacked([package], {package.uri})
    bring(rack, package)
    assert has_key(package.uri)
    # What failed meanwhile failed for that; and what comes next is another runtime_env.
    assert rack.lacked([package], ())
    assert rack.varied({}, [package])["env_vars"] == {AGAIN_VARIABLE: "1"}


def test_a_worker_in_a_container_unpacks_what_ray_does_not(
    storage: SqliteStorage, package: Package
) -> None:
    environment = Environment(packages=(package,), code=package.uri)
    runtime_env = runtime_env_for(environment, {"image_uri": "any", "env_vars": {"A": "b"}})
    assert packages_for(environment, runtime_env) == (package,)
    bring(PackageCache(storage), package)
    # There are no containers here: the worker is one like any other.
    del runtime_env["image_uri"]

    @ray.remote(num_cpus=0, runtime_env=runtime_env)
    def where() -> list[object]:
        import sys

        from ray_workflows._environment import attempts
        from ray_workflows._environment.code import capture

        attempts.prefer_packages()
        attempts.prefer_packages()
        import racked

        return [racked.__file__, sys.path[0], capture.own_file(racked.__file__)]

    file, first, own = ray.get(where.remote())
    assert file == str(Path(str(first)) / "racked.py")
    assert own is None
    shutil.rmtree(str(first))


def test_what_nobody_needs_is_taken_out(
    storage: SqliteStorage, package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    rack = PackageCache(storage)
    bring(rack, package)
    rack.tidy()
    assert has_key(package.uri)
    monkeypatch.setattr(package_cache, "CHECK_SECONDS", 0.0)
    rack.tidy()
    assert has_key(package.uri)
    monkeypatch.setattr(package_cache, "UNUSED_SECONDS", 0.0)
    rack.tidy()
    wait_until(lambda: not has_key(package.uri), "it is taken out")
    bring(rack, package)
    assert has_key(package.uri)


def test_a_package_that_is_damaged_is_tried_again(storage: SqliteStorage, package: Package) -> None:
    rack = PackageCache(storage)
    storage.delete_blobs(package.incarnation)
    (ref,) = rack.need([package])
    with pytest.raises(ray.exceptions.RayTaskError, match="missing"):
        ray.get(ref)
    wait_until(lambda: package.uri not in rack.brought, "it is noticed")
    assert rack.need([package]) != [ref]
