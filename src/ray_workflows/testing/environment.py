"""Runs workflows in one process, without a cluster and without waiting, for tests of users."""

from __future__ import annotations

import operator
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from functools import partial
from types import FunctionType, MethodType, TracebackType
from typing import Any

import msgspec
from ray.dag import DAGNode

from ray_workflows._capture.dag import check_root
from ray_workflows._client import connection, reads, workflows
from ray_workflows._client.outputs import read_row, settled_output
from ray_workflows._client.reader import ACTIVE
from ray_workflows._client.submissions import SubmissionBuilder
from ray_workflows._client.task_states import UNFINISHED
from ray_workflows._coordinator.requests import submit_input
from ray_workflows._executor.protocol import AttemptRequest
from ray_workflows._model import messages as msg
from ray_workflows._model.answers import Stopped
from ray_workflows._model.catalog import CatalogRow, Tag
from ray_workflows._model.ids import validate_signal_text, validate_workflow_id
from ray_workflows._model.status import WorkflowStatus
from ray_workflows._model.tags import validate_tags
from ray_workflows._model.tasks import TaskInfo
from ray_workflows._testing.crash_points import AFTER, BEFORE, CrashPoint, CrashPoints
from ray_workflows._testing.local_cluster import LocalCluster, LocalConnection
from ray_workflows._testing.mocks import Mock, Target, is_exception
from ray_workflows.options import validate_metadata, validate_timeout
from ray_workflows.storage.base import Storage
from ray_workflows.testing.clock import VirtualClock

#: The most attempts of a task in an `Environment`. They take about a second.
MAX_ATTEMPTS = 1_000


class WorkflowStalledError(Exception):
    """A workflow waits for something other than time, such as a signal."""


class EndlessRetriesError(Exception):
    """A task has failed as often as `Environment` admits."""


class Execution(msgspec.Struct, frozen=True):
    """One execution of a task's function, or of its mock.

    Attributes:
        workflow_id: the workflow.
        task_id: the task.
        function: the name of the task's function, with its module.
        attempt: 1 for the first attempt.
        mocked: whether a mock ran in place of the function.
    """

    workflow_id: str
    task_id: str
    function: str
    attempt: int
    mocked: bool


class StartedWorkflow:
    """A workflow that `Environment.run_async` has started.

    Attributes:
        workflow_id: its id.
    """

    def __init__(self, environment: Environment, workflow_id: str) -> None:
        self._environment = environment
        self.workflow_id = workflow_id

    def __repr__(self) -> str:
        return f"StartedWorkflow({self.workflow_id!r})"

    @property
    def status(self) -> WorkflowStatus:
        """Its status now."""
        return self._environment.get_status(self.workflow_id)

    def result(self) -> Any:
        """Let time pass until it has ended, and return its output. Raises what `run` raises."""
        return self._environment.wait(self.workflow_id)


