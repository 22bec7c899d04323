"""The command as a process of its own: no cluster, pipes, terminals, exit codes."""

from __future__ import annotations

import importlib
import json
import os
import pty
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_workflows._client.reader import Reader
from ray_workflows._ray.private import bootstrap_address
from ray_workflows.cli import clusters
from ray_workflows.testing.builders import OK, make_append
from tests.cli.conftest import Cli
from tests.cli.store import Store
from tests.ray.processes import ROOT

COMMAND = [sys.executable, "-m", "ray_workflows.cli"]

#: Nothing listens there. Without it, clusters of others on this machine would be found.
NO_CLUSTER = "127.0.0.1:1"


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "ray").mkdir()
    source = str(ROOT / "src")
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([source, os.environ.get("PYTHONPATH", "")]),
        "RAY_TMPDIR": str(tmp_path / "ray"),
        "RAY_ADDRESS": NO_CLUSTER,
    }


def run(environment: dict[str, str], *args: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [*COMMAND, *args],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_console_script_is_the_same_command() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    module, name = re.search(r'^ray-workflows = "([\w.]+):(\w+)"$', text, re.MULTILINE).groups()
    from ray_workflows.cli.main import main

    assert getattr(importlib.import_module(module), name) is main


def test_help_and_reads_start_no_ray(store: Store, environment: dict[str, str]) -> None:
    store.successful("w", {"a": 1})
    where = ("--storage", str(store.directory))
    assert "Commands:" in run(environment, "--help").stdout
    assert json.loads(run(environment, "list", "--json", *where).stdout)[0]["workflow_id"] == "w"
    assert "fetch\tSUCCESSFUL" in run(environment, "show", "w", *where).stdout
    result = run(environment, "output", "w", *where)
    assert (result.returncode, result.stdout, result.stderr) == (0, "{'a': 1}\n", "")
    assert os.listdir(environment["RAY_TMPDIR"]) == []


@pytest.mark.parametrize("verb", ["resume", "cancel", "signal", "fork"])
def test_what_needs_a_cluster_says_so(store: Store, environment: dict[str, str], verb: str) -> None:
    store.running("w")
    where = ("--storage", str(store.directory))
    if verb == "fork":
        where = (*where, "--from-task", "fetch")
    if verb == "signal":
        where = ("approved", *where)
    result = run(environment, verb, "w", *where)
    assert result.returncode == 1
    assert result.stdout == ""
    assert "does not answer" in result.stderr
    assert "--address or $RAY_ADDRESS" in result.stderr
    remedy = f"ray-workflows resume --storage {store.directory} --local w"
    assert (remedy in result.stderr) == (verb == "resume")


def test_doctor_names_the_cluster_that_does_not_answer(
    store: Store, environment: dict[str, str]
) -> None:
    result = run(environment, "doctor", "--json", "--storage", str(store.directory))
    assert result.returncode == 1
    (wrong,) = [c for c in json.loads(result.stdout)["checks"] if c["level"] == "problem"]
    assert wrong["name"] == "cluster"
    assert "$RAY_ADDRESS" in wrong["remedy"]


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("nonsense", "HOST:PORT"),
        ("host:99999", "HOST:PORT"),
        ("local", "resume --local"),
        (NO_CLUSTER, "does not answer"),
    ],
)
def test_addresses(monkeypatch: pytest.MonkeyPatch, address: str, message: str) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(clusters.NoClusterError) as caught:
        clusters.find(address)
    assert message in caught.value.message


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The addresses of two clusters that answer: as far as the command knocks. Ray finds these."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with socket.create_server(("", 0)) as one, socket.create_server(("", 0)) as two:
        named = [f"127.0.0.1:{each.getsockname()[1]}" for each in (one, two)]
        monkeypatch.setattr(clusters, "local_clusters", lambda: named)
        yield list(filter(None, map(bootstrap_address, named)))


def test_no_cluster_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Ray finds none. This machine may have some."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(clusters, "local_clusters", list)
    with pytest.raises(clusters.NoClusterError, match="ray start --head"):
        clusters.find(None)
    monkeypatch.setattr(clusters, "local_clusters", lambda: [NO_CLUSTER])
    with pytest.raises(clusters.NoClusterError, match=r":1 does not answer"):
        clusters.find(None)


@pytest.mark.parametrize("named", [None, "auto"])
def test_a_dead_cluster_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, answering: list[str], named: str | None
) -> None:
    """That of the last ``ray start``, or one whose worker node outlives its head."""
    one = answering[0]
    for order in ([NO_CLUSTER, one], [one, NO_CLUSTER], [one, one]):
        monkeypatch.setattr(clusters, "local_clusters", lambda order=order: order)
        assert clusters.find(named) == one
    # One that is named is never replaced by another.
    with pytest.raises(clusters.NoClusterError, match=r":1 does not answer"):
        clusters.find(NO_CLUSTER)


def test_one_of_several_clusters_has_to_be_named(
    store: Store, cli: Cli, monkeypatch: pytest.MonkeyPatch, answering: list[str]
) -> None:
    message = f"2 Ray clusters run here: {', '.join(answering)}. Name one with --address or $RAY"
    store.failed("w")
    for command in (["cancel", "w"], ["resume", "w"], ["delete", "w"]):
        assert message in cli(*command, storage=False, code=1).stderr
    assert message in cli("cancel", "w", code=1).stderr
    # Nothing of a cluster is needed to read a storage.
    assert cli("list").stderr == ""
    monkeypatch.setenv("RAY_WORKFLOW_STORAGE", str(store.directory))
    assert cli("list", storage=False).stderr == ""
    monkeypatch.delenv("RAY_WORKFLOW_STORAGE")
    monkeypatch.setattr(clusters, "open_reader", lambda spec: Reader(store.storage))
    assert message in cli("list", storage=False).stderr
    (found,) = [each for each in cli.json("doctor")["checks"] if each["name"] == "cluster"]
    assert message in found["message"]


def test_head_closes_the_pipe(store: Store, environment: dict[str, str]) -> None:
    appends = [make_append(f"w{i}", 0, error="x" * 100) for i in range(5000)]
    assert store.storage.commit(appends) == [OK] * 5000
    command = [*COMMAND, "list", "--all", "--storage", str(store.directory)]
    pipeline = f"{shlex.join(command)} | head -n 1"
    result = subprocess.run(
        ["sh", "-c", pipeline],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.stdout.count("\n") == 1
    assert result.stderr == ""


def test_a_stream_that_can_not_say_it(store: Store, environment: dict[str, str]) -> None:
    store.successful("🦑", "🦑")
    environment["PYTHONIOENCODING"] = "latin-1"
    where = ("--storage", str(store.directory))
    assert run(environment, "list", *where).stdout.startswith("\\U0001f991\t")
    assert run(environment, "output", "🦑", *where).stdout == "'\\U0001f991'\n"


def test_a_terminal_gets_a_table(store: Store, environment: dict[str, str]) -> None:
    store.successful("[b]w[/b]")
    environment.update(TERM="xterm", COLUMNS="120")
    environment.pop("NO_COLOR", None)
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "list", "--storage", str(store.directory)], env=environment, stdout=follower
    )
    os.close(follower)
    shown = b""
    while True:
        try:
            part = os.read(leader, 4096)
        except OSError:
            break
        shown += part
    os.close(leader)
    assert process.wait(60) == 0
    text = shown.decode()
    assert "\x1b[32mSUCCESSFUL" in text
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    assert plain.split()[:5] == ["ID", "STATUS", "SUBMITTED", "DURATION", "ERROR"]
    assert "[b]w[/b]" in plain
