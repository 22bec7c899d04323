"""The loop's way to the storage: commits, calls that are repeated until they succeed, and what is
known of its health."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from ray_workflows._coordinator.offload import Offloader
from ray_workflows._model.catalog import Append
from ray_workflows.exceptions import StorageConfigError, StorageCorruptError, is_transient
from ray_workflows.storage.base import CommitOutcome, Storage

logger = logging.getLogger(__name__)

#: Pauses before a storage that failed is asked again, in seconds; the last one repeats.
BACKOFF_SECONDS = (0.05, 0.2, 1.0, 3.0)

#: A commit of more appends, or of more bytes, is not a small one: there is time to decide on what
#: comes next.
SMALL_APPENDS = 8
SMALL_BYTES = 16 * 1024


#: What became of an append; an exception if the storage refuses this one.
Committed = CommitOutcome | Exception


def is_refusal(error: Exception) -> bool:
    """Whether a commit failed because of what is in it. A storage that is damaged or misconfigured
    refuses everything: that is waited for until somebody has mended it."""
    return not is_transient(error) and not isinstance(
        error, (StorageCorruptError, StorageConfigError)
    )


class RetryingStorage:
    """A storage that may be away for a while.

    Args:
        storage: where journals are.
        offloader: does what blocks.
        after: has something done on the loop's thread in so many seconds.
        elapsed: seconds of a clock that nobody sets.
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
        #: Why it does not answer, while it does not.
        self.error: Exception | None = None
        #: Why the last commit failed: a full or locked disk can still be read.
        self.commit_error: Exception | None = None
        #: Since when it has not returned from a commit; None if there is none.
        self.committing_since: float | None = None
        self.failures = 0

    def call(self, work: Callable[[], Any], then: Callable[[Any], None], *, what: str) -> None:
        """Do something with the storage until it answers; ``then`` gets the result.

        An error that would come again is a result too: it is the caller's, and of one workflow.
        """

        def attempt() -> None:
            self.offloader.call(work, done)

        def done(result: Any) -> None:
            if isinstance(result, Exception) and is_transient(result):
                self.failed(result, what)
                self.after(self.pause, attempt)
                return
            self.answered()
            then(result)

        attempt()

    def commit(
        self, appends: Sequence[Append], then: Callable[[Sequence[Committed]], None]
    ) -> None:
        """Commit, once; ``then`` gets what became of each append.

        One that the storage can't take, now or ever, is not to keep the others from theirs: then
        each is committed alone, and only that one has the error.
        """

        def done(result: Any) -> None:
            self.committing_since = None
            if not isinstance(result, Exception):
                self.answered()
                self.commit_error = None
                then(result)
            elif is_refusal(result) and len(appends) > 1:
                self.commit_apart(list(appends), [], then)
            elif is_refusal(result):
                then([result])
            else:
                self.failed(result, "A commit")
                self.commit_error = result
                then([CommitOutcome.AMBIGUOUS] * len(appends))

        self.committing_since = self.elapsed()
        brief = is_small(appends) and self.storage.commits_at_once
        self.offloader.call(lambda: self.storage.commit(appends), done, brief=brief)

    def commit_apart(
        self,
        left: list[Append],
        done: list[Committed],
        then: Callable[[Sequence[Committed]], None],
    ) -> None:
        """Commit one after the other."""
        if not left:
            then(done)
            return
        first, *rest = left
        self.commit([first], lambda outcome: self.commit_apart(rest, [*done, *outcome], then))

    def failed(self, error: Exception, what: str) -> None:
        """It does not answer."""
        if self.error is None:
            logger.warning("%s waits for the storage: %s", what, error)
        self.error = error
        self.failures += 1

    def answered(self) -> None:
        """It answers."""
        if self.error is not None:
            logger.warning("The storage answers again.")
        self.error = None
        self.failures = 0

    @property
    def pause(self) -> float:
        """After how many seconds it is asked again; none if it answers."""
        if self.error is None:
            return 0.0
        return BACKOFF_SECONDS[min(self.failures, len(BACKOFF_SECONDS)) - 1]


def is_small(appends: Sequence[Append]) -> bool:
    """Whether a commit takes hardly longer than the least one."""
    return len(appends) <= SMALL_APPENDS and sum(len(a.entry) for a in appends) <= SMALL_BYTES
