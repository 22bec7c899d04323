"""What users see of the environment of a workflow."""

from __future__ import annotations

from typing import Any

import msgspec


class ResumedBy(msgspec.Struct, frozen=True):
    """Somebody resumed a workflow.

    Attributes:
        at: when, in seconds since 1970.
        by: who: user and host.
        code: ``"recorded"`` or ``"current"``.
        environment: whether its environment is another one since then.
        tasks: ids of the tasks that were given other options.
    """

    at: float
    by: str
    code: str
    environment: bool
    tasks: tuple[str, ...] = ()


class Difference(msgspec.Struct, frozen=True):
    """Something that was recorded and is another here.

    Attributes:
        what: ``"python"``, ``"ray"``, the name of an installed package, or of a file of the code.
        recorded: its version, or the beginning of the SHA-256 of a file.
        here: its version, ``"changed"`` of a file, or ``"missing"``.
    """

    what: str
    recorded: str
    here: str


class EnvironmentInfo(msgspec.Struct, frozen=True):
    """What a workflow remembers of where it was submitted, or of what it was resumed with.

    Attributes:
        workflow_id: the workflow.
        python: version of Python; empty if nothing was recorded.
        ray: version of Ray.
        ray_workflows: version of this package.
        platform: the operating system.
        runtime_env: of the workflow; secret values are ``"<secret>"``.
        task_runtime_envs: those of single tasks, by task id.
        packages: sizes in bytes of the stored packages, by URI.
        modules: the SHA-256 of the files of the user's code, by name.
        installed: versions of the installed packages that this code imports, by name.
        python_path: the directories from which the driver imported its own modules.
        resumed: who has resumed it, oldest first.
        differences: what is another in this process. Files are looked for where they were, and if
            they are not there, among what this process can import.
        diffs: how changed files differ, by name: from what was recorded to what is here.
        skipped: modules and files of the user's that were not stored, by name, and why.
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
