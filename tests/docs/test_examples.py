"""What the README and the docstrings show is run."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest

from tests.ray.processes import DriverProcess

ROOT = Path(__file__).parents[2]

#: Before an example. It starts Ray as people do, and that takes long.
QUICKLY = """
from tests.ray.start import few_processes
__few = few_processes()
__few.__enter__()
"""


def python_blocks(path: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL)


@pytest.mark.own_cluster
def test_the_readme_runs(tmp_path: Path) -> None:
    (block,) = python_blocks(ROOT / "README.md")
    store = str(tmp_path / "store")
    with DriverProcess(tmp_path, QUICKLY + block, RAY_WORKFLOW_STORAGE=store) as driver:
        printed = driver.wait().splitlines()
    expected = re.findall(r"# (sum \d+|[A-Z]{4,})", block)
    assert expected == ["sum 18", "SUCCESSFUL"]
    shown = [line for line in printed if line in (*expected, "sum 18")]
    assert shown == ["sum 18", "SUCCESSFUL", "sum 18"]
    assert Path(store, "workflows.sqlite").exists()


#: Between the examples of two pages. Each has to define what it uses.
NEXT_PAGE = """
for name in [name for name in globals() if not name.startswith("__")]:
    del globals()[name]
"""


@pytest.mark.own_cluster
def test_the_pages_run(tmp_path: Path) -> None:
    """One after the other, on one cluster."""
    blocks = {}
    for name in ("types", "environments", "signals", "finding", "children", "events", "durable"):
        # The later blocks of a page go on with what the first ones define.
        blocks[name] = "".join(python_blocks(ROOT / "docs" / f"{name}.md"))
        assert blocks[name], name
    code = QUICKLY + NEXT_PAGE.join(blocks.values())
    store = str(tmp_path / "store")
    with DriverProcess(tmp_path, code, RAY_WORKFLOW_STORAGE=store) as driver:
        printed = driver.wait().splitlines()
    expected = [
        line
        for block in blocks.values()
        for line in re.findall(r"^print.*  # (.+)$", block, re.MULTILINE)
    ]
    assert len(expected) == 23
    assert [line for line in printed if line in expected] == expected


@pytest.mark.own_cluster
def test_the_page_on_testing_runs(capsys: pytest.CaptureFixture[str]) -> None:
    block = "".join(python_blocks(ROOT / "docs" / "testing.md"))
    exec(block, {"__name__": "a_page"})
    expected = re.findall(r"^ *print.*  # (.+)$", block, re.MULTILINE)
    assert len(expected) == 6
    assert capsys.readouterr().out.splitlines() == expected


@pytest.mark.own_cluster
def test_the_docstrings_of_testing_run() -> None:
    from ray_workflows.testing import environment, replays

    assert doctest.testmod(environment, raise_on_error=True).attempted > 10
    assert doctest.testmod(replays, raise_on_error=True).attempted > 4


@pytest.mark.own_cluster
def test_the_example_of_a_codec_runs(tmp_path: Path) -> None:
    blocks = python_blocks(ROOT / "docs" / "storage.md")
    (block,) = [block for block in blocks if "PayloadCodec" in block]
    (expected,) = re.findall(r"# (\d+)$", block, re.MULTILINE)
    with DriverProcess(tmp_path, QUICKLY + block) as driver:
        assert expected in driver.wait().splitlines()
    stored = list((tmp_path / "workflows" / "blobs").glob("*/*"))
    assert stored
    assert max(path.stat().st_size for path in stored) < 400_000


@pytest.mark.parametrize("module", ["api", "bulk", "durable", "options", "retry", "events"])
def test_docstring_examples_run(cluster: None, module: str) -> None:
    import importlib

    found = doctest.DocTestFinder().find(importlib.import_module(f"ray_workflows.{module}"))
    examples = [test for test in found if test.examples]
    assert examples
    for test in examples:
        result = doctest.DocTestRunner(verbose=False).run(test)
        assert result.failed == 0, test.name


def test_every_public_name_is_documented() -> None:
    import ray_workflows

    for name in ray_workflows.__all__:
        value = getattr(ray_workflows, name)
        assert value.__doc__ or isinstance(value, str), name


def test_links_of_the_documents_lead_somewhere() -> None:
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
            if "://" not in target:
                assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_the_oldest_ray_that_is_admitted_is_tested() -> None:
    (admitted,) = re.findall(r'"ray>=([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(rf"^OLDEST_RAY := {re.escape(admitted)}$", makefile, re.MULTILINE)
    lock = (ROOT / "tests" / f"requirements-ray-{admitted}.lock").read_text()
    assert f"ray=={admitted}." in lock
    assert f"Ray {admitted} and newer" in (ROOT / "README.md").read_text()


def test_make_help_lists_the_targets_of_the_readme() -> None:
    makefile = (ROOT / "Makefile").read_text()
    readme = (ROOT / "README.md").read_text()
    for target in set(re.findall(r"make ([a-z-]+)", readme)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
