"""Tags: names that users give to workflows to find them by, each with a text, a number or a
boolean.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from ray_workflows._model.catalog import Tag
from ray_workflows._model.ids import plain_text, problem_with

#: The form of names, which filters can contain.
TAG_NAME = r"[A-Za-z0-9_][A-Za-z0-9_.:/-]{0,99}"

#: How many tags a workflow can have.
MAX_TAGS = 50

#: The largest integer that every storage returns exactly.
MAX_INTEGER = 2**53


def validate_tags(tags: object, *, removes: bool = False) -> dict[str, Any]:
    """Check tags, and return them with plain types.

    Args:
        tags: from the user; None: no tags.
        removes: whether a value may be None, which removes the tag.

    Raises:
        TypeError: not a dict, or a name or value of a wrong type.
        ValueError: a name or value that can't be stored, or too many.
    """
    if tags is None:
        return {}
    if not isinstance(tags, Mapping):
        raise TypeError(f"tags must be a dict such as {{'team': 'vision'}}, not {tags!r}.")
    if len(tags) > MAX_TAGS:
        raise ValueError(too_many(len(tags)))
    return {
        validate_name(name): None if removes and value is None else validate_value(name, value)
        for name, value in tags.items()
    }


def validate_name(name: object) -> str:
    """The name of a tag as plain text."""
    if not isinstance(name, str):
        raise TypeError(f"The name of a tag is a string, not {name!r}.")
    if re.fullmatch(TAG_NAME, name) is None:
        raise ValueError(
            f"{name!r} can't name a tag. Use up to 100 letters from a to z, digits, '_', and "
            f"behind the first also '.', ':', '/' and '-'."
        )
    return plain_text(name)


def validate_value(name: str, value: object) -> Tag:
    """The value of a tag, of a plain type."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        problem = problem_with(f"tag {name!r}:", value, "keep the rest in metadata=")
        if problem is not None:
            raise ValueError(problem)
        return plain_text(value)
    if isinstance(value, int):
        if abs(value) > MAX_INTEGER:
            raise ValueError(f"tag {name!r}: {value} is above 2**53. Give it as a string.")
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"tag {name!r}: {value} is not a number. Give it as a string.")
        return float(value)
    raise TypeError(
        f"tag {name!r} must be a string, a number, True or False, not {type(value).__name__}. What "
        f"is not to be found by it can be kept in metadata=."
    )


def with_tags(tags: Mapping[str, Tag], given: Mapping[str, Tag | None]) -> dict[str, Tag]:
    """The tags of a workflow after an update; None removes a tag."""
    merged = {**tags, **given}
    return {name: value for name, value in merged.items() if value is not None}


def too_many(count: int) -> str:
    """The error message for too many tags."""
    return f"{count} tags are too many: a workflow can have {MAX_TAGS}. Keep some in metadata=."
