"""Keeps values of secret environment variables out of the storage.

A mark is stored in their place: the name of a key under which the cluster keeps the value as long
as it lives, one key for each value, however many jobs and workflows have it. To resume a workflow
in another cluster, a user supplies the values again.
"""

from __future__ import annotations

import fnmatch
import hashlib
import hmac
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ray_workflows._ray import private

#: Names of variables whose values are not stored, as `fnmatch` patterns; case does not matter.
DEFAULT_PATTERNS = ("*_KEY", "*_TOKEN", "*_SECRET", "*PASSWORD", "*_CREDENTIALS")

#: The prefix of marks; the rest is the cluster's key of the value.
MARK = "ray-workflows-secret:"

#: The cluster's key of the random bytes with which marks are made.
CLUSTER_KEY = "ray-workflows-secrets-key"

#: The variable that passes additional patterns to workers.
PATTERNS_VARIABLE = "RAY_WORKFLOWS_SECRET_ENV_VARS"

#: The patterns given to `init`.
chosen: tuple[str, ...] | None = None

#: The marks this process has made, by session, name and value.
marks: dict[tuple[str, str, str], str] = {}


def choose(patterns: Iterable[str] | None) -> None:
    """Set the patterns of secret names, in addition to the default ones."""
    global chosen
    if patterns is not None:
        chosen = tuple(patterns)


def patterns() -> tuple[str, ...]:
    """The patterns of secret names."""
    given = chosen
    if given is None:
        text = os.environ.get(PATTERNS_VARIABLE, "")
        given = tuple(pattern for pattern in text.split(",") if pattern)
    return (*DEFAULT_PATTERNS, *given)


def is_secret(name: str) -> bool:
    """Whether the value of a variable must not be stored."""
    return any(fnmatch.fnmatchcase(name.upper(), pattern.upper()) for pattern in patterns())


def hide(env_vars: Mapping[str, str], session: str) -> dict[str, str]:
    """Replace secret values by marks; the cluster keeps the values.

    ``session`` names the cluster: each cluster needs the values.
    """
    hidden = dict(env_vars)
    for name, value in env_vars.items():
        if is_secret(name) and not value.startswith(MARK):
            hidden[name] = mark(session, name, value)
    if chosen:
        hidden[PATTERNS_VARIABLE] = ",".join(chosen)
    return hidden


def mark(session: str, name: str, value: str) -> str:
    known = marks.get((session, name, value))
    if known is None:
        # Marks are stored, the cluster's key is not. Without the key, an attacker can't test
        # guesses of a weak password against its mark.
        text = f"{name}={value}".encode()
        known = MARK + hmac.new(cluster_key(), text, hashlib.sha256).hexdigest()[:32]
        private.put_key(known, value.encode())
        marks[session, name, value] = known
    return known


def cluster_key() -> bytes:
    """Random bytes that all processes of this cluster share, and no others have."""
    private.put_key(CLUSTER_KEY, os.urandom(32), overwrite=False)
    key = private.get_key(CLUSTER_KEY)
    assert key is not None
    return key


def reveal(env_vars: Mapping[str, str]) -> dict[str, str]:
    """Replace marks by their values. If this cluster does not have a value, the variable is left to
    the environment of its nodes.

    Raises:
        LookupError: the nodes do not have it either.
    """
    revealed = {}
    for name, value in env_vars.items():
        if not value.startswith(MARK):
            revealed[name] = value
            continue
        found = private.get_key(value)
        if found is not None:
            revealed[name] = found.decode()
        elif name not in os.environ:
            raise LookupError(
                f"The value of the secret environment variable {name} is not stored, and this "
                f"cluster does not have it. Set it where you call resume(), which passes it on."
            )
    return revealed


def marked(runtime_envs: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """Names of secret variables in some runtime_envs, with their marks."""
    for runtime_env in runtime_envs:
        for name, value in (runtime_env.get("env_vars") or {}).items():
            if value.startswith(MARK):
                yield name, value


def supply(runtime_envs: Iterable[Mapping[str, Any]], values: Mapping[str, str]) -> list[str]:
    """Give this cluster missing values. Returns the names of those that ``values`` lacks."""
    missing = set()
    for name, key in set(marked(runtime_envs)):
        if name in values:
            private.put_key(key, values[name].encode())
        elif not private.has_key(key):
            missing.add(name)
    return sorted(missing)


def masked(runtime_env: Mapping[str, Any]) -> dict[str, Any]:
    """A runtime_env without its marks, for display and comparison: marks differ between
    clusters."""
    env_vars = runtime_env.get("env_vars") or {}
    if not any(value.startswith(MARK) for value in env_vars.values()):
        return dict(runtime_env)
    shown = {k: "<secret>" if v.startswith(MARK) else v for k, v in env_vars.items()}
    return {**runtime_env, "env_vars": shown}
