"""Values that are kept out of the storage, against a cluster's store that is a dict."""

from __future__ import annotations

import pytest

from ray_workflows._environment import secrets
from ray_workflows._ray import private


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    keys: dict[str, bytes] = {}

    def put_key(key: str, data: bytes, *, overwrite: bool = True) -> None:
        if overwrite or key not in keys:
            keys[key] = data

    monkeypatch.setattr(private, "put_key", put_key)
    monkeypatch.setattr(private, "get_key", keys.get)
    monkeypatch.setattr(private, "has_key", keys.__contains__)
    monkeypatch.setattr(secrets, "chosen", None)
    monkeypatch.setattr(secrets, "marks", {})
    return keys


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
    env_vars = {"A_TOKEN": "v", "B": "b"}
    hidden = secrets.hide(env_vars, "session")
    assert hidden["B"] == "b"
    assert "v" not in hidden["A_TOKEN"].removeprefix(secrets.MARK)
    assert secrets.hide(env_vars, "session") == hidden
    assert secrets.hide(hidden, "session") == hidden
    assert secrets.reveal(hidden) == env_vars
    assert secrets.masked({"pip": [], "env_vars": hidden}) == {
        "pip": [],
        "env_vars": {"A_TOKEN": "<secret>", "B": "b"},
    }


def test_another_cluster_has_to_be_told(
    cluster: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("A_TOKEN", raising=False)
    monkeypatch.setenv("NODE_TOKEN", "of the nodes")
    hidden = secrets.hide({"A_TOKEN": "v", "NODE_TOKEN": "w"}, "session")
    cluster.clear()
    with pytest.raises(LookupError, match="A_TOKEN"):
        secrets.reveal(hidden)
    runtime_envs = [{"env_vars": hidden}, {}]
    assert secrets.supply(runtime_envs, {}) == ["A_TOKEN", "NODE_TOKEN"]
    assert secrets.supply(runtime_envs, {"A_TOKEN": "new"}) == ["NODE_TOKEN"]
    # What only the nodes have is left to them.
    assert secrets.reveal(hidden) == {"A_TOKEN": "new"}


def test_workers_know_which_names_are_secret(
    cluster: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets.choose(["MINE_*", "OURS"])
    hidden = secrets.hide({"MINE_1": "v"}, "session")
    monkeypatch.setattr(secrets, "chosen", None)
    monkeypatch.setenv(secrets.PATTERNS_VARIABLE, hidden[secrets.PATTERNS_VARIABLE])
    assert secrets.is_secret("MINE_2")
    assert secrets.is_secret("OURS")


def test_a_cluster_keeps_one_key_for_each_value(cluster: dict[str, bytes]) -> None:
    """However many jobs and processes have it."""
    for job in range(1_000):
        secrets.marks.clear()
        secrets.hide({"A_TOKEN": "a", "B_TOKEN": "b"}, f"job {job}")
    values = [data for key, data in cluster.items() if key.startswith(secrets.MARK)]
    assert sorted(values) == [b"a", b"b"]
    assert len(cluster) == 3


def test_a_mark_gives_nothing_away(cluster: dict[str, bytes]) -> None:
    """The same weak password has another mark in another cluster, and by another name."""
    first = secrets.hide({"A_TOKEN": "1234", "B_TOKEN": "1234"}, "session")
    cluster.clear()
    secrets.marks.clear()
    second = secrets.hide({"A_TOKEN": "1234"}, "session")
    assert len({*first.values(), *second.values()}) == 3


def test_another_cluster_is_told_too(cluster: dict[str, bytes]) -> None:
    secrets.hide({"A_TOKEN": "v"}, "session")
    cluster.clear()
    assert secrets.reveal(secrets.hide({"A_TOKEN": "v"}, "other")) == {"A_TOKEN": "v"}
