"""Intervals and tests against scipy and statsmodels, and what they promise, by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as reference_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestIndPower
from statsmodels.stats.weightstats import DescrStatsW, ttost_ind

from ssl_bench.analysis.comparison import statistics
from ssl_bench.errors import UserError

scores = st.floats(0, 100).map(lambda value: round(value, 2))
many = st.lists(scores, min_size=2, max_size=12)


def by_seed(values: list[float] | np.ndarray, first: int = 0) -> dict[int, float]:
    return {first + seed: float(value) for seed, value in enumerate(values)}


@given(many)
def test_interval_of_a_mean(values: list[float]) -> None:
    ours = statistics.mean_interval(values)
    low, high = DescrStatsW(values).tconfint_mean(alpha=0.05)
    assert (ours.n, ours.mean) == (len(values), pytest.approx(np.mean(values)))
    assert (ours.half_width is None) == (len({*values}) == 1)
    if ours.half_width is not None:
        assert ours.mean - ours.half_width == pytest.approx(low, abs=1e-9)
        assert ours.mean + ours.half_width == pytest.approx(high, abs=1e-9)


def test_a_single_value_has_no_interval() -> None:
    single = statistics.mean_interval([80.0])
    assert single == statistics.Mean(1, 80.0, None)
    assert all(map(math.isnan, single.interval))
    nothing = statistics.mean_interval([])
    assert (nothing.n, nothing.half_width) == (0, None)
    assert math.isnan(nothing.mean)


def test_equal_values_have_no_interval() -> None:
    """Their floating-point mean is off by a rounding, which is no spread."""
    for value in (0.0, 80.1, 1e-9, -3.3):
        assert statistics.mean_interval([value] * 3).half_width is None
    for other in (80.11, 80.10001):
        assert statistics.mean_interval([80.10, other]).half_width is not None


def test_nan_is_left_out() -> None:
    assert statistics.mean_interval([1.0, math.nan]) == statistics.Mean(1, 1.0, None)
    a, b = {0: 1.0, 1: 2.0, 2: 4.0, 3: math.nan}, {0: 0.0, 1: 2.0, 2: 1.0, 3: 9.0}
    ours = statistics.difference(a, b)
    assert (ours.test, ours.n) == ("Welch t", 3)
    del a[3]
    assert ours.p == statistics.difference(a, b).p
    del b[3]
    assert statistics.difference(a, b, "always").test == "paired t"


@given(many, st.data())
def test_paired_t_test(a: list[float], data: st.DataObject) -> None:
    b = data.draw(st.lists(scores, min_size=len(a), max_size=len(a)))
    assume(np.ptp(np.subtract(a, b)) > 1e-6)
    ours = statistics.difference(by_seed(a), by_seed(b), "always")
    reference = stats.ttest_rel(a, b)
    interval = reference.confidence_interval(0.95)
    assert ours.test == "paired t"
    assert ours.p == pytest.approx(reference.pvalue, rel=1e-6, abs=1e-12)
    assert ours.interval == pytest.approx((interval.low, interval.high), rel=1e-6, abs=1e-6)


@pytest.mark.filterwarnings("ignore:Precision loss")
@given(many, many)
def test_welchs_test(a: list[float], b: list[float]) -> None:
    assume(np.ptp(a) > 1e-3 or np.ptp(b) > 1e-3)
    ours = statistics.difference(by_seed(a), by_seed(b), "never")
    reference = stats.ttest_ind(a, b, equal_var=False)
    interval = reference.confidence_interval(0.95)
    assert ours.test == "Welch t"
    assert ours.p == pytest.approx(reference.pvalue, rel=1e-6, abs=1e-12)
    assert ours.interval == pytest.approx((interval.low, interval.high), rel=1e-6, abs=1e-6)


def test_seeds_are_paired_only_where_both_sides_have_the_same() -> None:
    """Else runs would be thrown away, and the difference would not be that of the means shown."""
    a, b = {0: 1.0, 1: 3.0, 2: 4.5}, {1: 1.0, 2: 2.0, 7: 50.0}
    ours = statistics.difference(a, b, "always")
    assert (ours.test, ours.n) == ("Welch t", 3)
    assert ours.difference == pytest.approx(np.mean([*a.values()]) - np.mean([*b.values()]))


def test_pairs_are_of_the_same_seed_in_whatever_order_they_come() -> None:
    a, b = by_seed([1.0, 3.0, 4.5, 2.0, 7.0]), by_seed([0.5, 2.1, 4.0, 1.2, 6.1])
    turned = dict(reversed(b.items()))
    assert statistics.difference(a, turned, "always") == statistics.difference(a, b, "always")


@pytest.mark.parametrize(
    "seeds,shared,expected", [(8, 1.0, "paired t"), (8, 0.0, "Welch t"), (4, 1.0, "Welch t")]
)
def test_pairs_have_to_show_a_correlation(seeds: int, shared: float, expected: str) -> None:
    generator = np.random.default_rng(3)
    common = generator.normal(0, 1, seeds)
    a, b = (by_seed(80 + shared * common + generator.normal(0, 0.1, seeds)) for _ in range(2))
    assert statistics.difference(a, b).test == expected
    assert statistics.difference(a, b, "never").test == "Welch t"
    flipped = {seed: -value for seed, value in b.items()}
    assert statistics.difference(a, flipped).test == "Welch t", "a negative one is none"


@pytest.mark.parametrize("seeds,noise", [(4, 0.2), (5, 0.2), (6, 0.2), (9, 0.5)])
def test_a_correlation_is_shown_where_scipy_has_it_below_one_in_a_thousand(
    seeds: int, noise: float
) -> None:
    generator = np.random.default_rng(seeds)
    paired = 0
    for _ in range(150):
        common = generator.normal(0, 1, seeds)
        a, b = (common + generator.normal(0, noise, seeds) for _ in range(2))
        shows = seeds >= 5 and stats.pearsonr(a, b, alternative="greater").pvalue < 0.001
        found = statistics.difference(by_seed(a), by_seed(b)).test
        assert found == ("paired t" if shows else "Welch t")
        paired += shows
    assert seeds == 4 or 20 < paired < 130


@pytest.mark.parametrize(
    "a", [[1.0, 2.0, 4.0, 8.0, 16.0], [0.0, 1.0, 0.0, 1.0, 0.0], [80.0] * 5], ids=str
)
def test_scores_that_are_opposite_or_constant_do_not_rise_together(a: list[float]) -> None:
    b = [90 - value for value in a]
    assert statistics.difference(by_seed(a), by_seed(b)).test == "Welch t"
    rising = by_seed([1.0, 2.0, 3.0, 4.0, 5.0])
    assert statistics.difference(rising, by_seed([80.0] * 5)).test == "Welch t"
    assert statistics.difference(rising, rising).test == "paired t"


@given(many, many, st.floats(0.001, 0.9))
def test_an_interval_leaves_out_zero_where_p_is_below_its_level(
    a: list[float], b: list[float], level: float
) -> None:
    ours = statistics.difference(by_seed(a), by_seed(b))
    interval = ours.interval_at(level)
    assume(ours.error is not None and ours.p is not None and abs(ours.p - level) > 1e-6)
    assert interval is not None and ours.p is not None
    low, high = interval
    assert (low > 0 or high < 0) == (ours.p < level)
    assert (low + high) / 2 == pytest.approx(ours.difference, abs=1e-6)
    assert ours.interval_at(0.05) == pytest.approx(ours.interval)


@given(many, many, st.floats(0.01, 5))
def test_equivalence_against_statsmodels(a: list[float], b: list[float], margin: float) -> None:
    assume(np.ptp(a) > 1e-3 or np.ptp(b) > 1e-3)
    reference = ttost_ind(a, b, -margin, margin, usevar="unequal")[0]
    ours = statistics.difference(by_seed(a), by_seed(b, first=100)).p_within(margin)
    assert ours == pytest.approx(reference, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("lead,spread", [(1.0, 0.3), (1.0, 0.8), (0.5, 1.0), (2.0, 0.9)])
def test_seeds_needed_against_statsmodels(lead: float, spread: float) -> None:
    found = TTestIndPower().solve_power(lead / spread, alpha=0.05, power=0.8)
    assert statistics.seeds_needed(lead, spread) == max(2, math.ceil(found))
    found = TTestIndPower().solve_power(lead / spread, alpha=0.05, power=0.95)
    assert statistics.seeds_needed(lead, spread, rivals=4) == max(2, math.ceil(found))


@pytest.mark.parametrize("effect", [25, 1e5, 1e9])
def test_a_lead_far_beyond_the_spread_is_shown_by_two_seeds(effect: float) -> None:
    assert statistics.seeds_needed(effect, 1.0) == 2


def test_a_power_so_near_to_one_that_scipy_has_none_is_one() -> None:
    """Of 500 seeds, which are tried on the way, at some of these leads."""
    expected = math.ceil(TTestIndPower().solve_power(2.43, alpha=0.05, power=0.8))
    for lead in np.linspace(2.41, 2.45, 40):
        assert statistics.seeds_needed(float(lead), 1.0) == expected


def test_a_lead_that_no_number_of_seeds_shows() -> None:
    assert statistics.seeds_needed(0.01, 5.0) is None


def test_intervals_over_seeds_and_images_cover_the_true_mean() -> None:
    """Images differ in difficulty, seeds in skill: new ones of both are within it in 95 %."""
    generator = np.random.default_rng(0)
    covered = alone = 0
    for _ in range(600):
        skill, ease = generator.normal(0, 0.04, 5), generator.normal(0, 0.2, 400)
        chance = np.clip(0.7 + skill[:, None] + ease, 0, 1)
        right_SN = generator.random((5, 400)) < chance
        both = statistics.mean_over_seeds_and_images(right_SN)
        seeds = statistics.mean_interval(100 * right_SN.mean(axis=1))
        assert both.mean == pytest.approx(seeds.mean) and both.n == 5
        low, high = both.interval
        covered += low <= 69.54 <= high  # the mean of the clipped chances
        low, high = seeds.interval
        alone += low <= 69.54 <= high
    assert 0.92 < covered / 600 < 0.99
    assert alone < covered


@pytest.mark.parametrize("images_differ", [True, False])
def test_variances_of_seeds_and_images_are_those_of_a_crossed_layout(images_differ: bool) -> None:
    """Mean squares summed number by number; seeds + images - rest, freedom by Satterthwaite.

    Images that differ less than by chance, each right for two seeds, take nothing from the seeds.
    """
    generator = np.random.default_rng(1)
    skill, ease = np.array([[0.2], [0.5], [0.7], [0.9]]), generator.uniform(-0.3, 0.3, 30)
    luck = generator.random((4, 30)) - skill
    right = luck < ease if images_differ else luck.argsort(axis=0).argsort(axis=0) < 2
    seeds, images, mean = 4, 30, 100 * right.mean()
    by_seeds, by_images = 100 * right.mean(axis=1), 100 * right.mean(axis=0)
    square_s = images * sum((each - mean) ** 2 for each in by_seeds) / (seeds - 1)
    square_i = seeds * sum((each - mean) ** 2 for each in by_images) / (images - 1)
    rest = sum(
        (100 * right[s, i] - by_seeds[s] - by_images[i] + mean) ** 2
        for s in range(seeds)
        for i in range(images)
    )
    square_r = rest / ((seeds - 1) * (images - 1))
    total = square_s + square_i - square_r if images_differ else square_s
    assert square_r < min(square_s, square_i) or not images_differ
    parts = (
        (square_s, seeds - 1), (square_i, images - 1), (square_r, (seeds - 1) * (images - 1))
    )  # fmt: skip
    freedom = total**2 / sum(square**2 / free for square, free in parts)
    expected = stats.t.ppf(0.975, freedom) * math.sqrt(total / (seeds * images))
    assert statistics.mean_over_seeds_and_images(right).half_width == pytest.approx(expected)


def test_of_one_run_the_images_alone_are_counted() -> None:
    right_SN = (np.arange(1000) < 800)[None]
    ours = statistics.mean_over_seeds_and_images(right_SN)
    assert (ours.n, ours.mean) == (1, 80.0)
    assert ours.half_width == pytest.approx(1.96 * 100 * math.sqrt(0.16 / 1000), rel=0.01)
    assert statistics.mean_over_seeds_and_images(np.ones((2, 9), bool)).half_width is None
    one_image = statistics.mean_over_seeds_and_images(np.array([[True], [False]]))
    assert one_image == statistics.Mean(2, 50.0, None)


@pytest.mark.parametrize("a,b", [([1.0], [2.0]), ([1.0], [2.0, 3.0]), ([], [1.0, 2.0])])
def test_too_few_values_are_not_tested(a: list[float], b: list[float]) -> None:
    ours = statistics.difference(by_seed(a), by_seed(b))
    assert (ours.test, ours.interval, ours.p) == ("none", None, None)


def test_no_spread_is_no_evidence() -> None:
    same = statistics.difference(by_seed([80.0, 81.0]), by_seed([80.0, 81.0]), "always")
    assert (same.p, same.interval, same.interval_at(0.01)) == (1.0, (0.0, 0.0), (0.0, 0.0))
    nothing = statistics.difference(by_seed([0.0, 0.0]), by_seed([0.0, 0.0]))
    assert (nothing.p, nothing.interval) == (1.0, (0.0, 0.0))
    for lower in ([80.0, 81.0, 82.0], [-0.1, 0.0, 82.0]):
        higher = [value + 0.1 for value in lower]
        shifted = statistics.difference(by_seed(higher), by_seed(lower), "always")
        assert shifted.difference == pytest.approx(0.1)
        assert (shifted.p, shifted.interval) == (None, None)
    apart = statistics.difference(by_seed([80.0, 80.0]), by_seed([81.0, 81.0], first=5))
    assert (apart.test, apart.p) == ("Welch t", None)


@given(st.integers(0, 60), st.integers(0, 60), st.integers(1, 50), st.integers(0, 20))
def test_mcnemar(only_a: int, only_b: int, both: int, neither: int) -> None:
    counts = [only_a, only_b, both, neither]
    right_a = np.repeat([True, False, True, False], counts)
    right_b = np.repeat([False, True, True, False], counts)
    ours = statistics.mcnemar(right_a, right_b)
    reference = reference_mcnemar([[both, only_a], [only_b, neither]], exact=True)
    assert ours.n == sum(counts)
    assert ours.p == pytest.approx(min(1.0, reference.pvalue))
    assert ours.difference == pytest.approx(100 * (right_a.mean() - right_b.mean()))
    assert ours.interval is not None and ours.p is not None
    low, high = ours.interval
    assert low - 1e-9 <= ours.difference <= high + 1e-9
    if only_a + only_b:
        share = stats.binomtest(only_a, only_a + only_b).proportion_ci(0.95, method="exact")
        unit = 100 * (only_a + only_b) / len(right_a)
        assert low == pytest.approx((2 * share.low - 1) * unit, abs=1e-9)
        assert high == pytest.approx((2 * share.high - 1) * unit, abs=1e-9)
        assert (ours.p < 0.05) == (not low <= 0 <= high)


def test_mcnemar_without_discordant_images() -> None:
    right = np.array([True, False, True])
    assert statistics.mcnemar(right, right).p == 1.0
    with pytest.raises(UserError, match="3 and for 2 test images"):
        statistics.mcnemar(right, right[:2])
    with pytest.raises(UserError, match="0 and for 0 test images"):
        statistics.mcnemar(right[:0], right[:0])


@pytest.mark.parametrize("count", [1, 2, 5, 40])
def test_holm(count: int) -> None:
    ps = (np.random.default_rng(count).random(count) ** 4).round(2)
    assert statistics.holm(list(ps)) == pytest.approx(multipletests(ps, method="holm")[1])


def test_holm_does_not_count_what_was_not_tested() -> None:
    assert statistics.holm([0.01, None, 0.04]) == [0.02, None, 0.04]
    assert statistics.holm([]) == []


def test_mcnemars_false_alarms_and_power() -> None:
    generator = np.random.default_rng(0)

    def significant(accuracy_a: float, accuracy_b: float) -> float:
        right = generator.random((1000, 2, 500)) < np.array([[accuracy_a], [accuracy_b]])
        ps = [statistics.mcnemar(a, b).p for a, b in right]
        return float(np.mean([p is not None and p < 0.05 for p in ps]))

    assert significant(0.8, 0.8) < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 1000)
    assert significant(0.9, 0.7) > 0.99
