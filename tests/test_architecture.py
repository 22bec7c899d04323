"""Holds the layer table of ARCHITECTURE.md against the imports."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "ray_workflows"

#: Names of named tuples, which are underscored against clashes with fields, and of `os._exit`.
UNDERSCORED_IN_PUBLIC = {*dir(NamedTuple("T", [])), "_exit"}

#: What the pure engine must not know.
IMPURE = {
    *("asyncio", "concurrent", "datetime", "io", "logging", "multiprocessing", "os", "pathlib"),
    *("pickle", "random", "ray", "secrets", "socket", "subprocess", "threading", "time", "uuid"),
}


class Row:
    def __init__(self, layer: int, modules: list[str], ray: bool) -> None:
        self.layer = layer
        self.modules = modules
        self.ray = ray


def read_table() -> dict[str, Row]:
    rows: dict[str, Row] = {}
    for line in (ROOT / "ARCHITECTURE.md").read_text().splitlines():
        match = re.match(r"\| (\d+) \| ([^|]+) \| (R?) ?\|", line)
        if match:
            modules = re.findall(r"`(\w+)`", match[2])
            row = Row(int(match[1]), modules, bool(match[3]))
            rows.update(dict.fromkeys(modules, row))
    return rows


TABLE = read_table()
FILES = sorted(PACKAGE.rglob("*.py"))


def unit(path: Path) -> str:
    """The name in the table of the module or package that a file belongs to."""
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            assert node.module
            for alias in node.names:
                # `from ray_workflows import storage` imports a module too.
                yield f"{node.module}.{alias.name}", node.lineno


def test_the_table_is_complete() -> None:
    assert {unit(path) for path in FILES} == set(TABLE)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_follow_the_layers(path: Path) -> None:
    mine = TABLE[unit(path)]
    for name, line in imports(path):
        parts = name.split(".")
        where = f"{path.relative_to(ROOT)}:{line} imports {name}"
        if parts[0] == "ray_workflows":
            other = TABLE.get(parts[1] if len(parts) > 1 else "__init__") or TABLE["__init__"]
            assert other is mine or other.layer < mine.layer, where
        if parts[0] == "ray":
            assert mine.ray, where
        if unit(path) == "_engine":
            assert parts[0] not in IMPURE, where


def test_there_are_no_import_cycles() -> None:
    graph: dict[str, set[str]] = {}
    names = {module_name(path): path for path in FILES}
    for name, path in names.items():
        targets = {target for target, _ in imports(path)}
        graph[name] = {
            found
            for target in targets
            for found in (target, target.rpartition(".")[0])
            if found in names and found != name and found != "ray_workflows"
        }
    seen: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path, name))
        if name not in seen:
            for target in sorted(graph[name]):
                visit(target, (*path, name))
            seen.add(name)

    for name in graph:
        visit(name, ())


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_only_the_loop_knows_engine_storage_and_executor() -> None:
    together = {"_engine", "storage", "_executor"}
    for path in FILES:
        if unit(path) != "_coordinator":
            continue
        known = {name.split(".")[1] for name, _ in imports(path) if name.count(".") >= 1}
        if together <= known:
            assert path.name == "loop.py", path


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_module_says_what_it_is(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), path


def test_nothing_is_underscored_inside_private_packages() -> None:
    for path in FILES:
        if not unit(path).startswith("_") or unit(path) in ("__init__", "_version"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)):
                private = node.name.startswith("_") and not node.name.startswith("__")
                assert not private, f"{path}:{node.lineno} {node.name}"


def private_names(path: Path) -> Iterator[tuple[str, int]]:
    """Names that begin with an underscore and are somebody else's."""
    for node in ast.walk(ast.parse(path.read_text())):
        found: list[str] = []
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) not in ("self", "cls"):
            found = [node.attr]
        elif isinstance(node, ast.keyword) and node.arg:
            found = [node.arg]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found = [node.value]
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            modules = [alias.name for alias in node.names]
            modules.append(node.module or "" if isinstance(node, ast.ImportFrom) else "")
            parts = [name.split(".") for name in modules if name.split(".")[0] == "ray"]
            found = [part for names in parts for part in names]
        for name in found:
            if re.fullmatch(r"_[a-z]\w*", name) and name not in UNDERSCORED_IN_PUBLIC:
                yield name, node.lineno


def test_private_names_of_ray_are_in_one_place() -> None:
    # The second runs where nothing of ours can be imported.
    places = [
        PACKAGE / "_ray" / name for name in ("private.py", "sitecustomize_template.py", "errors.py")
    ]
    assert all(list(private_names(place)) for place in places)
    for path in FILES:
        if path not in places:
            found = [f"{path}:{line} {name}" for name, line in private_names(path)]
            assert not found, f"Wrap it in _ray/private.py, and test it there: {found}"


def test_public_names_are_sorted_and_there() -> None:
    import ray_workflows

    names = ray_workflows.__all__
    constants = [name for name in names if name.isupper()]
    assert names == sorted(constants) + sorted(set(names) - set(constants), key=sort_key)
    assert all(hasattr(ray_workflows, name) for name in names)


def sort_key(name: str) -> tuple[bool, str]:
    return not name[0].isupper(), name
