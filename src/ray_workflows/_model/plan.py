"""A captured DAG as data: the user code and arguments that are stored before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ray_workflows._model.catalog import Tag
from ray_workflows._model.values import Blob, Value

#: How a task is executed: a Ray task, an event listener in the listener host, a timer, a wait for
#: a signal, or the body of a durable function, which asks for steps.
FUNCTION, LISTENER, TIMER, SIGNAL = "function", "listener", "timer", "signal"
BODY = "body"

#: Kinds whose attempts share a process with others, and take no CPU.
HOSTED_KINDS = (LISTENER, BODY)

#: Kinds without attempts: the engine itself completes them.
ENGINE_KINDS = (TIMER, SIGNAL)

#: Ray's own default for tasks.
DEFAULT_MAX_RETRIES = 3


class Backoff(msgspec.Struct, frozen=True, array_like=True):
    """Pauses between attempts, in seconds: ``initial``, doubled each time, at most ``maximum``.

    ``jitter`` is the part of a pause, from 0 to 1, that may be taken off it.
    """

    initial: float = 0.0
    maximum: float = 0.0
    jitter: float = 0.0


class TaskOptions(msgspec.Struct, frozen=True, array_like=True):
    """Options of a task. None means: inherit from the task whose continuation this is.

    ``ray``: the arguments for Ray's ``.options()``, as JSON-compatible data. ``retry_on`` and
    ``give_up_on`` are pickled tuples of exception types, for the worker alone; exceptions are
    retried if they match the first (None: all do) and not the second. ``retry_timeouts``: whether
    attempts that overran ``timeout`` are retried. ``timeout``, of one attempt or of the wait for a
    signal, and ``duration``, of a timer, are in seconds. ``batch``: whether a short task may share
    a Ray task with others. ``signal``: the name of the signal that the task waits for.
    ``preemptions``: how often it is tried again when its node was lost; -1: without limit; None:
    without limit, unless it is not to be retried at all. ``tags``: of a workflow whose root is this
    task.
    """

    kind: str = FUNCTION
    max_retries: int = DEFAULT_MAX_RETRIES
    retry_exceptions: bool = False
    retry_on: bytes | None = None
    catch_exceptions: bool = False
    checkpoint: bool | None = None
    metadata: dict[str, Any] = {}
    ray: dict[str, Any] = {}
    duration: float = 0.0
    give_up_on: bytes | None = None
    backoff: Backoff = Backoff()
    timeout: float | None = None
    retry_timeouts: bool = True
    batch: bool = True
    signal: str = ""
    preemptions: int | None = None
    tags: dict[str, Tag] = {}

    def with_ray(self, given: Mapping[str, Any]) -> TaskOptions:
        """A copy with some of Ray's options replaced; None removes one."""
        ray = {k: v for k, v in {**self.ray, **given}.items() if v is not None}
        return msgspec.structs.replace(self, ray=ray)


class Function(msgspec.Struct, frozen=True, array_like=True):
    """A pickled function. ``digest`` identifies it: workers cache by it. ``present``: it replaced a
    recorded function, and the classes in its pickle replace recorded ones too."""

    digest: str
    name: str
    data: bytes | Blob
    objects: tuple[Blob, ...] = ()
    present: bool = False


class TaskSpec(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A node of a plan. ``upstream``, ``function`` and ``options`` are indices into the plan.

    ``name`` is the base of the task id; the engine makes it unique. ``arguments`` is an envelope
    of ``(args, kwargs)`` with placeholders for upstream results and constants. A timer's
    ``arguments`` are the value it produces. ``nested`` are the positions in ``upstream`` that
    are taken by reference only (nodes inside containers).
    """

    name: str
    function: int
    options: int
    arguments: Value
    upstream: tuple[int, ...] = ()
    nested: tuple[int, ...] = ()


class Package(msgspec.Struct, frozen=True, array_like=True):
    """Files that tasks import, or find in their working directory: stored once for all workflows.

    ``uri`` is its name in a runtime_env; the bytes are the blob of an incarnation of its own.
    """

    uri: str
    incarnation: str
    blob: Blob


class Environment(msgspec.Struct, frozen=True, array_like=True):
    """Where a workflow's code runs: the runtime environment of the driver that submitted it.

    ``python_path`` are the driver's own import directories (not site-packages);
    ``code_digest`` changes when the code in them does, so that no worker serves stale modules.

    ``packages`` are those that ``runtime_env`` and the runtime_env of tasks name. ``code`` is the
    URI of the one among them that has the driver's own modules. ``record`` is the digest of the
    document about all this, which is stored as packages are.
    """

    runtime_env: dict[str, Any] = {}
    python_path: tuple[str, ...] = ()
    code_digest: str = ""
    packages: tuple[Package, ...] = ()
    code: str = ""
    record: str = ""


class EnvironmentChange(msgspec.Struct, frozen=True, array_like=True):
    """The changes that a resumption makes to a workflow.

    ``code``: as requested; ``by``: the user and host. ``environment`` None: unchanged.
    ``functions`` replace those with the digests that are their keys. ``ray_options`` update those
    of the tasks with these ids; None removes an option.
    """

    code: str
    by: str
    environment: Environment | None = None
    functions: dict[str, Function] = {}
    ray_options: dict[str, dict[str, Any]] = {}


class Plan(msgspec.Struct, frozen=True, array_like=True):
    """A DAG: tasks in topological order, of which the last is the output.

    ``constants`` are values shared by several tasks (DAG inputs). ``digest`` identifies the
    shape and the arguments; equal plans have equal digests.
    """

    functions: tuple[Function, ...]
    options: tuple[TaskOptions, ...]
    tasks: tuple[TaskSpec, ...]
    constants: tuple[Value, ...] = ()
    environment: Environment = Environment()
    digest: str = ""

    @property
    def output(self) -> int:
        """Index of the task whose result is the result of the plan."""
        return len(self.tasks) - 1

    @property
    def tags(self) -> dict[str, Tag]:
        """The tags of a workflow that it is the plan of."""
        return self.options[self.tasks[self.output].options].tags

    @property
    def runs_body(self) -> bool:
        """Whether the task whose result is the result of the plan is a durable function."""
        return self.options[self.tasks[self.output].options].kind == BODY

    @property
    def name(self) -> str:
        """What the function is called whose result is the result of the plan, without its module:
        a script's would be ``__main__``."""
        return self.functions[self.tasks[self.output].function].name.rpartition(".")[2]


#: A plan without tasks.
EMPTY_PLAN = Plan((), (), ())
