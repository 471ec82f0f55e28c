"""Intervals, tests of a difference, and correction for many tests.

Seeds are the unit: a score's spread over seeds is what another run of the same settings would show.
The test images can be counted beside them (`mean_over_seeds_and_images`), since another test split
would give other scores, too.

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
LEVEL = 0.05
Pairing = Literal["auto", "always", "never"]
_ROUNDING = 1e-12
_FEWEST_PAIRS = 5
"""Shared seeds from which on their correlation may be looked at."""
_PAIRED_FROM = 0.001
"""A correlation as clear as this pairs seeds. At 0.05, of the many pairs of a column some would be
paired by chance, and then be called different, so that false alarms would exceed the level."""


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
        difference: of the two means, in the values' unit; for McNemar in percent of the images.
        interval: 95 %; None where the spread is not known.
        p: two-sided, not corrected; None where there is no test.
        error: standard error of the difference over seeds; None where the spread is not known.
        freedom: degrees of freedom of the t distribution.
    """

    test: Literal["paired t", "Welch t", "McNemar", "none"]
    n: int
    difference: float
    interval: tuple[float, float] | None = None
    p: float | None = None
    error: float | None = None
    freedom: float = 1.0

    def interval_at(self, level: float) -> tuple[float, float] | None:
        """The interval over seeds that leaves out zero exactly where p is below the level."""
        if self.error is None:
            return self.interval
        half_width = _quantile(self.freedom, level) * self.error
        return self.difference - half_width, self.difference + half_width

    def p_within(self, margin: float) -> float | None:
        """The p value of the two one-sided tests that show a difference below the margin.

        Schuirmann: *A Comparison of the Two One-Sided Tests Procedure and the Power Approach*,
        J. Pharmacokinet. Biopharm. 15, 1987. None where the spread is not known.
        """
        if self.error is None:
            return None
        return float(special.stdtr(self.freedom, (abs(self.difference) - margin) / self.error))


def mean_interval(values: Iterable[float]) -> Mean:
    """Mean and 95 % t interval."""
    known = [value for value in values if not math.isnan(value)]
    n, mean = len(known), float(np.mean(known)) if known else math.nan
    error = float(np.std(known, ddof=1)) / math.sqrt(n) if n > 1 else 0.0
    has_spread = error > _ROUNDING * abs(mean)
    return Mean(n, mean, _quantile(n - 1) * error if has_spread else None)


def mean_over_seeds_and_images(right_SN: np.ndarray) -> Mean:
    """Mean accuracy, and half of the interval that other seeds and other test images would give.

    Variances of seeds, images and what is left add up; they are estimated from the mean squares of
    a crossed layout without repetitions, the degrees of freedom after Satterthwaite. Of one run,
    the spread over images alone is known.

    Args:
        right_SN: bool ``(S, N)``, whether each seed's run is right on each image.

    Returns:
        The mean in percent; ``n`` is the number of seeds.
    """
    right_SN = 100.0 * np.asarray(right_SN)
    seeds, images = right_SN.shape
    mean, mean_S, mean_N = float(right_SN.mean()), right_SN.mean(axis=1), right_SN.mean(axis=0)
    if images < 2:
        return Mean(seeds, mean, None)
    of_images = seeds * float(mean_N.var(ddof=1))
    squares, freedoms = [of_images], [images - 1.0]
    if seeds > 1:
        of_seeds = images * float(mean_S.var(ddof=1))
        rest = right_SN - mean_S[:, None] - mean_N + mean
        free = (seeds - 1.0) * (images - 1.0)
        squares += [of_seeds, -float((rest**2).sum()) / free]
        freedoms += [seeds - 1.0, free]
    total = max(sum(squares), max(squares))
    if total <= _ROUNDING * abs(mean):
        return Mean(seeds, mean, None)
    freedom = total**2 / sum(each**2 / free for each, free in zip(squares, freedoms, strict=True))
    return Mean(seeds, mean, _quantile(freedom) * math.sqrt(total / (seeds * images)))


