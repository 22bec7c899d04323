"""Broken executors and workers: each breaks one promise, and `WorldOfWorkers` has to see it."""

from __future__ import annotations

from random import Random
from typing import Any

from ray_workflows._executor import executor as executor_module
from ray_workflows._executor import failures as failures_module
from ray_workflows._executor.executor import RayExecutor
from ray_workflows._executor.failures import failure
from ray_workflows._executor.scheduling import dispatch as dispatch_module
from ray_workflows._executor.scheduling import queues as lanes_module
from ray_workflows._executor.scheduling.dispatch import Dispatch
from ray_workflows._executor.scheduling.in_flight import InFlightAttempt
from ray_workflows._executor.worker import batch as batch_module
from ray_workflows._executor.worker import context
from ray_workflows._executor.worker.attempt import AttemptRun
from ray_workflows._model import errors as errors_module
from ray_workflows._model import messages as msg
from tests.simulation import repeated
from tests.simulation.mutations import Mutation, Patch
from tests.simulation.scripts import Script

MUTATIONS: dict[str, Mutation] = {}


def breaks(*kinds: str, **trouble: float) -> Any:
    """Register a mutation, with the kinds of violation it may show as and where to look."""

    def register(patch: Patch) -> Patch:
        MUTATIONS[patch.__name__] = Mutation(patch, kinds, trouble, False)
        return patch

    return register


# -- what workers do -----------------------------------------------------------------------


@breaks("live is stored", worker_dies=0.4, call_late=0.5)
def all_executions_of_an_attempt_write_one_key(patch: Any) -> None:
    def draw_script(rng: Random) -> Script:
        return Script(f"f{rng.randrange(repeated.FUNCTIONS)}", large=True)

    patch.setattr(AttemptRun, "blob_prefix", property(lambda self: self.request.blob_prefix))
    # Only large results are written under a key.
    patch.setattr(repeated, "draw_script", draw_script)


@breaks("innocent", "stuck", "unpickled", poison=1.0)
def what_is_no_exception_ends_the_ray_task(patch: Any) -> None:
    def run_attempt(run: AttemptRun) -> Any:
        try:
            function, args, kwargs = run.loaded()
            with context.running(run.request, run.sequence):
                result = function(*args, **kwargs)
            return run.returned(result)
        except Exception as error:
            return run.raised(error)

    patch.setattr(batch_module, "run_attempt", run_attempt)


@breaks("innocent", poison=1.0)
def texts_of_users_are_taken_as_they_are(patch: Any) -> None:
    patch.setattr(errors_module, "clean", lambda text: text)


@breaks("innocent", storage_fails=0.5)
def a_storage_that_is_away_is_the_fault_of_an_attempt(patch: Any) -> None:
    def lost_storage(self: AttemptRun, error: BaseException) -> Any:
        info = errors_module.error_info(type(error).__name__, str(error))
        return msg.AttemptCrashed(**self.identity(self.process.time()), error=info)

    patch.setattr(AttemptRun, "patiently", lambda self, work: work())
    patch.setattr(AttemptRun, "lost_storage", lost_storage)


@breaks("innocent", object_lost=0.1, worker_dies=0.1)
def a_lost_input_is_the_fault_of_an_attempt(patch: Any) -> None:
    patch.setattr(AttemptRun, "is_lost_input", lambda self, error: False)


@breaks("innocent", "output")
def listeners_are_called_without_live_values(patch: Any) -> None:
    def load_of(sent: Any, live: Any) -> Any:
        return original(sent, {} if sent.hosted else live)

    original = dispatch_module.load_of
    patch.setattr(dispatch_module, "load_of", load_of)
    patch.setattr(AttemptRun, "input_keys", lambda self: set(self.reader.live))


# -- what the executor does ----------------------------------------------------------------


@breaks("stuck", "left over", "idle", "scheduling")
def followers_are_left_behind_in_a_queue(patch: Any) -> None:
    patch.setattr(lanes_module, "take_run", lambda queue: [queue.popleft()])


@breaks("stuck", "idle", "scheduling")
def members_handed_back_are_forgotten(patch: Any) -> None:
    def run_elsewhere(self: RayExecutor, sent: Any, flight: InFlightAttempt, *_: Any) -> None:
        if not flight.retired and flight.batch == sent.number:
            sent.open -= 1
            self.take_out(flight)

    patch.setattr(RayExecutor, "run_elsewhere", run_elsewhere)


@breaks("innocent", worker_dies=0.3)
def a_death_is_charged_to_all_of_a_batch(patch: Any) -> None:
    def fail(self: RayExecutor, slot: Any, error: BaseException, *others: Any) -> None:
        loads = list(slot.loads)
        for sent in loads:
            self.dispatch.over(sent)
        for sent in loads:
            for flight in sent.left:
                self.land(flight, failure(flight, error))

    patch.setattr(RayExecutor, "fail", fail)


@breaks("token", worker_dies=0.3)
def a_token_counts_attempts(patch: Any) -> None:
    def begin(self: context.running, request: Any, sequence: int) -> None:
        original(self, request, request.attempt)

    original = context.running.__init__
    patch.setattr(context.running, "__init__", begin)


@breaks("token")
def each_life_of_a_coordinator_counts_from_one(patch: Any) -> None:
    patch.setattr(context, "fencing_token", lambda epoch, sequence: sequence)


@breaks("last end", worker_dies=0.3)
def what_ran_with_a_worker_is_told_of_nothing(patch: Any) -> None:
    patch.setattr(executor_module, "end_of_worker", lambda error: "")


@breaks("last end", worker_dies=0.3)
def fused_attempts_are_told_of_nothing(patch: Any) -> None:
    patch.setattr(RayExecutor, "with_last_end", lambda self, request: request)


@breaks("last end", preempt=0.3)
def the_end_of_a_node_is_told_as_that_of_a_worker(patch: Any) -> None:
    patch.setattr(executor_module, "end_of_worker", lambda error: "crashed")


@breaks("last end")
def what_had_not_begun_is_told_of_a_death(patch: Any) -> None:
    def run_elsewhere(self: RayExecutor, sent: Any, flight: Any, ended: str = "") -> None:
        original(self, sent, flight, ended or "crashed")

    original = RayExecutor.run_elsewhere
    patch.setattr(RayExecutor, "run_elsewhere", run_elsewhere)


@breaks("innocent", preempt=0.3)
def the_end_of_a_node_is_the_fault_of_an_attempt(patch: Any) -> None:
    patch.setattr(failures_module, "LOST_NODE_ERRORS", ())


@breaks("ran again", "left over", "scheduling")
def what_is_done_runs_once_more(patch: Any) -> None:
    def landed(self: RayExecutor, flight: InFlightAttempt, *arguments: Any) -> Any:
        report = original(self, flight, *arguments)
        if self.dispatch.capacity > 1:
            self.dispatch.enqueue(InFlightAttempt(flight.request))
        return report

    original = RayExecutor.landed
    patch.setattr(RayExecutor, "landed", landed)


@breaks("left over", "scheduling")
def what_nobody_wants_is_not_stopped(patch: Any) -> None:
    patch.setattr(RayExecutor, "stop", lambda self, sent: None)


@breaks("left over", "stuck", "idle", "scheduling")
def ray_tasks_that_ended_are_kept(patch: Any) -> None:
    patch.setattr(Dispatch, "end", lambda self, slot: None)
