"""Keeps the secrets of a runtime_env out of the storage: values of secret environment variables,
and credentials in the URLs of any field.

A mark is stored in their place: the name of a key under which the cluster keeps the value as long
as it lives, one key for each value, however many jobs and workflows have it. To resume a workflow
in another cluster, a user supplies the values again.
"""

from __future__ import annotations

import fnmatch
import hashlib
import hmac
import os
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any
from urllib.parse import unquote

from ray_workflows._environment import credentials
from ray_workflows._ray import private

#: Names of variables whose values are not stored, as `fnmatch` patterns; case does not matter.
DEFAULT_PATTERNS = ("*_KEY", "*_TOKEN", "*_SECRET", "*PASSWORD", "*_CREDENTIALS")

#: The field of a runtime_env with environment variables.
ENV_VARS = "env_vars"

#: The prefix of marks; the rest is the cluster's key of the value.
MARK = "ray-workflows-secret:"

#: A mark in a text.
MARKED = re.compile(rf"{MARK}\w+")

#: What is shown of a secret.
SHOWN = "<secret>"

#: The cluster's key of the random bytes with which marks are made.
CLUSTER_KEY = "ray-workflows-secrets-key"

#: The variable that passes additional patterns to workers.
PATTERNS_VARIABLE = "RAY_WORKFLOWS_SECRET_ENV_VARS"

#: The patterns given to `init`.
chosen: tuple[str, ...] | None = None

#: The marks this process has made, by session, name and value.
marks: dict[tuple[str, str, str], str] = {}

#: The secrets that this process gave to workers, the latest at the end, and how many it remembers.
#: Ray may quote them, or parts of them, when it can't set up a runtime_env.
revealed: dict[str, None] = {}
revealed_lock = threading.Lock()
MAX_REVEALED = 10_000

#: Shorter secrets stay in errors: they would be found in words.
MIN_CHARACTERS = 4


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
    """Whether the value of a variable must not be stored, by its name."""
    return any(fnmatch.fnmatchcase(name.upper(), pattern.upper()) for pattern in patterns())


def is_secret_variable(name: str, value: str) -> bool:
    """Whether the value of a variable must not be stored. A credential in a URL makes the whole
    value a secret, because a user supplies it by its name in another cluster."""
    return is_secret(name) or without_credentials(value) != value


