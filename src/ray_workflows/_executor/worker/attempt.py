"""One attempt inside a Ray worker, from its request to its report.

It never raises because of user code; a Ray error from here means that the worker died.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import msgspec
import ray
from ray.dag import DAGNode
from ray.exceptions import RayTaskError

from ray_workflows._capture.classes import Bringing
from ray_workflows._capture.dag import capture_plan
from ray_workflows._capture.objects import LOST_OBJECT_ERRORS, refers_to, restored_objects
from ray_workflows._capture.pickling import Pickled, pickle_value
from ray_workflows._capture.source_lines import traceback_text
from ray_workflows._capture.unpickling import unpickle_value
from ray_workflows._capture.values import Brought, ValueReader, ValueWriter, with_header
from ray_workflows._codec.placeholders import CONSTANT, UPSTREAM_REF, UPSTREAM_VALUE, placeholder
from ray_workflows._environment.snapshot import remember_options
from ray_workflows._executor.live_values import direct_keys, nested_keys
from ray_workflows._executor.protocol import ENCODER, AnyReport, AttemptRequest
from ray_workflows._executor.worker import context
from ray_workflows._executor.worker.function_cache import FunctionCache, Loaded, size_of
from ray_workflows._executor.worker.process import Process
from ray_workflows._executor.worker.running import RunningAttempt
from ray_workflows._model import messages as msg
from ray_workflows._model.errors import error_info, name_of, text_of
from ray_workflows._model.outbox import OutboxMessage
from ray_workflows._model.plan import Environment, Plan
from ray_workflows._model.values import INLINE_LIMIT, Blob, ErrorInfo, Outcome, Value
from ray_workflows.exceptions import (
    PayloadCodecError,
    SerializationError,
    StorageCorruptError,
    StorageUnavailableError,
    is_transient,
)
from ray_workflows.storage.base import Storage
from ray_workflows.storage.retries import wait_out

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Types whose values Ray returns unchanged. They are put without a `Pickled`, which is faster.
SAME_IN_RAY = frozenset({int, float, str, bytes, bool})

#: How long a worker waits for a storage that is away, in seconds, because its result may have taken
#: hours; and the pauses between tries, which double.
PATIENCE_SECONDS = 180.0

#: The package of what calls user code here.
PACKAGE = __name__.rpartition(".")[0]

#: Functions by `function_key`.
function_cache = FunctionCache()


def function_key(request: AttemptRequest) -> Hashable:
    """The cache key of a function. A function with ObjectRefs belongs to its workflow alone,
    because its digest in journals of 0.1.0 does not depend on the ObjectRefs."""
    function = request.function
    if function.objects:
        return function.digest, request.incarnation, function.objects
    return function.digest, function.present


class WaitingReader(ValueReader):
    """Reads values for an attempt, and marks it as waiting for the storage meanwhile."""

    def __init__(self, running: RunningAttempt, *args: Any) -> None:
        super().__init__(*args)
        self.running = running

    def read_blob(self, blob: Blob) -> memoryview:
        """The bytes of a blob."""
        with self.running.waiting():
            return super().read_blob(blob)


class AttemptRun:
    """One attempt in this process.

    ``live``: the live objects that it may use; ``made``: those that it made, by the key of their
    blobs. ``batch``: the number of its batch, unique to this execution, and part of its blob keys.
    If an execution dies after it wrote its result, the next one may have another result, and its
    live copy must agree with the blob under its own key. ``sequence``: that of its batch, part of
    its fencing token.
    """

    def __init__(
        self,
        request: AttemptRequest,
        storage: Storage,
        live: Mapping[str, Any] | None,
        process: Process,
        batch: int,
        sequence: int,
        patience: float = PATIENCE_SECONDS,
        running: RunningAttempt | None = None,
    ) -> None:
        """``running``: reports to the coordinator while the attempt runs."""
        incarnation = request.template.incarnation
        self.request = request
        self.batch = batch
        self.sequence = sequence
        self.storage = storage
        self.process = process
        self.patience = patience
        self.running = RunningAttempt(request, None, process) if running is None else running
        reading = (storage, incarnation, live, process.get)
        if self.running.timeout is None:
            self.reader = ValueReader(*reading)
        else:
            self.reader = WaitingReader(self.running, *reading)
        self.writer = ValueWriter(storage, incarnation)
        self.started_at = self.process.time()
        #: The metadata that user code has added to its task.
        self.metadata: dict[str, Any] | None = None
        #: The messages that user code sends.
        self.outgoing: list[context.Outgoing] = []
        self.made: dict[str, Any] = {}
        #: A result for the next member of the batch.
        self.kept: Pickled | None = None

    @property
    def blob_prefix(self) -> str:
        """The prefix of the keys of all blobs that it writes. Most write none."""
        return f"{self.request.blob_prefix}-{self.batch:x}"

    @property
    def result_key(self) -> str:
        """The key of its result, stored or live."""
        return f"{self.blob_prefix}-result"

    # -- before user code ------------------------------------------------------------------

    def loaded(self) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
        """As `load`; waits while the storage is away."""
        return self.patiently(self.load)

    def load(self) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
        """The function and its arguments."""
        request = self.request
        key = function_key(request)
        loaded = function_cache.get(key)
        if loaded is None:
            loaded = self.load_function()
            function_cache.put(key, loaded)
        self.reader.classes = loaded.classes
        found = self.reader.read_plain(request.arguments)
        if found is None:
            where = f"arguments of {request.where}"
            found = self.reader.read(request.arguments, where=where, resolve=self.resolve)
        args, kwargs = found
        return loaded.call, args, kwargs

    def load_function(self) -> Loaded:
        """The function, and the classes in its pickle."""
        function = self.request.function
        self.reader.classes = bringing = Bringing(by_name=function.present)
        value = Value(function.data, function.objects)
        call = self.reader.read(value, where=f"function of {self.request.where}")
        return Loaded(call, bringing.brought, size_of(function))

    def resolve(self, kind: str, index: int) -> Any:
        request = self.request
        if kind == CONSTANT:
            return self.reader.read(request.constants[index], where=f"DAG input of {request.where}")
        outcome = request.inputs[index]
        if kind == UPSTREAM_VALUE:
            if outcome.value is not None and not outcome.wrapped:
                # A fast path for plain values: most are, and there may be thousands.
                found = self.reader.read_plain(outcome.value)
                if found is not None:
                    return found
            return self.reader.read_outcome(outcome, where=f"input {index} of {request.where}")
        if kind == UPSTREAM_REF:
            return self.reference(outcome, where=f"input {index} of {request.where}")
        return placeholder(kind, index)

    def reference(self, outcome: Outcome, *, where: str) -> ray.ObjectRef:
        """An ObjectRef of an input."""
        reader, value = self.reader, outcome.value
        if value is None or outcome.wrapped:
            return self.process.put(
                pickle_value(reader.read_outcome(outcome, where=where), where=where)
            )
        data = value.data
        if isinstance(data, bytes):
            found = reader.read_plain(value)
            if type(found) in SAME_IN_RAY:
                return self.process.put(found)
            return self.process.put(reader.unopened(reader.envelope(value, where=where)))
        held = reader.live.get(data.key)
        if isinstance(held, Pickled):
            return self.process.put(held)
        if isinstance(held, Brought) and not data.stored:
            return self.process.put(pickle_value(held.value, where=where))
        # As for objects inside values: the live ObjectRef, or one restored from the blob.
        return reader.read_object(data)

    # -- after user code -------------------------------------------------------------------

    def returned(self, result: Any) -> AnyReport:
        """The report for the return value of user code."""
        self.running.end_code()
        request = self.request
        ended_at = self.process.time()
        if isinstance(result, DAGNode):
            plan = self.patiently(lambda: self.capture(result, self.blob_prefix))
            report = self.returned_plan(plan, ended_at)
            # Names and options of tasks are user texts: an encoding error is this attempt's.
            ENCODER.encode(report)
            return report
        value = self.write_result(result)
        return msg.AttemptReturned(
            *(request.task, request.epoch, request.attempt, self.started_at, ended_at, value),
            self.process.node_id,
            self.metadata,
            self.write_messages(self.outgoing) if self.outgoing else (),
        )

    def returned_plan(self, plan: Plan, ended_at: float) -> AnyReport:
        """The report for a continuation."""
        return msg.AttemptReturnedPlan(
            **self.identity(ended_at),
            plan=plan,
            metadata=self.metadata,
            messages=self.write_messages(self.outgoing),
        )

    def write_messages(
        self, outgoing: Sequence[context.Outgoing], name: str = ""
    ) -> tuple[OutboxMessage, ...]:
        """The messages of user code, large ones in blobs; ``name`` is part of their keys."""
        messages, room = [], INLINE_LIMIT
        for number, (message_id, target, body) in enumerate(outgoing):
            data: bytes | Blob = body
            room -= len(body)
            if room < 0:
                key = f"{self.blob_prefix}-{name}message-{number}"
                data = self.patiently(partial(self.write_bytes, key, body))
            messages.append(OutboxMessage(message_id, target, Value(data)))
        return tuple(messages)

    def write_bytes(self, key: str, data: bytes) -> Blob:
        return self.storage.write_blob(self.request.incarnation, key, [data])

    def capture(self, node: DAGNode, prefix: str) -> Plan:
        """Capture the plan of a continuation or a step, and store its large parts under keys with
        this prefix."""
        plan = capture_plan(
            node,
            writer=self.writer,
            # Empty: the environment of the workflow applies, also after a change.
            environment=Environment(),
            prefix=prefix,
        )
        if self.request.function.present:
            # The continuation of a replaced function consists of replaced functions too.
            functions = [msgspec.structs.replace(each, present=True) for each in plan.functions]
            plan = msgspec.structs.replace(plan, functions=tuple(functions))
        user = (self.request.workflow_id, self.request.incarnation)
        return remember_options(self.storage, plan, user)

    def write_result(self, result: Any) -> Value:
        request = self.request
        where = f"result of task '{request.task_id}'"
        pickled = pickle_value(result, where=where)
        # A task that has sent messages must not run again, so its result is stored.
        checkpoint = request.checkpoint or bool(self.outgoing)
        plain = self.writer.write_plain(pickled) if checkpoint else None
        if plain is not None:
            # Most results are plain, and need no key.
            return plain
        key = self.result_key
        if not checkpoint:
            if request.fused:
                self.kept = pickled
            else:
                self.made[key] = self.process.put(pickled)
            return Value(Blob(key, pickled.nbytes, ""))

        def write() -> Value:
            return self.writer.write_pickled(pickled, key=key, where=where)

        if pickled.nbytes > INLINE_LIMIT:
            # Write the blob and put the live copy in parallel: both are slow.
            with self.process.pool() as pool:
                stored = pool.submit(self.patiently, write)
                with contextlib.suppress(ray.exceptions.ObjectStoreFullError):
                    self.made[key] = self.process.put(pickled)
                value: Value = stored.result()
        else:
            value = self.patiently(write)
        self.made.update(self.writer.objects.written)
        return value

    def put_kept(self) -> None:
        """Put the kept result into the object store. If that is full, the result counts as lost,
        and is computed again."""
        if self.kept is not None:
            with contextlib.suppress(Exception):
                self.made[self.result_key] = self.process.put(self.kept)

    def patiently(self, work: Callable[[], T]) -> T:
        """Run work on the storage; while the storage is away, wait and try again.

        Raises:
            StorageUnavailableError: the storage was away for longer than ``patience``.
        """
        return wait_out(
            work,
            self.patience,
            self.storage_failed,
            monotonic=self.process.monotonic,
            sleep=self.pause,
        )

    def storage_failed(self, error: Exception) -> None:
        """Log that the attempt waits for the storage."""
        logger.warning("%s waits for the storage: %s", self.request.where, text_of(error))

    def pause(self, seconds: float) -> None:
        """Wait; the timeout of the attempt does not run meanwhile."""
        with self.running.waiting():
            self.process.sleep(seconds)

    def lost_storage(self, error: BaseException) -> AnyReport:
        """The report for a storage that was away for too long."""
        info = error_info(name_of(error), text_of(error))
        return msg.AttemptLostStorage(**self.identity(self.process.time()), error=info)

    def raised(self, error: BaseException) -> AnyReport:
        """The report for an exception, of user code or of loading it. Never raises, whatever code
        the exception runs."""
        self.running.end_code()
        try:
            return self.judged(error)
        except BaseException as worse:
            if is_transient(worse):
                return self.lost_storage(worse)
            text = f"It can't be looked at: {name_of(worse)}: {text_of(worse)}"
            return msg.AttemptRaised(
                **self.identity(self.process.time()),
                error=error_info(name_of(error), text),
                retryable=False,
            )

    def judged(self, error: BaseException) -> AnyReport:
        """The report for an exception, by its kind."""
        ended_at = self.process.time()
        if isinstance(error, (StorageCorruptError, PayloadCodecError)):
            return msg.AttemptFoundCorruption(**self.identity(ended_at), error=self.describe(error))
        if isinstance(error, StorageUnavailableError):
            return self.lost_storage(error)
        if isinstance(error, SystemExit):
            return msg.AttemptCrashed(
                **self.identity(ended_at), error=self.describe_exit(error), crash=msg.Crash.EXITED
            )
        if self.is_lost_input(error):
            # ObjectRefs in the function may be lost: reload it, which restores them.
            function_cache.drop(function_key(self.request))
            return msg.AttemptLostInput(**self.identity(ended_at), error=self.describe(error))
        return msg.AttemptRaised(
            **self.identity(ended_at),
            error=self.describe(error),
            retryable=self.is_retryable(error),
        )

    def is_lost_input(self, error: BaseException) -> bool:
        """Whether an error is about a lost input, not an object that user code made."""
        cause = error.cause if isinstance(error, RayTaskError) else error
        if isinstance(cause, SerializationError):
            cause = cause.__cause__
        if not isinstance(cause, LOST_OBJECT_ERRORS):
            return False
        lost = getattr(cause, "object_ref_hex", "")
        handed = {v.hex() for v in self.reader.live.values() if isinstance(v, ray.ObjectRef)}
        handed.update(identity.partition("-")[0] for identity in restored_objects)
        return lost in handed or lost in self.input_keys() or self.is_inside_input(lost)

    def is_inside_input(self, lost: str) -> bool:
        """Whether an object is behind an ObjectRef inside of an input, and so is stored."""
        request = self.request
        taken = [request.arguments, *request.constants]
        taken += [outcome.value for outcome in request.inputs if outcome.value is not None]
        blobs = [blob for value in taken for blob in value.objects]
        return refers_to(self.storage, request.incarnation, blobs, lost, request.where)

    def input_keys(self) -> set[str]:
        """The keys of its inputs. One is missing among the live ones if another attempt has
        reported it lost while this one was in transit."""
        return {*direct_keys(self.request), *nested_keys(self.request)}

    def is_retryable(self, error: BaseException) -> bool:
        options = self.request.options
        if not options.retry_exceptions:
            return False
        try:
            if options.give_up_on and isinstance(error, self.types_in(options.give_up_on)):
                return False
            return options.retry_on is None or isinstance(error, self.types_in(options.retry_on))
        except BaseException:
            return False

    def types_in(self, pickled: bytes) -> Any:
        """Unpickle the exception types of an option."""
        return unpickle_value(pickled, [], classes=self.reader.classes)

    def describe_exit(self, error: SystemExit) -> ErrorInfo:
        """`sys.exit` as the crash that it would have been, had the worker not caught it."""
        info = self.describe(ray.exceptions.WorkerCrashedError())
        message = f"The task ended its process: SystemExit({text_of(error)})."
        trace = traceback_text(error, user_traceback(error))
        return error_info(info.type_name, message, trace, info.exception)

    def describe(self, error: BaseException) -> ErrorInfo:
        info = self.write_error(error, self.writer, self.request.where, f"{self.blob_prefix}-error")
        self.made.update(self.writer.objects.written)
        return info

    def write_error(
        self, error: BaseException, writer: ValueWriter, where: str, key: str
    ) -> ErrorInfo:
        """The record of an error. ``where``: names what raised it."""
        text = traceback_text(error, user_traceback(error))
        # Name the process that raised it, because the reader is elsewhere.
        process = f"pid {os.getpid()} on {ray.util.get_node_ip_address()}"
        text = with_header(text, f"{where}, {process}")
        return self.patiently(lambda: writer.write_error(error, key=key, traceback=text))

    def identity(self, ended_at: float) -> dict[str, Any]:
        request = self.request
        return {
            "task": request.task,
            "epoch": request.epoch,
            "attempt": request.attempt,
            "started_at": self.started_at,
            "ended_at": ended_at,
            "node": self.process.node_id,
        }


def user_traceback(error: BaseException) -> Any:
    """The traceback without the frames that led to the user's code."""
    tb = error.__traceback__
    while tb is not None and tb.tb_frame.f_globals.get("__name__", "").startswith(PACKAGE):
        tb = tb.tb_next
    return tb


def run_attempt(run: AttemptRun) -> AnyReport:
    """Run an attempt to its end. Catches whatever user code raises, also `SystemExit`, because
    other attempts run in this process."""
    try:
        function, args, kwargs = run.loaded()
        with context.running(run.request, run.sequence) as scope:
            result = function(*args, **kwargs)
        run.metadata, run.outgoing = scope.metadata, scope.outgoing
        del args, kwargs
        return run.returned(result)
    except BaseException as error:
        return run.raised(error)
