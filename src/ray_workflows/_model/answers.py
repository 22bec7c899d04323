"""Answers to requests about a workflow; errors are answers too."""

from __future__ import annotations

import msgspec

from ray_workflows._model.values import Value


class Accepted(msgspec.Struct, frozen=True, tag=True):
    """The workflow is durable and this coordinator drives it.

    ``created``: by this very request. ``same_plan``: the workflow runs the submitted plan.
    """

    incarnation: str
    created: bool
    same_plan: bool = True


class Stopped(msgspec.Struct, frozen=True, tag=True):
    """The workflow exists, and no coordinator drives it. The driver must check whether it can go on
    here, because the driver has its code and variables, and then send the request again."""


class Finished(msgspec.Struct, frozen=True, tag=True):
    """Nothing to run: the workflow has succeeded. ``incarnation``: of that workflow; empty from a
    coordinator of 0.1.0."""

    incarnation: str = ""
    same_plan: bool = True


class Received(msgspec.Struct, frozen=True, tag=True):
    """A signal is in the workflow's journal. ``taken``: its task has it, and it is no longer kept.
    ``value``: for `FindSignal`, that of the kept signal."""

    taken: bool = False
    value: Value | None = None


class OtherSignal(msgspec.Struct, frozen=True, tag=True):
    """The signal is not kept: its name may have one signal only, and has another one."""


class TooManySignals(msgspec.Struct, frozen=True, tag=True):
    """The signal is not kept: the workflow keeps ``kept`` untaken ones already."""

    kept: int
