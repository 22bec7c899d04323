"""Probabilities and durations of faults, drawn once for each seed.

Each kind of trouble is there or not, so that some seeds show one kind alone; and some show none.
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random

#: Trouble of coordinators and of the storage.
OF_COORDINATORS = (
    *("crash_after_step", "crash_within_step", "pause", "zombie", "commit_lost", "commit_unsaid"),
    *("commit_partial", "commit_ambiguous", "commit_late", "read_fails", "corrupt", "hang"),
    *("hang_forever", "outage", "found_corruption", "skew", "clock_step", "storage_clock_step"),
)


class Faults:
    """Trouble of one seed. Probabilities are per step, per operation, or per attempt.

    ``trouble`` are values that are not drawn, to look for something in particular.
    """

    def __init__(self, rng: Random, clocks: Random, trouble: Mapping[str, float]) -> None:
        self.rng = rng
        peaceful = rng.random() < 0.08 and not trouble
        self.until = 0.0 if peaceful else rng.uniform(5.0, 35.0)

        def some(share: float, low: float, high: float) -> float:
            if rng.random() >= share or peaceful:
                return 0.0
            return low * (high / low) ** rng.random()

        # Coordinators.
        self.crash_after_step = some(0.4, 0.001, 0.03)
        self.crash_within_step = some(0.4, 0.001, 0.02)
        self.pause = some(0.35, 0.001, 0.01)
        self.zombie = some(0.3, 0.1, 0.7)
        # Storage.
        self.commit_lost = some(0.4, 0.01, 0.3)
        self.commit_unsaid = some(0.4, 0.01, 0.3)
        self.commit_partial = some(0.3, 0.01, 0.3)
        self.commit_ambiguous = some(0.3, 0.01, 0.3)
        self.commit_late = some(0.35, 0.02, 0.4)
        self.read_fails = some(0.35, 0.01, 0.2)
        self.corrupt = some(0.15, 0.003, 0.05)
        self.hang = some(0.3, 0.003, 0.05)
        self.hang_forever = some(0.15, 0.001, 0.01)
        self.interleave = some(0.6, 0.02, 0.4)
        self.outage = some(0.3, 0.02, 0.15)
        # Attempts.
        self.worker_crash = some(0.45, 0.01, 0.3)
        self.report_late = some(0.35, 0.02, 0.3)
        self.report_twice = some(0.35, 0.02, 0.4)
        self.value_lost = some(0.4, 0.02, 0.3)
        self.found_corruption = some(0.12, 0.005, 0.1)
        # Clocks of the coordinators go wrong by up to this many seconds.
        self.skew = some(0.3, 0.1, 30.0)
        # Somebody sets a clock by an hour, back or forward: that of a coordinator's machine, and
        # the storage's. By a die of its own: what else a seed has stays as it was.
        steps = not peaceful and clocks.random() < 0.3
        self.clock_step = clocks.uniform(0.001, 0.01) if steps else 0.0
        self.storage_clock_step = clocks.uniform(0.0005, 0.003) if steps else 0.0
        # Attempts take this many times longer.
        self.slowness = rng.choice([1.0, 1.0, 1.0, 4.0, 12.0])
        # Late commits that take effect at the worst moment: just before another coordinator's
        # commit to the same workflow. Only where it is looked for.
        self.late_at_worst = 0.0
        # Not trouble: whether coordinators take over what dead ones left.
        self.auto_resume = 0.0
        for name, value in trouble.items():
            assert hasattr(self, name), name
            setattr(self, name, value)

    @property
    def undisturbed(self) -> bool:
        """Whether coordinators and the storage have no trouble at all."""
        return not any(getattr(self, name) for name in OF_COORDINATORS)

    def hit(self, probability: float) -> bool:
        return probability > 0.0 and self.rng.random() < probability

    def stop(self) -> None:
        """End all faults."""
        for name, value in vars(self).items():
            if isinstance(value, float) and name not in ("until", "skew"):
                setattr(self, name, 0.0)
        self.slowness = 1.0

    def describe(self) -> str:
        numbers = {k: round(v, 4) for k, v in vars(self).items() if isinstance(v, float) and v}
        return " ".join(f"{name}={value}" for name, value in numbers.items())
