"""Shows the recorded environment of a workflow, compares it with this one, and resumes with it."""

from __future__ import annotations

import getpass
import json
import os
import socket
import sys
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec
import ray

from ray_workflows._capture.options import NOT_FOR_RAY, encode_ray_options
from ray_workflows._capture.upgrade import upgraded
from ray_workflows._capture.values import ValueReader, ValueWriter
from ray_workflows._client.connection import Connection
from ray_workflows._client.outputs import read_row
from ray_workflows._client.reader import Reader
from ray_workflows._coordinator.recovery import fold
from ray_workflows._engine.state import Phase, Task, WorkflowState
from ray_workflows._environment import secrets, shared_items, snapshot
from ray_workflows._environment.code import capture, hooks
from ray_workflows._environment.code.modules import Reached, roots
from ray_workflows._environment.compare import (
    changed_modules,
    diff,
    look,
    obstacles,
    other_versions,
)
from ray_workflows._environment.record import Record, decode
from ray_workflows._model import events as ev
from ray_workflows._model.answers import Accepted, Finished
from ray_workflows._model.catalog import CatalogRow
from ray_workflows._model.environment import Difference, EnvironmentInfo, ResumedBy
from ray_workflows._model.ids import plain_text, validate_workflow_id
from ray_workflows._model.plan import Environment, EnvironmentChange, Function
from ray_workflows._model.status import WorkflowStatus
from ray_workflows._ray.cluster import call_inside
from ray_workflows.exceptions import (
    EnvironmentMismatchError,
    StorageCorruptError,
    WorkflowNotFoundError,
    WorkflowToResumeNotFoundError,
)
from ray_workflows.storage import Storage
from ray_workflows.storage.histories import History, unless_deleted

RECORDED, CURRENT = "recorded", "current"

#: Options that bind a task to a placement group of one cluster.
PLACES = ("placement_group", "placement_group_bundle_index", "placement_group_capture_child_tasks")


class RecordedEnvironment:
    """A workflow with the record of its environment."""

    def __init__(self, storage: Storage, row: CatalogRow) -> None:
        self.row = row
        self.state = WorkflowState(row.workflow_id, row.incarnation)
        self.resumed: list[ResumedBy] = []
        #: The runtime_envs of single tasks, by task id.
        self.task_envs: dict[str, dict[str, Any]] = {}
        for entry, events in History(storage, row).read():
            fold(self.state, entry.seq, events)
            for event in events:
                self.observe(event)
        record = self.state.environment.record
        self.record: Record | None = None
        #: Why the record can't be read.
        self.damage: StorageCorruptError | None = None
        try:
            item = (
                shared_items.find(storage, f"{shared_items.DOCUMENT}/{record}") if record else None
            )
            if item is not None:
                with (
                    unless_deleted(storage, row),
                    shared_items.noting_damage(storage, item.name, item.incarnation),
                ):
                    self.record = decode(storage.read_blob(item.incarnation, item.blob))
        except StorageCorruptError as error:
            self.damage = error

    def observe(self, event: ev.Event) -> None:
        if isinstance(event, ev.WorkflowResumed) and event.change is not None:
            change = event.change
            self.resumed.append(
                ResumedBy(
                    event.at,
                    change.by,
                    change.code,
                    change.environment is not None,
                    tuple(sorted(change.ray_options)),
                )
            )
        if isinstance(event, ev.Opening):
            for task_id, spec in zip(event.task_ids, event.plan.tasks, strict=True):
                runtime_env = event.plan.options[spec.options].ray.get("runtime_env")
                if runtime_env:
                    self.task_envs[task_id] = runtime_env

    @property
    def functions(self) -> dict[str, Function]:
        """The functions that run now, by the digests of the submitted ones that they replace."""
        return {
            function.digest: self.state.functions.get(function.digest, function)
            for frame in self.state.frames.values()
            for function in frame.plan.functions
        }

    @property
    def functions_to_run(self) -> dict[str, Function]:
        """As `functions`, of the tasks that run after a resume."""
        wanted = digests_to_run(self.state)
        return {digest: each for digest, each in self.functions.items() if digest in wanted}

    @property
    def unfinished(self) -> list[Task]:
        """The tasks that run after a resume."""
        return unfinished(self.state)


def unfinished(state: WorkflowState) -> list[Task]:
    """The tasks of a workflow that have no result yet."""
    return [task for task in state.tasks.values() if task.phase is not Phase.SUCCEEDED]


def digests_to_run(state: WorkflowState) -> set[str]:
    """The digests of the submitted functions of tasks that have no result yet."""
    return {task.frame.plan.functions[task.spec.function].digest for task in unfinished(state)}


