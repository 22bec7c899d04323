"""The document about an environment: versions and modules at a workflow's submission.

It is stored beside the packages, once for all workflows with the same environment. Attempts need
only the journal; the document is for comparisons.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from typing import Any

import msgspec
import ray

from ray_workflows._environment.secrets import masked
from ray_workflows._model.plan import Environment
from ray_workflows._version import __version__


class Module(msgspec.Struct, frozen=True):
    """A file of the user's code: its path, and the SHA-256 of its contents."""

    path: str
    digest: str


class Record(msgspec.Struct, frozen=True):
    """The recorded environment. ``installed``: versions by the names that the user's code imports;
    ``skipped``: why modules and files of it were left out."""

    python: str
    ray: str
    ray_workflows: str
    platform: str
    runtime_env: dict[str, Any]
    python_path: tuple[str, ...]
    packages: tuple[str, ...]
    modules: dict[str, Module]
    installed: dict[str, str]
    skipped: dict[str, str] = {}


ENCODER = msgspec.json.Encoder(order="deterministic")
DECODER = msgspec.json.Decoder(Record)


def describe(
    environment: Environment,
    modules: Mapping[str, Module],
    installed: Mapping[str, str],
    skipped: Mapping[str, str],
) -> Record:
    """The document about an environment of this process."""
    return Record(
        python=platform.python_version(),
        ray=ray.__version__,
        ray_workflows=__version__,
        platform=platform.platform(),
        runtime_env=masked(environment.runtime_env),
        python_path=environment.python_path,
        packages=tuple(package.uri for package in environment.packages),
        modules=dict(modules),
        installed=dict(installed),
        skipped=dict(skipped),
    )


def encode(record: Record) -> tuple[str, bytes]:
    """The digest of a document, and its bytes."""
    data = ENCODER.encode(record)
    return hashlib.sha256(data).hexdigest()[:32], data


def decode(data: bytes | memoryview) -> Record:
    """The document that `encode` encoded."""
    return DECODER.decode(data)
