"""Scopes: which asyncio task of a body asks for a step.

Steps are counted for each task alone. So their paths do not depend on how tasks take turns.
"""

from __future__ import annotations

from contextvars import ContextVar


class Scope:
    """A task of a body. It counts the tasks and the steps that this task makes.

    ``path`` is empty for the main task, and ``<path of the parent>/<n>`` for its n-th child.
    """

    __slots__ = ("names", "path", "tasks")

    def __init__(self, path: str) -> None:
        self.path = path
        self.tasks = 0
        self.names: dict[str, int] = {}

    def child(self) -> Scope:
        """The scope of the next task that this one creates."""
        self.tasks += 1
        return Scope(f"{self.path}/{self.tasks}" if self.path else str(self.tasks))

    def place(self, name: str) -> str:
        """The path of the next step with this name."""
        count = self.names.get(name, 0) + 1
        self.names[name] = count
        return self.within(name if count == 1 else f"{name}#{count}")

    def within(self, name: str) -> str:
        return f"{self.path}/{name}" if self.path else name


#: The scope of the code that runs.
current_scope: ContextVar[Scope] = ContextVar("ray_workflows_scope")
