"""What counts as a change of code, and what does not."""

from __future__ import annotations

import importlib.util
import os
import pickle
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ray_workflows._capture.code_parts import (
    FunctionCode,
    code_in_source,
    code_of_function,
    code_of_pickle,
    differing,
    differing_in_source,
)
from ray_workflows._capture.pickling import pickle_value

SCRIPT = '''
import dataclasses
import enum
import math
import ray

TAX = 0.19
RATES = {"a", "b", "c"}


def twice(function):
    def wrapper(*args):
        return 2 * function(*args)
    return wrapper


class Kind(enum.Enum):
    SMALL = 1
    LARGE = 2


@dataclasses.dataclass
class Order:
    net: float
    kind: Kind = Kind.SMALL

    def gross(self):
        return rounded(self.net * (1 + TAX))


def rounded(value, digits=2):
    """To cents."""
    return round(value, digits)


def made(factor):
    def scaled(value):
        return factor * value
    return scaled


scaled = made(3)


@ray.remote(num_cpus=1)
def remote_helper(value):
    return value


@ray.remote
class Counter:
    def count(self):
        return 1


@twice
def book(net, *, label="x"):
    # A comment.
    order = Order(scaled(net))
    if label in {"x", "y", "z"} and label in RATES:
        return math.floor(order.gross())
    ray.get([remote_helper.remote(1), Counter.remote().count.remote()])
    return order.gross(), [other(n) for n in range(3)]


def other(n):
    return 0 if n < 0 else book(-1) if n > 5 else n


def unused():
    return 1
'''


