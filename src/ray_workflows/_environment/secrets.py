"""Values of environment variables that are kept out of the storage.

What is stored in their place is a mark: the name of a key under which the cluster has the value for
as long as it lives: one key for each value, however many jobs and workflows have it. In another
cluster, whoever resumes a workflow supplies the values anew.
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

#: What begins so stands for a value; the rest is the cluster's key.
MARK = "ray-workflows-secret:"

#: Where the cluster has what marks are made with.
CLUSTER_KEY = "ray-workflows-secrets-key"

#: Tells workers which names are secret, where that differs.
PATTERNS_VARIABLE = "RAY_WORKFLOWS_SECRET_ENV_VARS"

#: What `init` was given.
chosen: tuple[str, ...] | None = None

#: The marks this process has made, by session, name and value.
marks: dict[tuple[str, str, str], str] = {}


def choose(patterns: Iterable[str] | None) -> None:
    """Which names are secret from now on, beside the default ones."""
    global chosen
    if patterns is not None:
        chosen = tuple(patterns)


def patterns() -> tuple[str, ...]:
    """Which names are secret."""
    given = chosen
    if given is None:
        text = os.environ.get(PATTERNS_VARIABLE, "")
        given = tuple(pattern for pattern in text.split(",") if pattern)
    return (*DEFAULT_PATTERNS, *given)


def is_secret(name: str) -> bool:
    """Whether the value of a variable is not to be stored."""
    return any(fnmatch.fnmatchcase(name.upper(), pattern.upper()) for pattern in patterns())


def hide(env_vars: Mapping[str, str], session: str) -> dict[str, str]:
    """The variables with marks in place of what is secret; the cluster keeps the values.

    ``session`` names the cluster: each has to be told.
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
        # Marks are stored. Without the cluster's key, which is not, a digest of a weak password
        # does not give it away.
        text = f"{name}={value}".encode()
        known = MARK + hmac.new(cluster_key(), text, hashlib.sha256).hexdigest()[:32]
        private.put_key(known, value.encode())
        marks[session, name, value] = known
    return known


def cluster_key() -> bytes:
    """Random bytes that only processes of this cluster know, the same for all of them."""
    private.put_key(CLUSTER_KEY, os.urandom(32), overwrite=False)
    key = private.get_key(CLUSTER_KEY)
    assert key is not None
    return key


def reveal(env_vars: Mapping[str, str]) -> dict[str, str]:
    """The variables with their values. One that was told to another cluster is left to what the
    nodes of this one have in their environment.

    Raises:
        LookupError: they do not have it either.
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
    """Tell this cluster values that it does not have; the names of those that are not given."""
    missing = set()
    for name, key in set(marked(runtime_envs)):
        if name in values:
            private.put_key(key, values[name].encode())
        elif not private.has_key(key):
            missing.add(name)
    return sorted(missing)


def masked(runtime_env: Mapping[str, Any]) -> dict[str, Any]:
    """A runtime_env to be shown, or to be compared: without the marks, which differ each time."""
    env_vars = runtime_env.get("env_vars") or {}
    if not any(value.startswith(MARK) for value in env_vars.values()):
        return dict(runtime_env)
    shown = {k: "<secret>" if v.startswith(MARK) else v for k, v in env_vars.items()}
    return {**runtime_env, "env_vars": shown}
