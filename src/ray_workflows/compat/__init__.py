"""Runs unchanged code written for ``ray.workflow``.

`install` makes ``ray.workflow`` and its submodules names of this package, in this process and in
the workers of its job, and lets ``ray.init`` take ``storage=`` again. From outside an application:
``python -m ray_workflows.compat script.py ...``. Code that can be edited does not need it.
"""

from __future__ import annotations

import warnings

from ray_workflows.compat import aliases, ray_init, workers


def install() -> None:
    """Make ``from ray import workflow`` and ``ray.init(storage=...)`` work in this driver.

    Call it before ``ray.init``, and before ``ray.workflow`` is imported: Ray tells workers of a
    job how to start when the job connects. From then on, in the driver and in every worker:

    - ``ray.workflow`` is ``ray_workflows``, and ``ray.workflow.common``, ``.exceptions``,
      ``.event_listener``, ``.workflow_context``, ``.http_event_provider`` and ``.api`` are the
      modules of the same names.
    - ``ray.init(storage=...)`` takes a directory, a ``file://`` URL or a `Storage`, and workflows
      are stored there. All its other arguments mean what they meant; this function adds to the
      ``runtime_env``, and your ``worker_process_setup_hook`` in it runs after ours.

    It may be called again, and inside workers. It starts nothing.

    Warns:
        UserWarning: Ray is connected already. Workflows and their tasks work nevertheless; plain
            tasks and actors of this driver don't find ``ray.workflow``.

    Examples:
        >>> from ray_workflows import compat
        >>> compat.install()
        >>> from ray import workflow
        >>> from ray.workflow.event_listener import EventListener
        >>> import ray_workflows
        >>> workflow is ray_workflows
        True
    """
    if workers.comes_too_late():
        warnings.warn(
            "ray_workflows.compat.install() was called after ray.init(): plain Ray tasks and "
            "actors of this driver can't import ray.workflow (workflow tasks can). Call it first, "
            "or start the program with: python -m ray_workflows.compat script.py",
            stacklevel=2,
        )
    aliases.install()
    ray_init.install()
    workers.reach_attempts()


def uninstall() -> None:
    """Undo `install` in this process, for tests. A job that is connected keeps its workers."""
    aliases.uninstall()
    ray_init.uninstall()
    workers.leave_attempts()


def set_up_worker() -> None:
    """Called by a new worker of the job before it unpickles anything."""
    aliases.install()
    ray_init.install()
    workers.unpack()
