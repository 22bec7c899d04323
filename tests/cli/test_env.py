"""``env``: what was recorded, and what is another here."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest

from ray_workflows._client.environments import RecordedEnvironment, ResumeOptions, missing
from ray_workflows._client.reader import Reader
from ray_workflows._environment import record
from ray_workflows._environment import shared_items as shared
from ray_workflows._environment.code import packages
from ray_workflows._environment.code.archive import file_digest
from ray_workflows._environment.snapshot import keep_record
from ray_workflows._model import messages as msg
from ray_workflows._model.plan import Environment, EnvironmentChange
from ray_workflows._ray import private
from ray_workflows.cli import checks
from tests.cli.conftest import Cli
from tests.cli.store import PLAN, Store


@pytest.fixture
def project(tmp_path: Path) -> Path:
    project = tmp_path / "project"
    project.mkdir()
    (project / "helper.py").write_text("A = 1\nB = 2\n")
    return project


@pytest.fixture
def recorded(store: Store, project: Path) -> Environment:
    """An environment with a module, a package that is here, and one that is not."""
    path = str(project / "helper.py")
    package = packages.from_files(store.storage, {"helper.py": path}, what="code")
    environment = Environment(
        runtime_env={"env_vars": {"A": "b", "A_KEY": "ray-workflows-secret:x"}},
        packages=(package,),
        code=package.uri,
    )
    modules = {"helper.py": record.Module(path, file_digest(path))}
    installed = {"msgspec": "0.0.1", "not_there_at_all": "3.2"}
    return keep_record(store.storage, environment, modules, installed, {}, None)


def failed(store: Store, environment: Environment, change: EnvironmentChange | None = None) -> None:
    story = store.story("w", plan=msgspec.structs.replace(PLAN, environment=environment))
    store.give(story, "fetch", 1)
    story.fail("total", retryable=True)
    story.fail("total")
    if change is not None:
        story.send(msg.Resume(change=change))
    store.save(story)


def test_what_is_recorded_and_what_differs(
    store: Store, cli: Cli, recorded: Environment, project: Path
) -> None:
    failed(store, recorded, EnvironmentChange("recorded", "me@here"))
    text = cli("env", "w").stdout
    assert "helper.py" in text
    assert '{"env_vars": {"A": "b", "A_KEY": "<secret>"}}' in text
    assert "by me@here: recorded code, as it was" in text
    rows = [line.split("\t") for line in text.partition("\n\n")[2].splitlines()]
    assert rows == [
        ["msgspec", "0.0.1", msgspec.__version__],
        ["not_there_at_all", "3.2", "missing"],
    ]
    (project / "helper.py").write_text("A = 1\nB = 3\n")
    assert "helper.py" in cli("env", "w").stdout.partition("\n\n")[2]
    assert "-B = 2\n+B = 3\n" in cli("env", "w", "--diff").stdout
    found = cli.json("env", "w")
    assert found["modules"] == {"helper.py": file_digest_of("A = 1\nB = 2\n")}
    assert found["differences"][-1]["here"] == "changed"
    assert "+B = 3" in found["diffs"]["helper.py"]
    assert found["resumed"][0]["by"] == "me@here"
    shutil.rmtree(project)
    assert cli.json("env", "w")["differences"][-1]["here"] == "missing"


def file_digest_of(text: str) -> str:
    import hashlib

    return hashlib.sha256(text.encode()).hexdigest()


def test_a_workflow_of_before(store: Store, cli: Cli) -> None:
    store.successful("old")
    result = cli("env", "old")
    assert "Nothing was recorded" in result.stderr


def test_diff_and_json_are_one_too_many(store: Store, cli: Cli) -> None:
    assert "--diff" in cli("env", "w", "--json", "--diff", code=2).stderr


def test_an_unknown_workflow(store: Store, cli: Cli) -> None:
    assert "nix" in cli("env", "nix", code=1).stderr


@pytest.mark.parametrize("what", ["package", "document"])
def test_damaged_code(
    store: Store, cli: Cli, recorded: Environment, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`doctor` names it, and `env` does not take it for what it is not."""

    def problems() -> list[checks.Finding]:
        found = checks.check_journals(Reader(store.storage))
        return [finding for finding in found if finding.level is checks.Level.PROBLEM]

    failed(store, recorded)
    assert not problems()
    name = packages.item_name(recorded.packages[0])
    if what == "document":
        name = f"{shared.DOCUMENT}/{recorded.record}"
    item = shared.find(store.storage, name)
    assert item is not None
    (path,) = store.directory.glob(f"blobs/{item.incarnation}/*")
    data = path.read_bytes()
    path.chmod(0o600)
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    (problem,) = problems()
    for part in ("'w'", name, item.incarnation):
        assert part in problem.message
    assert "resume --code current w" in problem.remedy
    if what == "document":
        assert name in cli("env", "w", code=1).stderr
        row = store.storage.read_catalog("w")
        assert row is not None
        found = RecordedEnvironment(store.storage, row)
        # The cluster has its secret.
        monkeypatch.setattr(private, "has_key", lambda key: True)
        # What was recorded can't be compared; what is here needs none of it.
        (said,) = missing(found, EnvironmentChange("recorded", "me@here"), ResumeOptions())
        assert name in said
        assert (
            missing(found, EnvironmentChange("current", "me@here"), ResumeOptions("current")) == []
        )
