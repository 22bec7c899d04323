"""docs/cli.md names every command and option, names no others, and its examples run."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from ray_workflows.cli.main import main
from tests.cli.store import Store
from tests.ray.processes import ROOT

TEXT = (ROOT / "docs" / "cli.md").read_text()

#: These act on a cluster, or look for one: their examples are only parsed.
PARSED = {"resume", "cancel", "signal", "fork", "doctor"}


def section(command: str) -> str:
    match = re.search(rf"^### `ray-workflows {command}`$(.*?)(?=^### |\Z)", TEXT, re.M | re.S)
    assert match, f"docs/cli.md has no section for `ray-workflows {command}`"
    return match[1]


def options(command: click.Command) -> set[str]:
    return {name for option in command.params for name in option.opts if name.startswith("-")}


def examples() -> list[str]:
    blocks = re.findall(r"^```sh\n(.*?)^```$", TEXT, re.M | re.S)
    return [line for block in blocks for line in block.splitlines()]


def test_every_command_has_a_section_and_every_section_a_command() -> None:
    sections = re.findall(r"^### `ray-workflows ([\w-]+)`$", TEXT, re.M)
    assert sorted(sections) == sorted(main.commands)


@pytest.mark.parametrize("name", sorted(main.commands))
def test_every_option_has_a_row_and_every_row_an_option(name: str) -> None:
    rows = re.findall(r"^\| `(-[\w-]+)` \| \S", section(name), re.M)
    assert sorted(rows) == sorted(options(main.commands[name]))


@pytest.mark.parametrize("name", sorted(main.commands))
def test_every_command_and_option_has_a_help(name: str) -> None:
    command = main.commands[name]
    assert command.help
    assert len(command.get_short_help_str(limit=60)) < 60
    assert "..." not in command.get_short_help_str(limit=60)
    for option in command.params:
        assert isinstance(option, click.Argument) or option.help


def test_options_of_the_group_are_named() -> None:
    for name in options(main):
        assert name in TEXT


def test_the_statuses_are_named() -> None:
    for name in ("list", "prune"):
        (status,) = [p for p in main.commands[name].params if p.name == "statuses"]
        for choice in status.type.choices:
            assert choice in section(name), (name, choice)


def test_there_is_an_example_of_each_command() -> None:
    shown = {match[1] for line in examples() for match in re.finditer(r"ray-workflows (\w+)", line)}
    assert shown == set(main.commands)


@pytest.mark.parametrize("line", [line for line in examples() if line.split()[1] in PARSED])
def test_an_example_is_understood(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("report.py").touch()
    _, name, *arguments = shlex.split(line)
    main.commands[name].make_context(name, arguments).close()


def test_the_examples_run(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    store.successful("report-1", {"sum": 18}, ago=60 * 86400.0)
    store.failed("report-2")
    store.storage.close()
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "ray-workflows"
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m ray_workflows.cli "$@"\n')
    command.chmod(0o755)
    lines = [line for line in examples() if line.split()[1] not in PARSED]
    script = "set -ex\n" + "\n".join(lines).replace("/data/workflows", str(store.directory))
    result = subprocess.run(
        ["sh", "-c", script],
        cwd=tmp_path,
        env={
            **os.environ,
            "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT / "src"),
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "{'sum': 18}" in result.stdout
    assert (tmp_path / "report-1.pickle").exists()
    assert "1 workflow deleted from file://" in result.stderr
