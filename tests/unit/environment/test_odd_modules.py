"""Odd things among the modules, and beside them: nothing of the user's is run, nothing fails."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import sys
import types
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ray_workflows._environment.code import beside, capture, loaded, modules, zipped
from ray_workflows._environment.compare import look

#: What was asked of odd things. They raise only what others expect, pytest among them.
asked: list[str] = []


def ask(name: str) -> Any:
    asked.append(name)
    raise AttributeError(name)


class Hostile(types.ModuleType):
    """As lazy loaders are: whatever is asked of it runs something."""

    def __getattribute__(self, name: str) -> Any:
        return ask(name)


class Thing:
    """Something that is no module."""

    def __getattribute__(self, name: str) -> Any:
        return ask(name)

    def __bool__(self) -> bool:
        return ask("__bool__")  # type: ignore[no-any-return]

    def __len__(self) -> int:
        return ask("__len__")  # type: ignore[no-any-return]

    def __eq__(self, other: object) -> bool:
        return ask("__eq__")  # type: ignore[no-any-return]

    def __hash__(self) -> int:
        return ask("__hash__")  # type: ignore[no-any-return]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    capture.own_file.cache_clear()
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("rw_"):
            del sys.modules[name]
    capture.own_file.cache_clear()


def reach(directory: Path, *names: str) -> modules.Reached:
    reached = modules.Reached([str(directory)])
    # This process has all of the tests too.
    found = {name for name in modules.roots(sys.modules["rw_main"]) if name.startswith("rw_")}
    reached.follow({*names, *found} - {"rw_main"})
    return reached


def odd_file(value: object) -> types.ModuleType:
    module = types.ModuleType("rw_odd")
    vars(module).update(__file__=value, __path__=value, __version__=value)
    return module


ODD: dict[str, Any] = {
    "hostile": Hostile("rw_odd"),
    "thing": Thing(),
    "none": None,
    "number": 5,
    "path": odd_file(pathlib.Path("rw_odd.py")),
    "number as file": odd_file(5),
    "no file": odd_file(None),
    "thing as file": odd_file(Thing()),
}


@pytest.mark.parametrize("name", list(ODD))
def test_nothing_of_the_users_is_run(
    name: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is among the modules, among the globals, or as the script."""
    monkeypatch.setitem(sys.modules, "rw_odd", ODD[name])
    main = types.ModuleType("rw_main")
    vars(main).update(odd=ODD[name], module=ODD[name], In=ODD[name], __package__=ODD[name])
    for script in (main, ODD[name]):
        monkeypatch.setitem(sys.modules, "rw_main", script)
        del asked[:]
        reached = reach(project, "rw_odd")
        files = capture.imported_files.__wrapped__((str(project),), 0)
        here = look(["rw_odd"]).installed
        typed = len(loaded.names_in(script)), len(loaded.cells())
        assert asked == []
        assert "rw_odd" in reached.skipped
        assert reached.files == reached.installed == {}
        assert (files, here, typed[1]) == (frozenset(), {"rw_odd": ""}, 0)


@pytest.mark.parametrize("name", list(ODD))
def test_a_module_is_found_on_the_path_whatever_has_its_name(
    name: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "rw_odd.py").write_text("import rw_more\n")
    (project / "rw_more.py").touch()
    monkeypatch.setitem(sys.modules, "rw_odd", ODD[name])
    monkeypatch.setitem(sys.modules, "rw_main", types.ModuleType("rw_main"))
    assert sorted(reach(project, "rw_odd").files) == ["rw_more.py", "rw_odd.py"]


def test_lazy_modules_stay_lazy(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "rw_lazy.py").write_text("import rw_part\nraise SystemExit\n")
    (project / "rw_part.py").touch()
    spec = importlib.util.find_spec("rw_lazy")
    assert spec is not None
    assert spec.loader is not None
    spec.loader = importlib.util.LazyLoader(spec.loader)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "rw_lazy", module)
    spec.loader.exec_module(module)
    monkeypatch.setitem(sys.modules, "rw_main", types.ModuleType("rw_main"))
    assert sorted(reach(project).files) == ["rw_lazy.py", "rw_part.py"]


