"""The public verbs: signatures and documentation.

The names from `events` and `options` are here too because ``ray.workflow.api`` had them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, TypeVar, cast

import ray
from ray.dag import DAGNode

from ray_workflows._arguments import (
    StatusFilter,
    check_flag,
    check_limit,
    check_order,
    check_page,
    parse_age,
    parse_keep,
    parse_patterns,
    parse_prunable,
    parse_resume_options,
    parse_status_filter,
)
from ray_workflows._capture.execute import execute_dag
from ray_workflows._client import bulk, children, connection, copies, workflows
from ray_workflows._environment import secrets
from ray_workflows._executor.worker.context import (
    CurrentTask,
    add_metadata,
    current_attempt,
    current_task,
)
from ray_workflows._model.catalog import Tag
from ray_workflows._model.environment import EnvironmentInfo
from ray_workflows._model.filters import parse_filter
from ray_workflows._model.ids import validate_signal_text
from ray_workflows._model.listing import WorkflowPage
from ray_workflows._model.status import WorkflowStatus
from ray_workflows._model.tags import validate_tags
from ray_workflows._model.tasks import TaskInfo
from ray_workflows.codec import PayloadCodec, check_codecs
from ray_workflows.events import sleep, wait_for_event, wait_for_signal  # noqa: F401
from ray_workflows.options import options, validate_metadata, validate_timeout  # noqa: F401
from ray_workflows.storage import Storage

#: The return type of the task that returns a continuation.
T = TypeVar("T")


def init(
    storage: str | os.PathLike[str] | Storage | None = None,
    *,
    blobs: str | os.PathLike[str] | Storage | None = None,
    codec: PayloadCodec | Sequence[PayloadCodec] | None = None,
    max_running_workflows: int | None = None,
    max_pending_workflows: int | None = None,
    auto_resume: bool | None = None,
    secret_env_vars: Sequence[str] | None = None,
) -> None:
    """Connect to the workflows of the cluster. Starts Ray and the coordinator if they don't run.

    Calling it is optional: the other functions do it with defaults.

    Args:
        storage: a directory, a ``file://`` or ``postgresql://`` URL, or a `Storage`. Default: the
            storage that the cluster uses already; else ``$RAY_WORKFLOW_STORAGE``; else a directory
            of the user's own.
        blobs: the place of values larger than 64 KiB, in the same forms, if not in ``storage``.
            All users of the storage have to name the same place. Default, if ``storage`` is not
            given either: ``$RAY_WORKFLOW_BLOBS``.
        codec: encodes values before they are stored, to compress or encrypt them, and decodes them.
            Of a list, the first encodes, and each decodes values that have its name. The
            coordinator gets it when it is started. Default: that of the cluster.
        max_running_workflows: how many workflows run at once; more are PENDING. -1: no limit.
            None: unchanged, or no limit.
        max_pending_workflows: how many may be PENDING; one more raises ``queue.Full``. -1: no
            limit. None: unchanged, or no limit.
        auto_resume: whether this cluster takes over workflows of the storage whose own cluster is
            dead: as soon as that is proved (same machine), else when its lease of 15 s has lapsed.
            It takes as many as the limits allow, and none that could not be driven or read. None:
            unchanged, or False.
        secret_env_vars: environment variables of runtime_envs whose values must not be stored,
            as names or patterns such as ``"MY_*"``, in addition to ``*_KEY``, ``*_TOKEN``,
            ``*_SECRET``, ``*PASSWORD``, ``*_CREDENTIALS`` and those with credentials in a URL. To
            resume a workflow in another cluster, supply the values again. Holds for workflows that
            this process submits.

    Raises:
        TypeError: a limit that is not an integer, or ``auto_resume`` that is not True or False.
        ValueError: a limit out of range, or a setting that differs from that of the running
            coordinator.
        StorageConfigError: the storage can't be used, or the cluster uses another one, or another
            codec.
        PayloadCodecError: the codec does not return the bytes that it was given.

    Examples:
        >>> import ray_workflows as workflow
        >>> workflow.init()
    """
    check_limit("max_running_workflows", max_running_workflows, 1, "positive")
    check_limit("max_pending_workflows", max_pending_workflows, 0, "non-negative")
    if auto_resume is not None:
        check_flag("auto_resume", auto_resume)
    codecs = check_codecs(codec)
    secrets.choose(parse_patterns(secret_env_vars))
    connection.init(
        storage, blobs, max_running_workflows, max_pending_workflows, auto_resume, codecs
    )


def run(
    dag: DAGNode,
    *args: Any,
    workflow_id: str | None = None,
    metadata: dict[str, Any] | None = None,
    tags: dict[str, Tag] | None = None,
    timeout: float | timedelta | None = None,
    progress: bool = False,
    **kwargs: Any,
) -> Any:
    """Run a workflow and return its output.

    If the workflow with this id has finished, returns its stored output and runs nothing. If it
    failed or was interrupted, resumes it.

    Args:
        dag: the output node of a DAG of tasks, ``func.bind(...)``.
        args: positional inputs of the DAG (``InputNode``).
        workflow_id: the id to find it by; up to 512 bytes of UTF-8. Default: a generated one.
        metadata: kept with the workflow, returned by `get_metadata`; JSON-compatible, and no
            more than 100 levels deep.
        tags: for finding it (`list_workflows`): strings, numbers or booleans by name. They update
            the tags that its root task has by ``options(tags=...)``.
        timeout: how long it may run, in seconds or as a timedelta, from its start to its end,
            including time without a coordinator. Then its tasks are stopped and it has failed; when
            it is resumed, it has the whole time again. Default: no limit.
        progress: show on standard error how many tasks are done: a bar on a terminal or in a
            notebook, a line from time to time in a log.
        kwargs: named inputs of the DAG. If a name is also an argument of this function, give it as
            the field of a single input instead: ``run(dag, {"timeout": 5})`` with
            ``input["timeout"]``.

    Returns:
        The output of the last task.

    Raises:
        TypeError: not a DAG of tasks, or arguments that a task's function does not take.
        ValueError: an id or metadata that can't be stored.
        WorkflowAlreadyRunningError: the workflow with this id is running or pending.
        WorkflowNotResumableError: the workflow with this id was canceled.
        WorkflowExecutionError: it failed; ``__cause__`` is the error of the task.
        WorkflowTimeoutError: it ran longer than its timeout. (It is a WorkflowExecutionError.)
        WorkflowCancellationError: it was canceled meanwhile. (As the two above, it is a
            ``ray.exceptions.RayTaskError`` too.)

    Examples:
        >>> import ray, ray_workflows as workflow
        >>> @ray.remote
        ... def one():
        ...     return 1
        >>> @ray.remote
        ... def add(a, b):
        ...     return a + b
        >>> workflow.run(add.bind(100, one.bind()))
        101
    """
    given = (validate_metadata(metadata), validate_tags(tags), validate_timeout(timeout))
    check_flag("progress", progress)
    if connection.stand_in is not None:
        return connection.stand_in.run(dag, args, kwargs, workflow_id, *given)
    return workflows.run(dag, args, kwargs, workflow_id, *given, progress)


def run_async(
    dag: DAGNode,
    *args: Any,
    workflow_id: str | None = None,
    metadata: dict[str, Any] | None = None,
    tags: dict[str, Tag] | None = None,
    timeout: float | timedelta | None = None,
    **kwargs: Any,
) -> ray.ObjectRef[Any]:
    """Start a workflow. When this returns, the workflow is durable and outlives this process.

    Args and errors as in `run`; errors of the workflow itself are raised by ``ray.get``.

    Returns:
        An ObjectRef of the output, ready when the workflow has ended.
    """
    return workflows.run_async(
        dag,
        args,
        kwargs,
        workflow_id,
        validate_metadata(metadata),
        validate_tags(tags),
        validate_timeout(timeout),
    )


def start(
    dag: DAGNode,
    *args: Any,
    workflow_id: str | None = None,
    metadata: dict[str, Any] | None = None,
    tags: dict[str, Tag] | None = None,
    timeout: float | timedelta | None = None,
    **kwargs: Any,
) -> str:
    """Start a workflow from inside a task: it exists if and only if the task succeeds.

    The workflow becomes visible when the result of the task is durable. An attempt that fails, or
    that is lost with its worker, starts nothing, and a later attempt starts the workflow once. The
    workflow is independent: the task does not wait for its end, and canceling the task's workflow
    does not stop it. The task has to end within 24 hours after this call.

    In the code of a durable function, the workflow begins when this call is durable, and not at the
    function's end. The call is a part of the function's history: when the code runs again, it
    returns the same id and starts nothing.

    Args:
        dag: as in `run`.
        args: as in `run`.
        workflow_id: an unused id. If it is in use, nothing is started, and the journal of this
            workflow and the log of the coordinator record that. Default: an id made from the task,
            the same in each attempt.
        metadata: as in `run`.
        tags: as in `run`.
        timeout: as in `run`.
        kwargs: as in `run`.

    Returns:
        The id of the workflow, for `get_output` and the other verbs, once the task has succeeded.

    Raises:
        RuntimeError: no task is running here; use `run_async`.
        TypeError: as in `run`.
        ValueError: as in `run`, or the id is that of this workflow, or was given in this task
            before.
        NondeterminismError: the code of a durable function did not start it when it ran before.

    Examples:
        >>> import ray, ray_workflows as workflow
        >>> @ray.remote
        ... def ship(order):
        ...     return f"{order} is shipped"
        >>> @ray.remote
        ... def pay(order):
        ...     return workflow.start(ship.bind(order), workflow_id=f"ship-{order}")
        >>> workflow.run(pay.bind("A7"))
        'ship-A7'
        >>> workflow.get_output("ship-A7")
        'A7 is shipped'
    """
    return children.start(
        dag,
        args,
        kwargs,
        workflow_id,
        validate_metadata(metadata),
        validate_tags(tags),
        validate_timeout(timeout),
    )


def run_async_many(
    dags: Sequence[DAGNode],
    *,
    workflow_ids: Sequence[str] | None = None,
    metadata: dict[str, Any] | None = None,
    tags: dict[str, Tag] | None = None,
    timeout: float | timedelta | None = None,
) -> list[ray.ObjectRef[Any]]:
    """Start many workflows with one call: as `run_async` for each, and much cheaper.

    Args:
        dags: output nodes of DAGs without inputs, one for each workflow.
        workflow_ids: an id for each, all different. Default: generated ones.
        metadata: kept with each of them.
        tags: for each of them, as in `run`.
        timeout: for each of them, as in `run`.

    Returns:
        ObjectRefs of the outputs, in the same order. When this returns, each workflow is durable.
        The ref of a refused workflow (for example because its id is running) raises the reason.

    Raises:
        TypeError: not a sequence of DAGs; nothing was started.
        ValueError: ids that can't be used, are not as many as the DAGs, or not all different.

    Examples:
        >>> import ray, ray_workflows as workflow
        >>> @ray.remote
        ... def double(x):
        ...     return 2 * x
        >>> ray.get(workflow.run_async_many([double.bind(x) for x in range(4)]))
        [0, 2, 4, 6]
    """
    if isinstance(dags, DAGNode) or not isinstance(dags, Sequence):
        raise TypeError(f"dags must be a list of DAGs, not {type(dags).__name__}.")
    if workflow_ids is not None:
        if isinstance(workflow_ids, str) or not isinstance(workflow_ids, Sequence):
            raise TypeError(
                f"workflow_ids must be a list of ids, not {type(workflow_ids).__name__}."
            )
        if len(workflow_ids) != len(dags):
            raise ValueError(f"There are {len(dags)} DAGs, and {len(workflow_ids)} workflow_ids.")
        if len(set(workflow_ids)) != len(workflow_ids):
            raise ValueError("workflow_ids has ids that come more than once. Each needs its own.")
    return workflows.run_async_many(
        dags,
        workflow_ids,
        validate_metadata(metadata),
        validate_tags(tags),
        validate_timeout(timeout),
    )


def resume(
    workflow_id: str,
    *,
    canceled: bool = False,
    progress: bool = False,
    code: str = "recorded",
    runtime_env: dict[str, Any] | None = None,
    task_options: dict[str, dict[str, Any]] | None = None,
    strict: bool = True,
) -> Any:
    """Resume a workflow and return its output. Finished tasks do not run again.

    It goes on with the code and the packages it was submitted with, wherever this is called.
    Changes made here hold until the next change, and are recorded with user and host.

    Args:
        workflow_id: the workflow.
        canceled: also resume a workflow that was canceled.
        progress: show how far it is, as `run` does.
        code: ``"recorded"``: the stored code; ``"current"``: that of this driver and its
            runtime_env's ``working_dir`` and ``py_modules``; functions of a script by name.
        runtime_env: fields that replace those of the workflow's runtime_env, variables
            in ``env_vars`` one by one; a directory is stored. runtime_envs of single tasks stay.
        task_options: updates of tasks' Ray options, by task id: for example another
            ``scheduling_strategy`` if a placement group or node is gone. None removes an option.
        strict: raise if something that the workflow needs is missing here. If False, go on, and run
            tasks whose node or placement group is gone anywhere.

    Returns:
        The output; at once if the workflow has finished before.

    Raises:
        WorkflowToResumeNotFoundError: there is no such workflow. (It is a WorkflowNotFoundError
            and a WorkflowNotResumableError.)
        WorkflowAlreadyRunningError: it is running or pending.
        WorkflowNotResumableError: it was canceled, and ``canceled`` is not set.
        EnvironmentMismatchError: something that it needs is not here: the minor version of Python,
            a newer Ray, a package, the value of a secret variable, a placement group or a node.
        WorkflowExecutionError: it failed (again).
    """
    return workflows.resume(
        workflow_id,
        check_flag("canceled", canceled),
        check_flag("progress", progress),
        parse_resume_options(code, runtime_env, task_options, strict),
    )


def resume_async(
    workflow_id: str,
    *,
    canceled: bool = False,
    code: str = "recorded",
    runtime_env: dict[str, Any] | None = None,
    task_options: dict[str, dict[str, Any]] | None = None,
    strict: bool = True,
) -> ray.ObjectRef[Any]:
    """Resume a workflow; as `resume`, but returns an ObjectRef of the output."""
    resume_options = parse_resume_options(code, runtime_env, task_options, strict)
    return workflows.resume_async(workflow_id, check_flag("canceled", canceled), resume_options)


def resume_all(include_failed: bool = False) -> list[tuple[str, ray.ObjectRef[Any]]]:
    """Resume all workflows that were interrupted, those that were running first.

    Args:
        include_failed: also resume FAILED workflows.

    Returns:
        Ids with ObjectRefs of the outputs. The ref of a workflow that could not be resumed
        raises the reason.
    """
    return bulk.resume_all(include_failed)


def fork(
    workflow_id: str,
    from_task: str,
    new_id: str | None = None,
    *,
    code: str = "recorded",
    strict: bool = True,
) -> str:
    """Run a workflow again from one of its tasks, as a new workflow.

    That task and all tasks downstream of it run again; all other results are kept. The new workflow
    has the plan, the arguments, the metadata and the timeout of the old one. The old one may have
    any status, does not change, and can be deleted.

    From a step of a durable function, that function goes on as if the step had no outcome yet: it
    keeps the outcomes that it had before, and those of steps that it had asked for before, and asks
    for this step again. From the function itself, it begins anew.

    Args:
        workflow_id: the workflow to fork.
        from_task: id of the task to run again; tasks of continuations too. Of a step: the id of the
            durable function's task, ``/``, and the name of the step, as `get_tasks` has it.
        new_id: id of the new workflow. Default: a generated one.
        code: ``"recorded"``: the code of the old one; ``"current"``: that of this driver, as for
            `resume`. Kept results don't change.
        strict: False starts it even if something that it needs is not here.

    Returns:
        The id of the new workflow. It is durable, and it is running or pending.

    Raises:
        WorkflowNotFoundError: there is no such workflow, or no such task in it.
        WorkflowAlreadyExistsError: the new id is in use. (It is a ValueError.)
        EnvironmentMismatchError: something that it needs is not here, as for `resume`.

    Examples:
        >>> import ray, ray_workflows as workflow
        >>> @workflow.options(task_id="first")
        ... @ray.remote
        ... def first():
        ...     return workflow.current().workflow_id
        >>> @workflow.options(task_id="second")
        ... @ray.remote
        ... def second(made_by):
        ...     return made_by, workflow.current().workflow_id
        >>> workflow.run(second.bind(first.bind()), workflow_id="original")
        ('original', 'original')
        >>> workflow.get_output(workflow.fork("original", from_task="second", new_id="fork"))
        ('original', 'fork')
    """
    if not isinstance(from_task, str):
        raise TypeError(f"from_task must be a task id, not {type(from_task).__name__}.")
    return workflows.fork(
        workflow_id, from_task, new_id, parse_resume_options(code, None, None, strict)
    )


def get_output(workflow_id: str, *, task_id: str | None = None) -> Any:
    """The output of a workflow, or of one of its tasks; waits while it is running.

    Args:
        workflow_id: the workflow.
        task_id: a task of it.

    Raises:
        WorkflowNotFoundError: there is no such workflow. (It is a ValueError.)
        OutputNotAvailableError: there is no output: it failed, was canceled or interrupted, there
            is no such task, or the task was not checkpointed. (It is a ValueError.)
        WorkflowExecutionError: it failed during this call.
    """
    return workflows.get_output(workflow_id, task_id)


def get_output_async(workflow_id: str, *, task_id: str | None = None) -> ray.ObjectRef[Any]:
    """As `get_output`, but returns an ObjectRef that is ready when the output is."""
    return workflows.get_output_async(workflow_id, task_id)


def get_status(workflow_id: str) -> WorkflowStatus:
    """The status of a workflow.

    Raises:
        WorkflowNotFoundError: there is no such workflow. (It is a ValueError.)
    """
    return workflows.get_status(workflow_id)


def get_metadata(workflow_id: str, task_id: str | None = None) -> dict[str, Any]:
    """The metadata of a workflow, or of one of its tasks.

    Returns:
        For a workflow ``status``, ``user_metadata`` and ``stats`` (``start_time``, ``end_time`` in
        seconds since 1970); for a task ``task_id``, ``task_options``, ``user_metadata``,
        ``workflow_refs`` (ids of the tasks whose results it takes) and ``stats``.

    Raises:
        WorkflowNotFoundError: there is no such workflow or task. (It is a ValueError.)
    """
    return workflows.get_metadata(workflow_id, task_id)


def get_environment(workflow_id: str) -> EnvironmentInfo:
    """The recorded environment of a workflow: versions, packages, code, runtime_env; and the
    differences from this process.

    Raises:
        WorkflowNotFoundError: there is no such workflow. (It is a ValueError.)

    Examples:
        >>> import platform, ray, ray_workflows as workflow
        >>> @ray.remote
        ... def one():
        ...     return 1
        >>> workflow.run(one.bind(), workflow_id="environment of one")
        1
        >>> workflow.get_environment("environment of one").python == platform.python_version()
        True
    """
    return workflows.get_environment(workflow_id)


def get_tasks(workflow_id: str, *, attempts: bool = False) -> list[TaskInfo]:
    """Every task of a workflow with its status, and why it has not ended, in one call.

    Args:
        workflow_id: id of the workflow.
        attempts: also list every attempt of every task, in `TaskInfo.history`.

    Returns:
        Tasks in the order of their creation; continuations add theirs when they are reached.

    Raises:
        WorkflowNotFoundError: there is no such workflow. (It is a ValueError.)

    Examples:
        >>> import ray, ray_workflows as workflow
        >>> @ray.remote
        ... def one():
        ...     return 1
        >>> named = one.options(**workflow.options(task_id="one"))
        >>> workflow.run(named.bind(), workflow_id="tasks of one")
        1
        >>> [(task.task_id, task.status.value) for task in workflow.get_tasks("tasks of one")]
        [('one', 'SUCCESSFUL')]
    """
    return workflows.get_tasks(workflow_id, attempts)


def list_all(
    status_filter: StatusFilter = None,
) -> list[tuple[str, WorkflowStatus]]:
    """All workflows with their statuses, oldest first, interrupted ones last.

    Args:
        status_filter: a status or a set of them; None for all.

    Raises:
        TypeError: the filter is none of these.
        ValueError: a status that does not exist.
    """
    return workflows.list_all(parse_status_filter(status_filter))


def list_workflows(
    filter: str = "",
    *,
    order: str = "newest",
    limit: int = 100,
    after: str | None = None,
) -> WorkflowPage:
    """A page of the workflows that match a filter.

    Args:
        filter: words such as ``status=FAILED id=order-* name=train* kind=dag tag.team=vision
            submitted>2026-01-31``, which all have to hold; empty: all workflows. Columns are
            ``status``, ``id``, ``kind``, ``name`` (of the root function), ``queue``, ``parent``,
            ``tag.<name>``, ``submitted`` and ``ended``. A ``*`` at the end matches any rest; values
            with spaces stand in double quotes; commas separate several statuses.
        order: ``"newest"`` or ``"oldest"`` submission first.
        limit: the most workflows of the page.
        after: the ``next`` of the page before, with the same order and filter.

    Returns:
        An iterable page; ``next`` is the ``after`` of the next page, or None at the end.

    Raises:
        InvalidFilterError: the filter can't be read; names the word and its position. (It is a
            ValueError.)
        ValueError: an order, limit or ``after`` that can't be used.

    Examples:
        >>> import ray, ray_workflows as workflow
        >>> @ray.remote
        ... def train(rate):
        ...     return rate
        >>> for number in range(3):
        ...     ref = workflow.run_async(
        ...         train.bind(0.1), workflow_id=f"train-{number}", tags={"team": "vision"}
        ...     )
        >>> page = workflow.list_workflows("tag.team=vision id=train-*", limit=2)
        >>> [found.workflow_id for found in page]
        ['train-2', 'train-1']
        >>> page = workflow.list_workflows("tag.team=vision id=train-*", after=page.next)
        >>> [(found.workflow_id, found.tags) for found in page], page.next
        ([('train-0', {'team': 'vision'})], None)
    """
    newest_first = check_order(order)
    return workflows.list_workflows(parse_filter(filter), newest_first, check_page(limit), after)


def count_workflows(filter: str = "") -> int:
    """How many workflows match a filter.

    Args:
        filter: as for `list_workflows`.

    Raises:
        InvalidFilterError: the filter can't be read. (It is a ValueError.)

    Examples:
        >>> import ray_workflows as workflow
        >>> workflow.count_workflows("tag.team=nobody")
        0
    """
    return workflows.count_workflows(parse_filter(filter))


def set_tags(workflow_id: str, tags: dict[str, Tag | None]) -> None:
    """Set tags of a workflow, whatever its status. When this returns, they are durable.

    Args:
        workflow_id: the workflow.
        tags: strings, numbers or booleans by name; None removes a tag. Other tags stay.

    Raises:
        TypeError: not a dict, or a name or value of a wrong type.
        ValueError: a name or value that can't be stored, or more than 50 tags.
        WorkflowNotFoundError: there is no such workflow. (It is a ValueError.)

    Examples:
        >>> import ray, ray_workflows as workflow
        >>> @ray.remote
        ... def one():
        ...     return 1
        >>> workflow.run(one.bind(), workflow_id="tagged", tags={"team": "vision", "draft": True})
        1
        >>> workflow.set_tags("tagged", {"draft": None, "score": 0.9})
        >>> workflow.list_workflows("tag.score>0.5").rows[0].tags
        {'team': 'vision', 'score': 0.9}
    """
    workflows.set_tags(workflow_id, validate_tags(tags, removes=True))


def signal(workflow_id: str, name: str, value: Any = None, *, signal_id: str | None = None) -> None:
    """Send a workflow a signal. When this returns, the signal is durable.

    The workflow keeps it until one `wait_for_signal` node takes it, once. It may come long before a
    task waits for it, and from any cluster that shares the storage. A PENDING, FAILED or RESUMABLE
    workflow has it when it goes on.

    Args:
        workflow_id: the workflow.
        name: the name by which tasks wait for it; up to 512 bytes of UTF-8.
        value: the result of the waiting node. As for arguments of tasks, large values are stored
            beside the journal, and ObjectRefs with their objects.
        signal_id: a repeated signal with the same id and name changes nothing: the first value
            stays. That holds until the signal and 1,000 others after it have been taken.
            Default: a new id for each call.

    Raises:
        TypeError: a name or id that is not a string; (SerializationError) a value that can't be
            stored.
        ValueError: a name or id that is empty or too long.
        WorkflowNotFoundError: there is no such workflow. (It is a ValueError.)
        SignalRefusedError: it has succeeded, or was canceled.
        StorageUnavailableError: the storage does not answer. The signal may be stored already, or
            when the storage returns. With a ``signal_id`` it can be sent again.

    Examples:
        >>> import ray, ray_workflows as workflow
        >>> ref = workflow.run_async(workflow.wait_for_signal("go"), workflow_id="race")
        >>> workflow.signal("race", "go", {"lane": 4}, signal_id="starter 1")
        >>> ray.get(ref)
        {'lane': 4}
    """
    name = validate_signal_text("name", name)
    if signal_id is not None:
        signal_id = validate_signal_text("signal_id", signal_id)
    workflows.signal(workflow_id, name, value, signal_id)


def cancel(workflow_id: str) -> None:
    """Cancel a workflow: stop its running tasks. Its stored results stay.

    Raises:
        WorkflowNotFoundError: there is no such workflow.
    """
    workflows.cancel(workflow_id)


def delete(workflow_id: str) -> None:
    """Delete a workflow with all its stored data. Its id can then be used again.

    Raises:
        WorkflowNotFoundError: there is no such workflow.
        WorkflowStillActiveError: it is running or pending; or a task has started it, and the task's
            workflow does not know yet that it is there: that is so for a moment, unless that
            workflow was interrupted.
    """
    workflows.delete(workflow_id)


def prune(
    older_than: float | timedelta,
    statuses: WorkflowStatus | str | set[WorkflowStatus] | set[str] | None = None,
    keep: int = 0,
) -> list[str]:
    """Delete workflows that ended long ago, with all their stored data.

    Running and pending workflows are never deleted. One that is resumed meanwhile is left alone.

    Args:
        older_than: how long ago they must have ended: seconds, or a ``timedelta``. An
            interrupted workflow counts as ended when its coordinator last renewed its lease.
        statuses: the statuses to delete. None: SUCCESSFUL, FAILED and CANCELED; RESUMABLE ones
            only if named.
        keep: keep this many of them, those that ended last.

    Returns:
        The ids of the deleted workflows, the longest ended first.

    Raises:
        TypeError: an argument of another type.
        ValueError: a negative number, or a status that can't be pruned.

    Examples:
        >>> import datetime, ray_workflows as workflow
        >>> workflow.prune(older_than=datetime.timedelta(days=30), keep=100)
        []
    """
    return workflows.prune(parse_age(older_than), parse_prunable(statuses), parse_keep(keep))


def copy(
    workflow_id: str | None = None,
    *,
    source: str | os.PathLike[str] | Storage | None = None,
    target: str | os.PathLike[str] | Storage,
) -> list[str]:
    """Copy a workflow, or all, to another storage, with the values and the history.

    A copy is the same workflow there: with its id, output, metadata and tasks. A failed or
    interrupted workflow can be resumed there, and its finished tasks do not run again; let only one
    of the two go on. Nothing is deleted. Copying again completes an interrupted copy, and updates
    an earlier one. Values are streamed in their stored form. No cluster is needed.

    Args:
        workflow_id: the workflow. None: all of the storage. source: the storage to copy from, in
        the forms of `init`. Default: the storage of the cluster
            that this process is connected to, else that of `init`.
        target: the storage to copy to; created if it does not exist.

    Returns:
        The ids of new copies; complete copies are left out.

    Raises:
        WorkflowNotFoundError: there is no such workflow.
        WorkflowStillActiveError: it is running or pending.
        WorkflowCopyError: the target has another workflow with this id, or the copy there went on.
            If all were to be copied: some were not, because of this or because they were
            running or damaged; ``workflow_ids`` names them. All others are copied.
        StorageConfigError: one of the storages can't be used, or both are the same.

    Examples:
        >>> import tempfile, ray, ray_workflows as workflow
        >>> @ray.remote
        ... def one():
        ...     return 1
        >>> workflow.run(one.bind(), workflow_id="to be copied")
        1
        >>> with tempfile.TemporaryDirectory() as backup:
        ...     workflow.copy("to be copied", target=backup)
        ...     workflow.copy("to be copied", target=backup)
        ['to be copied']
        []
    """
    return copies.copy(workflow_id, source, target)


# Generic, so that a type checker infers the task's own return type: with Any, strict checkers would
# complain about every ``return workflow.continuation(...)`` in a typed task.
def continuation(dag_node: DAGNode) -> T:  # type: ignore[type-var]
    """Go on with a DAG: ``return workflow.continuation(dag)``.

    In a workflow it returns the DAG, which becomes part of the workflow and whose output becomes
    the task's result; elsewhere it executes the DAG and returns the result.

    Args:
        dag_node: the output node of a DAG of tasks.

    Raises:
        TypeError: not a DAG.
    """
    if not isinstance(dag_node, DAGNode):
        raise TypeError(f"Input should be a DAG, not {type(dag_node).__name__}.")
    result: Any = dag_node if current_attempt() is not None else ray.get(execute_dag(dag_node))
    return cast(T, result)


def current() -> CurrentTask | None:
    """The task that is running here: its ids, its attempt, and its idempotency key.

    An attempt that was running when a machine died runs again. Pass the key to services whose
    effect must not happen twice (a payment, a message), so that they can recognize a repetition.

    Returns:
        None outside of workflow tasks.

    Examples:
        >>> import ray, ray_workflows as workflow
        >>> @ray.remote
        ... def pay(amount):
        ...     task = workflow.current()
        ...     return task.attempt, len(task.idempotency_key) > 32
        >>> workflow.run(pay.bind(100))
        (1, True)
        >>> workflow.current() is None
        True
    """
    return current_task()


def set_metadata(metadata: dict[str, Any]) -> None:
    """Add to the metadata of the task that is running here, durably with its result.

    `get_metadata` shows it together with the metadata of ``options(metadata=...)``, once the
    result is committed. An attempt that fails adds nothing.

    Args:
        metadata: JSON-compatible values by strings. Existing keys are replaced.

    Raises:
        RuntimeError: no task of a workflow is running here (or not in this thread).
        ValueError: not a dict, or JSON can't represent it.

    Examples:
        >>> import ray, ray_workflows as workflow
        >>> @ray.remote
        ... def train():
        ...     workflow.set_metadata({"loss": 0.5})
        ...     return "model"
        >>> named = train.options(**workflow.options(task_id="train", metadata={"team": "vision"}))
        >>> workflow.run(named.bind(), workflow_id="metadata of a task")
        'model'
        >>> workflow.get_metadata("metadata of a task", "train")["user_metadata"]
        {'team': 'vision', 'loss': 0.5}
    """
    if not add_metadata(validate_metadata(metadata)):
        raise RuntimeError(
            "set_metadata adds to the metadata of the task that is running, and none is running "
            "here. Call it in a task of a workflow, in the thread that runs the task."
        )
