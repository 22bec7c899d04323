"""The user's own modules: which are found, what is packed of them, what is too much."""

from __future__ import annotations

import importlib
import os
import random
import re
import sys
import types
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from ray_workflows._environment import snapshot
from ray_workflows._environment.code import archive, capture, modules, packages, sources
from ray_workflows._environment.compare import Here, changed_modules, diff, obstacles
from ray_workflows._environment.record import Module, Record, decode, encode
from ray_workflows.exceptions import PackageTooLargeError
from ray_workflows.storage import MemoryStorage


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Path]:
    capture.own_file.cache_clear()
    yield tmp_path
    capture.own_file.cache_clear()


def reach(directory: Path, *names: str) -> modules.Reached:
    reached = modules.Reached([str(directory)])
    reached.follow(names)
    return reached


# -- whether they have changed ----------------------------------------------------------------


@pytest.fixture
def scanned(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The directories of each search for modules."""
    searches: list[tuple[str, ...]] = []
    search = capture.code_files

    def note(directories: tuple[str, ...]) -> list[str]:
        searches.append(directories)
        return search(directories)

    capture.library_directories()  # The first time it imports something.
    monkeypatch.setattr(snapshot, "digested", None)
    monkeypatch.setattr(capture, "code_files", note)
    return searches


def age(*paths: Path) -> None:
    """As if they had been changed a minute ago."""
    for path in paths:
        then = path.stat().st_mtime - 60.0
        os.utime(path, (then, then))


def test_modules_are_searched_for_when_something_has_changed(
    project: Path, scanned: list[tuple[str, ...]]
) -> None:
    module, directories = project / "rw_a.py", (str(project),)
    module.write_text("a = 1")
    age(module, project)
    first = snapshot.digest_of(directories)
    assert snapshot.digest_of(directories) == first
    assert len(scanned) == 1

    def changed(before: str) -> str:
        after = snapshot.digest_of(directories)
        assert after != before
        age(*project.iterdir(), project)
        return snapshot.digest_of(directories)

    module.write_text("a = 22")
    second = changed(first)
    (project / "rw_b.py").write_text("")
    third = changed(second)
    module.unlink()
    last = changed(third)
    assert snapshot.digest_of(()) != last


def test_a_change_in_the_same_tick_is_seen(project: Path, scanned: list[tuple[str, ...]]) -> None:
    """The time of a directory that changes twice within a tick of its file system is the same."""
    module, directories = project / "rw_a.py", (str(project),)
    module.write_text("a = 1")
    age(module)
    first = snapshot.digest_of(directories)
    now = project.stat().st_mtime_ns
    (project / "rw_b.py").write_text("")
    os.utime(project, ns=(now, now))
    assert snapshot.digest_of(directories) != first


def test_a_module_that_is_imported_is_seen(
    project: Path, scanned: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    package = project / "rw_inside"
    package.mkdir()
    (package / "__init__.py").write_text("")
    age(package, project)
    directories = (str(project),)
    first = snapshot.digest_of(directories)
    monkeypatch.syspath_prepend(str(project))
    importlib.import_module("rw_inside")
    try:
        assert snapshot.digest_of(directories) != first
    finally:
        del sys.modules["rw_inside"]


# -- which are found -----------------------------------------------------------------------


def test_modules_are_followed_through_their_imports(project: Path) -> None:
    (project / "rw_a.py").write_text("def f():\n    import rw_b.inner\n")
    (project / "rw_b").mkdir()
    (project / "rw_b" / "__init__.py").write_text("from . import inner\n")
    (project / "rw_b" / "inner.py").write_text("import rw_c, json, msgspec, not_there\n")
    (project / "rw_b" / "data.txt").write_text("data")
    (project / "rw_c.py").write_text("import rw_a\n")
    (project / "rw_d.py").write_text("")
    reached = reach(project, "rw_a")
    assert sorted(reached.files) == [
        "rw_a.py",
        "rw_b/__init__.py",
        "rw_b/data.txt",
        "rw_b/inner.py",
        "rw_c.py",
    ]
    assert reached.own == {"rw_a", "rw_b", "rw_c"}
    assert set(reached.installed) == {"msgspec"}
    assert reached.installed["msgspec"]


def test_of_a_directory_without_init_modules_alone(project: Path) -> None:
    (project / "rw_space").mkdir()
    (project / "rw_space" / "part.py").write_text("")
    (project / "rw_space" / "data.bin").write_text("")
    assert sorted(reach(project, "rw_space.part".partition(".")[0]).files) == ["rw_space/part.py"]


def test_a_directory_of_data_is_no_module(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python takes an installed one before a directory without ``__init__``."""
    installed = project / "site-packages"
    for path in (project / "rw_data" / "script.py", installed / "rw_data" / "__init__.py"):
        path.parent.mkdir(parents=True)
        path.touch()
    monkeypatch.syspath_prepend(str(installed))
    reached = reach(project, "rw_data")
    assert reached.files == {}
    assert "rw_data" in reached.installed


def test_ignored_modules_that_are_imported_belong_to_it(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of ignore files, those of the whole repository count."""
    files = ("__init__.py", "_version.py", "old.py", "data/big.dat", "data/small.csv")
    for name in (".git/config", *(f"src/rw_pkg/{file}" for file in files)):
        path = project / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (project / ".gitignore").write_text("_version.py\nold.py\n*.dat\n")
    monkeypatch.syspath_prepend(str(project / "src"))
    expected = ["rw_pkg/__init__.py", "rw_pkg/data/small.csv"]
    assert sorted(reach(project / "src", "rw_pkg").files) == expected
    importlib.import_module("rw_pkg._version")
    try:
        found = reach(project / "src", "rw_pkg").files
    finally:
        del sys.modules["rw_pkg"], sys.modules["rw_pkg._version"]
    assert sorted(found) == ["rw_pkg/__init__.py", "rw_pkg/_version.py", "rw_pkg/data/small.csv"]
    # Somebody who keeps a home directory in git ignores all of it.
    (project / ".gitignore").write_text("*\n")
    assert "rw_pkg/data/big.dat" in reach(project / "src", "rw_pkg").files
    (project / "src").rename(project / "venv")
    assert "rw_pkg/data/big.dat" in reach(project / "venv", "rw_pkg").files


def test_links_are_followed_to_code_alone(
    project: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for name in ("shared.py", "package/__init__.py", "package/inner.py", "data/huge.bin"):
        path = elsewhere / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    top = project / "rw_linked"
    top.mkdir()
    (top / "__init__.py").touch()
    (top / "shared.py").symlink_to(elsewhere / "shared.py")
    (top / "package").symlink_to(elsewhere / "package")
    (top / "data").symlink_to(elsewhere / "data")
    (top / "gone.txt").symlink_to(elsewhere / "gone.txt")
    (elsewhere / "package" / "again").symlink_to(elsewhere / "package")
    (project / "rw_link.py").symlink_to(elsewhere / "shared.py")
    assert sorted(reach(project, "rw_linked", "rw_link").files) == [
        "rw_link.py",
        "rw_linked/__init__.py",
        "rw_linked/package/__init__.py",
        "rw_linked/package/inner.py",
        "rw_linked/shared.py",
    ]
    # A directory that is given by name is taken as Ray takes it.
    assert "rw_linked/data/huge.bin" in names_below(project)


def test_a_module_that_is_gone_is_left_out(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The project was moved: nothing to take, and nothing to fail for."""
    monkeypatch.syspath_prepend(str(project))
    (project / "rw_gone.py").touch()
    importlib.import_module("rw_gone")
    try:
        (project / "rw_gone.py").unlink()
        reached = reach(project, "rw_gone")
    finally:
        sys.modules.pop("rw_gone", None)
    assert reached.files == reached.installed == {}
    assert "is gone" in reached.skipped["rw_gone"]


def test_the_package_of_a_script_is_found() -> None:
    main = types.ModuleType("__main__")
    main.__package__ = "rw_app.commands"
    assert "rw_app" in modules.roots(main)


def test_no_current_directory(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = project / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    monkeypatch.setattr(sys, "path", ["", str(project)])
    gone.rmdir()
    assert str(project) in capture.import_directories()


def test_this_package_and_ray_are_never_the_users(project: Path) -> None:
    """Wherever this package is imported from, a source tree too."""
    reached = reach(project, "ray_workflows", "ray", "sys", "json")
    assert reached.files == {}
    assert reached.installed == {}
    assert capture.own_file(capture.__file__) is None
    own = capture.imported_files(capture.import_directories(), len(sys.modules))
    assert not [path for path in own if "/ray_workflows/" in path]


def test_a_module_that_does_not_parse_is_taken_as_it_is(project: Path) -> None:
    (project / "rw_broken.py").write_text("def (\n")
    assert list(reach(project, "rw_broken").files) == ["rw_broken.py"]


def test_what_was_typed_is_searched() -> None:
    main = types.ModuleType("__main__")
    exec("import json as j\ndef f():\n    def g():\n        import rw_typed.x\n", vars(main))
    cells = ["import rw_cell", "%magic", "from rw_other import x"]
    found = sources.imports_typed(vars(main), cells)
    assert {"json", "rw_typed", "rw_cell", "rw_other"} <= found


def test_unpacked_packages_are_not_the_users(project: Path) -> None:
    path = project / "runtime_resources" / "py_modules_files" / "x" / "module.py"
    path.parent.mkdir(parents=True)
    path.touch()
    assert capture.own_file(str(path)) is None


def test_what_unpacked_packages_import_is_known(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are no installed packages, which would have to be installed elsewhere."""
    top = project / "runtime_resources" / "working_dir_files" / "x"
    top.mkdir(parents=True)
    (top / "rw_job.py").write_text("def f():\n    import rw_part, not_there\n")
    (top / "rw_part.py").write_text("import msgspec\n")
    monkeypatch.syspath_prepend(str(top))
    reached = modules.Reached([])
    importlib.import_module("rw_job")
    try:
        assert "rw_job" in modules.roots(None)
        reached.follow(["rw_job"])
    finally:
        sys.modules.pop("rw_job", None)
    assert reached.files == {}
    assert set(reached.installed) == {"msgspec"}


# -- what is packed ------------------------------------------------------------------------


def names_below(directory: Path, *excludes: str) -> list[str]:
    return [name for name, _ in archive.walk(str(directory), excludes)]


def test_ignored_files_are_left_out(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.py", "a.pyc", "big.dat", "notes.md", "sub/b.py", "sub/c.py", "sub/deep/b.py",
                 "build/x.py", "__pycache__/y.py", ".git/config", "own/z.py"):  # fmt: skip
        path = project / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (project / ".gitignore").write_text("*.dat\nbuild/\n")
    (project / ".rayignore").write_text("/own\n")
    (project / "sub" / ".gitignore").write_text("/b.py\n")
    kept = names_below(project, "*.md")
    assert [n for n in kept if "ignore" not in n] == ["a.py", "sub/c.py", "sub/deep/b.py"]
    monkeypatch.setenv("RAY_RUNTIME_ENV_IGNORE_GITIGNORE", "1")
    assert "big.dat" in names_below(project)
    assert "own/z.py" not in names_below(project)


def test_a_link_upwards_ends(project: Path) -> None:
    (project / "a.py").touch()
    (project / "loop").symlink_to(project)
    assert names_below(project) == ["a.py"]


def test_the_same_files_give_the_same_bytes(project: Path) -> None:
    first, second = project / "1", project / "2"
    for directory in (first, second):
        directory.mkdir()
        (directory / "a.py").write_text("a = 1\n")
        (directory / "run.sh").write_text("#!/bin/sh\n")
        (directory / "run.sh").chmod(0o755)
    os.utime(second / "a.py", (1e9, 1e9))
    files = [dict(archive.walk(str(directory))) for directory in (first, second)]
    packed = [b"".join(archive.pack(one)) for one in files]
    assert packed[0] == packed[1]
    digests = {archive.digest_of(one, what="x", most=1000) for one in files}
    assert len(digests) == 1
    with zipfile.ZipFile(BytesIO(packed[0])) as opened:
        assert opened.read("a.py") == b"a = 1\n"
        assert opened.getinfo("run.sh").external_attr >> 16 == 0o755
    (second / "a.py").write_text("a = 2\n")
    assert archive.digest_of(files[1], what="x", most=1000) not in digests


def test_what_is_too_large_is_named(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "big.py").write_bytes(b"#" * 2000)
    (project / "small.py").write_bytes(b"#")
    files = dict(archive.walk(str(project)))
    with pytest.raises(PackageTooLargeError, match=r"2001 bytes.*1000.*big\.py.*rayignore"):
        archive.digest_of(files, what="The code", most=1000)
    monkeypatch.setenv("RAY_WORKFLOWS_MAX_PACKAGE_BYTES", "3000")
    assert archive.digest_of(files, what="The code", most=1000)


def test_names_that_are_no_text_are_left_out(project: Path) -> None:
    (project / "a.py").touch()
    with open(os.fsencode(project) + b"/caf\xe9.txt", "w"):
        pass
    assert names_below(project) == ["a.py"]


def test_what_is_written_to_while_it_is_packed_is_packed_again(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package is what its digest says: others use it by that."""
    path = project / "a.py"
    path.write_text("a = 1\n")
    storage = MemoryStorage(name=str(project))
    storage.open()
    digest_of = packages.digest_of
    writes = [2, 3]

    def interfere(files: archive.Files, **options: Any) -> str:
        digest = digest_of(files, **options)
        if writes:
            path.write_text(f"a = {writes.pop(0)}\n")
        return digest

    monkeypatch.setattr(packages, "digest_of", interfere)
    package = packages.from_files(storage, {"a.py": str(path)}, what="The code")
    with zipfile.ZipFile(BytesIO(packages.read_whole(storage, package))) as opened:
        assert opened.read("a.py") == b"a = 3\n"
    assert packages.digest_in(package.uri) == digest_of({"a.py": str(path)}, what="", most=1000)
    path.write_text("a = 4\n")
    writes += range(5, 10)
    with pytest.raises(ValueError, match=r"The code was written to.*rayignore"):
        packages.from_files(storage, {"a.py": str(path)}, what="The code")


def test_large_archives_are_put_together_on_the_disk(project: Path) -> None:
    """Chunk by chunk: never all of it in memory."""
    # What does not become smaller.
    data = random.Random(1).randbytes(archive.SPOOL_BYTES + archive.CHUNK_BYTES)
    (project / "big.bin").write_bytes(data)
    chunks = archive.pack({"big.bin": str(project / "big.bin")})
    sizes = [len(chunk) for chunk in chunks]
    assert max(sizes) <= archive.CHUNK_BYTES
    assert sum(sizes) > archive.SPOOL_BYTES


# -- what differs --------------------------------------------------------------------------


def make_record(**fields: object) -> Record:
    defaults: dict[str, object] = {
        "python": "3.11.7",
        "ray": "2.60.0",
        "ray_workflows": "0.1.0",
        "platform": "Linux",
        "runtime_env": {},
        "python_path": (),
        "packages": (),
        "modules": {},
        "installed": {"numpy": "2.1.0", "sklearn": ""},
    }
    return Record(**{**defaults, **fields})  # type: ignore[arg-type]


HERE = Here("3.11.9", "2.60.0", {"numpy": "2.2.0", "sklearn": "1"})


def test_nothing_is_in_the_way_here() -> None:
    assert obstacles(make_record(), HERE, [{}]) == []
    newer = Here("3.11.0", "2.61.1", HERE.installed)
    assert obstacles(make_record(), newer, [{}]) == []


@pytest.mark.parametrize(
    ("here", "said"),
    [
        (Here("3.12.1", "2.60.0", HERE.installed), r"Python 3\.11\.7.*3\.12\.1.*with Python 3\.11"),
        (Here("3.11.9", "2.9.3", HERE.installed), r"Ray 2\.60\.0.*2\.9\.3.*pip install 'ray>=2"),
        (Here("3.11.9", "2.60.0", {"sklearn": "1"}), r"numpy 2\.1\.0.*'pip': \['numpy==2\.1\.0'\]"),
        (Here("3.11.9", "2.60.0", {"numpy": "1"}), r"package sklearn, which.*'pip': \['sklearn'\]"),
    ],
)
def test_each_obstacle_has_a_remedy(here: Here, said: str) -> None:
    (found,) = obstacles(make_record(), here, [{}])
    assert re.search(said, found), found


def test_what_a_runtime_env_brings_is_not_missing() -> None:
    here = Here("3.12.1", "2.60.0", {})
    found = obstacles(make_record(), here, [{}, {"pip": ["numpy"]}])
    assert len(found) == 1
    assert "Python" in found[0]
    assert obstacles(make_record(), here, [{"conda": "env"}]) == []


def test_a_record_comes_back_and_its_changes_are_shown(project: Path) -> None:
    path = project / "helper.py"
    path.write_text("A = 1\nB = 2\n")
    packed = b"".join(archive.pack({"helper.py": str(path)}))
    module = Module(str(path), archive.file_digest(str(path)))
    gone = Module(str(project / "gone.py"), "0")
    record = make_record(modules={"helper.py": module, "gone.py": gone})
    digest, data = encode(record)
    assert decode(data) == record
    assert encode(make_record())[0] != digest
    assert changed_modules(record) == {"gone.py": None}
    path.write_text("A = 1\nB = 3\n")
    assert changed_modules(record) == {"helper.py": str(path), "gone.py": None}
    assert "-B = 2\n+B = 3\n" in diff("helper.py", str(path), packed)
    # The project was moved, and is here.
    moved = project / "moved" / "helper.py"
    moved.parent.mkdir()
    path.rename(moved)
    assert changed_modules(record, [str(moved.parent)])["helper.py"] == str(moved)