def load(path: Path, text: str) -> Any:
    path.write_text(text)
    spec = importlib.util.spec_from_file_location("__main__", path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    exec(compile(text, str(path), "exec", dont_inherit=True), module.__dict__)
    return module


def code_of(path: Path, text: str, name: str = "book") -> FunctionCode:
    return code_of_function(getattr(load(path, text), name), "function")


def changed(tmp_path: Path, old: str, new: str) -> list[str]:
    assert old in SCRIPT
    before = code_of(tmp_path / "script.py", SCRIPT)
    after = code_of(tmp_path / "script.py", SCRIPT.replace(old, new))
    return sorted(differing(before.parts, after.parts))


#: What is edited, and the functions and classes that then are others.
CHANGES = {
    "a constant": ("return 2 *", "return 3 *", ["twice.<locals>.wrapper"]),
    "an operator": ("self.net * (1", "self.net + (1", ["Order.gross"]),
    "a default": ("digits=2", "digits=3", ["rounded"]),
    "a default by name": ('label="x"', 'label="y"', ["book"]),
    "a value in a closure": ("made(3)", "made(4)", ["made.<locals>.scaled"]),
    "a global": ("TAX = 0.19", "TAX = 0.25", ["Order.gross"]),
    "a global set": ('RATES = {"a"', 'RATES = {"d"', ["book"]),
    "a set in the code": ('{"x", "y", "z"}', '{"x", "y", "q"}', ["book"]),
    "a helper": ("return round(value, digits)", "return value", ["rounded"]),
    "a helper in a comprehension": ("if n < 0", "if n < 1", ["other"]),
    "a decorator": ("@twice\ndef", "def", ["twice.<locals>.wrapper"]),
    "a name": ("math.floor", "math.ceil", ["book"]),
    "a value of an enum": ("LARGE = 2", "LARGE = 3", ["Kind"]),
    "a remote helper": ("    return value\n", "    return -value\n", ["remote_helper"]),
    "options of a remote helper": ("num_cpus=1", "num_cpus=2", ["book"]),
    "a method of an actor": ("        return 1\n", "        return 2\n", ["Counter.count"]),
    "a docstring": ("To cents", "To euros", ["rounded"]),
}

#: What may be edited without another behaviour.
SAME = {
    "nothing": ("", ""),
    "a comment": ("# A comment", "# Another\n    # comment"),
    "moved lines": ("\nimport math", "\n\n\n\nimport math\n\n"),
    "blanks": ("value, digits=2", "value,\n    digits=2"),
    "parentheses": ("return math.floor(order.gross())", "return (math.floor(order.gross()))"),
    "an annotation": ("def rounded(value,", "def rounded(value: float,"),
    "what is not used": ("def unused():\n    return 1", "def unused():\n    return 2"),
    "an order of methods": (
        "class Kind(",
        "class Unused:\n    pass\n\n\nclass Kind(",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_counts(tmp_path: Path, change: str) -> None:
    old, new, expected = CHANGES[change]
    found = changed(tmp_path, old, new)
    assert set(expected) <= set(found)
    # And little beside it: what was edited is named.
    assert len(found) <= len(expected) + 1, found


@pytest.mark.parametrize("change", SAME)
def test_what_does_not_count(tmp_path: Path, change: str) -> None:
    old, new = SAME[change]
    assert changed(tmp_path, old, new) == []


def test_names_in_the_source_of_another_process_are_told_by_code_alone(tmp_path: Path) -> None:
    """Without importing the script: what the command line can see of it."""
    path = tmp_path / "script.py"
    code = code_of(path, SCRIPT)
    assert (code.module, code.qualname) == ("__main__", "twice.<locals>.wrapper")

    def now(old: str, new: str) -> list[str]:
        assert old in SCRIPT
        return sorted(
            differing_in_source(code.parts, code_in_source(SCRIPT.replace(old, new)), str(path))
        )

    for old, new in SAME.values():
        assert now(old, new) == []
    assert now("return round(value, digits)", "return value") == ["rounded"]
    assert now("self.net * (1", "self.net + (1") == ["Order.gross"]
    assert now("return 2 *", "return 3 *") == ["twice.<locals>.wrapper"]
    assert now("def rounded", "def renamed") == ["rounded"]
    # Functions of other files are not looked for in it.
    assert differing_in_source(code.parts, {}, "other.py") == []


def test_the_parts_of_a_module() -> None:
    old = code_in_source(SCRIPT)
    for before, after in SAME.values():
        if not {"unused", "Unused", "float"}.intersection(re.findall(r"\w+", before + after)):
            assert code_in_source(SCRIPT.replace(before, after)) == old, after
    new = code_in_source(SCRIPT.replace("TAX = 0.19", "TAX = 0.25"))
    assert [name for name in new if new[name] != old[name]] == [""]
    new = code_in_source(SCRIPT.replace("self.net * (1", "self.net + (1"))
    assert [name for name in new if new[name] != old[name]] == ["Order.gross"]


PICKLE = """
import sys
from pathlib import Path
from tests.unit.capture.test_code_parts import load, SCRIPT
from ray_workflows._capture.pickling import *
from ray_workflows._capture.pickling import FunctionPickler, refuse_node_in_function
function = load(Path(sys.argv[1]), "\\n\\n" + SCRIPT).book
function.random = __import__("random").random
pickled = pickle_value(
    function, where="f", node_hook=refuse_node_in_function, kind=FunctionPickler
)
sys.stdout.buffer.write(pickled.data)
"""


@pytest.mark.parametrize("seed", ["1", "2"])
def test_the_same_code_of_another_process_is_the_same(tmp_path: Path, seed: str) -> None:
    """Ids of classes and remote functions, and the order of sets, are those of a process."""
    path = tmp_path / "script.py"
    environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)}
    program = [sys.executable, "-c", PICKLE, str(path)]
    done = subprocess.run(program, env=environment, capture_output=True, check=True, timeout=120)
    then = code_of_pickle(done.stdout, ())
    function = load(path, SCRIPT).book
    function.random = random.random
    assert differing(then.parts, code_of_function(function, "function").parts) == {}


class Hostile:
    def __reduce__(self) -> Any:
        return Path.touch, (Path(self.target),)  # type: ignore[attr-defined]


def test_nothing_of_a_function_is_run_or_imported(tmp_path: Path) -> None:
    target = tmp_path / "touched"
    hostile = Hostile()
    hostile.target = str(target)  # type: ignore[attr-defined]

    def function() -> Any:
        return hostile

    code = code_of_function(function, "function")
    assert not target.exists()
    assert set(code.parts) == {code.qualname}
    with pytest.raises(pickle.UnpicklingError):
        code_of_pickle(b"no pickle", ())


def test_a_function_of_a_module_has_no_parts() -> None:
    assert code_of_function(os.path.join, "function") == FunctionCode("", "", {})


def test_values_that_refer_to_themselves_and_to_each_other(tmp_path: Path) -> None:
    text = """
ring = []
ring.append((ring, {"ring": ring}))
shared = [ring] * 3
for _ in range(60):
    shared = [shared, shared]


def book():
    return shared
"""
    before = code_of(tmp_path / "script.py", text)
    assert differing(before.parts, code_of(tmp_path / "script.py", text).parts) == {}
    other = code_of(tmp_path / "script.py", text.replace("* 3", "* 4"))
    assert set(differing(before.parts, other.parts)) == {"book"}


def test_functions_of_earlier_releases_are_compared_as_well(tmp_path: Path) -> None:
    """Their pickles have no lines."""
    path = tmp_path / "script.py"
    plain = pickle_value(load(path, SCRIPT).book, where="function")
    then = code_of_pickle(plain.data, plain.buffers)
    assert differing(then.parts, code_of(path, SCRIPT).parts) == {}
    mended = SCRIPT.replace("return round(value, digits)", "return value")
    assert set(differing(then.parts, code_of(path, mended).parts)) == {"rounded"}


def test_the_order_of_methods_is_no_difference(tmp_path: Path) -> None:
    text = """
class Box:
    def one(self):
        return 1

    def two(self):
        return 2


def book():
    return Box().one()
"""
    one, two = "    def one(self):\n        return 1\n", "    def two(self):\n        return 2\n"
    moved = text.replace(one, "@").replace(two, one).replace("@", two)
    assert moved != text
    parts = code_of(tmp_path / "script.py", text).parts
    assert differing(parts, code_of(tmp_path / "script.py", moved).parts) == {}