class Environment:
    """Runs workflows in this process: no cluster, no files, and sleeps take no time.

    Inside of ``with``, workflows go through the same engine, journal, pickling and retries as on a
    cluster; tasks run one after the other, in this process, and their arguments and results are
    copied as they are between processes. Time is virtual: sleeping for a day, the back-off before
    a retry, or the timeout of a signal passes at once. `crash_at` and `crash_everywhere` show that
    a workflow survives the death of its cluster.

    While it is entered, functions of `ray_workflows` act on it, also in the code under test and in
    tasks: ``run``, ``start``, ``signal``, ``cancel``, ``get_status``, ``get_tasks``,
    ``get_metadata``, ``list_workflows``, ``set_tags`` and ``delete``. ``ray.put``, ``ray.get`` and
    ``ray.wait`` work without Ray on objects that were put in it. Everything that needs Ray is
    missing: ``run_async`` (use the environment's own), ``.remote()``, actors, resources, runtime
    environments. The ``timeout`` of a task is not enforced, and an event listener waits in real
    time: mock it.

    A task that is retried without end would run for ever, as no time passes outside: after
    ``max_attempts`` of one task, the call that runs it raises `EndlessRetriesError`.

    Args:
        start_time: its time at first, in seconds since 1970.
        max_attempts: the most attempts of one task.

    Raises:
        RuntimeError: when it is entered while another one is.
        TypeError, ValueError: ``max_attempts`` is not a positive number.

    Examples:
        >>> import ray, ray_workflows as workflow
        >>> from ray_workflows.testing import Environment
        >>> @ray.remote(retry_exceptions=True)
        ... def charge(amount):
        ...     return f"{amount} charged"
        >>> @ray.remote
        ... def ship(receipt, approval):
        ...     return f"{receipt}, {approval}"
        >>> order = ship.bind(charge.bind(5), workflow.wait_for_signal("approved", timeout=3600))
        >>> with Environment() as env:
        ...     env.mock(charge, raises=OSError("no network"), times=1)
        ...     started = env.run_async(order, workflow_id="order-5")
        ...     env.restart()  # The cluster dies, and another one goes on.
        ...     env.signal("order-5", "approved", "by Ada")
        ...     started.result()
        ...     [each.task_id.rpartition(".")[2] for each in env.executions]
        '5 charged, by Ada'
        ['charge', 'charge', 'ship']
    """

    def __init__(
        self, *, start_time: float = 1_700_000_000.0, max_attempts: int = MAX_ATTEMPTS
    ) -> None:
        if isinstance(max_attempts, bool) or not isinstance(max_attempts, int):
            raise TypeError(f"max_attempts= takes a number, not {max_attempts!r}.")
        if max_attempts < 1:
            raise ValueError(f"max_attempts= is at least 1: not {max_attempts}.")
        self._max_attempts = max_attempts
        #: By incarnation of the workflow.
        self._endless: dict[str, EndlessRetriesError] = {}
        self._clock = VirtualClock(start_time)
        self._mocks: list[Mock] = []
        #: All executions of tasks, in order, of all workflows; a crash removes none.
        self.executions: list[Execution] = []
        self._crash_points = CrashPoints()
        self._cluster = LocalCluster(
            self._clock,
            self._stand_in,
            self._began,
            self._crash_points.before,
            self._crash_points.after,
        )
        self._scope = ExitStack()
        self._connection = LocalConnection(self._cluster, self._run_given)

    def __enter__(self) -> Environment:
        if connection.stand_in is not None:
            raise RuntimeError("Another testing.Environment is entered: leave it first.")
        connection.stand_in = self._connection
        self._scope.enter_context(self._cluster.objects.in_place_of_rays())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        connection.stand_in = None
        self._cluster.leave_bodies()
        self._scope.close()
        if kind is None:
            self._check_used()

    def _check_used(self) -> None:
        """Raise if a mock or a crash was never used, because no task had its id.

        Raises:
            AssertionError: names these ids, and the tasks that ran.
        """
        unused = [
            f"mock({each.task_id!r})" for each in self._mocks if each.task_id and not each.used
        ]
        unused += [f"crash_at({task_id!r})" for task_id in self._crash_points.tasks]
        if unused:
            ran = ", ".join(dict.fromkeys(repr(each.task_id) for each in self.executions))
            raise AssertionError(
                f"{', '.join(unused)}: no such task has ended. Tasks that ran: {ran or 'none'}."
            )

    # -- running ---------------------------------------------------------------------------

    def run(
        self,
        dag: DAGNode,
        *args: Any,
        workflow_id: str | None = None,
        metadata: dict[str, Any] | None = None,
        tags: dict[str, Tag] | None = None,
        timeout: float | timedelta | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run a workflow to its end, and return its output. Arguments and errors are those of
        `ray_workflows.run`.

        Raises:
            WorkflowStalledError: it waits for something other than time; says for what.
            EndlessRetriesError: a task fails again and again; says which, and how.
        """
        given = (validate_metadata(metadata), validate_tags(tags), validate_timeout(timeout))
        return self._run_given(dag, args, kwargs, workflow_id, *given)

    def run_async(
        self,
        dag: DAGNode,
        *args: Any,
        workflow_id: str | None = None,
        metadata: dict[str, Any] | None = None,
        tags: dict[str, Tag] | None = None,
        timeout: float | timedelta | None = None,
        **kwargs: Any,
    ) -> StartedWorkflow:
        """Start a workflow, and run all tasks that can run before time passes. Arguments and errors
        are those of `ray_workflows.run_async`."""
        given = (validate_metadata(metadata), validate_tags(tags), validate_timeout(timeout))
        return self._start(dag, args, kwargs, workflow_id, *given)

    def _start(
        self,
        dag: DAGNode,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        workflow_id: str | None,
        metadata: dict[str, Any],
        tags: dict[str, Tag],
        timeout: float | None,
    ) -> StartedWorkflow:
        """As `run_async`, with arguments that are checked already."""
        self._check_entered()
        check_root(dag)
        chosen = workflows.given_or_generated(workflow_id)
        with SubmissionBuilder(self._connection) as builder:  # type: ignore[arg-type]
            builder.capture(dag, args, kwargs, chosen, metadata, tags, timeout)
            message = submit_input(*builder.submissions)
            answer = self._cluster.ask(chosen, message)
            if isinstance(answer, Stopped):
                message = msgspec.structs.replace(message, asks_first=False)
                answer = self._cluster.ask(chosen, message)
            self._connection.answer(answer)
        self.settle()
        return StartedWorkflow(self, chosen)

    def _run_given(self, *given: Any) -> Any:
        """As `run`, with arguments that are checked already."""
        return self._start(*given).result()

    def resume(self, workflow_id: str, *, canceled: bool = False) -> StartedWorkflow:
        """Resume a workflow that has failed, with the code that it was started with; with
        ``canceled``, also one that was canceled. Errors are those of `ray_workflows.resume`."""
        self._check_entered()
        row = read_row(self._connection.storage, validate_workflow_id(workflow_id))
        request_id = f"resume-{next(self._cluster.ids)}"
        message = msg.Resume(request_id, canceled, None, row.incarnation)
        self._connection.answer(self._cluster.ask(workflow_id, message))
        self.settle()
        return StartedWorkflow(self, workflow_id)

    def wait(self, workflow_id: str) -> Any:
        """Let time pass until a workflow has ended. Return its output, or raise its error.

        Raises:
            WorkflowStalledError: it waits for something other than time; says for what.
            EndlessRetriesError: a task fails again and again; says which, and how.
        """
        self._check_entered()
        while (row := read_row(self._connection.storage, workflow_id)).status in ACTIVE:
            if row.released:
                break
            if not self._cluster.go_on(until=float("inf")):
                # The last step may have ended it.
                row = read_row(self._connection.storage, workflow_id)
                if row.status in ACTIVE and not row.released:
                    if row.incarnation in self._endless:
                        raise self._endless[row.incarnation]
                    raise WorkflowStalledError(self._why_stalled(row))
        return settled_output(self._connection, row, self._connection.status(row))

    def _why_stalled(self, row: CatalogRow) -> str:
        """The message of a `WorkflowStalledError`: the tasks that wait, and for what."""
        waits = "; ".join(
            f"task '{task.task_id}' is {task.status.value}: {task.reason}"
            for task in self.get_tasks(row.workflow_id)
            if task.status in UNFINISHED
        )
        return (
            f"Workflow '{row.workflow_id}' goes on only if something is sent to it: {waits}. Start "
            f"it with run_async, send what it waits for, then ask for its result."
        )

    def settle(self) -> None:
        """Run all tasks that can run before time passes."""
        while self._cluster.go_on(until=self._clock.now):
            pass

    def _check_entered(self) -> None:
        """Raise unless this environment is entered."""
        if connection.stand_in is not self._connection:
            raise RuntimeError("Use the environment in a with statement: with Environment() as env")

    # -- requests about workflows ------------------------------------------------------------

    def signal(
        self, workflow_id: str, name: str, value: Any = None, *, signal_id: str | None = None
    ) -> None:
        """Send a workflow a signal, and run all tasks that can run before time passes. Errors are
        those of `ray_workflows.signal`."""
        self._check_entered()
        if signal_id is not None:
            validate_signal_text("signal_id", signal_id)
        workflows.signal(workflow_id, validate_signal_text("name", name), value, signal_id)
        self.settle()

    def cancel(self, workflow_id: str) -> None:
        """Stop a workflow; see `ray_workflows.cancel`."""
        self._check_entered()
        workflows.cancel(workflow_id)
        self.settle()

    def get_status(self, workflow_id: str) -> WorkflowStatus:
        """The status of a workflow."""
        return reads.get_status(self._connection, workflow_id)

    def get_tasks(self, workflow_id: str, *, attempts: bool = False) -> list[TaskInfo]:
        """The tasks of a workflow; see `ray_workflows.get_tasks`."""
        return reads.get_tasks(self._connection, workflow_id, attempts=attempts)

    def get_output(self, workflow_id: str, task_id: str | None = None) -> Any:
        """The output of a workflow or of a task. No time passes.

        Raises:
            OutputNotAvailableError: there is no output now. (It is a ValueError.)
        """
        return reads.stored_output(self._connection, workflow_id, task_id)

    @property
    def storage(self) -> Storage:
        """Where its workflows are stored, for `check_replay`."""
        return self._connection.storage

    # -- time ------------------------------------------------------------------------------

    @property
    def now(self) -> float:
        """The time, in seconds since 1970."""
        return self._clock.now

    def advance(self, time: float | timedelta) -> None:
        """Let time pass, in seconds or as a timedelta, and run all tasks that are due by then."""
        self._check_entered()
        seconds = time.total_seconds() if isinstance(time, timedelta) else float(time)
        if not 0.0 <= seconds < float("inf"):
            raise ValueError(f"Time passes forwards, by a number of seconds: not by {time!r}.")
        until = self._clock.now + seconds
        while self._cluster.go_on(until=until):
            pass
        self._clock.now = until

    # -- mocks -------------------------------------------------------------------------------

    def mock(
        self,
        target: Target,
        *,
        returns: Any = None,
        raises: BaseException | type[BaseException] | None = None,
        calls: Callable[..., Any] | None = None,
        times: int | None = None,
    ) -> None:
        """Replace the code of tasks. If several mocks fit a task, the newest runs. Retries,
        checkpoints and errors work as for the task's own code. Give one of ``returns``, ``raises``
        and ``calls``; without any, the mock returns None.

        Args:
            target: a remote function or function, for all its tasks, or the id of one task.
            returns: the value that the mock returns.
            raises: the exception that it raises.
            calls: the function that it calls with the arguments of the task.
            times: how often the mock runs; then older mocks count again. None: always.

        Raises:
            TypeError: an argument has the wrong type, or more than one of the three is given.
            ValueError: ``times`` is less than 1.
        """
        if sum(each is not None for each in (returns, raises, calls)) > 1:
            raise TypeError("A mock returns, raises or calls: give one of the three.")
        if raises is not None and not is_exception(raises):
            raise TypeError(f"raises= takes an exception or its type, not {raises!r}.")
        if calls is not None and not callable(calls):
            raise TypeError(f"calls= takes something to call, not {calls!r}.")
        if times is not None and (isinstance(times, bool) or not isinstance(times, int)):
            raise TypeError(f"times= takes a number or None, not {times!r}.")
        if times is not None and times < 1:
            raise ValueError(f"times= is how often the mock runs, at least once: not {times}.")

        def action(*args: Any, **kwargs: Any) -> Any:
            if raises is not None:
                raise raises
            return returns if calls is None else calls(*args, **kwargs)

        self._mocks.append(Mock(target, action, times))

    def _stand_in(self, request: AttemptRequest) -> Callable[..., Any] | None:
        """The replacement of a task's function; None if no mock fits."""
        for mock in reversed(self._mocks):
            if mock.fits(request):
                mock.used = True
                if mock.times is not None:
                    mock.times -= 1
                return mock.action
        return None

    def _began(self, request: AttemptRequest, mocked: bool) -> None:
        """Record the execution of a task.

        Raises:
            EndlessRetriesError: it has had its attempts.
        """
        if request.attempt > self._max_attempts:
            error = EndlessRetriesError(self._why_endless(request))
            self._endless[request.incarnation] = error
            raise error
        self.executions.append(
            Execution(
                request.workflow_id,
                request.task_id,
                request.function.name,
                request.attempt,
                mocked,
            )
        )

    def _why_endless(self, request: AttemptRequest) -> str:
        """The message of an `EndlessRetriesError`."""
        (task,) = (
            task
            for task in self.get_tasks(request.workflow_id, attempts=True)
            if task.task_id == request.task_id
        )
        last = [each.error for each in task.history if each.error] or [request.last_end]
        return (
            f"Task '{task.task_id}' of workflow '{request.workflow_id}' has had "
            f"{self._max_attempts} attempts, the most that this Environment admits, and is tried "
            f"again. The last error: {last[-1]}. Give the task a limit "
            f"(max_retries, or RetryPolicy(max_attempts=...)), or let its mock fail less often "
            f"(times=...). For a test of more attempts: Environment(max_attempts=...)."
        )

    # -- crashes ---------------------------------------------------------------------------

    def restart(self) -> None:
        """Kill the cluster now; another one goes on from the storage. Results with
        ``checkpoint=False`` are lost."""
        self._check_entered()
        self._cluster.restart()
        self.settle()

    def crash_at(self, task_id: str, when: str = AFTER) -> None:
        """Kill the cluster once, when the result of a task is committed; another one goes on.

        Args:
            task_id: the task, which need not exist yet.
            when: ``"before"`` the commit: the task has run and its result is lost. ``"after"`` it:
                the result is durable, but the cluster has not acted on it.
        """
        if not isinstance(task_id, str):
            raise TypeError(f"crash_at takes the id of a task, not {task_id!r}.")
        self._crash_points.at_task(task_id, check_when(when))

    def crash_at_commit(self, number: int, when: str = AFTER) -> None:
        """Kill the cluster once at a commit, and let another one go on.

        Args:
            number: that of the commit, from 1 on; `commits` lists those of a run without a crash.
            when: as of `crash_at`.
        """
        self._crash_points.at_commit(number, check_when(when))

    @property
    def commits(self) -> list[str]:
        """What each commit so far says, for people."""
        return list(self._crash_points.commits)

    @property
    def crashes(self) -> list[CrashPoint]:
        """Where the cluster was killed by `crash_at`."""
        return list(self._crash_points.crashed)


def check_when(when: str) -> str:
    """Return the word, or raise ValueError if it is neither "before" nor "after"."""
    if when not in (BEFORE, AFTER):
        raise ValueError(f"when must be 'before' or 'after', not {when!r}.")
    return when


class CrashReport(msgspec.Struct, frozen=True):
    """The runs of `crash_everywhere`.

    Attributes:
        result: of the run without a crash.
        points: where the cluster crashed, once in each of the other runs.
        executions: for each of these runs, the number of executions of tasks.
    """

    result: Any
    points: tuple[CrashPoint, ...]
    executions: tuple[int, ...]


def same(result: Any, expected: Any, equal: Callable[[Any, Any], Any]) -> bool:
    """Whether two results are the same."""
    found = equal(result, expected)
    try:
        return bool(found)
    except ValueError as error:
        raise TypeError(
            f"Results of type {type(result).__name__} can't be compared by {equal!r}: {error} Give "
            f"equal=, for arrays numpy.array_equal."
        ) from error


def run_dag(dag: DAGNode, env: Environment) -> Any:
    """The scenario that only runs a DAG."""
    return env.run(dag, workflow_id="crash-everywhere")


def crash_everywhere(
    scenario: DAGNode | Callable[[Environment], Any],
    *,
    equal: Callable[[Any, Any], Any] = operator.eq,
) -> CrashReport:
    """Run a workflow once for each place where a crash makes a difference; compare the results.

    It runs once without a crash. Then, for each commit of that run, it runs in an environment whose
    cluster dies just before the commit, and in another one whose cluster dies just after it.

    Args:
        scenario: a DAG, or a function that gets an `Environment` (entered), runs workflows in it,
            with signals and mocks as needed, and returns a result to compare. It should first
            reset everything that tasks change outside of workflows, because it runs many times.
        equal: whether two results are the same; for arrays, ``numpy.array_equal``.

    Raises:
        TypeError: the scenario is neither a DAG nor a function.
        AssertionError: a run with a crash has another result, or raises; says where it crashed.

    Examples:
        >>> import ray
        >>> from ray_workflows.testing import crash_everywhere
        >>> @ray.remote
        ... def add(a, b):
        ...     return a + b
        >>> report = crash_everywhere(add.bind(add.bind(1, 2), 3))
        >>> report.result, str(report.points[0])[:13]
        (6, 'before commit')
    """
    if not isinstance(scenario, (DAGNode, FunctionType, MethodType, partial)):
        raise TypeError(
            f"crash_everywhere takes a DAG (task.bind(...)) or a function, not {scenario!r}."
        )
    run = partial(run_dag, scenario) if isinstance(scenario, DAGNode) else scenario
    with Environment() as env:
        expected = run(env)
    points: list[CrashPoint] = []
    executions: list[int] = []
    for commit, what in enumerate(env.commits, 1):
        for when in (BEFORE, AFTER):
            with Environment() as crashing:
                crashing.crash_at_commit(commit, when)
                point = CrashPoint(commit, when, what)
                try:
                    result = run(crashing)
                except Exception as error:
                    raise AssertionError(
                        f"With a crash {point}, it raises {type(error).__name__}: {error}"
                    ) from error
            if not same(result, expected, equal):
                raise AssertionError(
                    f"With a crash {point}, the result is {result!r} and not {expected!r}."
                )
            points.append(point)
            executions.append(len(crashing.executions))
    return CrashReport(expected, tuple(points), tuple(executions))
