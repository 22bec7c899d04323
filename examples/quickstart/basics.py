"""The features, one short example each, with the result it must have.

A workflow is a DAG of Ray tasks, built with ``.bind``. What a task returns is stored before anyone
sees it, so no example here would do anything twice if the machine failed in the middle.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import ray
from ray.dag import InputNode
from rich.console import Console
from rich.markup import escape

import ray_workflows as workflow

# -- the tasks: ordinary Ray tasks ---------------------------------------------------------


@ray.remote
def one() -> int:
    """The smallest task."""
    return 1


@ray.remote
def add(a: int, b: int) -> int:
    """Takes the results of two other tasks, or plain values."""
    return a + b


@ray.remote
def fib(n: int) -> int:
    """Goes on with more tasks: the result of the DAG it returns becomes its own result."""
    if n < 2:
        return n
    return workflow.continuation(add.bind(fib.bind(n - 1), fib.bind(n - 2)))


@ray.remote
def make_refs() -> dict[str, Any]:
    """Returns ObjectRefs in containers: what they refer to is stored along with the result."""
    return {"put": ray.put("a"), "more": [ray.put("b"), one.remote()]}


@ray.remote
def read_refs(refs: dict[str, Any]) -> list[Any]:
    """Gets the ObjectRefs as ObjectRefs, as in plain Ray."""
    return [ray.get(refs["put"]), *ray.get(refs["more"])]


@ray.remote
def make_array() -> np.ndarray:
    """Eight megabytes."""
    return np.ones(1_000_000)


@ray.remote
def inspect_array(array: np.ndarray) -> dict[str, Any]:
    """An array that owns no memory is a view: here, of Ray's shared object store."""
    return {"sum": float(array.sum()), "copied": bool(array.flags.owndata)}


@ray.remote
def parse(text: str) -> int:
    """Fails for what is no number."""
    return int(text)


@ray.remote
def describe(outcome: tuple[int | None, Exception | None]) -> str:
    """Takes what a task with ``catch_exceptions`` produces: a value or an exception."""
    value, error = outcome
    # As everywhere in Ray, the exception is of its own class and of Ray's as well.
    return "caught a ValueError" if isinstance(error, ValueError) else f"got {value}"


@ray.remote
def say(word: str, path: str) -> str:
    """Has a side effect, so that one can see how often it ran."""
    with open(path, "a") as file:
        file.write(f"{word}\n")
    return word


@ray.remote
def shout(letter: dict[str, str]) -> str:
    """Takes an event."""
    return letter["text"].upper()


class Letter(workflow.EventListener):
    """Waits for a file. While it waits, it occupies no CPU and no worker."""

    async def poll_for_event(self, path: str) -> dict[str, str]:
        """Awaits, never blocks: one process serves many listeners."""
        while not Path(path).exists():
            await asyncio.sleep(0.05)
        return {"path": path, "text": Path(path).read_text()}

    async def event_checkpointed(self, event: dict[str, str]) -> None:
        """The letter is stored: only now may its source forget it. May be called again."""
        Path(event["path"]).unlink(missing_ok=True)


# -- the examples --------------------------------------------------------------------------


def bind_tasks(home: Path) -> Any:
    """add.bind(100, one.bind())"""
    return workflow.run(add.bind(100, one.bind()), workflow_id="sum", metadata={"owner": "me"})


def give_inputs(home: Path) -> Any:
    """A DAG with inputs: run(dag, 3, bonus=4)"""
    with InputNode() as inputs:
        dag = add.bind(inputs[0], inputs.bonus)
    return workflow.run(dag, 3, bonus=4)


def continue_with_tasks(home: Path) -> Any:
    """Continuations: fib.bind(10)"""
    return workflow.run(fib.bind(10))


def return_refs(home: Path) -> Any:
    """ObjectRefs inside lists and dicts"""
    return workflow.run(read_refs.bind(make_refs.bind()))


def share_an_array(home: Path) -> Any:
    """A large array, read without a copy"""
    return workflow.run(inspect_array.bind(make_array.bind()))


def sleep(home: Path) -> Any:
    """A timer that survives crashes: sleep(0.5)"""
    return workflow.run(workflow.sleep(0.5))


def wait_for_a_letter(home: Path) -> Any:
    """An event from outside: wait_for_event(Letter)"""
    letter = home / "letter"
    output = workflow.run_async(shout.bind(workflow.wait_for_event(Letter, str(letter))))
    # Renamed into place, so that the listener can't find half a letter.
    (home / "draft").write_text("hello")
    (home / "draft").rename(letter)
    return {"text": ray.get(output), "letter is still there": letter.exists()}


def catch_an_exception(home: Path) -> Any:
    """An exception as a result: catch_exceptions=True"""
    caught = parse.options(**workflow.options(catch_exceptions=True))
    return [workflow.run(describe.bind(caught.bind(text))) for text in ("12", "twelve")]


def look_around(home: Path) -> Any:
    """get_status, get_output, get_metadata, list_all"""
    # At the workflow of the first example. A task's id is by default its module and its name.
    return {
        "status": workflow.get_status("sum").value,
        "output": workflow.get_output("sum"),
        "output of a task": workflow.get_output("sum", task_id="basics.one"),
        "metadata": workflow.get_metadata("sum")["user_metadata"],
        "listed": ("sum", workflow.SUCCESSFUL) in workflow.list_all(),
    }


def run_again(home: Path) -> Any:
    """run with the id of a finished workflow, three times"""
    log = home / "said"
    outputs = {workflow.run(say.bind("once", str(log)), workflow_id="said") for _ in range(3)}
    return {"outputs": outputs, "executions": len(log.read_text().splitlines())}


class Example(NamedTuple):
    """A function that runs workflows, and what it must return. Its docstring is its title."""

    run: Callable[[Path], Any]
    expected: Any


EXAMPLES = [
    Example(bind_tasks, 101),
    Example(give_inputs, 7),
    Example(continue_with_tasks, 55),
    Example(return_refs, ["a", "b", 1]),
    Example(share_an_array, {"sum": 1_000_000.0, "copied": False}),
    Example(sleep, None),
    Example(wait_for_a_letter, {"text": "HELLO", "letter is still there": False}),
    Example(catch_an_exception, ["got 12", "caught a ValueError"]),
    Example(
        look_around,
        {
            "status": "SUCCESSFUL",
            "output": 101,
            "output of a task": 1,
            "metadata": {"owner": "me"},
            "listed": True,
        },
    ),
    Example(run_again, {"outputs": {"once"}, "executions": 1}),
]


def run_examples(home: Path, console: Console) -> None:
    """Run all examples and print what they return.

    Raises:
        SystemExit: one returned something else than it must.
    """
    for example in EXAMPLES:
        result = example.run(home)
        if result != example.expected:
            raise SystemExit(
                f"{example.run.__name__} returned {result!r}, expected {example.expected!r}."
            )
        title = escape(f"{example.run.__doc__}")
        console.print(f"[green]✓[/] {title:<52}[bold]{escape(repr(result))}[/]", soft_wrap=True)
