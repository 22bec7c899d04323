"""What is said of code that differs from that of a workflow which goes on, and when nothing is."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ray_workflows._capture.dag import capture_plan
from ray_workflows._capture.values import ValueWriter
from ray_workflows._client.code_changes import FORK, CodeChanges
from ray_workflows._client.environments import (
    CURRENT,
    RECORDED,
    RecordedEnvironment,
    present_functions,
)
from ray_workflows._client.forks import Fork
from ray_workflows._environment import snapshot
from ray_workflows._environment.code import packages
from ray_workflows._environment.code.archive import file_digest
from ray_workflows._environment.record import Module
from ray_workflows._model.catalog import CatalogRow
from ray_workflows._model.plan import Environment, EnvironmentChange, Function, Plan
from tests.cli.store import Store
from tests.unit.driver import Driver

SCRIPT = """
import ray

FACTOR = 2


def helper(x):
    return x * FACTOR


@ray.remote
def first():
    return 1


@ray.remote
def second(x):
    return helper(x)


def inside():
    @ray.remote
    def local(x):
        return x + 1
    return local


def dag():
    return second.bind(first.bind())
"""

MENDED = SCRIPT.replace("return x * FACTOR", "return x * FACTOR + 1").replace(
    "import ray", "import ray\n\n# mended"
)

CHANGE = EnvironmentChange(RECORDED, "me")


class Case:
    """A script, and workflows that it has run."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path = directory / "script.py"
        self.store = Store(directory / "store")
        self.storage = self.store.storage
        self.monkeypatch = monkeypatch

    def script(self, text: str, path: Path | None = None) -> Any:
        """Make a script that of this process."""
        path = path or self.path
        path.write_text(text)
        spec = importlib.util.spec_from_file_location("__main__", path)
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        exec(compile(text, str(path), "exec", dont_inherit=True), module.__dict__)
        self.monkeypatch.setitem(sys.modules, "__main__", module)
        return module

    def no_script(self) -> None:
        """As in a process that runs another program."""
        self.monkeypatch.setitem(sys.modules, "__main__", sys)

    def plan(self, dag: Any, incarnation: str) -> Plan:
        writer = ValueWriter(self.storage, incarnation)
        return capture_plan(dag, writer=writer, environment=Environment(), prefix="plan")

    def given(self, dag: Any) -> list[tuple[str, Function]]:
        return [("new", function) for function in self.plan(dag, "new").functions]

    def failed(
        self, dag: Any, workflow_id: str = "w", environment: Environment | None = None
    ) -> CatalogRow:
        """A workflow that failed in its last task."""
        incarnation = f"i-{workflow_id.encode().hex()}"
        plan = self.plan(dag, incarnation)
        if environment is not None:
            plan = msgspec.structs.replace(plan, environment=environment)
        story = Driver(plan, workflow_id=workflow_id, incarnation=incarnation)
        *before, last = story.state.tasks.values()
        for task in before:
            story.succeed(task.task_id)
        story.fail(last.task_id)
        return self.store.save(story)

    def text(
        self,
        row: CatalogRow,
        given: list[tuple[str, Function]] | None = None,
        change: EnvironmentChange = CHANGE,
    ) -> str:
        changes = CodeChanges(self.storage)
        changes.look(RecordedEnvironment(self.storage, row), change, given or ())
        return changes.text("resume({id}) takes it.")


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    case = Case(tmp_path, monkeypatch)
    yield case
    case.storage.close()


@pytest.mark.parametrize("is_run", [True, False])
def test_a_mended_helper_of_a_script(case: Case, is_run: bool) -> None:
    row = case.failed(case.script(SCRIPT).dag())
    module = case.script(MENDED)
    text = case.text(row, case.given(module.dag()) if is_run else None)
    assert text == (
        f"Workflow 'w': the recorded code is used, and the code here differs from it: helper "
        f"({case.path}:9). resume('w') takes it."
    )


@pytest.mark.parametrize("is_run", [True, False])
def test_nothing_is_said_where_nothing_differs(case: Case, is_run: bool) -> None:
    row = case.failed(case.script(SCRIPT).dag())
    module = case.script(SCRIPT.replace("\ndef helper", "\n# moved\n\ndef helper"))
    assert case.text(row, case.given(module.dag()) if is_run else None) == ""


def test_nothing_is_said_of_what_does_not_run_again(case: Case) -> None:
    row = case.failed(case.script(SCRIPT).dag())
    case.script(SCRIPT.replace("return 1", "return 2"))
    assert case.text(row) == ""


def test_a_process_without_the_script_compares_its_file(case: Case) -> None:
    """As the command line, which imports nothing."""
    row = case.failed(case.script(SCRIPT).dag())
    case.no_script()
    assert case.text(row) == ""
    case.path.write_text(MENDED)
    assert f"helper ({case.path})" in case.text(row)
    case.path.write_text("no (python")
    assert case.text(row) == ""
    case.path.unlink()
    assert case.text(row) == ""


def test_a_function_of_another_script_is_another_function(case: Case) -> None:
    row = case.failed(case.script(SCRIPT).dag())
    other = case.path.with_name("other.py")
    case.script(SCRIPT.replace("helper(x)", "other(x)"), other)
    assert case.text(row) == ""
    # The script was moved.
    case.path.unlink()
    assert str(other) in case.text(row)


def test_a_cell_of_a_notebook(case: Case) -> None:
    """Each version of a cell is a file of its own, which is not there."""
    cell = case.path.with_name("1.py")
    row = case.failed(case.script(SCRIPT, cell).dag())
    cell.unlink()
    edited = case.path.with_name("2.py")
    case.script(MENDED, edited)
    edited.unlink()
    assert f"helper ({edited}:9)" in case.text(row)


