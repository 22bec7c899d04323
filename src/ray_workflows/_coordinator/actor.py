"""The Ray actor around the loop. Its methods only pass requests on; one thread runs the loop.

Each call has a thread. A long poll keeps its thread, so the number of long polls (`SEATS`) and
their time are limited. `Coordinator.__init__` touches no storage and never raises: an actor whose
restart raised would be dead for good. Errors of the storage are answers to requests.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import queue
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import ray

from ray_workflows._codec.journal import VERSION
from ray_workflows._codec.transport import Message
from ray_workflows._coordinator.admission import Limits
from ray_workflows._coordinator.clock import SteadyClock
from ray_workflows._coordinator.deletion import Deletion
from ray_workflows._coordinator.eviction import EVICT_SECONDS
from ray_workflows._coordinator.failover import Failover
from ray_workflows._coordinator.hung import HungCalls
from ray_workflows._coordinator.jobs import Steps
from ray_workflows._coordinator.lease import Lease
from ray_workflows._coordinator.liveness import LEASE_SECONDS, this_holder
from ray_workflows._coordinator.long_polls import SIT_SECONDS, LongPolls, PollLimit
from ray_workflows._coordinator.loop import SOON, Loop
from ray_workflows._coordinator.observers import Observers
from ray_workflows._coordinator.offload import Inbox, ThreadOffloader, work_off
from ray_workflows._coordinator.protocol import (
    ENCODER,
    POLL,
    SENT,
    SENT_EVENT,
    SUBMISSIONS,
    encode_submitted,
    encode_watched,
)
from ray_workflows._coordinator.requests import (
    Reply,
    Submission,
    Submitted,
    Watched,
    WatchRequest,
    seconds_more,
    submit_input,
)
from ray_workflows._elapsed import elapsed
from ray_workflows._executor.executor import RayExecutor
from ray_workflows._executor.protocol import News
from ray_workflows._executor.ray_cluster import RayCluster
from ray_workflows._executor.scheduling.placement import CHECK_SECONDS
from ray_workflows._executor.timers import log_failure, start_for_ever
from ray_workflows._executor.worker.batch import EncodedBatch, WireReport, pack_loads
from ray_workflows._executor.worker.loop import ANSWER_SECONDS as WORKER_SECONDS
from ray_workflows._model import messages as msg
from ray_workflows._model.answers import Accepted
from ray_workflows._model.catalog import Tag
from ray_workflows._model.messages import AttemptRuns
from ray_workflows._model.plan import EnvironmentChange
from ray_workflows._ray.errors import unpickle_no_user_errors
from ray_workflows._version import __version__
from ray_workflows.exceptions import (
    CoordinatorUnavailableError,
    StorageError,
    StorageUnavailableError,
)
from ray_workflows.storage.base import Storage

logger = logging.getLogger(__name__)

#: The name and namespace of the actor.
ACTOR_NAME = "coordinator"
NAMESPACE = "ray_workflows"

#: After this many seconds without an answer, a verb is answered with an error.
ANSWER_SECONDS = 20.0

#: The garbage collector's threshold for young objects. With the default of 700, a quarter of the
#: time of engine and loop goes into collections, although large states contain no cycles.
YOUNG_OBJECTS = 20_000

#: The most long polls at once.
SEATS = 256

#: Threads for short calls, beside those of long polls; and for reports of workers, which must not
#: queue behind clients.
VERB_THREADS = 64
REPORT_THREADS = 64

#: Threads for requests to the head of the cluster.
HEAD_THREADS = 2

#: The concurrency group of workers' reports.
REPORTS = "reports"


#: After this many steps of the loop in a row that raise, the process ends, and Ray starts it anew.
MAX_FAILURES = 100

#: Receives the answer to a request.
AnswerBox = queue.SimpleQueue[Any]


class Settings(msgspec.Struct, frozen=True):
    """The settings of a coordinator, fixed for the life of its cluster; see `init`."""

    limits: Limits = Limits()
    auto_resume: bool = False
    lease_seconds: float = LEASE_SECONDS
    evict_seconds: float = EVICT_SECONDS


class CoordinatorService:
    """Drives workflows, and answers drivers. Changes nothing for the rest of its process: a test
    can have one in its own."""

    def __init__(self, storage: Storage, settings: Settings, started_by: str) -> None:
        """``started_by``: the release that created the actor. Ray restarts it with the code that
        is installed then, and the same arguments."""
        self.storage = storage
        self.settings = settings
        self.started_by = started_by
        self.inbox: Inbox = queue.SimpleQueue()
        self.broken: Exception | None = None
        self.seats = PollLimit(SEATS)
        context = ray.get_runtime_context()
        self.holder = this_holder(context.get_actor_id())
        self.polls = LongPolls(
            self.holder.holder_id, self.watch, self.withdraw, elapsed, self.seats
        )
        cluster = RayCluster(storage, context.current_actor)
        # Separate threads, so that calls of the storage go on while the head is away.
        head = ThreadOffloader(self.inbox.put, HEAD_THREADS)
        self.executor = RayExecutor(cluster, self.report, self.inbox.put, head.call)
        self.observers = Observers()
        self.loop = Loop(
            storage,
            self.executor,
            ThreadOffloader(self.inbox.put),
            self.holder,
            clock=SteadyClock(),
            elapsed=elapsed,
            new_id=lambda: uuid.uuid4().hex,
            limits=settings.limits,
            evicts_after=settings.evict_seconds,
            observers=self.observers,
            on_error=self.met_error,
        )
        self.lease = Lease(self.loop, settings.lease_seconds)
        self.orphans = Failover(self.loop, self.lease)
        self.hung_calls = HungCalls(self.loop, self.lease)
        self.lease.start()
        self.loop.job("listen for news", self.listen).start()
        self.loop.job("look at the nodes of the cluster", self.look_at_nodes).start()
        if settings.auto_resume:
            self.orphans.look()
        self.observers.start()
        start_for_ever(self.drive, "ray-workflows-loop")

    # -- the loop's thread -----------------------------------------------------------------

    def drive(self) -> None:
        """Run the loop, on its thread. If the thread dies, the process ends, and Ray starts the
        actor anew."""
        failures = 0
        while failures < MAX_FAILURES:
            try:
                work_off(self.inbox, self.loop.step())
                failures = 0
            except Exception as error:
                # A bug of ours. The loop goes on, unless every step fails.
                self.met_error("The coordinator's loop", error)
                failures += 1

    def met_error(self, what: str, error: Exception) -> None:
        """Record a bug of ours, for the log and `describe`."""
        self.broken = error
        log_failure(what, error)

    def listen(self) -> Steps:
        """Let the storage notify the loop of appends by others."""
        lives = self.loop.active.lives
        if lives is None:
            return SOON
        try:
            yield lambda: self.storage.listen(
                self.holder.holder_id, lambda: self.inbox.put(self.lease.holdings.look), lives
            )
        except StorageUnavailableError:
            return LEASE_SECONDS
        return None

    def look_at_nodes(self) -> Steps:
        """Look at the nodes of the cluster."""
        try:
            yield self.executor.placement.look
        except Exception as error:
            logger.warning("The nodes of the cluster could not be looked at: %s", error)
        return CHECK_SECONDS

    def report(self, incarnation: str, reports: Sequence[News]) -> None:
        self.inbox.put(lambda: self.loop.report(incarnation, reports))

    # -- what drivers call -----------------------------------------------------------------
    # Errors are returned, not raised: Ray would wrap them, and their causes would be lost.

    def put(self, workflow_id: str, make: Callable[[], msg.Asked], seconds: float) -> AnswerBox:
        """Put a request to the loop, for a caller that waits ``seconds``. Returns the answer
        box."""
        answer: AnswerBox = queue.SimpleQueue()
        self.put_with(workflow_id, make, answer.put, seconds)
        return answer

    def put_with(
        self, workflow_id: str, make: Callable[[], msg.Asked], reply: Reply, seconds: float
    ) -> None:
        """As `put`; ``reply`` gets the answer, on the loop's thread, unless ``make`` raises."""
        until = elapsed() + seconds
        try:
            message = make()
        except Exception as error:
            # Other requests of the same call go on.
            reply(error)
        else:
            self.inbox.put(lambda: self.loop.ask(workflow_id, message, reply, until))

    def request(self, workflow_id: str, message: msg.Asked) -> Any:
        """Put a request to the loop and wait for its answer, up to `ANSWER_SECONDS`."""
        box = self.put(workflow_id, lambda: message, ANSWER_SECONDS)
        (answer,) = self.in_time([box], ANSWER_SECONDS)
        return answer

    def in_time(self, asked: Sequence[AnswerBox], seconds: float) -> list[Any]:
        """The answers within ``seconds``; an error in place of each missing one."""
        end = time.monotonic() + seconds
        answers = []
        for each in asked:
            try:
                answers.append(each.get(timeout=max(0.0, end - time.monotonic())))
            except queue.Empty:
                answers.append(self.why_no_answer(seconds))
        return answers

    def why_no_answer(self, seconds: float) -> Exception:
        reason = self.loop.store.error or self.loop.store.commit_error
        if isinstance(reason, StorageError):
            return reason
        if reason is not None:
            return StorageUnavailableError(
                f"The storage {self.storage.url} does not answer: {reason}. Nothing that was "
                f"acknowledged is lost; work goes on when it returns."
            )
        return CoordinatorUnavailableError(
            f"The coordinator did not answer within {seconds:.0f} s. Try again; if it "
            f"stays so, look into the log of the actor '{ACTOR_NAME}' ({NAMESPACE})."
        )

    def submit(self, encoded: bytes) -> Message:
        """Create or resume workflows, which are `Submissions`: for each `Accepted`, `Finished`,
        `Stopped` or an error, as `encode_submitted` has them."""
        given = SUBMISSIONS.decode(encoded)
        return encode_submitted(self.submit_all(given.submissions, given.client))

    def submit_all(self, submissions: list[Submission], client: str | None) -> Submitted:
        seconds = ANSWER_SECONDS + seconds_more(submissions)
        boxes = [self.put_submission(each, client, seconds) for each in submissions]
        return self.submitted(self.in_time(boxes, seconds))

    def put_submission(
        self, submission: Submission, client: str | None, seconds: float
    ) -> AnswerBox:
        """Put a submission to the loop; ``client`` watches it if it is accepted."""
        box: AnswerBox = queue.SimpleQueue()
        reply: Reply = box.put
        if client is not None:
            reply = self.polls.watching(client, submission.workflow_id, reply)
        self.put_with(submission.workflow_id, lambda: submit_input(submission), reply, seconds)
        return box

    def submitted(self, answers: list[Any]) -> Submitted:
        """The answer to submissions."""
        return Submitted(self.holder.holder_id, answers)

    # Without this, Ray would repeat it for ever, with a message each time, while there is no head.
    @ray.method(max_task_retries=0)  # type: ignore[untyped-decorator]
    def run(self, encoded: bytes) -> Message:
        """As `submit` for one workflow and then, if it is accepted, `watch_one`. One call, because
        a caller that waits anyway saves a round trip."""
        submissions = SUBMISSIONS.decode(encoded).submissions
        with self.seats.one() as seated:
            if seated:
                return encode_submitted(*self.run_one(*submissions))
        return encode_submitted(self.submit_all(submissions, None))

    def run_one(self, submission: Submission) -> tuple[Submitted, Watched | None]:
        workflow_id = submission.workflow_id
        box: AnswerBox = queue.SimpleQueue()
        watch = WatchRequest(workflow_id, box.put, None)
        accepted: list[Accepted] = []

        def take(answer: Any) -> None:
            if isinstance(answer, Accepted):
                # The caller is not woken yet. The watch is added before the workflow can end.
                accepted.append(answer)
                self.watch(watch)
            else:
                box.put(answer)

        seconds = ANSWER_SECONDS + seconds_more([submission])
        self.put_with(workflow_id, lambda: submit_input(submission), take, seconds)
        try:
            told = box.get(timeout=seconds)
        except queue.Empty:
            if not accepted:
                return self.submitted([self.why_no_answer(seconds)]), None
            told = self.seen(watch, box)
        return (self.submitted(accepted), told) if accepted else (self.submitted([told]), None)

    def resume(
        self,
        workflow_id: str,
        request_id: str,
        canceled: bool,
        change: EnvironmentChange | None = None,
        incarnation: str = "",
    ) -> Any:
        """Resume a workflow: `Accepted`, `Finished` or an error. ``incarnation``, here and below:
        of the workflow that is meant; empty: any with this id."""
        return self.request(workflow_id, msg.Resume(request_id, canceled, change, incarnation))

    def cancel(self, workflow_id: str, incarnation: str = "") -> Any:
        """Cancel a workflow: None or an error."""
        return self.request(workflow_id, msg.Cancel(incarnation))

    def set_tags(self, workflow_id: str, tags: dict[str, Tag | None], incarnation: str = "") -> Any:
        """Set tags of a workflow: None or an error."""
        return self.request(workflow_id, msg.SetTags(tags, incarnation))

    def signal(self, encoded: bytes) -> Any:
        """Send a workflow a signal, an encoded `Sent`: `Received` or an error."""
        sent = SENT.decode(encoded)
        return self.request(
            sent.workflow_id, msg.Signal(sent.name, sent.signal_id, sent.value, sent.incarnation)
        )

    def send_event(self, encoded: bytes) -> Any:
        """Send a workflow an event, an encoded `SentEvent`: an answer to `messages.Signal`."""
        sent, most, asks = SENT_EVENT.decode(encoded)
        message = msg.Signal(
            sent.name, sent.signal_id, sent.value, sent.incarnation, sole=True, most=most, asks=asks
        )
        return self.request(sent.workflow_id, message)

    def find_signal(self, workflow_id: str, name: str, incarnation: str) -> Any:
        """The oldest kept signal of a name: `Received`, None, or an error."""
        return self.request(workflow_id, msg.FindSignal(name, incarnation))

    def acknowledge_signals(self, workflow_id: str, name: str, incarnation: str) -> Any:
        """A listener has the signals of a name: None or an error."""
        return self.request(workflow_id, msg.AcknowledgeSignals(name, incarnation))

    def delete(self, workflow_id: str, incarnation: str = "") -> Any:
        """Delete a workflow: None or an error."""
        box: AnswerBox = queue.SimpleQueue()
        until = elapsed() + ANSWER_SECONDS
        self.inbox.put(Deletion(self.loop, workflow_id, incarnation, box.put, until).begin)
        (answer,) = self.in_time([box], ANSWER_SECONDS)
        return answer

    # -- what they wait for ----------------------------------------------------------------

    @ray.method(max_task_retries=0)  # type: ignore[untyped-decorator]
    def watch_one(self, workflow_id: str, after: int | None) -> Message:
        """Long-poll one workflow, as in `WatchRequest`. Returns None after `SIT_SECONDS`, and at
        once if `SEATS` long polls wait already."""
        seen: Watched | None = None
        with self.seats.one() as seated:
            if seated:
                box: AnswerBox = queue.SimpleQueue()
                watch = WatchRequest(workflow_id, box.put, after)
                self.watch(watch)
                seen = self.seen(watch, box)
        return encode_watched(seen)

    def seen(self, watch: WatchRequest, box: AnswerBox) -> Watched | None:
        """Wait up to `SIT_SECONDS` for what a watch sees. Then withdraw the watch."""
        try:
            seen: Watched = box.get(timeout=SIT_SECONDS)
        except queue.Empty:
            self.withdraw(watch)
            return None
        return seen

    def watch(self, request: WatchRequest) -> None:
        self.inbox.put(lambda: self.loop.watchers.add(request))

    def withdraw(self, request: WatchRequest) -> None:
        self.inbox.put(lambda: self.loop.watchers.withdraw(request))

    def subscribe(self, client: str, life: str, added: list[tuple[str, int | None]]) -> str:
        """Add watches to those of a client, see `LongPolls.subscribe`."""
        return self.polls.subscribe(client, life, added)

    def poll(self, encoded: bytes) -> bytes:
        """Wait until watches of a client are answered: `Polled`, for a `Poll`."""
        ready: queue.SimpleQueue[None] = queue.SimpleQueue()
        waiting = self.polls.begin(POLL.decode(encoded), lambda: ready.put(None))
        with contextlib.suppress(queue.Empty):
            ready.get(timeout=SIT_SECONDS)
        return ENCODER.encode(self.polls.end(waiting))

    # -- what workers call -----------------------------------------------------------------

    @ray.method(concurrency_group=REPORTS)  # type: ignore[untyped-decorator]
    def attempt_runs(
        self,
        incarnation: str,
        task: int,
        epoch: int,
        attempt: int,
        started_at: float,
        node: str = "",
    ) -> None:
        """A worker reports that an attempt runs, since when, and on which node."""
        self.executor.attempt_runs(incarnation, task, epoch, attempt)
        self.report(incarnation, [AttemptRuns(task, epoch, attempt, started_at, node)])

    @ray.method(concurrency_group=REPORTS)  # type: ignore[untyped-decorator]
    def attempt_waits(
        self, incarnation: str, task: int, epoch: int, attempt: int, waits: int
    ) -> None:
        """A worker reports that an attempt waits for the storage, or goes on."""
        self.executor.attempt_waits(incarnation, task, epoch, attempt, waits)

    @ray.method(concurrency_group=REPORTS)  # type: ignore[untyped-decorator]
    def body_progress(self, encoded: bytes) -> bool:
        """The body of a durable function asks for steps; whether its attempt is still wanted."""
        return self.executor.body_progress(encoded)

    @ray.method(concurrency_group=REPORTS)  # type: ignore[untyped-decorator]
    def batch_overran(self, wire: WireReport) -> None:
        """A worker returns the attempts that wait behind a long one."""
        self.executor.batch_overran(wire)

    @ray.method(concurrency_group=REPORTS)  # type: ignore[untyped-decorator]
    def batch_done(self, wire: WireReport) -> bytes | list[EncodedBatch] | None:
        """A worker reports a batch, and pulls the next ones; None if there are none.

        The call waits a moment, no longer than the worker does. Then the worker ends, and
        batches that come too late run elsewhere.
        """
        answer: AnswerBox = queue.SimpleQueue()
        self.executor.batch_done(wire, answer.put)
        try:
            return pack_loads(answer.get(timeout=WORKER_SECONDS))
        except queue.Empty:
            return None

    @ray.method(max_task_retries=0)  # type: ignore[untyped-decorator]
    def ping(self) -> None:
        """Return, as a sign that the coordinator lives."""

    # -- about itself ----------------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        """Its identity, settings and health."""
        return {
            "storage": self.storage,
            "url": self.storage.url,
            "settings": self.settings,
            "version": __version__,
            "started_by": self.started_by,
            "journal_version": VERSION,
            "holder": self.holder,
            "storage_error": self.loop.store.error,
            "unexpected_error": repr(self.broken) if self.broken else None,
            "workflows": len(self.loop.active) + len(self.loop.active.evicted),
            "waiting": self.seats.taken,
        }


class Coordinator(CoordinatorService):
    """The actor, one per storage and cluster. Detached, restarted by Ray for ever, by this name:
    also one that an older release has created."""

    def __init__(self, storage: Storage, settings: Settings, started_by: str) -> None:
        # Unpickling a task's error must not end the process that drives all tasks.
        unpickle_no_user_errors()
        gc.set_threshold(YOUNG_OBJECTS, *gc.get_threshold()[1:])
        super().__init__(storage, settings, started_by)


coordinator_class = ray.remote(
    num_cpus=0,
    max_restarts=-1,
    max_task_retries=-1,
    max_concurrency=SEATS + VERB_THREADS,
    concurrency_groups={REPORTS: REPORT_THREADS},
)(Coordinator)
