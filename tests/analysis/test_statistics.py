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
from statsmodels.stats.weightstats import DescrStatsW

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
    assert statistics.mean_interval([80.0]) == statistics.Mean(1, 80.0, None)
    nothing = statistics.mean_interval([])
    assert (nothing.n, nothing.half_width) == (0, None)
    assert math.isnan(nothing.mean)


def test_equal_values_have_no_interval() -> None:
    """Their floating-point mean is off by a rounding, which is no spread."""
    for value in (0.0, 80.1, 1e-9, -3.3):
        assert statistics.mean_interval([value] * 3).half_width is None
    assert statistics.mean_interval([80.10, 80.11]).half_width is not None


def test_seeds_without_a_partner_are_counted() -> None:
    ours = statistics.difference({0: 1.0, 1: 2.0, 2: 4.0}, {1: 5.0, 2: 6.5, 8: 1.0})
    assert (ours.test, ours.n, ours.unpaired) == ("paired t", 2, 2)
    assert statistics.difference({0: 1.0, 1: 2.0}, {1: 5.0, 2: 6.0}).unpaired == 0, "Welch"


def test_nan_is_left_out() -> None:
    assert statistics.mean_interval([1.0, math.nan]) == statistics.Mean(1, 1.0, None)
    a, b = {0: 1.0, 1: 2.0, 2: 4.0, 3: math.nan}, {0: 0.0, 1: 2.0, 2: 1.0, 3: 9.0}
    ours = statistics.difference(a, b)
    assert (ours.test, ours.n) == ("paired t", 3)
    del a[3], b[3]
    assert ours.p == statistics.difference(a, b).p


@given(many, st.data())
def test_paired_t_test(a: list[float], data: st.DataObject) -> None:
    b = data.draw(st.lists(scores, min_size=len(a), max_size=len(a)))
    assume(np.ptp(np.subtract(a, b)) > 1e-6)
    ours = statistics.difference(by_seed(a), by_seed(b))
    reference = stats.ttest_rel(a, b)
    interval = reference.confidence_interval(0.95)
    assert ours.test == "paired t"
    assert ours.p == pytest.approx(reference.pvalue, rel=1e-6, abs=1e-12)
    assert ours.interval == pytest.approx((interval.low, interval.high), rel=1e-6, abs=1e-6)


@pytest.mark.filterwarnings("ignore:Precision loss")
@given(many, many)
def test_groups_without_common_seeds_get_welchs_test(a: list[float], b: list[float]) -> None:
    assume(np.ptp(a) > 1e-3 or np.ptp(b) > 1e-3)
    ours = statistics.difference(by_seed(a), by_seed(b, first=100))
    reference = stats.ttest_ind(a, b, equal_var=False)
    interval = reference.confidence_interval(0.95)
    assert ours.test == "Welch t"
    assert ours.p == pytest.approx(reference.pvalue, rel=1e-6, abs=1e-12)
    assert ours.interval == pytest.approx((interval.low, interval.high), rel=1e-6, abs=1e-6)


def test_only_shared_seeds_are_paired() -> None:
    a, b = {0: 1.0, 1: 3.0, 2: 4.5}, {1: 1.0, 2: 2.0, 7: 50.0}
    ours = statistics.difference(a, b)
    assert (ours.test, ours.n, ours.difference) == ("paired t", 2, 2.25)


@pytest.mark.parametrize("a,b", [([1.0], [2.0]), ([1.0], [2.0, 3.0]), ([], [1.0, 2.0])])
def test_too_few_values_are_not_tested(a: list[float], b: list[float]) -> None:
    ours = statistics.difference(by_seed(a), by_seed(b))
    assert (ours.test, ours.interval, ours.p) == ("none", None, None)


def test_no_spread_is_no_evidence() -> None:
    same = statistics.difference(by_seed([80.0, 81.0]), by_seed([80.0, 81.0]))
    assert (same.p, same.interval) == (1.0, (0.0, 0.0))
    shifted = statistics.difference(by_seed([80.1, 81.1, 82.1]), by_seed([80.0, 81.0, 82.0]))
    assert shifted.difference == pytest.approx(0.1)
    assert (shifted.p, shifted.interval) == (None, None)
    apart = statistics.difference(by_seed([80.0, 80.0]), by_seed([81.0, 81.0], first=5))
    assert (apart.test, apart.p) == ("Welch t", None)


@given(st.integers(0, 60), st.integers(0, 60), st.integers(1, 50))
def test_mcnemar(only_a: int, only_b: int, both: int) -> None:
    right_a = np.repeat([True, False, True], [only_a, only_b, both])
    right_b = np.repeat([False, True, True], [only_a, only_b, both])
    ours = statistics.mcnemar(right_a, right_b)
    reference = reference_mcnemar([[both, only_a], [only_b, 0]], exact=True)
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


@pytest.mark.parametrize("count", [1, 2, 5, 40])
def test_holm(count: int) -> None:
    ps = (np.random.default_rng(count).random(count) ** 4).round(2)
    assert statistics.holm(list(ps)) == pytest.approx(multipletests(ps, method="holm")[1])


def test_holm_does_not_count_what_was_not_tested() -> None:
    assert statistics.holm([0.01, None, 0.04]) == [0.02, None, 0.04]
    assert statistics.holm([]) == []


def false_alarms(gains: list[float], seeds: int, tables: int = 2000) -> tuple[float, float]:
    """Groups whose true means are apart by the gains, all pairs of them in a table.

    Returns:
        Share of the tables with a false alarm, and of the true differences that are found.
    """
    generator = np.random.default_rng(0)
    pairs = [(i, j) for i in range(len(gains)) for j in range(i)]
    alarms, found, true = 0, 0, 0
    for _ in range(tables):
        shared = generator.normal(0, 1, seeds)  # what a seed does to all methods alike
        values = [by_seed(80 + gain + shared + generator.normal(0, 0.3, seeds)) for gain in gains]
        ps = [statistics.difference(values[i], values[j]).p for i, j in pairs]
        verdicts = [p is not None and p < 0.05 for p in statistics.holm(ps)]
        is_true = [gains[i] != gains[j] for i, j in pairs]
        alarms += any(v and not t for v, t in zip(verdicts, is_true, strict=True))
        found += sum(v and t for v, t in zip(verdicts, is_true, strict=True))
        true += sum(is_true)
    return alarms / tables, found / max(true, 1)


@pytest.mark.parametrize("gains", [[0.0] * 2, [0.0] * 4, [0.0, 0.0, 0.0, 5.0]])
@pytest.mark.parametrize("seeds", [3, 5])
def test_false_alarms_in_a_table_stay_at_five_percent(gains: list[float], seeds: int) -> None:
    alarms, _ = false_alarms(gains, seeds)
    error = math.sqrt(0.05 * 0.95 / 2000)
    assert alarms < 0.05 + 3 * error
    if len(gains) == 2:
        assert alarms > 0.05 - 3 * error


def test_large_differences_are_found() -> None:
    _, found = false_alarms([0.0, 2.0, 4.0], seeds=5, tables=300)
    assert found > 0.95


def test_mcnemars_false_alarms_and_power() -> None:
    generator = np.random.default_rng(0)

    def significant(accuracy_a: float, accuracy_b: float) -> float:
        right = generator.random((1000, 2, 500)) < np.array([[accuracy_a], [accuracy_b]])
        ps = [statistics.mcnemar(a, b).p for a, b in right]
        return float(np.mean([p is not None and p < 0.05 for p in ps]))

    assert significant(0.8, 0.8) < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 1000)
    assert significant(0.9, 0.7) > 0.99
