"""Each private name of Ray that is used: fails when Ray changes one."""

from __future__ import annotations

import abc
import ast
import enum
import inspect
import io
import os
import pickle
import re
import subprocess
import sys
import types
import typing
from pathlib import Path

import pytest
import ray
from ray import cloudpickle
from ray.dag import InputNode

from ray_workflows._ray import private


def plain(*args, **kwargs):
    return args, kwargs


f = ray.remote(plain)

ROOT = Path(__file__).parents[3]

#: Where the names are tested: here, and what needs a cluster.
TESTS = [
    Path(__file__),
    *(ROOT / "tests" / "ray" / f"test_{name}.py" for name in ("handles", "identity")),
]


def names_of(module: types.ModuleType) -> list[str]:
    """The functions and constants that a module defines."""
    found = []
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.append(node.name)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found += [
                name.id for t in targets for name in ast.walk(t) if isinstance(name, ast.Name)
            ]
    return found


def test_each_name_is_tested() -> None:
    tested = "".join(path.read_text() for path in TESTS)
    names = names_of(private)
    assert len(names) > 30
    assert [name for name in names if not re.search(rf"\b{name}\b", tested)] == []


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
    """CachedSnapshot by Ray, and handed on as they are."""
    labels = {private.LABELS: {"any name, like this.one": '{"any": "text"}'}}
    assert f.options(**labels).bind().get_options()[private.LABELS] == labels["_labels"]


def test_placement_group() -> None:
    from ray._raylet import PlacementGroupID

    hex_id = "ab" * PlacementGroupID.size()
    assert private.placement_group(hex_id).id.hex() == hex_id


def test_bootstrap_address() -> None:
    assert private.bootstrap_address("10.9.8.7:1234") == "10.9.8.7:1234"


def test_local_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private import services

    assert callable(services.find_bootstrap_address)
    assert isinstance(services.find_gcs_addresses(), (set, frozenset))
    monkeypatch.setattr(services, "find_gcs_addresses", lambda: {"10.9.8.7:2", "10.9.8.7:1"})
    monkeypatch.setattr(services, "find_bootstrap_address", lambda temp_dir: None)
    assert private.local_clusters() == ["10.9.8.7:1", "10.9.8.7:2"]
    monkeypatch.setattr(services, "find_bootstrap_address", lambda temp_dir: "10.9.8.7:3")
    assert private.local_clusters() == ["10.9.8.7:3", "10.9.8.7:1", "10.9.8.7:2"]


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


def test_the_ids_of_classes() -> None:
    class Known:
        pass

    class Other:
        pass

    assert private.class_id(Known) is None
    private.track_class(Known, "the id of a known class")
    assert private.class_id(Known) == "the id of a known class"
    assert private.tracked_class("the id of a known class") is Known
    # An id that has its class keeps it.
    private.know_class(Other, "the id of a known class")
    assert private.tracked_class("the id of a known class") is Known
    private.know_class(Other, "the id of another class")
    assert private.tracked_class("the id of another class") is Other
    # One that only means a class is not what the class is pickled under.
    assert private.class_id(Other) is None


def called_by_pickle(value: object) -> set[str]:
    """The functions of cloudpickle that the pickle of a value names."""
    found = set()

    class Noting(pickle.Unpickler):
        def find_class(self, module, name):
            found.add(name)
            return super().find_class(module, name)

    Noting(io.BytesIO(cloudpickle.dumps(value))).load()
    return found


def test_what_pickles_of_code_call() -> None:
    class Local:
        pass

    class Kind(enum.Enum):
        A = 1

    variable = typing.TypeVar("variable")
    fill_function, fill_class = private.SET_STATE
    assert {private.MAKES_FUNCTION, private.NAMES_TYPE, fill_function} <= called_by_pickle(
        lambda: variable
    )
    made = {private.MAKES_TYPE_VARIABLE: variable}
    made.update(zip(private.MAKE_CLASSES, (Local, Kind), strict=True))
    assert made.keys() == private.ARGUMENTS_OF_CLASS.keys()
    for name, value in made.items():
        called = called_by_pickle(value)
        assert name in called
        assert (fill_class in called) is (name in private.MAKE_CLASSES)
        parameters = list(inspect.signature(getattr(cloudpickle.cloudpickle, name)).parameters)
        assert parameters[private.ARGUMENTS_OF_CLASS[name]] == "class_tracker_id"


def test_what_code_has_that_is_of_a_process() -> None:
    class Abstract(abc.ABC):
        pass

    of_abstract, of_actor = private.OF_PROCESS
    assert of_abstract in vars(Abstract)
    assert hasattr(ray.remote(type("Plain", (), {})), of_actor)


def test_what_the_pickle_of_a_remote_function_has() -> None:
    ((name, parts),) = private.REMOTE_FUNCTION_PARTS.items()
    assert f"{type(f).__module__}.{type(f).__qualname__}" == name
    assert set(parts) <= f.__getstate__().keys()


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


def test_the_names_of_packages() -> None:
    from ray._private.runtime_env.packaging import RAY_PKG_PREFIX

    assert RAY_PKG_PREFIX == private.PACKAGE_PREFIX


def test_registered_function(cluster: None) -> None:
    from ray._private.runtime_env.setup_hook import export_setup_func_callable
    from ray._private.worker import global_worker

    environment = export_setup_func_callable({}, plain, global_worker)
    key = environment["env_vars"][private.SETUP_HOOK_VARIABLE]
    assert key.startswith(private.FUNCTION_PREFIX)
    assert pickle.loads(private.registered_function(key)) is plain


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


def test_method_name(cluster: None) -> None:
    @ray.remote
    class Counter:
        def count(self):
            return 1

    assert private.method_name(Counter.remote().count) == "count"
