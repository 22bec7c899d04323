"""What is answered to what was asked about a workflow; errors are answers too."""

from __future__ import annotations

import msgspec

from ray_workflows._model.values import Value


class Accepted(msgspec.Struct, frozen=True, tag=True):
    """The workflow is durable and this coordinator drives it.

    ``created``: by this very request. ``same_plan``: what runs is what was submitted.
    """

    incarnation: str
    created: bool
    same_plan: bool = True


class Stopped(msgspec.Struct, frozen=True, tag=True):
    """There is such a workflow, and nobody drives it: whether it can go on here is the driver's to
    find out, who has what may be missing."""


class Finished(msgspec.Struct, frozen=True, tag=True):
    """There is nothing to run: the workflow has succeeded before. ``incarnation``: which one of its
    id; empty if the coordinator is of 0.1.0, which does not say it."""

    incarnation: str = ""
    same_plan: bool = True


class Received(msgspec.Struct, frozen=True, tag=True):
    """A signal is in the workflow's journal. ``taken``: it has reached its task, and is kept no
    longer. ``value``: to `FindSignal`, of the one that is kept."""

    taken: bool = False
    value: Value | None = None


class OtherSignal(msgspec.Struct, frozen=True, tag=True):
    """The signal is not kept: its name has another one, and is to have one only."""


class TooManySignals(msgspec.Struct, frozen=True, tag=True):
    """The signal is not kept: ``kept`` others are, that nobody has taken."""

    kept: int