def test_what_python_brings_is_not_the_users(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Debian's ``sitecustomize`` lies among Python's own modules, as a link to /etc."""
    standard, elsewhere = project / "lib" / "python3.x", project / "etc"
    for directory in (standard / "site-packages", elsewhere):
        directory.mkdir(parents=True)
    (elsewhere / "custom.py").touch()
    (standard / "custom.py").symlink_to(elsewhere / "custom.py")
    (standard / "site-packages" / "linked.py").symlink_to(elsewhere / "custom.py")
    monkeypatch.setattr(capture, "standard_directories", lambda: (str(standard),))
    assert capture.own_file(str(standard / "custom.py")) is None
    # What a user has linked to be developed is the user's.
    assert capture.own_file(str(standard / "site-packages" / "linked.py"))
    assert capture.own_file(str(elsewhere / "custom.py"))


def test_python_says_where_its_modules_are() -> None:
    assert os.path.dirname(os.__file__) in capture.standard_directories()


def test_files_that_cannot_be_read_are_left_out(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = project / "rw_package"
    package.mkdir()
    for name in ("__init__.py", "secret.py"):
        (package / name).touch()
    # A superuser can read it.
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).endswith("secret.py"))
    monkeypatch.setitem(sys.modules, "rw_main", types.ModuleType("rw_main"))
    reached = reach(project, "rw_package")
    assert list(reached.files) == ["rw_package/__init__.py"]
    assert "can't be read" in reached.skipped["rw_package/secret.py"]


@pytest.mark.parametrize("closed", ["rw_package", "rw_package/cache", "."])
def test_directories_that_cannot_be_read_are_left_out(
    project: Path, monkeypatch: pytest.MonkeyPatch, closed: str
) -> None:
    package = project / "rw_package"
    (package / "cache").mkdir(parents=True)
    for path in (package / "__init__.py", package / "cache" / "data", project / "rw_data"):
        path.touch()
    (project / "rw_single.py").write_text("DATA = __file__ + '/rw_data'\nimport rw_package\n")
    # A superuser can read it.
    scandir, listdir = os.scandir, os.listdir

    def is_open(path: object, mode: int = 0) -> bool:
        return os.path.realpath(str(path)) != os.path.realpath(project / closed)

    def refuse(path: object) -> None:
        if not is_open(path):
            raise PermissionError

    monkeypatch.setattr(os, "scandir", lambda path: refuse(path) or scandir(path))
    monkeypatch.setattr(os, "listdir", lambda path: refuse(path) or listdir(path))
    monkeypatch.setattr(os, "access", is_open)
    monkeypatch.setitem(sys.modules, "rw_main", types.ModuleType("rw_main"))
    reached = reach(project, "rw_single")
    assert "rw_single.py" in reached.files
    assert ("rw_package/__init__.py" in reached.files) == (closed != "rw_package")
    assert ("rw_package/cache/data" in reached.files) == (closed == ".")
    assert all(os.path.isfile(path) for path in reached.files.values())
    if closed != ".":
        assert "can't be read" in next(iter(reached.skipped.values()))
    capture.code_files((str(project),))


# -- archives ------------------------------------------------------------------------------


def test_modules_in_archives_are_unpacked(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = project / "app.pyz"
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("rw_single.py", "import rw_package.inner\n")
        packed.writestr("rw_package/__init__.py", "")
        packed.writestr("rw_package/inner.py", "")
        packed.writestr("rw_package/data.txt", "data")
        packed.writestr("__main__.py", "import rw_single\n")
    monkeypatch.syspath_prepend(str(archive))
    main = types.ModuleType("rw_main")
    main.__file__ = str(archive / "__main__.py")
    monkeypatch.setitem(sys.modules, "rw_main", main)
    reached = reach(project)
    assert sorted(reached.files) == [
        "rw_package/__init__.py",
        "rw_package/data.txt",
        "rw_package/inner.py",
        "rw_single.py",
    ]
    assert Path(reached.files["rw_package/data.txt"]).read_text() == "data"


def test_archives_that_cannot_be_taken_are_left(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large, damaged = project / "large.zip", project / "damaged.zip"
    with zipfile.ZipFile(large, "w") as packed:
        packed.writestr("rw_large.py", "#" * 100)
    damaged.write_bytes(large.read_bytes().replace(b"#" * 50, b"!" * 50))
    monkeypatch.setattr(zipped, "limit", lambda most: 50)
    assert zipped.unzipped(str(large / "rw_large.py")) == str(large / "rw_large.py")
    monkeypatch.setattr(zipped, "limit", lambda most: most)
    assert zipped.unzipped(str(damaged / "rw_large.py")) == str(damaged / "rw_large.py")
    assert zipped.unzipped("/nowhere/at/all.py") == "/nowhere/at/all.py"
    assert zipped.unzipped("") == ""


# -- data beside modules -------------------------------------------------------------------


@pytest.fixture
def reader_module(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (project / "rw_reader.py").write_text(
        "from pathlib import Path\nHERE = Path(__file__).parent\n"
        "A = HERE / 'a.txt'\nB = HERE / 'data/deep/b.txt'\nC = 'gone.txt', 'rw_other.py'\n"
    )
    (project / "data" / "deep").mkdir(parents=True)
    for name in ("a.txt", "data/deep/b.txt", "data/c.txt", "unnamed.txt", "rw_other.py"):
        (project / name).write_text("x")
    monkeypatch.setitem(sys.modules, "rw_main", types.ModuleType("rw_main"))
    return project


def test_small_data_that_a_module_names_goes_with_it(reader_module: Path) -> None:
    reached = reach(reader_module, "rw_reader")
    assert sorted(reached.files) == ["a.txt", "data/c.txt", "data/deep/b.txt", "rw_reader.py"]
    assert reached.skipped == {}


def test_large_data_is_left_and_named(
    reader_module: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(beside, "MAX_DATA_BYTES", 1)
    reached = reach(reader_module, "rw_reader")
    assert sorted(reached.files) == ["a.txt", "rw_reader.py"]
    assert "rw_reader.py names it" in reached.skipped["data"]
    assert "working_dir" in caplog.text


def test_a_module_that_does_not_ask_where_it_is_has_no_data(reader_module: Path) -> None:
    path = reader_module / "rw_reader.py"
    path.write_text(path.read_text().replace("__file__", "'here'"))
    assert list(reach(reader_module, "rw_reader").files) == ["rw_reader.py"]


# -- notebooks -----------------------------------------------------------------------------


def test_notebooks_are_told_by_ipython(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by a name that a script may have."""
    shells = pytest.importorskip("IPython.core.interactiveshell")
    main = types.ModuleType("rw_main")
    vars(main)["In"] = ["import rw_no_cell"]
    assert loaded.cells() == []
    assert "rw_no_cell" not in modules.roots(main)
    shell = shells.InteractiveShell.instance(user_module=main)
    try:
        shell.history_manager.input_hist_parsed += ["import rw_cell", "%magic"]
        assert "rw_cell" in modules.roots(main)
    finally:
        shell.history_manager.end_session()
        shells.InteractiveShell.clear_instance()
