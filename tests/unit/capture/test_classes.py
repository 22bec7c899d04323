"""Classes of a script that was started again: what was stored has the script's own."""

from __future__ import annotations

import gc
import logging
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from ray import cloudpickle

from ray_workflows._capture import classes
from ray_workflows._capture.classes import Bringing, OwnClasses
from ray_workflows._capture.definitions import definition
from ray_workflows._capture.options import pickled_types
from ray_workflows._capture.pickling import pickle_value
from ray_workflows._capture.unpickling import SMALLEST_CLASS, unpickle_value
from ray_workflows._capture.values import ValueReader, ValueWriter
from ray_workflows.storage import MemoryStorage

TEXT = """
import collections, dataclasses, enum, typing
class Color(enum.Enum):
    RED = 1
    BLUE = 2
@dataclasses.dataclass
class Order:
    n: int = 3
    def total(self): return self.n * RATE
RATE = 2
Point = collections.namedtuple("Point", "x y")
class Named(typing.NamedTuple):
    a: int = 1
class Base(Exception): pass
class Mine(Base): pass
T = typing.TypeVar("T")
class Box(typing.Generic[T]):
    def __init__(self, value): self.value = value
    class Inner: pass
def make():
    class Local: pass
    return Local
"""

#: How a script makes an instance of each of its classes.
INSTANCES = {
    "Color": "Color.RED",
    "Order": "Order()",
    "Point": "Point(1, 2)",
    "Named": "Named()",
    "Mine": "Mine('x')",
    "Box": "Box(1)",
    "Box.Inner": "Box.Inner()",
}

#: What another version of the script has in place of a line.
CHANGES = {
    "Color": ("BLUE = 2", "BLUE = 3"),
    "Order": ("self.n * RATE", "self.n + RATE"),
    "Point": ('"x y"', '"x z"'),
    "Named": ("a: int = 1", "a: int = 2"),
    "Mine": ("class Base(Exception)", "class Base(ValueError)"),
    "Box": ("self.value = value", "self.val = value"),
    "Box.Inner": ("class Inner: pass", "class Inner: x = 1"),
}

Life = Callable[..., ModuleType]


@pytest.fixture
def life(monkeypatch: pytest.MonkeyPatch) -> Life:
    """Starts a script in this process, in place of the one before."""

    def start(text: str = TEXT, *before: str) -> ModuleType:
        module = ModuleType("__main__")
        monkeypatch.setitem(sys.modules, "__main__", module)
        exec(compile("\n".join((*before, text)), "script.py", "exec"), vars(module))
        return module

    return start


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> OwnClasses:
    """The classes of this process, with nothing warned of so far."""
    fresh = OwnClasses()
    monkeypatch.setattr(classes.OWN, "warned", fresh.warned)
    return fresh


def pickled(value: object) -> bytes:
    return pickle_value(value, where="value").data


def evaluate(module: ModuleType, text: str) -> Any:
    return eval(text, vars(module))


@pytest.mark.parametrize("name", INSTANCES)
def test_a_script_started_again_sees_its_own_classes(life: Life, name: str) -> None:
    data = pickled(evaluate(life(), INSTANCES[name]))
    # Elsewhere in its file, in a process that knows nothing of the first.
    second = life(TEXT, "import os", "# a line more")
    got = unpickle_value(data, [])
    assert type(got) is evaluate(second, name)
    assert vars(second)["Color"].RED is unpickle_value(pickled(vars(second)["Color"].RED), [])


