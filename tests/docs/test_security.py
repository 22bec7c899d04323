"""Each claim of docs/security.md names tests that are there."""

from __future__ import annotations

import re

from tests.ray.processes import ROOT

TEXT = (ROOT / "docs" / "security.md").read_text()


def test_each_claim_names_its_tests() -> None:
    rows = [line for line in TEXT.splitlines() if line.startswith("| ")][1:]
    assert len(rows) >= 8
    for row in rows:
        named = re.findall(r"`(tests/[^`]+)`", row.split("|")[3])
        assert named, row
        for name in named:
            path, _, test = name.partition("::")
            assert f"def {test or 'test_'}" in (ROOT / path).read_text(), name
