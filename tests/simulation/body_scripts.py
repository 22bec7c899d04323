"""What simulated bodies of durable functions do: scripts of steps, and what they must come to.

The value of a body is a hash of its script and of what its steps gave. When a step ended, how often
the body ran again and what it canceled change nothing about it.
"""

from __future__ import annotations

import hashlib

import msgspec

from ray_workflows._model.plan import Plan


class Op(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A part of a script."""


class Do(Op, frozen=True):
    """A step that is a plan, which gets what the body has so far."""

    plan: Plan


class Local(Op, frozen=True):
    """A step in the process of the body. ``large``: its result is stored as a blob."""

    salt: str
    fails: bool = False
    large: bool = False


class Nap(Op, frozen=True):
    """A durable timer."""

    seconds: float


class Marked(Op, frozen=True):
    """A local step whose name is a mark, or the time of the body: what differs the next time is
    found."""

    salt: str


class Raise(Op, frozen=True):
    """An error of the code itself."""

    salt: str


class Together(Op, frozen=True):
    """Branches at once. ``stops``: the first error cancels the other ones."""

    branches: tuple[tuple[AnyOp, ...], ...]
    stops: bool = False


class Race(Op, frozen=True):
    """A block that is canceled after a while. Nobody looks at its result or its error."""

    block: tuple[AnyOp, ...]
    seconds: float


class Guard(Op, frozen=True):
    """A block, and what is done instead after an error in it."""

    block: tuple[AnyOp, ...]
    after: tuple[AnyOp, ...]


AnyOp = Do | Local | Nap | Marked | Raise | Together | Race | Guard

Block = tuple[AnyOp, ...]


def mix(*parts: str) -> str:
    """A text of several ones."""
    return hashlib.blake2b("|".join(parts).encode(), digest_size=6).hexdigest()


def local_result(op: Local, seen: str) -> str:
    """The value of a local step."""
    return mix(op.salt, seen, "local")


def plans_in(block: Block) -> list[Plan]:
    """The plans of all steps of a block."""
    found: list[Plan] = []
    for op in block:
        if isinstance(op, Do):
            found.append(op.plan)
        for inner in blocks_of(op):
            found += plans_in(inner)
    return found


def blocks_of(op: AnyOp) -> list[Block]:
    """The blocks inside of a part."""
    if isinstance(op, Together):
        return list(op.branches)
    if isinstance(op, Guard):
        return [op.block, op.after]
    return [op.block] if isinstance(op, Race) else []