def get_environment(reader: Reader, workflow_id: str) -> EnvironmentInfo:
    """The recorded environment of a workflow, for users.

    Raises:
        WorkflowNotFoundError: there is no such workflow.
        StorageCorruptError: the record is damaged; names the key.
    """
    found = remembered(reader, workflow_id)
    if found.damage is not None:
        raise found.damage
    record, environment = found.record, found.state.environment
    differences, diffs = compare(reader.storage, found)
    return EnvironmentInfo(
        workflow_id=found.row.workflow_id,
        python=record.python if record else "",
        ray=record.ray if record else "",
        ray_workflows=record.ray_workflows if record else "",
        platform=record.platform if record else "",
        runtime_env=secrets.masked(environment.runtime_env),
        task_runtime_envs={k: secrets.masked(env) for k, env in found.task_envs.items()},
        packages={package.uri: package.blob.size for package in environment.packages},
        modules={name: module.digest for name, module in record.modules.items()} if record else {},
        installed=dict(record.installed) if record else {},
        python_path=environment.python_path,
        resumed=tuple(found.resumed),
        differences=tuple(differences),
        diffs=diffs,
        skipped=dict(record.skipped) if record else {},
    )


def compare(
    storage: Storage, found: RecordedEnvironment
) -> tuple[list[Difference], dict[str, str]]:
    """The differences between the recorded environment and this one, and diffs of changed files."""
    record = found.record
    if record is None:
        return [], {}
    here = call_inside(look, list(record.installed))
    differences = [
        Difference(name, theirs, ours or "missing")
        for name, theirs, ours in other_versions(record, here)
    ]
    directories = (*capture.import_directories(), capture.current_directory())
    changed = changed_modules(record, directories)
    for name, path in changed.items():
        how = "missing" if path is None else "changed"
        differences.append(Difference(name, record.modules[name].digest[:12], how))
    places = {name: path for name, path in changed.items() if path is not None}
    code = recorded_code(storage, found.state.environment) if places else None
    if code is None:
        return differences, {}
    return differences, {name: diff(name, path, code) for name, path in places.items()}


def remembered(reader: Reader, workflow_id: str) -> RecordedEnvironment:
    return RecordedEnvironment(
        reader.storage, read_row(reader.storage, validate_workflow_id(workflow_id))
    )


def recorded_code(storage: Storage, environment: Environment) -> memoryview | None:
    """The archive of the user's own modules."""
    for package in environment.packages:
        if package.uri == environment.code:
            return storage.read_blob(package.incarnation, package.blob)
    return None


# -- resuming ------------------------------------------------------------------------------


class ResumeOptions(msgspec.Struct, frozen=True):
    """The arguments of `resume` that say how a workflow goes on."""

    code: str = RECORDED
    runtime_env: dict[str, Any] | None = None
    task_options: dict[str, dict[str, Any]] = {}
    strict: bool = True


#: Is called with a workflow and the change of its environment before it goes on.
Seer = Callable[[RecordedEnvironment, EnvironmentChange], None]


def who() -> str:
    """The user and host of this process."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def row_to_resume(storage: Storage, workflow_id: str, incarnation: str = "") -> CatalogRow:
    """As `read_row`, for a resume.

    Raises:
        WorkflowToResumeNotFoundError: no workflow, or (``replaced``) another one has the id.
    """
    try:
        return read_row(storage, workflow_id, incarnation)
    except WorkflowNotFoundError as error:
        raise WorkflowToResumeNotFoundError(workflow_id, replaced=error.replaced) from None


def resume(
    connection: Connection,
    row: CatalogRow,
    canceled: bool,
    resume_options: ResumeOptions,
    see: Seer,
) -> Accepted | Finished:
    """Resume a workflow.

    ``row``: its present row. The environment is checked only if the workflow can go on.

    Raises:
        EnvironmentMismatchError: this cluster lacks something that it needs. Nothing was started.
        WorkflowToResumeNotFoundError: the workflow was deleted.
    """
    change = prepare(connection, row, resume_options, see)
    # Ray repeats the call if the coordinator dies before it has answered.
    request = (uuid.uuid4().hex, canceled, change)
    answer: Accepted | Finished = connection.ask(
        "resume", row.workflow_id, *request, incarnation=row.incarnation
    )
    return answer


def prepare(
    connection: Connection, row: CatalogRow, resume_options: ResumeOptions, see: Seer
) -> EnvironmentChange | None:
    """The change with which a workflow goes on; None if it can't go on anyway."""
    if connection.status(row) in (
        WorkflowStatus.SUCCESSFUL,
        WorkflowStatus.RUNNING,
        WorkflowStatus.PENDING,
    ):
        return None
    return look_first(connection.storage, row, resume_options, see)


