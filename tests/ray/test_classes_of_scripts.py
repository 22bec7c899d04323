"""Classes of a script that is started again: outputs and its tasks have its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ray

from tests.ray.processes import DriverProcess

SCRIPT = """
import dataclasses, enum, json, os, sys
import ray, ray_workflows as workflow

class Color(enum.Enum):
    RED = 1

@dataclasses.dataclass
class Order:
    n: int
    def total(self): return self.n * 2

class Mine(Exception): pass

def is_there(name):
    return os.path.exists(os.path.join({directory!r}, name))

@ray.remote
def make():
    return Color.RED, Order(3)

@ray.remote(max_retries=0)
def use(made):
    if not is_there("go"): raise ValueError("not yet")
    return made[0] is Color.RED, isinstance(made[1], Order), made[1].total()

@ray.remote(max_retries=0)
def large():
    if not is_there("go"): raise ValueError("not yet")
    return Color.RED, bytes(100_000)

@workflow.options(checkpoint=False)
@ray.remote(max_retries=1, retry_exceptions=[Mine])
def flaky():
    if not is_there("go"): raise ValueError("first life")
    if not is_there("again"):
        open(os.path.join({directory!r}, "again"), "w").close()
        raise Mine("again")
    return [Color.RED]

ray.init({address!r}, log_to_driver=False, logging_level="ERROR")
"""

FIRST = """
workflow.run(make.bind(), workflow_id="{wid}-out")
for dag, name in ((use.bind(make.bind()), "use"), (large.bind(), "large"), (flaky.bind(), "flaky")):
    try:
        workflow.run(dag, workflow_id="{wid}-" + name)
    except workflow.WorkflowExecutionError:
        pass
"""

SECOND = """
found = {}
color, order = workflow.get_output("{wid}-out")
found["output"] = color is Color.RED, isinstance(order, Order), order.total()
color, _ = workflow.resume("{wid}-large")
found["live copy"] = color is Color.RED
found["code of today"] = workflow.resume("{wid}-use", code="current")
(color,) = workflow.resume("{wid}-flaky", code="current")
found["types of today"] = color is Color.RED
print("found:", json.dumps(found), flush=True)
"""


def script(directory: Path, text: str, wid: str) -> str:
    address = ray.get_runtime_context().gcs_address
    head = SCRIPT.format(directory=str(directory), address=address)
    return head + text.replace("{wid}", wid)


def test_a_script_that_is_started_again(tmp_path: Path, wid: str) -> None:
    with DriverProcess(tmp_path, script(tmp_path, FIRST, wid)) as driver:
        driver.wait()
    (tmp_path / "go").touch()
    # A method was mended meanwhile: what was recorded has it as it was, and today's code as it is.
    mended = "import os\n" + script(tmp_path, SECOND, wid).replace("self.n * 2", "self.n * 5")
    with DriverProcess(tmp_path, mended) as driver:
        text = driver.wait()
    (line,) = [line for line in text.splitlines() if line.startswith("found: ")]
    found: dict[str, Any] = json.loads(line.removeprefix("found: "))
    assert found == {
        "output": [True, False, 6],
        "live copy": True,
        "code of today": [True, True, 15],
        "types of today": True,
    }
    assert "The class __main__.Order of a stored value is not the one" in text
