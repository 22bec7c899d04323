"""What the executor asks of Ray and of time. A simulation puts others in their place."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any, Protocol

from ray_workflows._executor.protocol import AttemptTemplate
from ray_workflows._executor.scheduling.slots import Brought, SentBatch
from ray_workflows._executor.worker.batch import EncodedBatch


class Future(Protocol):
    """The result of a Ray task, to be."""

    def add_done_callback(self, action: Callable[[Any], None], /) -> None:
        """Call it with this, from some thread, when the task has ended."""


class TaskRef(Protocol):
    """A Ray task that was submitted."""

    def future(self) -> Future:
        """Its result."""


#: Runs what blocks on another thread, and hands what it returned or raised to the second one, which
#: runs on the coordinator's loop.
Aside = Callable[[Callable[[], Any], Callable[[Any], None]], None]


class Cluster(Protocol):
    """The cluster, as the executor uses it. What asks Ray's head may take as long as the head is
    away: the executor's lock is not held then, and the loop does not wait. All other methods are
    called with the lock held: they alone change what is kept here."""

    def nodes(self) -> list[dict[str, float]]:
        """The resources of each live node, whether they are free or not. Asks the head."""

    def prepare(self, template: AttemptTemplate) -> Any:
        """What attempts of a shape need, for `keep`. Asks the head, and changes nothing here.

        Raises:
            Exception: why none of them can be sent.
        """

    def keep(self, shape: str, needs: Any) -> None:
        """Remember what attempts of a shape need: they can be sent."""

    def is_prepared(self, shape: str) -> bool:
        """Whether attempts of a shape can be sent."""

    def missing(self, batches: Iterable[SentBatch]) -> set[str]:
        """Those packages of batches that are not in the cluster, by URI. Asks the head."""

    def send(
        self, sent: SentBatch, loads: list[EncodedBatch], asks: bool, values: Brought
    ) -> TaskRef:
        """Submit a Ray task with batches, the first of which is this one and takes the values, or
        call a listener host; the result is that of `carry.run_batches`."""

    def cancel(self, ref: TaskRef, *, force: bool) -> None:
        """Stop a Ray task; by force, its worker ends."""

    def lacked(self, sent: SentBatch, missing: Collection[str]) -> bool:
        """Whether a package of it is among those that are missing: it is brought again."""

    def why_missing(self, sent: SentBatch, missing: Collection[str]) -> Exception | None:
        """Why a package of it can't be brought into the cluster; None if it can, or is there."""

    def tidy(self) -> None:
        """Nothing runs: what was not needed for long may go."""

    def ended(self, ref: TaskRef, *, host_died: bool) -> None:
        """What was submitted has ended; with the listener host that served it, if that has died."""

    def close(self) -> None:
        """End what was started here."""


class Clock(Protocol):
    """Times in seconds. The module `time` is one."""

    def time(self) -> float:
        """Since 1970."""

    def monotonic(self) -> float:
        """Of a clock that nobody sets."""


class Timers(Protocol):
    """Calls actions when it is time."""

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Call it after so many seconds; it must not raise."""
