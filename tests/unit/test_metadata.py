"""Metadata that can't be stored is refused where it is given, not by whoever is to store it."""

from __future__ import annotations

from typing import Any

import pytest

from ray_workflows.options import validate_metadata


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (2**64, "OverflowError"),
        (-(2**63) - 1, "OverflowError"),
        ("\ud800", "UnicodeEncodeError"),
        (float("nan"), "ValueError"),
        ({1, 2}, "TypeError"),
    ],
)
def test_what_cannot_be_stored(value: Any, said: str) -> None:
    with pytest.raises(ValueError, match=f"metadata must be JSON serializable.*{said}"):
        validate_metadata({"deep": [{"value": value}]})


def test_what_can_be_stored() -> None:
    metadata = {"n": 2**64 - 1, "m": -(2**63), "s": "\N{SNOWMAN}", "d": {"l": [None, True, 0.5]}}
    assert validate_metadata(metadata) == metadata
    assert validate_metadata(None) == {}
