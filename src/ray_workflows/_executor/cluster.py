"""The executor's interface to Ray and to time. A simulation implements it too."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any, Protocol

from ray_workflows._executor.protocol import AttemptTemplate
from ray_workflows._executor.scheduling.slots import Brought, SentBatch
from ray_workflows._executor.worker.batch import EncodedBatch


class Future(Protocol):
    """The future of a Ray task."""

    def add_done_callback(self, action: Callable[[Any], None], /) -> None:
        """Call ``action`` with this future, from some thread, when the task has ended."""


class TaskRef(Protocol):
    """A submitted Ray task."""

    def future(self) -> Future:
        """The future of its result."""


#: Runs the first function, which may block, on another thread, and then the second one, with its
#: result or exception, on the coordinator's loop.
Aside = Callable[[Callable[[], Any], Callable[[Any], None]], None]


class Cluster(Protocol):
    """The cluster, as the executor uses it. Methods that ask Ray's head may block as long as the
    head is away: they are called without the executor's lock and off the loop. All other methods
    are called with the lock held, and only they change the state here."""

    def nodes(self) -> list[dict[str, float]]:
        """The total resources of each live node. Asks the head."""

    def prepare(self, template: AttemptTemplate) -> Any:
        """Look up what attempts of a shape need, for `keep`. Asks the head, and changes nothing
        here.

        Raises:
            Exception: why none of them can be sent.
        """

    def keep(self, shape: str, needs: Any) -> None:
        """Remember what attempts of a shape need. From then on they can be sent."""

    def is_prepared(self, shape: str) -> bool:
        """Whether attempts of a shape can be sent."""

    def missing(self, batches: Iterable[SentBatch]) -> set[str]:
        """The URIs of the batches' packages that are not in the cluster. Asks the head."""

    def send(
        self, sent: SentBatch, loads: list[EncodedBatch], asks: bool, values: Brought
    ) -> TaskRef:
        """Submit a Ray task with batches, the first of which is ``sent`` and takes the values, or
        call a listener host. The result is that of `worker.loop.run_batches`."""

    def give(self, ref: TaskRef, given: bytes) -> None:
        """Send a body encoded `GivenOutcomes`. ``ref``: the call that runs it."""

    def cancel(self, ref: TaskRef, *, force: bool) -> None:
        """Stop a Ray task; by force, its worker ends."""

    def lacked(self, sent: SentBatch, missing: Collection[str]) -> bool:
        """Whether a package of the batch is missing; then it will be uploaded again."""

    def why_missing(self, sent: SentBatch, missing: Collection[str]) -> Exception | None:
        """Why a package of the batch can't be uploaded; None if it can, or is there."""

    def tidy(self) -> None:
        """Called while nothing runs: remove packages that were unused for long."""

    def ended(self, ref: TaskRef, *, host_died: bool) -> bool:
        """Note that a Ray task or call has ended, and whether its host has died. Returns whether
        that host served other attempts too."""

    def close(self) -> None:
        """End all listener hosts."""


class Clock(Protocol):
    """Times in seconds. The module `time` is one."""

    def time(self) -> float:
        """Since 1970."""

    def monotonic(self) -> float:
        """Of a monotonic clock."""


class Timers(Protocol):
    """Calls actions after a delay."""

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Call ``action`` after ``seconds``; it must not raise."""
