"""A report about the sources of Python's standard library: one task a file, merged as a tree.

The work is in plain functions; the tasks around them are a few lines each. Beside its result every
task leaves a line in a log of executions, which knows nothing of workflows: from it one can tell
afterwards what really ran, and how often.
"""

from __future__ import annotations

import ast
import os
import sysconfig
import tokenize
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path

import ray

import ray_workflows as workflow

WORKFLOW_ID = "stdlib-report"

#: Enough that a crash in the middle is interesting; more would only take longer.
MAX_FILES = 600

#: Reports that one task merges.
FAN_IN = 16

#: Packages installed by others, and tests (some of them are no valid Python, on purpose).
SKIPPED_DIRECTORIES = {"site-packages", "dist-packages", "test", "tests", "idle_test"}

# -- plain Python --------------------------------------------------------------------------


@dataclass(frozen=True)
class Report:
    """What was counted in one file, or in many."""

    files: int = 0
    lines: int = 0
    comments: int = 0
    functions: int = 0
    classes: int = 0
    #: How often each top-level module is imported.
    imports: Counter[str] = field(default_factory=Counter)

    def __add__(self, other: Report) -> Report:
        return Report(
            self.files + other.files,
            self.lines + other.lines,
            self.comments + other.comments,
            self.functions + other.functions,
            self.classes + other.classes,
            self.imports + other.imports,
        )


def stdlib_directory() -> Path:
    """Where the sources are."""
    return Path(sysconfig.get_path("stdlib"))


def find_sources(directory: Path) -> list[str]:
    """The source files below a directory, by their names relative to it, always in one order."""
    found = []
    for parent, directories, names in os.walk(directory):
        directories[:] = sorted(set(directories) - SKIPPED_DIRECTORIES)
        found += [Path(parent, name) for name in sorted(names) if name.endswith(".py")]
    return [path.relative_to(directory).as_posix() for path in found[:MAX_FILES]]


def imported_modules(node: ast.AST) -> list[str]:
    """The modules that a statement imports; none if it is no absolute import."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module and not node.level:
        return [node.module]
    return []


def analyze(path: Path) -> Report:
    """Parse one file and count what is in it."""
    source = path.read_bytes()
    nodes = list(ast.walk(ast.parse(source)))
    with path.open("rb") as file:
        tokens = Counter(token.type for token in tokenize.tokenize(file.readline))
    return Report(
        files=1,
        lines=source.count(b"\n"),
        comments=tokens[tokenize.COMMENT],
        functions=sum(isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef)) for n in nodes),
        classes=sum(isinstance(n, ast.ClassDef) for n in nodes),
        imports=Counter(name.split(".")[0] for node in nodes for name in imported_modules(node)),
    )


def merge(reports: Iterable[Report]) -> Report:
    """One report of many."""
    return reduce(Report.__add__, reports, Report())


def report_without_workflow() -> Report:
    """The same report in one process: what the workflow must come to, whatever happens to it."""
    directory = stdlib_directory()
    return merge(analyze(directory / name) for name in find_sources(directory))


# -- the log of executions -----------------------------------------------------------------


def record_execution(log: str, task_id: str) -> None:
    """Note that a task has begun to run."""
    # O_APPEND, and one write a line: tasks that run at the same time don't mix their lines.
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(file, f"{task_id}\n".encode())
    finally:
        os.close(file)


def read_executions(log: Path) -> list[str]:
    """The ids of the tasks that have run, in order; of one that ran twice, twice."""
    return log.read_text().splitlines() if log.exists() else []


# -- the workflow --------------------------------------------------------------------------


@ray.remote
def analyze_file(name: str, log: str) -> Report:
    """The task of one file. It carries the file's name as its id."""
    record_execution(log, name)
    return analyze(stdlib_directory() / name)


@ray.remote
def merge_reports(task_id: str, log: str, *reports: Report) -> Report:
    """An inner node of the tree."""
    record_execution(log, task_id)
    return merge(reports)


@ray.remote
def survey(log: str) -> Report:
    """Find the files, and go on with a tree of tasks over them.

    The list of files is part of what this task leaves in storage: a resumed workflow goes on with
    the files that were found at first, whatever has changed on disk since.
    """
    record_execution(log, "survey")
    nodes = [
        analyze_file.options(**workflow.options(task_id=name)).bind(name, log)
        for name in find_sources(stdlib_directory())
    ]
    level = 0
    while len(nodes) > 1:
        level += 1
        groups = [nodes[start : start + FAN_IN] for start in range(0, len(nodes), FAN_IN)]
        nodes = []
        for number, group in enumerate(groups):
            task_id = f"merge-{level}-{number}"
            task = merge_reports.options(**workflow.options(task_id=task_id))
            nodes.append(task.bind(task_id, log, *group))
    return workflow.continuation(nodes[0])


def start_report(log: Path) -> ray.ObjectRef:
    """Start the workflow; when this returns, it can't be lost any more."""
    root = survey.options(**workflow.options(task_id="survey"))
    return workflow.run_async(root.bind(str(log)), workflow_id=WORKFLOW_ID)