def difference(
    a: Mapping[int, float], b: Mapping[int, float], pairing: Pairing = "auto"
) -> Difference:
    """Test the difference of two means over seeds, by Welch's test.

    Runs of one seed share random draws, which rarely makes their scores alike, and a paired test
    has half of the degrees of freedom. So seeds are paired only where both sides have the same
    ones, and on request ("always") or where at least five show a correlation (p < 0.001, "auto").
    """
    known_a, known_b = (
        {seed: value for seed, value in each.items() if not math.isnan(value)} for each in (a, b)
    )
    seeds = sorted(known_a)
    values_a, values_b = (np.array([each[s] for s in sorted(each)]) for each in (known_a, known_b))
    n = min(len(values_a), len(values_b))
    mean = float(values_a.mean() - values_b.mean()) if n else math.nan
    if n < 2:
        return Difference("none", n, mean)
    test: Literal["paired t", "Welch t"] = "Welch t"
    if seeds == sorted(known_b) and pairing != "never":
        test = "paired t" if pairing == "always" or _correlate(values_a, values_b) else test
    if test == "paired t":
        freedom = n - 1.0
        variance = float((values_a - values_b).var(ddof=1)) / n
    else:
        variance_a, variance_b = (float(v.var(ddof=1)) / len(v) for v in (values_a, values_b))
        variance = variance_a + variance_b
        # Welch-Satterthwaite.
        spread = variance_a**2 / (len(values_a) - 1) + variance_b**2 / (len(values_b) - 1)
        freedom = variance**2 / spread if spread > 0 else 1.0
    error = math.sqrt(variance)
    rounding = _ROUNDING * float(np.abs(values_a).max() + np.abs(values_b).max())
    if error > rounding:
        half_width = _quantile(freedom) * error
        p = 2.0 * float(special.stdtr(freedom, -abs(mean) / error))
        return Difference(test, n, mean, (mean - half_width, mean + half_width), p, error, freedom)
    if abs(mean) <= rounding:
        return Difference(test, n, 0.0, (0.0, 0.0), 1.0)
    return Difference(test, n, mean)


def _correlate(values_a: np.ndarray, values_b: np.ndarray) -> bool:
    """Whether enough pairs of values rise together, by a one-sided test."""
    n = len(values_a)
    if n < _FEWEST_PAIRS or min(np.ptp(values_a), np.ptp(values_b)) == 0:
        return False
    r = float(np.corrcoef(values_a, values_b)[0, 1])
    if abs(r) >= 1:
        return r > 0
    return float(special.stdtr(n - 2, -r * math.sqrt((n - 2) / (1 - r * r)))) < _PAIRED_FROM


def seeds_needed(lead: float, spread: float, rivals: int = 1, power: float = 0.8) -> int | None:
    """Seeds on each side that show a lead over each of some rivals, by t tests at the level.

    Every one of the tests has to succeed; by Bonferroni's bound, that happens at least with this
    probability where each fails so many times more rarely.

    Args:
        lead: the true difference, in the unit of the scores, above 0.
        spread: standard deviation over seeds, above 0.

    Returns:
        At least 2; None where a thousand would not do.
    """
    power = 1 - (1 - power) / rivals
    low, high = 1, 1000
    if not _power(lead / spread, high) >= power:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _power(lead / spread, middle) >= power else (middle, high)
    return high


def _power(effect: float, seeds: int) -> float:
    """Probability that a t test shows a difference of so many standard deviations."""
    freedom = 2.0 * seeds - 2
    shift = min(effect * math.sqrt(seeds / 2), 1e3)
    found = 1 - float(special.nctdtr(freedom, shift, _quantile(freedom)))
    return found if found == found else 1.0  # NaN so far out in the tail


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
def _quantile(freedom: float, level: float = LEVEL) -> float:
    """The value that t exceeds, in either direction, in that share of cases."""
    return -float(special.stdtrit(freedom, level / 2))
