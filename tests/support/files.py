"""What is in a directory."""

from __future__ import annotations

from pathlib import Path


def tree(root) -> dict[str, int]:
    """Every file and directory below, with its size."""
    return {
        str(path.relative_to(root)): path.lstat().st_size if path.is_file() else -1
        for path in Path(root).rglob("*")
    }
