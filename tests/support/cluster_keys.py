"""What a cluster keeps by key, as a dict: secrets are kept there, and nowhere else."""

from __future__ import annotations

import pytest

from ray_workflows._environment import secrets, snapshot
from ray_workflows._ray import private


def keys_of_a_cluster(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The keys of a cluster that this process is connected to from now on. Another cluster is one
    without them."""
    keys: dict[str, bytes] = {}

    def put_key(key: str, data: bytes, *, overwrite: bool = True) -> None:
        if overwrite or key not in keys:
            keys[key] = data

    monkeypatch.setattr(private, "put_key", put_key)
    monkeypatch.setattr(private, "get_key", keys.get)
    monkeypatch.setattr(private, "has_key", keys.__contains__)
    monkeypatch.setattr(secrets, "chosen", None)
    monkeypatch.setattr(secrets, "marks", {})
    monkeypatch.setattr(secrets, "revealed", {})
    monkeypatch.setattr(snapshot, "session", lambda: "session")
    return keys