@pytest.mark.parametrize("name", INSTANCES)
def test_a_class_that_is_defined_otherwise_is_not_taken(
    life: Life, own: OwnClasses, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    data = pickled(evaluate(life(), INSTANCES[name]))
    second = life(TEXT.replace(*CHANGES[name]))
    with caplog.at_level(logging.WARNING, classes.__name__):
        for _ in range(2):
            assert type(unpickle_value(data, [])) is not evaluate(second, name)
    warned = [record.getMessage() for record in caplog.records]
    assert len(warned) == len(set(warned)) <= 2  # A class, and its base.
    assert f"__main__.{name}" in warned[-1]


def test_a_process_without_the_class_has_the_stored_one(
    life: Life, own: OwnClasses, caplog: pytest.LogCaptureFixture
) -> None:
    data = pickled(evaluate(life(), "Order()"))
    life("")
    gc.collect()
    got = unpickle_value(data, [])
    assert (type(got).__name__, got.n, got.total()) == ("Order", 3, 6)
    assert caplog.records == []


def test_a_class_of_the_script_stays_as_it_is(life: Life) -> None:
    """What is unpickled brings contents of classes, with globals of another life."""
    first = life()
    data = pickled(evaluate(first, "Order()"))
    total = vars(first)["Order"].total
    vars(first)["RATE"] = 5
    assert unpickle_value(data, []).total() == 15
    assert vars(first)["Order"].total is total


def test_a_cell_that_is_run_again_has_the_new_class(life: Life) -> None:
    first = life()
    old = vars(first)["Order"]
    data = pickled(old())
    exec(TEXT, vars(first))
    assert type(unpickle_value(data, [])) is vars(first)["Order"] is not old


def test_classes_of_functions_are_their_own(life: Life) -> None:
    first = life()
    local = vars(first)["make"]()
    assert type(unpickle_value(pickled(local()), [])) is local
    assert identities(pickled(local())) == []


def test_classes_of_two_scripts_are_two_in_a_worker(life: Life) -> None:
    """Equal as they are defined: their globals are not."""
    datas = [
        pickled(evaluate(life(TEXT.replace("RATE = 2", f"RATE = {rate}")), "Order()"))
        for rate in (2, 3)
    ]
    life("")
    gc.collect()
    assert [got.total() for got in [unpickle_value(data, []) for data in datas]] == [6, 9]


@pytest.mark.parametrize("by_name", [True, False])
def test_a_function_brings_its_classes(life: Life, by_name: bool) -> None:
    """In a worker, where no module has them. One of today's code: also those that are defined
    otherwise."""
    value = pickled(evaluate(life(), "[Order(), Mine('x')]"))
    types = pickled_types((evaluate(life(), "Mine"),))
    second = life(TEXT.replace(*CHANGES["Order"]))
    function = pickled(evaluate(second, "lambda pair: (Order, Mine, pair[0].total())"))
    life("")
    gc.collect()
    bringing = Bringing(by_name)
    call = unpickle_value(function, [], classes=bringing)
    order, mine = unpickle_value(value, [], classes=bringing.brought)
    own_order, own_mine, total = call([order, mine])
    assert type(mine) is own_mine
    assert (type(order) is own_order, total) == (by_name, 5 if by_name else 6)
    assert unpickle_value(types, [], classes=bringing.brought) == (own_mine,)


def test_every_way_into_storage_names_classes(life: Life) -> None:
    first = life()
    storage = MemoryStorage()
    writer = ValueWriter(storage, "i1")
    error = writer.write_error(evaluate(first, "Mine('x')"), key="error")
    values = [
        writer.write(evaluate(first, "Order()"), key="small", where="x"),
        writer.write([evaluate(first, "Order()"), bytes(100_000)], key="large", where="x"),
        writer.write(evaluate(first, "Order().total"), key="method", where="x"),
    ]
    second = life()
    reader = ValueReader(storage, "i1")
    order = vars(second)["Order"]
    small, (large, _), method = [reader.read(value, where="x") for value in values]
    assert {type(small), type(large), type(method.__self__)} == {order}
    assert isinstance(reader.read_error(error, where="x"), vars(second)["Mine"])


def test_live_copies_name_classes(life: Life) -> None:
    """They are read by Ray, with plain pickle."""
    value = [evaluate(life(), "Order()"), bytearray(100_000)]
    data = pickle.dumps(pickle_value(value, where="x"), 5)
    second = life()
    order, _ = pickle.loads(data)
    assert type(order) is vars(second)["Order"]


def test_a_class_that_raises_when_it_is_looked_at_is_stored_as_ever(life: Life) -> None:
    first = life("""
class Meta(type):
    def __getattribute__(cls, name):
        if name == "__bases__" and cls.told: raise RuntimeError(name)
        return super().__getattribute__(name)
class Odd(metaclass=Meta):
    told = False
""")
    odd = vars(first)["Odd"]
    odd.told = True
    assert definition(odd) == ""
    odd.told = False
    classes.definitions[odd] = ""
    assert [each.qualname for each in identities(pickled(odd()))] == ["Meta"]


def test_the_smallest_class_is_found_in_a_result(life: Life) -> None:
    text = "import enum\nclass A: pass\nclass B(enum.Enum): pass"
    first = life(text)
    storage = MemoryStorage()
    values = [
        ValueWriter(storage, "i1").write(vars(first)[name], key="x", where="x") for name in "AB"
    ]
    second = life(text)
    reader = ValueReader(storage, "i1")
    for value, name in zip(values, "AB", strict=True):
        assert isinstance(value.data, bytes)
        assert len(value.data) > SMALLEST_CLASS
        assert reader.read(value, where="x") is vars(second)[name]


def identities(data: bytes) -> list[classes.Identity]:
    found: list[classes.Identity] = []

    class Notes:
        def find(self, identity: classes.Identity) -> None:
            found.append(identity)

        def made(self, identity: classes.Identity, cls: type) -> None:
            pass

    unpickle_value(data, [], classes=Notes())
    return found


def test_definitions_are_the_same_in_every_process(tmp_path: Path) -> None:
    """Whatever the seed of hashes, and wherever in its file a class stands."""
    more = """
import abc, functools, datetime
class Kinds(enum.IntFlag): A = 1; B = 2
class Shape(abc.ABC):
    names = frozenset("abcdefgh")
    since = datetime.timedelta(days=2)
    @abc.abstractmethod
    def area(self): return self.names in {"a", "b", "c"}
    @functools.lru_cache
    def cached(self): return lambda: [x for x in "abc"]
    @functools.cached_property
    def kept(self): return super()
@dataclasses.dataclass(slots=True, frozen=True)
class Frozen:
    x: "Order | None" = None
    tags: list[str] = dataclasses.field(default_factory=list)
from ray_workflows._capture.definitions import definition
found = [each for each in list(globals().values()) if isinstance(each, type)]
found = [definition(each) for each in found if each.__module__ == "__main__"]
assert len(set(found)) == len(found) == 10, found
print(*found)
"""
    printed = set()
    for seed, before in (("1", ""), ("7", "import os\n\n\n")):
        path = tmp_path / f"script{seed}.py"
        path.write_text(before + TEXT + more)
        done = subprocess.run(
            [sys.executable, str(path)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        printed.add(done.stdout)
    assert len(printed) == 1


def test_what_runpy_runs_under_another_name_comes_along(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a module for as long as it runs, and no other process can import it."""
    name = "not_a_module"
    module = ModuleType(name)
    monkeypatch.setitem(sys.modules, name, module)
    exec("class Order: n = 3\ndef total(order): return order.n", vars(module))
    try:
        data = pickled([module.Order(), module.total])
        assert [each.module for each in identities(data)] == [name]
        monkeypatch.delitem(sys.modules, name)
        order, total = unpickle_value(data, [])
        assert total(order) == 3
    finally:
        monkeypatch.setitem(sys.modules, name, module)
        cloudpickle.unregister_pickle_by_value(module)


def test_modules_with_a_file_are_named_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where something has taken their place that has no spec, as lazy loaders do."""
    (tmp_path / "rw_lazy_place.py").write_text("class Order: pass")
    monkeypatch.syspath_prepend(tmp_path)
    module = ModuleType("rw_lazy_place")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec("class Order: pass", vars(module))
    assert identities(pickled(module.Order())) == []
    assert b"rw_lazy_place" in pickled(module.Order())


@pytest.mark.parametrize("first", ["plain", "ours"])
def test_what_plain_ray_pickled_before_has_the_same_class_in_a_worker(
    tmp_path: Path, first: str
) -> None:
    """A class has another id from when it is captured on: whatever a worker reads first, both mean
    one class."""
    script = tmp_path / "script.py"
    script.write_text(
        "import pickle, sys\n"
        "from ray import cloudpickle\n"
        "from ray_workflows._capture.pickling import pickle_value\n"
        "class Order: pass\n"
        "def plain(): return Order()\n"
        "def ours(order): return isinstance(order, Order)\n"
        "before = cloudpickle.dumps(plain)\n"
        "ours = pickle_value(ours, where='function').data\n"
        "pickle.dump((before, ours), open(sys.argv[1], 'wb'))\n"
    )
    worker = tmp_path / "worker.py"
    worker.write_text(
        "import pickle, sys\n"
        "from ray_workflows._capture.unpickling import unpickle_value\n"
        "plain, ours = pickle.load(open(sys.argv[1], 'rb'))\n"
        "if sys.argv[2] == 'plain': order = pickle.loads(plain)()\n"
        "ours = unpickle_value(ours, [])\n"
        "if sys.argv[2] == 'ours': order = pickle.loads(plain)()\n"
        "assert ours(order)\n"
    )
    pickles = str(tmp_path / "pickles")
    for command in ([str(script), pickles], [str(worker), pickles, first]):
        done = subprocess.run(
            [sys.executable, *command], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