def test_a_function_inside_of_another_can_only_be_run_anew(case: Case) -> None:
    row = case.failed(case.script(SCRIPT).inside().bind(1))
    module = case.script(SCRIPT.replace("return x + 1", "return x + 2"))
    text = case.text(row, case.given(module.inside().bind(1)))
    assert f"inside.<locals>.local ({case.path}:22)" in text
    assert "Run these under another workflow_id" in text


def test_functions_that_were_exchanged_are_the_recorded_ones_then(case: Case) -> None:
    row = case.failed(case.script(SCRIPT).dag())
    found = RecordedEnvironment(case.storage, row)

    def resumed(text: str) -> dict[str, Function]:
        case.script(text)
        exchanged = present_functions(
            case.storage, found.functions, row.incarnation, CURRENT, row.incarnation
        )
        found.state.functions.update(exchanged)
        return exchanged

    assert len(resumed(MENDED)) == 2  # Lines of both have moved.
    changes = CodeChanges(case.storage)
    changes.look(found, CHANGE)
    assert changes.text("") == ""
    # And back again: the first version is not that in use.
    assert len(resumed(SCRIPT)) == 2
    assert resumed(SCRIPT) == {}
    changes.look(found, CHANGE)
    assert changes.text("") == ""


def test_current_code_that_is_not_here(case: Case) -> None:
    row = case.failed(case.script(SCRIPT).dag())
    case.no_script()
    change = EnvironmentChange(CURRENT, "me")
    # As it was: nothing is missed.
    assert case.text(row, change=change) == ""
    case.path.write_text(MENDED)
    assert "no script with second at its top level" in case.text(row, change=change)
    case.path.unlink()
    assert "no script with second at its top level" in case.text(row, change=change)


def test_a_fork_names_what_runs_again(case: Case) -> None:
    row = case.failed(case.script(SCRIPT).dag())
    case.script(MENDED.replace("return 1", "return 2"))
    found = RecordedEnvironment(case.storage, row)
    for task_id, names in (
        ("__main__.second", {"helper"}),
        ("__main__.first", {"helper", "first"}),
    ):
        fork = Fork(case.storage, row, task_id)
        changes = CodeChanges(case.storage)
        changes.look(found, CHANGE, functions=fork.functions_to_run)
        assert set(changes.places) == names


def test_a_fork_takes_the_code_here_and_leaves_its_origin_alone(case: Case) -> None:
    row = case.failed(case.script(SCRIPT).dag())
    case.script(MENDED)
    fork = Fork(case.storage, row, "__main__.second")
    exchanged = present_functions(
        case.storage, fork.functions, row.incarnation, CURRENT, "i-of-the-fork"
    )
    assert len(exchanged) == 2
    submitted, _ = fork.with_code(fork.submitted.plan.environment, exchanged)
    assert set(submitted.plan.functions) == set(exchanged.values())
    assert set(fork.submitted.plan.functions).isdisjoint(exchanged.values())


MODULE = """
import math

RATE = 0.19


class Price:
    def gross(self, net):
        return net * (1 + RATE)


def ceiled(value):
    return math.ceil(value)
"""


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("return math.ceil(value)", "return math.floor(value)", "ceiled"),
        ("net * (1", "net + (1", "Price.gross"),
        ("RATE = 0.19", "RATE = 0.25", "prices.py"),
        ("import math", "import math\n\n# A comment.\n", ""),
        ("value):", "\n    value,\n):", ""),
    ],
)
def test_a_module_of_the_users(case: Case, old: str, new: str, named: str) -> None:
    path = case.path.with_name("prices.py")
    path.write_text(MODULE)
    data = case.path.with_name("rates.json")
    data.write_text("[]")
    files = {"prices.py": str(path), "rates.json": str(data)}
    package = packages.from_files(case.storage, files, what="code")
    environment = snapshot.keep_record(
        case.storage,
        Environment(packages=(package,), code=package.uri),
        {name: Module(file, file_digest(file)) for name, file in files.items()},
        {},
        {},
        None,
    )
    row = case.failed(case.script(SCRIPT).dag(), environment=environment)
    assert case.text(row) == ""
    assert old in MODULE
    path.write_text(MODULE.replace(old, new))
    data.write_text("[1]")
    text = case.text(row)
    assert (f": {named} ({path})" in text) == bool(named)
    assert bool(text) == bool(named)
    # What it goes on with on purpose.
    assert case.text(row, change=EnvironmentChange(CURRENT, "me")) == ""
    path.unlink()
    assert case.text(row) == ""


def test_one_warning_for_all_workflows_of_a_call(case: Case) -> None:
    module = case.script(SCRIPT)
    rows = [case.failed(module.dag(), f"w{number}") for number in range(10)]
    case.script(MENDED)
    changes = CodeChanges(case.storage)
    for row in rows:
        changes.look(RecordedEnvironment(case.storage, row), CHANGE)
    with pytest.warns(UserWarning, match="'w7' and 2 more: .* helper ") as caught:
        changes.warn()
    (warning,) = caught
    assert "resume('w0', code='current')" in str(warning.message)
    # The line of the user's that called this package.
    assert warning.filename == __file__


def test_no_warning_without_a_difference(case: Case) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CodeChanges(case.storage).warn(FORK)


def test_a_function_that_cant_be_read_keeps_nothing_from_going_on(case: Case) -> None:
    row = case.failed(case.script(SCRIPT).dag())
    found = RecordedEnvironment(case.storage, row)
    case.script(MENDED)
    broken = {
        digest: msgspec.structs.replace(function, data=b"damaged")
        for digest, function in found.functions.items()
    }
    changes = CodeChanges(case.storage)
    changes.look(found, CHANGE, functions=broken)
    assert changes.text("") == ""
