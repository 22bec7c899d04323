"""No secret of a runtime_env is stored or shown, wherever it stands in it and however it came."""

from __future__ import annotations

import json
import logging
from typing import Any

import msgspec
import pytest
from ray.exceptions import RuntimeEnvSetupError

from ray_workflows._capture.options import encode_ray_options
from ray_workflows._client.environments import (
    RecordedEnvironment,
    ResumeOptions,
    changed_environment,
    checked_options,
    get_environment,
    missing,
)
from ray_workflows._client.reader import Reader
from ray_workflows._environment import secrets, snapshot
from ray_workflows._environment.attempts import runtime_env_for
from ray_workflows._environment.code.modules import Reached
from ray_workflows._environment.snapshot import remember, remember_options
from ray_workflows._executor.failures import described
from ray_workflows._model import messages as msg
from ray_workflows._model.plan import Environment, EnvironmentChange
from tests.cli.conftest import Cli
from tests.cli.store import PLAN, Store
from tests.support.cluster_keys import keys_of_a_cluster

SECRET = "s3cr3tw0rd"

#: The places that a runtime_env has for texts, each with a secret in it.
PLACES: dict[str, dict[str, Any]] = {
    "a variable by its name": {"env_vars": {"MY_TOKEN": SECRET}},
    "a variable by what is in it": {"env_vars": {"DB": f"postgresql://me:{SECRET}@host/db"}},
    "a slash in the password": {"env_vars": {"DB": f"mysql+x://me:a/{SECRET}?b@host/db"}},
    "no user": {"env_vars": {"BROKER": f"redis://:{SECRET}@host:6379/0"}},
    "two in one": {"env_vars": {"ALL": f"http://host/,http://me:{SECRET}@b,http://{SECRET}@c"}},
    "a token as the user": {"env_vars": {"MODEL": f"https://{SECRET}@host/model"}},
    "a parameter": {"env_vars": {"WHERE": f"https://host/x?sv=1&sig={SECRET}&se=2"}},
    "a fragment": {"env_vars": {"WHERE": f"https://host/x#access_token={SECRET}"}},
    "pip, a list": {"pip": ["a==1", f"--extra-index-url https://me:{SECRET}@host/simple", "b"]},
    "pip, its options": {
        "pip": {"packages": ["a"], "pip_install_options": [f"--index-url=http://{SECRET}@h/s"]}
    },
    "uv": {
        "uv": {
            "packages": [f"a @ git+https://{SECRET}@host/a.git@v1#egg=a"],
            "uv_pip_install_options": ["--index", f"https://me:{SECRET}@host/simple"],
        }
    },
    "in each part": {"working_dir": f"https://me:{SECRET}@host/c.zip?x=1&sig={SECRET}"},
    "conda": {"conda": {"dependencies": ["a", {"pip": [f"https://me:{SECRET}@host/a.whl"]}]}},
    "working_dir": {"working_dir": f"https://me:{SECRET}@host/code.zip"},
    "signed": {"working_dir": f"https://host/c.zip?X-Amz-Date=1&X-Amz-Signature={SECRET}"},
    "py_modules": {"py_modules": [f"https://host/a.zip?token={SECRET}"]},
    "image_uri": {"image_uri": f"docker://me:{SECRET}@registry/image"},
    "container": {"container": {"image": "i", "run_options": [f"--env=A=http://u:{SECRET}@h"]}},
    "py_executable": {"py_executable": f"env A=amqp://u:{SECRET}@h python"},
    "another field": {"of_tomorrow": {"deep": [[f"nats://{SECRET}@h"]]}},
}

#: What is no secret, and is stored and shown as it is.
PLAIN: dict[str, Any] = {
    "env_vars": {
        "DATA": "abfss://container@account.dfs.core.windows.net/data",
        "DB": "postgresql://me@host:5432/db",
        "REPOSITORY": "git+ssh://git@github.com/a/b.git@v1",
        "API": "http://[::1]:8080/users/me@host?page=1&sort=a",
        "PORT": "http://host:8080/a:b@c",
        "MAIL": "me@host",
    },
    "pip": ["a @ git+https://github.com/a/a.git@v1#egg=a", "my_token==1.0"],
    "working_dir": "s3://bucket/code.zip",
}


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    return keys_of_a_cluster(monkeypatch)


@pytest.fixture(params=PLACES)
def runtime_env(request: pytest.FixtureRequest) -> dict[str, Any]:
    given: dict[str, Any] = json.loads(json.dumps(PLACES[request.param]))
    return given


