"""Takes the environment of a driver when it submits, and caches it until something changes.

Also for a worker that submits a workflow, or that returns a continuation.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import ray

from ray_workflows._environment import record, secrets, shared_items
from ray_workflows._environment.code import capture, hooks, interpreter, packages
from ray_workflows._environment.code.archive import file_digest
from ray_workflows._environment.code.loaded import cells, file_of, names_in
from ray_workflows._environment.code.modules import Reached, roots
from ray_workflows._environment.code.packages import User
from ray_workflows._environment.code.zipped import unzipped
from ray_workflows._environment.shared_items import DOCUMENT, SharedStorage
from ray_workflows._model.plan import Environment, Package, Plan
from ray_workflows._ray import private, sitecustomize_template

#: How long stored items are assumed to exist, in seconds.
BELIEVED_SECONDS = 600.0

#: An upper bound of the clock tick of file systems' modification times.
TICK_NANOSECONDS = 20_000_000


class CachedSnapshot:
    """A cached snapshot, and the facts on which its validity depends."""

    def __init__(
        self, key: tuple[Any, ...], digest: str, environment: Environment, files: list[str]
    ) -> None:
        self.key = key
        self.digest = digest
        self.environment = environment
        self.files = files
        self.stats = stats(files)
        self.taken_at = time.monotonic()

    def holds(self, key: tuple[Any, ...], digest: str) -> bool:
        """Whether nothing has changed."""
        return (
            key == self.key
            and digest == self.digest
            and time.monotonic() - self.taken_at < BELIEVED_SECONDS
            and stats(self.files) == self.stats
        )


class CachedDigest:
    """A cached digest of the modules in some directories, and the facts on which its validity
    depends. (A directory's time changes when a file is added or removed.)

    Args:
        directories: those from which the user's modules are imported.
    """

    def __init__(self, directories: tuple[str, ...]) -> None:
        # Files that change after this have a later modification time.
        before = time.time_ns() - TICK_NANOSECONDS
        self.modules = len(sys.modules)
        self.directories = directories
        files = capture.code_files(directories)
        self.files = [*directories, *files]
        self.stats = stats(self.files)
        self.digest = capture.code_digest(files)
        #: Whether every later change would show in a modification time.
        self.certain = all(found is not None and found[0] < before for found in self.stats)

    def holds(self, directories: tuple[str, ...]) -> bool:
        """Whether nothing has changed."""
        return (
            self.certain
            and self.directories == directories
            and self.modules == len(sys.modules)
            and stats(self.files) == self.stats
        )


#: The last snapshot of this process, and the last digest.
last: CachedSnapshot | None = None
digested: CachedDigest | None = None


def digest_of(directories: tuple[str, ...]) -> str:
    """A digest of the modules that were imported from the directories, or are in them."""
    global digested
    if digested is None or not digested.holds(directories):
        digested = CachedDigest(directories)
    return digested.digest


def stats(files: list[str]) -> list[tuple[int, int] | None]:
    """Each file's modification time, in nanoseconds since 1970, and size; None if it is missing."""
    found: list[tuple[int, int] | None] = []
    for path in files:
        try:
            status = os.stat(path)
        except OSError:
            found.append(None)
        else:
            found.append((status.st_mtime_ns, status.st_size))
    return found


def session() -> str:
    """Names the cluster that this process is connected to."""
    context = ray.get_runtime_context()
    return f"{context.gcs_address}/{context.get_job_id()}"


def own_runtime_env() -> dict[str, Any]:
    """The runtime_env of this process, as data."""
    runtime_env = dict(ray.get_runtime_context().runtime_env)
    if capture.process_env_vars:
        env_vars = runtime_env.get("env_vars") or {}
        runtime_env["env_vars"] = {**capture.process_env_vars, **env_vars}
    if not runtime_env:
        return {}
    plain: dict[str, Any] = json.loads(json.dumps(runtime_env, default=str))
    interpreter.unname_python(plain)
    return {key: value for key, value in plain.items() if key[:1] != "_"}


def take_snapshot(storage: SharedStorage, url: str) -> Environment:
    """The environment of this process. Stores all packages that it names.

    Raises:
        PackageTooLargeError: the user's code is too large.
        StorageUnavailableError: the storage does not answer.
    """
    global last
    directories = capture.import_directories()
    runtime_env = own_runtime_env()
    main = sys.modules.get("__main__")
    typed = (len(names_in(main)), len(cells()))
    digest = digest_of(directories)
    key = (url, session(), runtime_env, directories, secrets.patterns(), typed)
    if last is not None and last.holds(key, digest):
        return last.environment
    reached = Reached(directories)
    reached.follow(roots(main))
    environment = remember(storage, runtime_env, reached, digest)
    path = unzipped(file_of(main))
    watched = {*reached.files.values(), *map(os.path.dirname, reached.files.values())}
    last = CachedSnapshot(key, digest, environment, sorted(watched | ({path} if path else set())))
    return environment


def remember(
    storage: SharedStorage,
    runtime_env: Mapping[str, Any],
    reached: Reached,
    digest: str,
    user: User | None = None,
) -> Environment:
    """Store the packages of a runtime_env and of the user's code, and the document about them."""
    changed, needed = packages.localize(storage, runtime_env, user)
    code = ""
    with tempfile.TemporaryDirectory() as directory:
        changed, hook = hooks.localize(changed, directory)
        if reached.files or needed or hook:
            files = {
                f"{sitecustomize_template.NAME}.py": sitecustomize_template.__file__,
                **hook,
                **reached.files,
            }
            package = packages.from_files(storage, files, what="The local code")
            needed = [*needed, package]
            code = package.uri
    return with_record(storage, changed, needed, code, reached, digest, user)


def with_record(
    storage: SharedStorage,
    runtime_env: dict[str, Any],
    needed: Iterable[Package],
    code: str,
    reached: Reached,
    digest: str,
    user: User | None = None,
) -> Environment:
    environment = Environment(
        runtime_env=secrets.hide(runtime_env, session),
        python_path=reached.directories,
        code_digest=digest,
        packages=tuple(by_uri(needed).values()),
        code=code,
    )
    modules = {name: record.Module(path, file_digest(path)) for name, path in reached.files.items()}
    return keep_record(storage, environment, modules, reached.installed, reached.skipped, user)


def keep_record(
    storage: SharedStorage,
    environment: Environment,
    modules: Mapping[str, record.Module],
    installed: Mapping[str, str],
    skipped: Mapping[str, str],
    user: User | None,
) -> Environment:
    """Store the document about an environment, and return the environment with it."""
    name, data = record.encode(record.describe(environment, modules, installed, skipped))
    mentions = [packages.item_name(package) for package in environment.packages]
    shared_items.keep(storage, f"{DOCUMENT}/{name}", lambda: [data], mentions, user)
    return msgspec.structs.replace(environment, record=name)


def change_runtime_env(
    storage: SharedStorage,
    old: Environment,
    runtime_env: Mapping[str, Any],
    about: record.Record | None,
    user: User | None,
) -> Environment:
    """An environment with another runtime_env and the same user code."""
    known = {package.uri: package for package in old.packages}
    kept = [uri for uri in packages.names(runtime_env) if uri in known]
    changed, needed = packages.localize(storage, runtime_env, user, kept=kept)
    changed = secrets.hide(changed, session)
    # Keep packages that only tasks name, and the code.
    environment = msgspec.structs.replace(
        old, runtime_env=changed, packages=tuple({**known, **by_uri(needed)}.values()), record=""
    )
    modules = about.modules if about is not None else {}
    installed = about.installed if about is not None else {}
    skipped = about.skipped if about is not None else {}
    return keep_record(storage, environment, modules, installed, skipped, user)


def by_uri(needed: Iterable[Package]) -> dict[str, Package]:
    return {package.uri: package for package in needed}


def remember_options(storage: SharedStorage, plan: Plan, user: User) -> Plan:
    """A plan whose tasks' runtime_envs have stored packages."""
    options = list(plan.options)
    added: list[Package] = []
    for index, option in enumerate(options):
        runtime_env = option.ray.get("runtime_env")
        if not runtime_env:
            continue
        changed, needed = packages.localize(storage, runtime_env, user)
        # The commit of this cluster's Ray, which may differ elsewhere.
        changed.pop(private.RAY_COMMIT, None)
        changed = secrets.hide(changed, session)
        added += needed
        options[index] = msgspec.structs.replace(option, ray={**option.ray, "runtime_env": changed})
    if options == list(plan.options):
        return plan
    environment = plan.environment
    known = {package.uri for package in environment.packages}
    new = {package.uri: package for package in added if package.uri not in known}
    environment = msgspec.structs.replace(
        environment, packages=(*environment.packages, *new.values())
    )
    return msgspec.structs.replace(plan, options=tuple(options), environment=environment)


def share(storage: SharedStorage, environment: Environment, user: User) -> None:
    """Let one more workflow, which is named after the environment's document, use the
    environment."""
    if not environment.record:
        return
    document = shared_items.use(storage, f"{DOCUMENT}/{environment.record}")
    mentions = document.mentions if document is not None else ()
    for package in environment.packages:
        name = packages.item_name(package)
        if name not in mentions:
            shared_items.use(storage, name, user)
