"""What you need to test workflows, and a `Storage` of your own.
Importing this package must not need pytest: only `StorageContract` does, when it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray_workflows.testing.contract import StorageContract

__all__ = ["StorageContract"]


def __getattr__(name: str) -> Any:
    if name != "StorageContract":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import pytest

    # Failed assertions in there then show their values, as those of a test file do.
    parts = ("builders", "journal_contract", "catalog_contract", "blob_contract", "contract")
    pytest.register_assert_rewrite(*(f"{__name__}.{part}" for part in parts))
    from ray_workflows.testing.contract import StorageContract

    return StorageContract