def look_first(
    storage: Storage, row: CatalogRow, resume_options: ResumeOptions, see: Seer
) -> EnvironmentChange | None:
    """As `prepare`, of a workflow that nobody drives; None if it was deleted.

    Raises:
        EnvironmentMismatchError: this cluster lacks something that it needs.
    """
    workflow_id = row.workflow_id
    try:
        found = RecordedEnvironment(storage, row)
    except WorkflowNotFoundError:
        return None
    user = (workflow_id, row.incarnation)
    change = EnvironmentChange(
        code=resume_options.code,
        by=who(),
        environment=changed_environment(storage, found, resume_options, user),
        functions=present_functions(
            storage, found.functions, row.incarnation, resume_options.code, row.incarnation
        ),
        ray_options=checked_options(found, resume_options.task_options),
    )
    lost = lost_places(found, change.ray_options)
    problems = [*missing(found, change, resume_options), *lost.values()]
    if problems and resume_options.strict:
        raise EnvironmentMismatchError(workflow_id, problems)
    see(found, change)
    anywhere: dict[str, Any] = dict.fromkeys(("scheduling_strategy", *PLACES))
    options = {**dict.fromkeys(lost, anywhere), **change.ray_options}
    return msgspec.structs.replace(change, ray_options=options)


def look_before_fork(
    storage: Storage, found: RecordedEnvironment, resume_options: ResumeOptions
) -> EnvironmentChange:
    """Give this cluster the secrets of a fork, and check that it has everything else that the fork
    needs. Returns the change with which the fork runs, without its functions.

    Raises:
        EnvironmentMismatchError: this cluster lacks something that the fork needs.
    """
    environment = changed_environment(storage, found, resume_options, None)
    change = EnvironmentChange(resume_options.code, who(), environment)
    problems = missing(found, change, resume_options)
    if problems and resume_options.strict:
        raise EnvironmentMismatchError(found.row.workflow_id, problems)
    return change


def changed_environment(
    storage: Storage,
    found: RecordedEnvironment,
    resume_options: ResumeOptions,
    user: tuple[str, str] | None,
) -> Environment | None:
    """The environment with which a workflow goes on; None if it does not change.

    ``user``: the id and incarnation of the workflow that gets it; None for a new workflow, whose
    incarnation is named after the environment's document.
    """
    if resume_options.code == RECORDED and resume_options.runtime_env is None:
        return None
    old = found.state.environment
    runtime_env = dict(old.runtime_env)
    directories = old.python_path
    if resume_options.code == CURRENT:
        mine = snapshot.own_runtime_env()
        runtime_env.update({k: mine[k] for k in ("working_dir", "py_modules") if mine.get(k)})
        hooks.exchange(runtime_env, mine)
        there = [path for path in old.python_path if os.path.isdir(path)]
        directories = tuple(dict.fromkeys((*capture.import_directories(), *there)))
    # Convert to plain types, as for a driver: paths and subclasses of str become strings.
    given = json.loads(json.dumps(resume_options.runtime_env or {}, default=str))
    env_vars = {**(runtime_env.get("env_vars") or {}), **(given.pop("env_vars", None) or {})}
    runtime_env.update(given)
    if env_vars:
        runtime_env["env_vars"] = env_vars
    if resume_options.code == CURRENT:
        reached = Reached(directories)
        names = {name.partition("/")[0] for name in (found.record.modules if found.record else ())}
        reached.follow(roots(sys.modules.get("__main__")) | {n.removesuffix(".py") for n in names})
        digest = capture.code_digest(capture.code_files(directories))
        return snapshot.remember(storage, runtime_env, reached, digest, user)
    return snapshot.change_runtime_env(storage, old, runtime_env, found.record, user)


def present_functions(
    storage: Storage,
    functions: Mapping[str, Function],
    incarnation: str,
    code: str,
    target: str,
) -> dict[str, Function]:
    """The replacements of a workflow's functions from this process's script. Empty unless ``code``
    is ``CURRENT``.

    Args:
        storage: of both workflows.
        functions: the functions that run now, by the digests of the submitted ones.
        incarnation: of the workflow that has them.
        code: the code with which the workflow goes on.
        target: the incarnation of the workflow that gets them: the same one, or a fork of it.
    """
    if code != CURRENT:
        return {}
    return upgraded(ValueReader(storage, incarnation), ValueWriter(storage, target), functions)


