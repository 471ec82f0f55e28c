"""Intervals, tests of a difference, and correction for many tests.

Seeds are the unit: a score's spread over seeds is what another run of the same settings would show.
Where each side has one run, McNemar's test compares these two runs on their test images only.

What cannot be known is None, never a number that looks like knowledge:

- one value has a mean but no interval, and neither have several equal values: scores are counts of
  images, and two seeds may share one by chance;
- for the same reason, differences without any spread do not show how much they vary: p = 1 if they
  are all zero, else no test and no interval;
- two runs that are right on the same images: p = 1;
- NaN values are left out.

The distributions are ``scipy.special``'s. ``scipy.stats`` and statsmodels have whole tests, which
ours equal to rounding, but importing either would make a comparison take half as long again, and
each test more than ten times as long.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from scipy import special

from ssl_bench.errors import require

CONFIDENCE = 0.95
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Mean:
    """The mean of n values, NaN if there are none, and half the width of its 95 % t interval.

    One value, or several equal ones, have no interval.
    """

    n: int
    mean: float
    half_width: float | None

    @property
    def interval(self) -> tuple[float, float]:
        """The ends of the interval; NaN where there is none."""
        half = math.nan if self.half_width is None else self.half_width
        return self.mean - half, self.mean + half


@dataclass(frozen=True)
class Difference:
    """How much higher the first of two is, and whether that could be chance.

    Attributes:
        test: "none" where there are too few values.
        n: pairs of seeds, smaller number of seeds (Welch), or test images (McNemar).
        difference: in the values' unit; for McNemar in percent of the test images.
        interval: 95 %; None where the spread is not known.
        p: two-sided, not corrected; None where there is no test.
        unpaired: values left out of a paired test because the other side lacks their seed.
    """

    test: Literal["paired t", "Welch t", "McNemar", "none"]
    n: int
    difference: float
    interval: tuple[float, float] | None
    p: float | None
    unpaired: int = 0


def mean_interval(values: Iterable[float]) -> Mean:
    """Mean and 95 % t interval."""
    known = [value for value in values if not math.isnan(value)]
    n, mean = len(known), float(np.mean(known)) if known else math.nan
    error = float(np.std(known, ddof=1)) / math.sqrt(n) if n > 1 else 0.0
    has_spread = error > _ROUNDING * abs(mean)
    return Mean(n, mean, _quantile(n - 1) * error if has_spread else None)


def difference(a: Mapping[int, float], b: Mapping[int, float]) -> Difference:
    """Test the difference of two means over seeds.

    Paired by seed, since runs of one seed share their random draws, if at least two seeds are
    shared (the others are then left out); else Welch's test, if both have two values.
    """
    known_a, known_b = (
        {seed: value for seed, value in each.items() if not math.isnan(value)} for each in (a, b)
    )
    seeds = sorted(known_a.keys() & known_b.keys())
    test: Literal["paired t", "Welch t"] = "paired t" if len(seeds) > 1 else "Welch t"
    if test == "paired t":
        known_a, known_b = ({seed: each[seed] for seed in seeds} for each in (known_a, known_b))
    values_a, values_b = (np.array(list(each.values())) for each in (known_a, known_b))
    n = min(len(values_a), len(values_b))
    mean = float(values_a.mean() - values_b.mean()) if n else math.nan
    if n < 2:
        return Difference("none", n, mean, None, None)
    if test == "paired t":
        unpaired, freedom = len(a.keys() ^ b.keys()), n - 1.0
        differences = values_a - values_b
        mean, variance = float(differences.mean()), float(differences.var(ddof=1)) / n
    else:
        unpaired = 0
        variance_a, variance_b = (float(v.var(ddof=1)) / len(v) for v in (values_a, values_b))
        variance = variance_a + variance_b
        # Welch-Satterthwaite.
        spread = variance_a**2 / (len(values_a) - 1) + variance_b**2 / (len(values_b) - 1)
        freedom = variance**2 / spread if spread > 0 else 1.0
    error = math.sqrt(variance)
    rounding = _ROUNDING * float(np.abs(values_a).max() + np.abs(values_b).max())
    interval, p = None, None
    if error > rounding:
        half_width = _quantile(freedom) * error
        interval = (mean - half_width, mean + half_width)
        p = 2.0 * float(special.stdtr(freedom, -abs(mean) / error))
    elif abs(mean) <= rounding:
        mean, interval, p = 0.0, (0.0, 0.0), 1.0
    return Difference(test, n, mean, interval, p, unpaired)


def mcnemar(right_a_N: np.ndarray, right_b_N: np.ndarray) -> Difference:
    """McNemar's exact test of two runs on the same test images.

    The interval is Clopper and Pearson's for the fraction of the discordant images that the first
    has right, given their number: it excludes zero exactly where p < 0.05.

    Args:
        right_a_N, right_b_N: bool ``(N,)``, whether each image is classified correctly.

    Raises:
        UserError: the arrays differ in length, or are empty.
    """
    count = len(right_a_N)
    require(
        count == len(right_b_N) > 0,
        f"predictions for {count} and for {len(right_b_N)} test images cannot be paired",
    )
    only_a = int(np.sum(right_a_N & ~right_b_N))
    only_b = int(np.sum(~right_a_N & right_b_N))
    discordant = only_a + only_b
    unit = 100.0 / count
    gain = (only_a - only_b) * unit
    if not discordant:
        return Difference("McNemar", count, gain, (0.0, 0.0), 1.0)
    p = min(1.0, 2.0 * float(special.bdtr(min(only_a, only_b), discordant, 0.5)))
    tail = (1 - CONFIDENCE) / 2
    low = float(special.betaincinv(only_a, only_b + 1, tail)) if only_a else 0.0
    high = float(special.betaincinv(only_a + 1, only_b, 1 - tail)) if only_b else 1.0
    interval = tuple((2 * fraction - 1) * discordant * unit for fraction in (low, high))
    return Difference("McNemar", count, gain, (interval[0], interval[1]), p)


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Adjust p values so that the probability of any false alarm stays below the level.

    Holm: *A Simple Sequentially Rejective Multiple Test Procedure*, Scand. J. Statist. 6, 1979.
    None stays None, and does not count.
    """
    known = sorted((p, index) for index, p in enumerate(ps) if p is not None)
    adjusted: list[float | None] = [None] * len(ps)
    largest = 0.0
    for rank, (p, index) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - rank)))
        adjusted[index] = largest
    return adjusted


@cache
def _quantile(freedom: float) -> float:
    return float(special.stdtrit(freedom, (1 + CONFIDENCE) / 2))
