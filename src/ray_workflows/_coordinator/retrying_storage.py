"""The loop's access to the storage: commits, calls that are retried until they succeed, and the
storage's health."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from ray_workflows._coordinator.offload import Offloader
from ray_workflows._model.catalog import Append
from ray_workflows.exceptions import StorageConfigError, StorageCorruptError, is_transient
from ray_workflows.storage.base import CommitOutcome, Storage

logger = logging.getLogger(__name__)

#: Pauses before a failed storage is tried again, in seconds; the last one repeats.
BACKOFF_SECONDS = (0.05, 0.2, 1.0, 3.0)

#: Larger commits, by appends or bytes, run on a thread: the loop can decide on other messages
#: meanwhile.
SMALL_APPENDS = 8
SMALL_BYTES = 16 * 1024


#: If the first of a refused commit are refused one by one, this many, the others wait.
ENOUGH = 8

#: The outcome of an append; an exception if the storage refuses it.
Committed = CommitOutcome | Exception


def may_concern_all(error: Exception) -> bool:
    """Whether an error that is not transient may be about the whole storage.

    `StorageConfigError` is meant to be: the database was replaced, the file system can't link any
    more. (Refused credentials of a storage that was open are transient.) `StorageCorruptError`
    mostly names what is damaged, such as the last entry of one journal. But a database may also
    find damage in what all commits touch. For a commit `Commits` tells the two apart by whether the
    storage takes other writes meanwhile.
    """
    return isinstance(error, (StorageCorruptError, StorageConfigError))


class RetryingStorage:
    """A storage that may be away for a while.

    Args:
        storage: where journals are.
        offloader: runs blocking work.
        after: calls a function on the loop's thread after some seconds.
        elapsed: a monotonic clock, in seconds.
    """

    def __init__(
        self,
        storage: Storage,
        offloader: Offloader,
        after: Callable[[float, Callable[[], None]], None],
        elapsed: Callable[[], float],
    ) -> None:
        self.storage = storage
        self.offloader = offloader
        self.after = after
        self.elapsed = elapsed
        #: Why the storage does not answer; None while it does.
        self.error: Exception | None = None
        #: Why the last commit failed: a full or locked disk can still be read.
        self.commit_error: Exception | None = None
        #: Since when a commit has been running; None without one.
        self.committing_since: float | None = None
        self.failures = 0
        #: Whether a write failed since the last one that succeeded.
        self.write_failed = False
        #: How many writes the storage has taken: commits, and renewals of leases.
        self.writes = 0

    def call(self, work: Callable[[], Any], then: Callable[[Any], None], *, what: str) -> None:
        """Run work on the storage until it answers; ``then`` gets the result.

        A permanent error is a result too: it concerns the caller's workflow only. Only
        `StorageConfigError` concerns all of them, so it is waited for.
        """

        def attempt() -> None:
            self.offloader.call(work, done)

        def done(result: Any) -> None:
            if isinstance(result, Exception) and (
                is_transient(result) or isinstance(result, StorageConfigError)
            ):
                self.failed(result, what)
                self.after(self.pause, attempt)
                return
            self.answered()
            then(result)

        attempt()

    def commit(
        self, appends: Sequence[Append], then: Callable[[Sequence[Committed]], None]
    ) -> None:
        """Commit, once; ``then`` gets the outcome of each append.

        If the storage refuses an append, each is committed alone, so that only that one has the
        error.
        """

        def done(result: Any) -> None:
            self.committing_since = None
            if not isinstance(result, Exception):
                self.commit_error = None
                if CommitOutcome.OK in result:
                    self.wrote()
                else:
                    self.answered()
                then(result)
            elif is_transient(result):
                self.failed(result, "A commit", writing=True)
                self.commit_error = result
                then([CommitOutcome.AMBIGUOUS] * len(appends))
            elif len(appends) > 1:
                self.commit_apart(list(appends), [], then)
            else:
                if may_concern_all(result):
                    if self.commit_error is None:
                        logger.warning("The storage refuses a commit: %s", result)
                    self.commit_error = result
                then([result])

        self.committing_since = self.elapsed()
        brief = is_small(appends) and self.storage.commits_at_once
        self.offloader.call(lambda: self.storage.commit(appends), done, brief=brief)

    def commit_apart(
        self,
        left: list[Append],
        done: list[Committed],
        then: Callable[[Sequence[Committed]], None],
    ) -> None:
        """Commit one after the other, after a commit of all was refused."""
        if not left:
            then(done)
            return
        if len(done) == ENOUGH and all(
            isinstance(each, Exception) and may_concern_all(each) for each in done
        ):
            # Thousands of single commits would not tell more.
            assert isinstance(done[-1], Exception)
            self.failed(done[-1], "A commit", writing=True)
            then([*done, *[CommitOutcome.AMBIGUOUS] * len(left)])
            return

        def took(outcomes: Sequence[Committed]) -> None:
            (outcome,) = outcomes
            if outcome is CommitOutcome.STALE:
                # Object stores may have taken it in the commit of all. Its commit id will tell.
                outcome = CommitOutcome.AMBIGUOUS
            done.append(outcome)
            self.commit_apart(left, done, then)

        self.commit([left.pop(0)], took)

    def failed(self, error: Exception, what: str, *, writing: bool = False) -> None:
        """Record that the storage does not answer, or takes no writes."""
        self.write_failed = self.write_failed or writing
        if self.error is None:
            logger.warning("%s waits for the storage: %s", what, error)
        self.error = error
        self.failures += 1

    def answered(self) -> None:
        """Record that the storage answers. After a failed write this says nothing: otherwise reads
        would end the back-off of writes to a full disk."""
        if self.write_failed:
            return
        if self.error is not None:
            logger.warning("The storage answers again.")
        self.error = None
        self.failures = 0

    def wrote(self) -> None:
        """Record that the storage took a write."""
        self.writes += 1
        self.write_failed = False
        self.answered()

    @property
    def pause(self) -> float:
        """The seconds before the next try; 0 while the storage answers."""
        if self.error is None:
            return 0.0
        return BACKOFF_SECONDS[min(self.failures, len(BACKOFF_SECONDS)) - 1]


def is_small(appends: Sequence[Append]) -> bool:
    """Whether a commit takes hardly longer than the smallest one."""
    return len(appends) <= SMALL_APPENDS and sum(len(a.entry) for a in appends) <= SMALL_BYTES
