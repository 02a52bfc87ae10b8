"""What was fixed before the runs that decide a claim: the margin, the seeds, the condition; and the verdict by it.

A difference that is too small to matter is an answer too, so every claim has a *margin*: the smallest effect that
would matter. Seeds that were looked at while a claim was designed do not decide it. Margins, seeds and verdicts are
ours; ``designs.yaml`` has them, by claim.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from scipy.special import nctdtr, stdtrit

from zfscope.report.conditions import Sample

HOLDS, DOES_NOT, UNDECIDED, NOT_RUN = "holds", "does not hold", "undecided", "not run"
NO_EFFECT = "no effect above the margin"


@dataclass(frozen=True)
class Design:
    """What was fixed of a claim before its deciding runs."""

    margin: float  # smallest effect that would matter, in the unit of the first measure
    because: str  # why so much
    seeds: tuple[int, ...]  # that decide; none was looked at before
    stop: str  # when to stop adding seeds
    where: Mapping[str, Any]  # facts of the runs that decide, by dotted key, see ``conditions.facts_of``
    condition: str  # the same in words
    spread: float  # standard deviation of the effect over repetitions that was expected, from runs before
    n: int | None = None  # repetitions that the spread is of; None: the seeds
    before: tuple[str, ...] = ()  # what was found earlier, and under which condition

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """From a mapping of ``designs.yaml``."""
        return cls(**values | {name: tuple(values[name]) for name in ("seeds", "before")})

    @property
    def power(self) -> float:
        """Chance of an interval above 0 where the effect is the margin, 0-1."""
        return power(self.margin, self.spread, self.n or len(self.seeds))

    @property
    def needed(self) -> int:
        """Repetitions for a power of 0.8 at the expected spread."""
        return next(n for n in range(2, 100_000) if power(self.margin, self.spread, n) >= 0.8)

    def decides(self, sample: Sample) -> bool:
        """Whether a sample was measured under the condition and with the seeds of the design."""
        seeds = _seeds_of(sample)
        return self.fits(sample) and bool(seeds) and seeds <= set(self.seeds)

    def missing(self, samples: Iterable[Sample]) -> tuple[int, ...]:
        """Seeds that no sample which decides has; before all are run there is nothing to decide by."""
        there = {seed for sample in samples if self.decides(sample) for seed in _seeds_of(sample)}
        return tuple(seed for seed in self.seeds if seed not in there)

    def fits(self, sample: Sample) -> bool:
        """Whether a sample was measured under the condition of the design, whatever its seed."""
        return all(sample.facts.get(name) == value for name, value in self.where.items())


def _seeds_of(sample: Sample) -> set[int]:
    """That of its network; of an ensemble those of its members."""
    return {int(seed) for seed in str(sample.seed).split(", ") if seed.isdigit()}


def power(effect: float, spread: float, n: int) -> float:
    """Chance, 0-1, that the 95 % interval of a mean of ``n`` values lies above 0.

    By Student's t, not central, for a true ``effect`` and a standard deviation ``spread``; two values or more.
    """
    if spread == 0:
        return float(effect > 0)
    return 1.0 - float(nctdtr(n - 1, effect / spread * math.sqrt(n), stdtrit(n - 1, 0.975)))


def verdict(interval: tuple[float, float] | None, margin: float = 0.0) -> str:
    """Of one effect: by where its interval lies beside 0 and within the margin on both sides."""
    if interval is None:
        return UNDECIDED
    low, high = interval
    if -margin < low and high < margin:
        return NO_EFFECT
    return HOLDS if low > 0 else DOES_NOT if high < 0 else UNDECIDED
