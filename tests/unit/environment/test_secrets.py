"""Values that are kept out of the storage, against a cluster's store that is a dict."""

from __future__ import annotations

from typing import Any

import pytest

from ray_workflows._environment import secrets
from tests.support.cluster_keys import keys_of_a_cluster


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    return keys_of_a_cluster(monkeypatch)


def hide(runtime_env: dict[str, Any], session: str = "session") -> dict[str, Any]:
    return secrets.hide(runtime_env, lambda: session)


def hide_variables(**env_vars: str) -> dict[str, Any]:
    return hide({"env_vars": env_vars})


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("AWS_SECRET_ACCESS_KEY", True),
        ("github_token", True),
        ("PGPASSWORD", True),
        ("CLIENT_SECRET", True),
        ("KEYBOARD", False),
        ("PYTHONPATH", False),
        ("MINE_1", True),
    ],
)
def test_which_names_are_secret(cluster: dict[str, bytes], name: str, secret: bool) -> None:
    secrets.choose(["mine_*"])
    assert secrets.is_secret(name) is secret


def test_a_value_stays_in_the_cluster(
    cluster: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("A_TOKEN", raising=False)
    runtime_env = {"pip": [], "env_vars": {"A_TOKEN": "v", "B": "b"}}
    hidden = hide(runtime_env)
    assert hidden["env_vars"]["B"] == "b"
    assert "v" not in hidden["env_vars"]["A_TOKEN"].removeprefix(secrets.MARK)
    assert hide(runtime_env) == hidden
    assert hide(hidden) == hidden
    assert secrets.reveal(hidden) == runtime_env
    assert secrets.masked(hidden) == {
        "pip": [],
        "env_vars": {"A_TOKEN": "<secret>", "B": "b"},
    }


def test_another_cluster_has_to_be_told(
    cluster: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("A_TOKEN", raising=False)
    monkeypatch.setenv("NODE_TOKEN", "of the nodes")
    hidden = hide_variables(A_TOKEN="v", NODE_TOKEN="w")
    cluster.clear()
    with pytest.raises(LookupError, match="A_TOKEN"):
        secrets.reveal(hidden)
    assert secrets.supply({}, {}, dict) == ([], [])
    assert secrets.supply(hidden, {}, dict) == (["A_TOKEN", "NODE_TOKEN"], [])
    assert secrets.supply(hidden, {"A_TOKEN": "new"}, dict) == (["NODE_TOKEN"], [])
    # What only the nodes have is left to them.
    assert secrets.reveal(hidden) == {"env_vars": {"A_TOKEN": "new"}}


def test_workers_know_which_names_are_secret(
    cluster: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets.choose(["MINE_*", "OURS"])
    # Also if the driver has no variables: a task's continuation may have some.
    hidden = hide({})
    monkeypatch.setattr(secrets, "chosen", None)
    monkeypatch.setenv(secrets.PATTERNS_VARIABLE, hidden["env_vars"][secrets.PATTERNS_VARIABLE])
    assert secrets.is_secret("MINE_2")
    assert secrets.is_secret("OURS")


def test_a_cluster_keeps_one_key_for_each_value(cluster: dict[str, bytes]) -> None:
    """However many jobs and processes have it."""
    for job in range(1_000):
        secrets.marks.clear()
        hide({"env_vars": {"A_TOKEN": "a", "B_TOKEN": "b"}}, f"job {job}")
    values = [data for key, data in cluster.items() if key.startswith(secrets.MARK)]
    assert sorted(values) == [b"a", b"b"]
    assert len(cluster) == 3


def test_a_mark_gives_nothing_away(cluster: dict[str, bytes]) -> None:
    """The same weak password has another mark in another cluster, and by another name."""
    first = hide_variables(A_TOKEN="1234", B_TOKEN="1234")["env_vars"]
    cluster.clear()
    secrets.marks.clear()
    second = hide_variables(A_TOKEN="1234")["env_vars"]
    assert len({*first.values(), *second.values()}) == 3


def test_another_cluster_is_told_too(cluster: dict[str, bytes]) -> None:
    runtime_env = {"env_vars": {"A_TOKEN": "v"}}
    hide(runtime_env)
    cluster.clear()
    assert secrets.reveal(hide(runtime_env, "other")) == runtime_env