def submitted(
    store: Store, of_workflow: dict[str, Any], of_task: dict[str, Any]
) -> RecordedEnvironment:
    """A workflow that failed, with these runtime_envs."""
    environment = remember(store.storage, of_workflow, Reached(()), "")
    options = list(PLAN.options)
    index = PLAN.tasks[1].options
    encoded = encode_ray_options({"runtime_env": of_task}, where="task") if of_task else {}
    options[index] = msgspec.structs.replace(options[index], ray=encoded)
    plan = msgspec.structs.replace(PLAN, options=tuple(options), environment=environment)
    plan = remember_options(store.storage, plan, ("w", "i-77"))
    story = store.story("w", plan=plan)
    store.give(story, "fetch", 1)
    story.fail("total", retryable=True)
    story.fail("total")
    return RecordedEnvironment(store.storage, store.save(story))


def resumed(
    store: Store, of_workflow: dict[str, Any], of_task: dict[str, Any]
) -> tuple[Environment, dict[str, Any]]:
    """What a workflow without a runtime_env is resumed with."""
    found = submitted(store, {}, {})
    asked = ResumeOptions(runtime_env=of_workflow)
    user = (found.row.workflow_id, found.row.incarnation)
    environment = changed_environment(store.storage, found, asked, user)
    assert environment is not None
    options = checked_options(found, {"total": {"runtime_env": of_task}} if of_task else {})
    story = store.story("resumed", plan=PLAN)
    store.give(story, "fetch", 1)
    story.fail("total", retryable=True)
    story.fail("total")
    change = EnvironmentChange("recorded", "me@here", environment, {}, options)
    story.send(msg.Resume(change=change))
    store.save(story)
    return environment, options.get("total", {}).get("runtime_env", {})


def stored(store: Store) -> bytes:
    """All that the storage has."""
    store.storage.close()
    files = [path for path in store.directory.rglob("*") if path.is_file()]
    assert files
    return b"".join(path.read_bytes() for path in files)