def rewritten(value: Any, change: Callable[[str], str]) -> Any:
    """Apply ``change`` to each text in nested lists and dicts."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: rewritten(each, change) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [rewritten(each, change) for each in value]
    return value


def with_texts(
    runtime_env: Mapping[str, Any],
    variable: Callable[[str, str], str],
    text: Callable[[str, str], str],
) -> dict[str, Any]:
    """Change the texts of a runtime_env.

    Args:
        runtime_env: a runtime_env, which is not changed itself.
        variable: takes the name and the value of an environment variable, returns the new value.
        text: takes the name of another field and a text in it, returns the new text.
    """
    changed = {
        field: value if field == ENV_VARS else rewritten(value, partial(text, field))
        for field, value in runtime_env.items()
    }
    if changed.get(ENV_VARS):
        changed[ENV_VARS] = {
            name: variable(name, value) if isinstance(value, str) else value
            for name, value in changed[ENV_VARS].items()
        }
    return changed


def unchanged(name: str, value: str) -> str:
    """Keep the value of a variable, for `with_texts`."""
    return value


def hide(runtime_env: Mapping[str, Any], session: Callable[[], str]) -> dict[str, Any]:
    """Replace secrets by marks; the cluster keeps the values.

    ``session`` returns the name of the cluster: each cluster needs the values.
    """

    def hide_part(part: str) -> str:
        return part if MARKED.fullmatch(part) else mark(session(), "", part)

    def variable(name: str, value: str) -> str:
        if value.startswith(MARK) or not is_secret_variable(name, value):
            return value
        return mark(session(), name, value)

    hidden = with_texts(
        runtime_env, variable, lambda _, text: credentials.replace(text, hide_part, is_secret)
    )
    if chosen:
        env_vars = hidden.get(ENV_VARS) or {}
        hidden[ENV_VARS] = {**env_vars, PATTERNS_VARIABLE: ",".join(chosen)}
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


def reveal(runtime_env: Mapping[str, Any]) -> dict[str, Any]:
    """Replace marks by their values. If this cluster does not have the value of a variable, the
    variable is left to the environment of its nodes.

    Raises:
        LookupError: the nodes do not have it either, or the value is part of another field.
    """

    def variable(name: str, value: str) -> str:
        if not value.startswith(MARK):
            return value
        found = private.get_key(value)
        if found is None and name not in os.environ:
            raise LookupError(
                f"The value of the secret environment variable {name} is not stored, and this "
                f"cluster does not have it. Set it where you call resume(), which passes it on."
            )
        return value if found is None else remember_revealed(found.decode())

    def text(field: str, value: str) -> str:
        def part(match: re.Match[str]) -> str:
            found = private.get_key(match[0])
            if found is None:
                raise LookupError(
                    f"The credentials in the field {field!r} of the runtime_env are not stored, "
                    f"and this cluster does not have them. Give the field to resume() anew."
                )
            return remember_revealed(found.decode())

        return MARKED.sub(part, value)

    revealed = with_texts(runtime_env, variable, text)
    if revealed.get(ENV_VARS):
        env_vars = revealed[ENV_VARS].items()
        revealed[ENV_VARS] = {
            name: value for name, value in env_vars if not str(value).startswith(MARK)
        }
    return revealed


def supply(
    runtime_env: Mapping[str, Any],
    values: Mapping[str, str],
    own: Callable[[], Mapping[str, Any]],
) -> tuple[list[str], list[str]]:
    """Give this cluster missing secrets.

    Args:
        runtime_env: a runtime_env with marks.
        values: values of variables, by name.
        own: returns the runtime_env of this process, which supplies what ``values`` lacks:
            variables by name, and the credentials in another field if it differs in nothing else.

    Returns:
        The names of variables, and of other fields, whose secrets are still missing.
    """
    variables: dict[str, str] = {}
    fields: set[str] = set()

    def variable(name: str, value: str) -> str:
        if value.startswith(MARK):
            if name in values:
                private.put_key(value, values[name].encode())
            elif not private.has_key(value):
                variables[name] = value
        return value

    def text(field: str, value: str) -> str:
        if not all(map(private.has_key, MARKED.findall(value))):
            fields.add(field)
        return value

    with_texts(runtime_env, variable, text)
    if not variables and not fields:
        return [], []
    mine = own()
    env_vars = mine.get(ENV_VARS) or {}
    for name in variables.keys() & env_vars.keys():
        private.put_key(variables.pop(name), env_vars[name].encode())
    given = {field for field in fields if supply_field(field, runtime_env, mine)}
    return sorted(variables), sorted(fields - given)


def supply_field(field: str, runtime_env: Mapping[str, Any], own: Mapping[str, Any]) -> bool:
    """Give this cluster the credentials in a field of ``own``, if it differs from that of
    ``runtime_env`` in nothing else. Returns whether it did."""
    there, here = {field: runtime_env[field]}, {field: own.get(field)}
    if masked(there) != masked(here):
        return False
    parts: list[str] = []

    def number(part: str) -> str:
        parts.append(part)
        return f"{MARK}{len(parts) - 1}"

    numbered = with_texts(
        here, unchanged, lambda _, text: credentials.replace(text, number, is_secret)
    )
    keys, numbered_keys = marks_in(there), marks_in(numbered)
    if len(keys) != len(numbered_keys):
        return False
    for key, numbered_key in zip(keys, numbered_keys, strict=True):
        private.put_key(key, parts[int(numbered_key.removeprefix(MARK))].encode())
    return True


def marks_in(field: Mapping[str, Any]) -> list[str]:
    """The marks in the texts of a field of a runtime_env, in their order."""
    found: list[str] = []

    def text(_: str, value: str) -> str:
        found.extend(MARKED.findall(value))
        return value

    with_texts(field, unchanged, text)
    return found


def masked(runtime_env: Mapping[str, Any]) -> dict[str, Any]:
    """A runtime_env without its marks, for display and comparison: marks differ between clusters.
    Secrets that an earlier release stored are left out, too."""

    def variable(name: str, value: str) -> str:
        secret = value.startswith(MARK) or is_secret_variable(name, value)
        return SHOWN if secret else value

    return with_texts(
        runtime_env, variable, lambda _, text: without_credentials(MARKED.sub(SHOWN, text))
    )


def without_credentials(text: str) -> str:
    """Replace the credentials in the URLs of a text, for display."""
    return credentials.replace(text, lambda _: SHOWN, is_secret)


def without_secrets(text: str) -> str:
    """Replace the secrets that this process gave to workers in a text that Ray wrote."""
    with revealed_lock:
        values = list(revealed)
    forms: set[str] = set()
    for value in values:
        # Ray and the libraries that it uses may quote a part of a URL.
        for part in (value, *credentials.found(value, is_secret), value.partition(":")[2]):
            forms.update((part, unquote(part)))
    for form in sorted(forms, key=len, reverse=True):
        if len(form) >= MIN_CHARACTERS:
            text = text.replace(form, SHOWN)
    return without_credentials(text)


def remember_revealed(value: str) -> str:
    """Return the value, and replace it in errors from now on."""
    with revealed_lock:
        revealed.pop(value, None)
        revealed[value] = None
        if len(revealed) > MAX_REVEALED:
            del revealed[next(iter(revealed))]
    return value
