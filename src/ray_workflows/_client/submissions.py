"""Builds and sends submissions. Deletes the blobs of rejected ones."""

from __future__ import annotations

import logging
import uuid
import warnings
from collections.abc import Callable
from types import TracebackType
from typing import Any

import msgspec
import ray
from ray.dag import DAGNode

from ray_workflows._capture.dag import capture_plan
from ray_workflows._capture.values import ValueWriter
from ray_workflows._client.code_changes import CodeChanges
from ray_workflows._client.connection import CALL_SECONDS, Connection
from ray_workflows._client.environments import RecordedEnvironment, ResumeOptions, look_first
from ray_workflows._client.forks import Fork
from ray_workflows._client.patience import Patience
from ray_workflows._codec.journal import decode_plan, encode_events, encode_plan
from ray_workflows._coordinator.protocol import ENCODER, Submissions, decode_submitted
from ray_workflows._coordinator.requests import Submission, Submitted, Watched, seconds_more
from ray_workflows._environment.shared_items import workflow_incarnation
from ray_workflows._environment.snapshot import share
from ray_workflows._model.answers import Accepted, Finished, Stopped
from ray_workflows._model.catalog import CatalogRow, Tag
from ray_workflows._model.plan import Environment, EnvironmentChange, Function, Plan
from ray_workflows.exceptions import (
    CoordinatorUnavailableError,
    StorageError,
    StorageUnavailableError,
)

logger = logging.getLogger(__name__)

#: Errors after which the workflow may exist. Its blobs stay, and are swept when they are old if
#: they belong to no workflow then.
DOUBT = (StorageUnavailableError, CoordinatorUnavailableError)


