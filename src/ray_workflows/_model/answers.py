"""What is answered to what was asked about a workflow; errors are answers too."""

from __future__ import annotations

import msgspec


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
