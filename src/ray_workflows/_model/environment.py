"""Public records about the environment of a workflow."""

from __future__ import annotations

from typing import Any

import msgspec


class ResumedBy(msgspec.Struct, frozen=True):
    """A resumption of a workflow.

    Attributes:
        at: when, in seconds since 1970.
        by: the user and the host.
        code: ``"recorded"`` or ``"current"``.
        environment: whether the resumption changed the environment.
        tasks: ids of the tasks whose options it changed.
    """

    at: float
    by: str
    code: str
    environment: bool
    tasks: tuple[str, ...] = ()


class Difference(msgspec.Struct, frozen=True):
    """A difference between the recorded environment and this process.

    Attributes:
        what: ``"python"``, ``"ray"``, the name of an installed package, or of a file of the code.
        recorded: its version, or the beginning of the SHA-256 of a file.
        here: its version, ``"changed"`` of a file, or ``"missing"``.
    """

    what: str
    recorded: str
    here: str


class EnvironmentInfo(msgspec.Struct, frozen=True):
    """The recorded environment of a workflow: of its submission, or its last change.

    Attributes:
        workflow_id: the workflow.
        python: version of Python; empty if nothing was recorded.
        ray: version of Ray.
        ray_workflows: version of this package.
        platform: the operating system.
        runtime_env: of the workflow; ``"<secret>"`` stands for each secret.
        task_runtime_envs: those of single tasks, by task id.
        packages: sizes in bytes of the stored packages, by URI.
        modules: the SHA-256 of the files of the user's code, by name.
        installed: versions of the installed packages that this code imports, by name.
        python_path: the directories from which the driver imported its own modules.
        resumed: its resumptions, oldest first.
        differences: differences in this process. Files are compared at their recorded place, or if
            missing there, with the modules that this process can import.
        diffs: unified diffs of changed files, by name: from the recorded version to the one here.
        skipped: the user's modules and files that were not stored, by name, and why.
    """

    workflow_id: str
    python: str
    ray: str
    ray_workflows: str
    platform: str
    runtime_env: dict[str, Any]
    task_runtime_envs: dict[str, dict[str, Any]]
    packages: dict[str, int]
    modules: dict[str, str]
    installed: dict[str, str]
    python_path: tuple[str, ...]
    resumed: tuple[ResumedBy, ...]
    differences: tuple[Difference, ...] = ()
    diffs: dict[str, str] = {}
    skipped: dict[str, str] = {}
