"""What the executor asks of Ray and of time. A simulation puts others in their place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from ray_workflows._executor.batch import Load
from ray_workflows._executor.carriers import Brought, SentBatch


class Future(Protocol):
    """The result of a Ray task, to be."""

    def add_done_callback(self, action: Callable[[Any], None], /) -> None:
        """Call it with this, from some thread, when the task has ended."""


class TaskRef(Protocol):
    """A Ray task that was submitted."""

    def future(self) -> Future:
        """Its result."""


class Cluster(Protocol):
    """The cluster, as the executor uses it, with the executor's lock held where nothing else is
    said."""

    def send(self, sent: SentBatch, loads: list[Load], asks: bool, values: Brought) -> TaskRef:
        """Submit a Ray task with batches, the first of which is this one and takes the values, or
        call a listener host; the result is that of `carry.run_batches`."""

    def cancel(self, ref: TaskRef, *, force: bool) -> None:
        """Stop a Ray task; by force, its worker ends."""

    def slots(self) -> int:
        """How many tasks of one CPU the cluster can run at once."""

    def nodes(self) -> list[dict[str, float]]:
        """The resources of each live node, whether they are free or not. Asks Ray: not with the
        lock held."""

    def lacked(self, sent: SentBatch) -> bool:
        """Whether a package of it is not in the cluster after all: it is brought again."""

    def why_missing(self, sent: SentBatch) -> Exception | None:
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