def checked_options(
    found: RecordedEnvironment, given: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Ray options for single tasks, as data.

    Raises:
        ValueError: there is no such task left to run, or an option can't be given.
    """
    known = {task.task_id for task in found.unfinished}
    encoded = {}
    for name, options in given.items():
        task_id = plain_text(name)
        if task_id not in known:
            raise ValueError(
                f"task_options names the task {task_id!r}, which is none of those that workflow "
                f"'{found.row.workflow_id}' has left to run: {', '.join(sorted(known)) or 'none'}."
            )
        refused = sorted(set(options).intersection(NOT_FOR_RAY))
        if refused:
            raise ValueError(f"task_options of {task_id!r} can't have {', '.join(refused)}.")
        laid: dict[str, Any] = {key: None for key, value in options.items() if value is None}
        if "scheduling_strategy" in options:
            laid.update(dict.fromkeys(PLACES))
        laid.update(encode_ray_options(options, where=f"task_options of '{task_id}'"))
        if laid.get("runtime_env"):
            laid["runtime_env"] = secrets.hide(laid["runtime_env"], snapshot.session)
        encoded[task_id] = laid
    return encoded


def missing(
    found: RecordedEnvironment, change: EnvironmentChange, resume_options: ResumeOptions
) -> list[str]:
    """What the tasks need and this cluster does not have."""
    environment = change.environment or found.state.environment
    task_envs = changed_task_envs(found, change)
    runtime_envs = [environment.runtime_env, *task_envs.values()]
    problems = missing_secrets(environment.runtime_env, task_envs, resume_options)
    if found.damage is not None and change.code == RECORDED:
        problems.append(f"the document about its environment: {found.damage} Restore it.")
    if found.record is None:
        return problems
    here = call_inside(look, list(found.record.installed))
    return [*obstacles(found.record, here, runtime_envs), *problems]


def changed_task_envs(
    found: RecordedEnvironment, change: EnvironmentChange
) -> dict[str, dict[str, Any]]:
    """The runtime_envs of single tasks by their ids, as they are when the workflow goes on."""
    task_envs = dict(found.task_envs)
    for ray_options in (found.state.ray_options, change.ray_options):
        for task_id, options in ray_options.items():
            if "runtime_env" in options:
                task_envs[task_id] = options["runtime_env"] or {}
    return task_envs


def missing_secrets(
    runtime_env: Mapping[str, Any],
    task_envs: Mapping[str, Mapping[str, Any]],
    resume_options: ResumeOptions,
) -> list[str]:
    """Tell this cluster the secrets that are given here; those that it does not have, each with its
    remedy."""
    here_values = {**os.environ, **((resume_options.runtime_env or {}).get("env_vars") or {})}
    variables, fields = secrets.supply(runtime_env, here_values, snapshot.own_runtime_env)
    problems = [
        f"the credentials in the field {field!r} of its runtime_env, which are not stored: "
        f"resume(..., runtime_env={{{field!r}: ...}})."
        for field in fields
    ]
    names = set(variables)
    for task_id, task_env in task_envs.items():
        variables, fields = secrets.supply(task_env, here_values, snapshot.own_runtime_env)
        names.update(variables)
        problems += [
            f"the credentials in the field {field!r} of the runtime_env of task '{task_id}', which "
            f"are not stored: resume(..., task_options={{{task_id!r}: {{'runtime_env': ...}}}})."
            for field in fields
        ]
    return problems + [
        f"the value of the secret environment variable {name}, which is not stored. Set it here, "
        f"or: resume(..., runtime_env={{'env_vars': {{'{name}': ...}}}})."
        for name in sorted(names)
    ]


def lost_places(
    found: RecordedEnvironment, given: Mapping[str, Mapping[str, Any]]
) -> dict[str, str]:
    """The tasks bound to a placement group or a node that this cluster does not have: problem and
    remedy, by task id."""
    lost = {}
    for task in found.unfinished:
        own = {**found.state.ray_options.get(task.task_id, {}), **given.get(task.task_id, {})}
        options = {k: v for k, v in {**task.options.ray, **own}.items() if v is not None}
        place = place_of(options)
        if place is not None and not exists(*place):
            kind, name = place
            lost[task.task_id] = (
                f"task '{task.task_id}' is bound to the {kind} {name}, which this cluster does "
                f"not have. Give another: resume({found.row.workflow_id!r}, task_options="
                f"{{{task.task_id!r}: {{'scheduling_strategy': ...}}}})."
            )
    return lost


def place_of(options: Mapping[str, Any]) -> tuple[str, str] | None:
    """The kind and the name of the place that a task is bound to."""
    strategy = options.get("scheduling_strategy")
    if isinstance(strategy, dict):
        if "placement_group" in strategy:
            return "placement group", strategy["placement_group"]["id"]
        affinity = strategy.get("node_affinity")
        if affinity is not None and not affinity["soft"]:
            return "node", affinity["node_id"]
    group = options.get("placement_group")
    if isinstance(group, dict):
        return "placement group", group["placement_group"]
    return None


def exists(kind: str, name: str) -> bool:
    """Whether this cluster has a placement group or a node."""
    if kind == "node":
        return any(node["NodeID"] == name and node["Alive"] for node in ray.nodes())
    groups: Iterable[Any] = ray.util.placement_group_table().items()
    return any(group == name and about["state"] != "REMOVED" for group, about in groups)
