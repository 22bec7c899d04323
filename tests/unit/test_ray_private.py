"""Each private name of Ray that is used: fails when Ray changes one."""

from __future__ import annotations

import enum
import io
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import ray
from ray import cloudpickle
from ray.dag import InputNode

from ray_workflows._ray import private


def plain(*args, **kwargs):
    return args, kwargs


f = ray.remote(plain)


def test_node_function() -> None:
    assert private.node_function(f.bind(1)) is plain
    assert private.node_function(f.options(num_cpus=2).bind()) is plain


def test_node_options() -> None:
    with_options = f.options(num_cpus=2)
    first, second = with_options.bind(1), with_options.bind(2)
    assert private.node_options(first) == first.get_options()
    assert private.node_options(first) is private.node_options(second)
    assert private.node_options(f.options(num_cpus=2).bind()) is not with_options
    assert private.node_options(f.bind(1)) == {}


def test_node_input() -> None:
    with InputNode() as inputs:
        # By different keys: Ray makes one node of ``inputs.x`` and ``inputs["x"]``.
        by_item = {inputs.x: False, inputs["y"]: True, inputs[0]: True}
    for node, expected in by_item.items():
        assert private.node_input(node) is inputs
        assert private.takes_item(node) is expected


def test_default_options() -> None:
    function = ray.remote(num_cpus=2)(plain)
    assert private.default_options(function)["num_cpus"] == 2
    private.default_options(function)[private.LABELS] = {"team": "a"}
    assert function.bind().get_options()[private.LABELS] == {"team": "a"}


def test_labels() -> None:
    """Taken by Ray, and handed on as they are."""
    labels = {private.LABELS: {"any name, like this.one": '{"any": "text"}'}}
    assert f.options(**labels).bind().get_options()[private.LABELS] == labels["_labels"]


def test_placement_group() -> None:
    from ray._raylet import PlacementGroupID

    hex_id = "ab" * PlacementGroupID.size()
    assert private.placement_group(hex_id).id.hex() == hex_id


def test_bootstrap_address(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert private.bootstrap_address("10.9.8.7:1234") == "10.9.8.7:1234"
    monkeypatch.setenv("RAY_ADDRESS", "10.9.8.7:4321")
    assert private.bootstrap_address("auto") == "10.9.8.7:4321"


def test_setup_hook_variable() -> None:
    from ray._private import ray_constants
    from ray._private.runtime_env import setup_hook

    variable = ray_constants.WORKER_PROCESS_SETUP_HOOK_ENV_VAR
    assert variable == private.SETUP_HOOK_VARIABLE
    assert setup_hook.RUNTIME_ENV_FUNC_IDENTIFIER == private.FUNCTION_PREFIX


def test_classes_that_come_with_their_contents() -> None:
    """Where the pickle of one has its id, and that loading it finds the class by that."""

    class Local:
        pass

    class Kind(enum.Enum):
        A = 1

    for cls, make, position in (
        (Local, private.MAKE_CLASS, private.CLASS_ID),
        (Kind, private.MAKE_ENUM, private.ENUM_ID),
    ):
        private.track_class(cls, f"the id of {cls.__name__}")
        data = cloudpickle.dumps(cls)
        assert private.SKELETON in data
        called = {}

        class Noting(pickle.Unpickler):
            def find_class(self, module, name, called=called):
                found = super().find_class(module, name)

                def noted(*args):
                    called[found] = args
                    return found(*args)

                return found if isinstance(found, type) else noted

        assert Noting(io.BytesIO(data)).load() is cls
        assert called[make][position] == f"the id of {cls.__name__}"
        assert called[private.FILL_CLASS][0] is cls


def test_job_config_variable() -> None:
    from ray._private.runtime_env import constants

    assert constants.RAY_JOB_CONFIG_JSON_ENV_VAR == private.JOB_CONFIG_VARIABLE


def test_ray_commit() -> None:
    given = ray.runtime_env.RuntimeEnv(pip=["tiny"], env_vars={"A": "b"})
    assert set(given) - {"pip", "env_vars"} == {private.RAY_COMMIT}


def test_remote_body() -> None:
    assert private.remote_body(f) is plain


def test_git_matcher() -> None:
    matches = private.git_matcher(["*.dat", "build/", "/top", "!keep.dat"])
    assert matches("a/b.dat")
    assert matches("build/")
    assert matches("top")
    assert not matches("a/top")
    assert not matches("keep.dat")


def test_limits_of_packages() -> None:
    assert private.largest_package() > 100_000_000
    assert all(isinstance(name, str) for name in private.default_excludes())


def test_keys_of_the_cluster(cluster: None) -> None:
    """What the cluster keeps under a name, packages too."""
    key = "gcs://ray_workflows_test.zip"
    assert private.get_key(key) is None
    assert not private.has_key(key)
    private.put_key(key, b"some bytes")
    assert private.has_key(key)
    assert private.get_key(key) == b"some bytes"
    private.delete_key(key)
    assert not private.has_key(key)


def test_where_packages_are_unpacked(cluster: None, tmp_path: Path) -> None:
    """Of this name is the directory; ``sys.path`` tells what comes from there."""
    import zipfile

    key = "gcs://ray_workflows_unpacked.zip"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("rw_unpacked.py", "")
    private.put_key(key, buffer.getvalue())

    @ray.remote(num_cpus=0, runtime_env={"py_modules": [key]})
    def where():
        import rw_unpacked

        return rw_unpacked.__file__

    assert f"/{private.UNPACKED}/" in ray.get(where.remote())
    private.delete_key(key)


def test_take_token(tmp_path: Path) -> None:
    """A token of this user is used, and none is made; $RAY_AUTH_MODE holds."""
    code = "import os; from ray_workflows._ray.private import take_token; take_token(); "
    code += "print(os.environ.get('RAY_AUTH_MODE'))"

    def mode(**variables: str) -> str:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_AUTH")}
        environment = {**kept, "HOME": str(tmp_path), **variables}
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stderr == ""
        return done.stdout.strip()

    assert mode() == "None"
    assert not (tmp_path / ".ray").exists()
    by_default = tuple(map(int, ray.__version__.split(".")[:2])) >= (2, 60)
    assert mode(RAY_AUTH_TOKEN="0123456789abcdef" * 2) == ("token" if by_default else "None")
    assert mode(RAY_AUTH_TOKEN="0123456789abcdef" * 2, RAY_AUTH_MODE="disabled") == "disabled"