@pytest.mark.parametrize("of_task", [False, True])
@pytest.mark.parametrize("how", ["submitted", "resumed"])
def test_no_secret_is_stored_or_shown(
    store: Store,
    cli: Cli,
    keys: dict[str, bytes],
    runtime_env: dict[str, Any],
    how: str,
    of_task: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    pair = ({}, runtime_env) if of_task else (runtime_env, {})
    if how == "submitted":
        found = submitted(store, *pair)
        environment, task_env = found.state.environment, found.task_envs.get("total", {})
        info = get_environment(Reader(store.storage), "w")
        shown = [repr(info), cli("env", "w").output, json.dumps(cli.json("env", "w"))]
        shown_envs = json.dumps([info.runtime_env, info.task_runtime_envs])
        # The cluster has the secrets, and what marks are made with. All of a variable is hidden.
        assert shown_envs.count("<secret>") == len(keys) - 1 > 0
    else:
        environment, task_env = resumed(store, *pair)
        shown = [repr(get_environment(Reader(store.storage), "resumed"))]
    # An attempt has what was given.
    attempt = runtime_env_for(environment, task_env)
    assert {key: attempt[key] for key in runtime_env} == runtime_env
    assert SECRET.encode() not in stored(store)
    assert SECRET not in "".join(shown) + caplog.text


def test_what_is_no_secret_stays_as_it_is(store: Store, keys: dict[str, bytes]) -> None:
    found = submitted(store, PLAIN, PLAIN)
    assert found.state.environment.runtime_env == PLAIN
    assert found.task_envs == {"total": PLAIN}
    info = get_environment(Reader(store.storage), "w")
    assert (info.runtime_env, info.task_runtime_envs) == (PLAIN, {"total": PLAIN})
    assert not keys


def test_what_an_earlier_release_has_stored_is_not_shown(
    store: Store, cli: Cli, runtime_env: dict[str, Any]
) -> None:
    plan = msgspec.structs.replace(PLAN, environment=Environment(runtime_env=runtime_env))
    store.save(store.story("w", plan=plan))
    shown = repr(get_environment(Reader(store.storage), "w")) + cli("env", "w").output
    assert "<secret>" in shown
    assert SECRET not in shown


@pytest.mark.parametrize("of_task", [False, True])
def test_another_cluster_has_to_be_given_them(
    store: Store,
    keys: dict[str, bytes],
    runtime_env: dict[str, Any],
    of_task: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = submitted(store, *(({}, runtime_env) if of_task else (runtime_env, {})))
    keys.clear()
    secrets.marks.clear()
    monkeypatch.setattr(snapshot, "own_runtime_env", dict)
    (field,) = runtime_env
    variable = next(iter(runtime_env["env_vars"])) if field == "env_vars" else ""
    (problem,) = missing(found, EnvironmentChange("recorded", "me@here"), ResumeOptions())
    assert (variable or repr(field)) in problem
    assert SECRET not in problem
    if of_task and not variable:
        assert "task_options={'total'" in problem
    else:
        assert "runtime_env={" in problem
    task_env = found.task_envs.get("total")
    with pytest.raises(LookupError, match=variable or field) as caught:
        runtime_env_for(found.state.environment, task_env)
    assert SECRET not in str(caught.value)
    # As the message says.
    environment, options = None, {}
    asked = ResumeOptions(runtime_env=runtime_env)
    if of_task and not variable:
        asked = ResumeOptions()
        options = checked_options(found, {"total": {"runtime_env": runtime_env}})
        task_env = options["total"]["runtime_env"]
    elif not of_task:
        environment = changed_environment(store.storage, found, asked, None)
    change = EnvironmentChange("recorded", "me@here", environment, {}, options)
    assert missing(found, change, asked) == []
    attempt = runtime_env_for(environment or found.state.environment, task_env)
    assert attempt[field] == runtime_env[field]


@pytest.mark.parametrize("of_task", [False, True])
def test_a_driver_with_the_same_runtime_env_gives_them(
    store: Store,
    keys: dict[str, bytes],
    runtime_env: dict[str, Any],
    of_task: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Such as the same script in another cluster, with another password."""
    found = submitted(store, *(({}, runtime_env) if of_task else (runtime_env, {})))
    keys.clear()
    secrets.marks.clear()
    text = json.dumps(runtime_env)
    change = EnvironmentChange("recorded", "me@here")
    other = json.loads(text.replace("host", "other").replace("@h", "@g").replace("MY", "OUR"))
    if "env_vars" not in other and other != runtime_env:
        # Passwords for somewhere else are none of these.
        monkeypatch.setattr(snapshot, "own_runtime_env", lambda: other)
        assert len(missing(found, change, ResumeOptions())) == 1
    mine = json.loads(text.replace(SECRET, "n3w"))
    monkeypatch.setattr(snapshot, "own_runtime_env", lambda: mine)
    assert missing(found, change, ResumeOptions()) == []
    attempt = runtime_env_for(found.state.environment, found.task_envs.get("total"))
    assert {field: attempt[field] for field in mine} == mine


def test_several_credentials_of_a_text_stay_in_their_places(
    store: Store, keys: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime_env = {"of_tomorrow": "http://a:b@h/?sig=c&x=1 then http://d:e@h/?sig=f#token=g"}
    found = submitted(store, runtime_env, {})
    assert len(keys) == 6
    keys.clear()
    secrets.marks.clear()
    monkeypatch.setattr(snapshot, "own_runtime_env", lambda: runtime_env)
    assert missing(found, EnvironmentChange("recorded", "me@here"), ResumeOptions()) == []
    assert runtime_env_for(found.state.environment, None) == runtime_env


def test_no_error_shows_a_secret(
    store: Store, keys: dict[str, bytes], runtime_env: dict[str, Any]
) -> None:
    """Neither of a runtime_env that can't be stored, nor of one that Ray could not set up."""
    with pytest.raises(ValueError, match="can't be stored") as caught:
        encode_ray_options({"runtime_env": {**runtime_env, "bad": {1, 2}}}, where="task")
    assert SECRET not in str(caught.value)
    runtime_env_for(remember(store.storage, runtime_env, Reached(()), ""), None)
    text = json.dumps(runtime_env)
    password = f"a/{SECRET}?b" if f"a/{SECRET}" in text else SECRET
    for quoted in (text, f"/code.zip?token={password}", f"user me, {password}"):
        error = RuntimeEnvSetupError(f"can't set up {quoted}: the disk is full")
        for info in (described(error), described(OSError(str(error)))):
            assert "the disk is full" in info.message
            assert SECRET.encode() not in msgspec.msgpack.encode(info)
        assert described(error).exception is not None


def test_an_error_without_a_secret_stays_as_it_is(keys: dict[str, bytes]) -> None:
    info = described(RuntimeEnvSetupError("can't install a @ git+https://host/a.git@v1"))
    assert "git+https://host/a.git@v1" in info.message
    assert info.exception is not None