class SubmissionBuilder:
    """Builds submissions. A context manager; if an error leaves it before they are sent, it deletes
    their blobs."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        #: The environment of this process, taken once for all of them.
        self.environment: Environment | None = None
        self.incarnations: list[str] = []
        #: Whether they were sent. From then on, workflows may need the blobs.
        self.sent = False
        self.submissions: list[Submission] = []
        self.changes = CodeChanges(connection.storage)

    def __enter__(self) -> SubmissionBuilder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None and not self.sent:
            for incarnation in self.incarnations:
                self.discard(incarnation)

    def new_incarnation(self, environment: Environment) -> str:
        incarnation = workflow_incarnation(environment.record)
        self.incarnations.append(incarnation)
        return incarnation

    def capture(
        self,
        dag: DAGNode,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        workflow_id: str,
        metadata: dict[str, Any],
        tags: dict[str, Tag],
        timeout: float | None,
    ) -> None:
        """Add a workflow that runs a DAG."""
        storage = self.connection.storage
        environment = self.environment
        if environment is None:
            environment = self.connection.patiently(self.connection.snapshot)
            self.environment = environment
        incarnation = self.new_incarnation(environment)

        def write() -> Plan:
            # Finds the blobs that an earlier try has written, and keeps them.
            plan = capture_plan(
                dag,
                writer=ValueWriter(storage, incarnation),
                environment=environment,
                prefix="plan",
                args=args,
                kwargs=kwargs,
            )
            return self.connection.remember(plan, (workflow_id, incarnation))

        plan = self.connection.patiently(write)
        self.submissions.append(
            Submission(
                workflow_id,
                incarnation,
                encode_plan(plan),
                metadata,
                timeout,
                uuid.uuid4().hex,
                tags={**plan.tags, **tags},
            )
        )

    def add_fork(
        self,
        origin: Fork,
        workflow_id: str,
        environment: Environment | None,
        functions: Callable[[str], dict[str, Function]],
    ) -> dict[str, Function]:
        """Add a fork. Returns the result of ``functions``.

        Args:
            origin: the start of the fork.
            workflow_id: its id.
            environment: its environment if that is not its origin's.
            functions: stores functions for an incarnation, and returns them by the digests of the
                origin's functions that they replace.
        """
        environment = environment or origin.submitted.plan.environment
        incarnation = self.new_incarnation(environment)

        def write() -> dict[str, Function]:
            share(self.connection.storage, environment, (workflow_id, incarnation))
            origin.copy_blobs(incarnation)
            return functions(incarnation)

        exchanged = self.connection.patiently(write)
        submitted, history = origin.with_code(environment, exchanged)
        self.submissions.append(
            Submission(
                workflow_id,
                incarnation,
                encode_plan(submitted.plan),
                submitted.metadata,
                submitted.timeout,
                uuid.uuid4().hex,
                encode_events(history),
                tags=origin.state.tags,
            )
        )
        return exchanged

    def send(self, client: str | None = None) -> Submitted:
        """Send all of them to the coordinator. Returns its answers.

        ``client`` watches the accepted ones.
        """
        if not self.submissions:
            return Submitted("", [])
        submitted = self.answer(self.ask(self.submissions, client))
        return self.take(self.go_on(submitted, client))

    def run(self) -> tuple[Submitted, Watched | None]:
        """As `send`, for one, and wait for its end. Returns the answer of the watch too, if any."""
        (submission,) = self.submissions
        encoded = ENCODER.encode(Submissions(self.submissions, None))
        self.sent = True

        def is_there(row: CatalogRow | None) -> bool:
            return row is not None and row.incarnation == submission.incarnation

        patience = Patience(self.connection, submission.workflow_id, is_there)
        while (answer := patience.answer("run", encoded)) is None:
            # It is accepted, or never arrived; sending it again is harmless.
            if is_there(self.connection.storage.read_catalog(submission.workflow_id)):
                return Submitted("", [Accepted(submission.incarnation, created=True)]), None
        submitted, watched = decode_submitted(answer)
        return self.take(self.go_on(submitted, None)), watched

    def go_on(self, submitted: Submitted, client: str | None) -> Submitted:
        """Resume existing workflows that no coordinator drives (`Stopped`), after checking their
        environments as `resume` does."""
        answers: list[Any] = list(submitted.answers)
        while stopped := [i for i, answer in enumerate(answers) if isinstance(answer, Stopped)]:
            for index in stopped:
                submission = self.submissions[index]
                try:
                    self.submissions[index] = self.looked_first(submission)
                except Exception as error:
                    answers[index] = error
            again = [index for index in stopped if isinstance(answers[index], Stopped)]
            if not again:
                break
            submissions = [self.submissions[index] for index in again]
            submitted = self.answer(self.ask(submissions, client))
            for index, answer in zip(again, submitted.answers, strict=True):
                answers[index] = answer
        return Submitted(submitted.holder_id, answers)

    def looked_first(self, submission: Submission) -> Submission:
        """Check the existing workflow, and return a submission with the change for it."""
        row = self.connection.storage.read_catalog(submission.workflow_id)
        if row is None:
            return msgspec.structs.replace(submission, change=None, changes="")
        functions = decode_plan(submission.plan).functions
        given = [(submission.incarnation, function) for function in functions]

        def see(found: RecordedEnvironment, change: EnvironmentChange) -> None:
            self.changes.look(found, change, given)

        change = look_first(self.connection.storage, row, ResumeOptions(), see)
        return msgspec.structs.replace(submission, change=change, changes=row.incarnation)

    def ask(self, submissions: list[Submission], client: str | None) -> ray.ObjectRef:
        encoded = ENCODER.encode(Submissions(submissions, client))
        self.sent = True
        return self.connection.coordinator.submit.remote(encoded)

    def answer(self, asked: ray.ObjectRef) -> Submitted:
        seconds = CALL_SECONDS + seconds_more(self.submissions)
        return decode_submitted(self.connection.answer(asked, seconds))[0]

    def take(self, submitted: Submitted) -> Submitted:
        """Delete the blobs of refused ones, and warn about different code and plans."""
        self.changes.warn()
        for submission, answer in zip(self.submissions, submitted.answers, strict=True):
            used = isinstance(answer, Accepted) and answer.incarnation == submission.incarnation
            if not used and not isinstance(answer, DOUBT):
                self.discard(submission.incarnation)
            if isinstance(answer, (Accepted, Finished)) and not answer.same_plan:
                warnings.warn(
                    f"Workflow '{submission.workflow_id}' exists with another DAG or other "
                    f"arguments; the stored one is used. Choose another workflow_id, or "
                    f"delete({submission.workflow_id!r}) first.",
                    stacklevel=5,
                )
        return submitted

    def discard(self, incarnation: str) -> None:
        """Delete the blobs of a workflow that was not created."""
        try:
            self.connection.storage.delete_blobs(incarnation)
        except StorageError as error:
            logger.warning("Blobs of %s are left for the sweep: %s", incarnation, error)
