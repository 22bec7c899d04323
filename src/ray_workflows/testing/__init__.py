"""What you need to test workflows, and a storage, or a part of one, of your own.
Importing this package must not need pytest: only the contracts do, when they are used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ray_workflows._testing.crash_points import CrashPoint
from ray_workflows.testing.environment import (
    CrashReport,
    EndlessRetriesError,
    Environment,
    Execution,
    StartedWorkflow,
    WorkflowStalledError,
    crash_everywhere,
)
from ray_workflows.testing.replays import check_replay

if TYPE_CHECKING:
    from ray_workflows.testing.contract import (
        BlobStoreContract,
        JournalStoreContract,
        LeaseStoreContract,
        StorageContract,
    )

CONTRACTS = ("BlobStoreContract", "JournalStoreContract", "LeaseStoreContract", "StorageContract")

__all__ = [
    "BlobStoreContract",
    "CrashPoint",
    "CrashReport",
    "EndlessRetriesError",
    "Environment",
    "Execution",
    "JournalStoreContract",
    "LeaseStoreContract",
    "StartedWorkflow",
    "StorageContract",
    "WorkflowStalledError",
    "check_replay",
    "crash_everywhere",
]


def __getattr__(name: str) -> Any:
    if name not in CONTRACTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import pytest

    # Failed assertions in there then show their values, as those of a test file do.
    contracts = (
        *("journal_contract", "catalog_contract", "blob_contract", "lease_contract"),
        *("removal_contract", "reader_contract", "shared_contract", "contract"),
    )
    modules = (f"{__name__}.{module}" for module in ("builders", *contracts))
    pytest.register_assert_rewrite(*modules)
    from ray_workflows.testing import contract

    return getattr(contract, name)
