"""Placeholders in a pickle for objects that are not pickled with it.

Stored bytes name `placeholder` by this module's path, so neither may ever move.
"""

from __future__ import annotations

from typing import Any

#: The value of an upstream task; an ObjectRef to it.
UPSTREAM_VALUE, UPSTREAM_REF = "upstream-value", "upstream-ref"
#: A value shared by several tasks of a plan.
CONSTANT = "constant"
#: An ObjectRef that was checkpointed; the value it refers to.
OBJECT_REF, OBJECT_VALUE = "object-ref", "object-value"


def placeholder(kind: str, index: int) -> Any:
    """Stands for the object of this kind and index; unpicklers put the object in its place."""
    raise RuntimeError(
        f"A stored value with a placeholder ({kind} {index}) was unpickled by plain pickle. "
        f"Read it through ray_workflows, which knows what belongs there."
    )
