"""Which differences are decided, and who is called the best."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comparisons import NOISE, Results, beside, marks, shown, source_of
from hypothesis import example, given
from hypothesis import strategies as st
from statsmodels.stats.weightstats import CompareMeans, DescrStatsW

from ssl_bench.analysis import marks as rendering
from ssl_bench.analysis import tables
from ssl_bench.analysis.comparison import pairs, score_tables, statistics
from ssl_bench.analysis.comparison.grouping import Column, Score
from ssl_bench.analysis.report.tables import pair_tables
from ssl_bench.config.command_settings import VerdictSettings
from ssl_bench.errors import UserError
from ssl_bench.utils import arrays


@pytest.fixture
def results() -> Results:
    return Results()


def as_they_are(results: Results) -> None:
    """Leave the accuracies as they are."""


def as_errors(results: Results) -> None:
    """Turn every accuracy into the error that it leaves: the same, but lower is better."""
    for row in results.scores:
        if row["better"] == "higher":
            row |= {"value": 100 - row["value"], "better": "lower", "unit": "error (%)"}


def test_a_clear_winner_is_best(results: Results) -> None:
    results.seeds("good", 90 + NOISE[:5])
    results.seeds("fair", 80 + NOISE[5:10])
    results.seeds("poor", 70 + NOISE[10:15])
    table = results.table()
    assert marks(table) == {"good": "best", "fair": "", "poor": ""}
    assert all(pair.better and pair.test == "Welch t, 5 seeds or more" for pair in table.pairs)
    by_labels = {(table.label(p.a), table.label(p.b)): p for p in table.pairs}
    assert by_labels["fair", "good"].difference.difference == pytest.approx(-10, abs=0.3)
    assert "*" in shown(results.compare())


def test_a_collapsed_seed_counts_on_its_side_alone(results: Results) -> None:
    """The difference shown is that of the means shown, also where the other side lacks a seed."""
    results.seeds("a", [80.0, 80.01, 80.02, 10.0])
    results.seeds("b", [79.0, 79.01, 79.03])
    table = results.table(settings=VerdictSettings(pairing="always"))
    [pair] = table.pairs
    means = {g.label: table.cells[g.key, "knn/p0/top1"].mean.mean for g in table.groups}
    assert pair.difference.difference == pytest.approx(means["a"] - means["b"])
    assert (pair.verdict, pair.better) == ("undecided", None)
    assert marks(table) == {"a": "undecided", "b": "undecided"}


@pytest.mark.parametrize(
    ("pairing", "test"), [("always", "paired t, 5 seeds"), ("never", "Welch t, 5 seeds or more")]
)
def test_seeds_are_paired_as_is_asked_for(results: Results, pairing: Any, test: str) -> None:
    """Whatever their correlation: there is none in the first case, and a clear one else."""
    second = NOISE[5:10] if pairing == "always" else NOISE[:5] + 0.01 * NOISE[5:10]
    results.seeds("a", 80 + NOISE[:5])
    results.seeds("b", 79 + second)
    [pair] = results.table(settings=VerdictSettings(pairing=pairing)).pairs
    assert pair.test == test


def test_that_single_runs_have_no_mark_is_said_where_there_are_some(results: Results) -> None:
    for method in "ab":
        runs = results.seeds(method, [80.0, 80.5])
        for row in results.scores:
            row["baselines"] = beside(raw_pixels=45.0) if row["run"] == runs[0] else None
    told = "single runs have no mark: other seeds may differ"
    assert told not in rendering.legend(results.table())
    results.seeds("c", [70.0])
    table = results.table()
    assert told in rendering.legend(table) and "Holm" in rendering.corrected(table)


def test_each_column_has_a_best_of_its_own(results: Results) -> None:
    for method, knn, linear in (("a", 90.0, 70.0), ("b", 80.0, 75.0), ("c", 70.0, 75.0)):
        for seed in range(4):
            run = results.run(method, seed)
            noise = NOISE[seed + 4 * ord(method) % 90]
            results.score(run, knn + noise)
            results.score(run, linear + 9 * noise, eval="linear")
    table = results.table()
    found = {
        column.title: [table.cells[group.key, column.key].mark for group in table.groups]
        for column in table.columns
    }
    assert found == {"knn": ["best", "", ""], "linear": ["", "undecided", "undecided"]}


def test_few_shared_seeds_do_not_throw_the_others_away(results: Results) -> None:
    for method, center, first in (("a", 80.0, 0), ("b", 81.0, 8)):
        for seed in range(first, first + 10):
            results.score(results.run(method, seed), center + NOISE[seed + first])
    [pair] = results.table().pairs
    assert (pair.test, pair.verdict) == ("Welch t, 10 seeds or more", "worse")


@pytest.mark.parametrize("turned", [as_they_are, as_errors])
def test_a_diverged_method_is_not_the_best(
    results: Results, turned: Callable[[Results], None]
) -> None:
    """Its other seeds would win; and nobody is the best in its place where it leads."""
    results.seeds("a", [90.0, 90.1, float("nan")])
    results.seeds("b", [80.0, 80.1, 80.2])
    turned(results)
    table = results.table()
    [pair] = table.pairs
    assert (pair.verdict, pair.better, pair.interval) == ("not tested", None, None)
    assert any("a has a run that diverged" in note for note in table.notes)
    assert marks(table) == {"a": "", "b": ""}
    results.seeds("c", [95.0, 95.1, 95.2])
    turned(results)
    assert marks(results.table()) == {"a": "", "b": "", "c": "best"}


def test_a_method_without_any_score_takes_no_mark_from_the_others(results: Results) -> None:
    results.seeds("a", [90.0, 90.1, 90.2])
    results.seeds("b", [float("nan")] * 3)
    results.seeds("c", [80.0, 80.1, 80.2])
    assert marks(results.table()) == {"a": "best", "b": "", "c": ""}


@pytest.mark.parametrize("turned", [as_they_are, as_errors])
def test_other_methods_do_not_change_the_interval_of_a_lead(
    results: Results, turned: Callable[[Results], None]
) -> None:
    """Of a group that is better than all others, each difference has the test of its own."""
    results.seeds("a", [90.0, 90.3, 90.5])
    results.seeds("b", [80.0, 80.2, 80.6])
    turned(results)
    [alone] = results.table().pairs
    results.seeds("c", [60.0, 68.0, 75.0])
    turned(results)
    table = results.table()
    assert marks(table)["a"] == "best"
    [lead] = [p for p in table.pairs if {table.label(p.a), table.label(p.b)} == {"a", "b"}]
    assert alone.interval == lead.interval == lead.difference.interval
    assert (lead.level, alone.level) == pytest.approx((0.05, 0.05))


def test_scores_without_variance_are_not_tested(results: Results) -> None:
    results.seeds("a", [80.0] * 3)
    results.seeds("b", [79.0] * 3)
    table = results.table()
    assert [pair.verdict for pair in table.pairs] == ["not tested"]
    assert marks(table) == {"a": "", "b": ""}
    results.seeds("c", [90.0, 90.1, 90.2])
    assert marks(results.table()) == {"a": "", "b": "", "c": "best"}


def test_a_single_run_keeps_the_others_from_being_best(results: Results) -> None:
    results.seeds("a", [90.0, 90.1, 90.2])
    results.seeds("b", [80.0])
    table = results.table()
    assert marks(table) == {"a": "", "b": ""}
    assert "other seeds may differ" in " ".join(shown(results.compare()).split())


def test_equivalent_is_said_of_what_is_within_the_margin(results: Results) -> None:
    results.seeds("a", [80.0, 80.1, 80.2, 79.9, 79.8])
    results.seeds("b", [80.1, 80.0, 79.9, 80.2, 79.9])
    for margin, verdict in ((0.5, "equivalent"), (0.05, "undecided")):
        table = results.table(settings=VerdictSettings(margin=margin))
        assert [pair.verdict for pair in table.pairs] == [verdict]
        assert marks(table) == {"a": verdict, "b": verdict}
    assert "≈" in shown(results.compare())


def test_what_is_equivalent_to_the_best_mean_has_nothing_undecided_between() -> None:
    best, noisy = [80.05, 80.0, 80.03, 79.97], [78.0, 81.9, 79.8, 80.25]
    alike = [80.05, 79.85, 79.95, 80.0]
    verdicts = {(p.a, p.b): p.verdict for p in decided({"a": best, "b": alike})}
    assert verdicts["a", "b"] == "equivalent"
    found = decided({"a": best, "b": noisy, "c": alike})
    assert [p.verdict for p in found if p.a == "a"] == ["undecided", "undecided"]


def test_the_best_mean_is_an_equal_only_of_equals() -> None:
    """One that it is not decided against leaves it undecided, whatever else is as good."""
    values = {"a": [80.05, 80.0, 80.03, 79.97], "b": [80.04, 79.99, 80.02, 79.96]}
    noisy = [76.0, 80.9, 79.8, 80.25]

    def marked(values: Mapping[str, list[float]]) -> Mapping[str, str]:
        means = {key: float(np.mean(scores)) for key, scores in values.items()}
        return pairs.marks(COLUMN, means, decided(values))

    assert marked(values) == {"a": "equivalent", "b": "equivalent"}
    assert marked(values | {"c": noisy}) == {"a": "undecided", "b": "equivalent", "c": "undecided"}


def test_a_group_with_a_run_that_diverged_is_no_equal() -> None:
    best, close = [80.05, 80.0, 80.03, 79.97], [80.04, 79.99, 80.02, 79.96]
    for values, verdict in ((close, "equivalent"), ([*close, math.nan], "undecided")):
        [pair] = decided({"a": best, "b": values})
        assert pair.verdict == verdict


def test_an_equivalent_pair_has_the_interval_of_its_two_one_sided_tests() -> None:
    """A 90 % interval within the margin, where one pair is all there is."""
    first, second = [80.0, 80.27, 79.73], [80.1, 80.25, 79.95]
    [pair] = decided({"a": first, "b": second}, margin=0.52)
    expected = CompareMeans(DescrStatsW(first), DescrStatsW(second)).tconfint_diff(
        alpha=0.1, usevar="unequal"
    )
    assert pair.verdict == "equivalent"
    assert pair.interval == pytest.approx(expected) and -0.52 < expected[0] < -0.4


def test_of_several_equivalent_pairs_intervals_are_wider_and_within_the_margin() -> None:
    """Each at the level that Holm's correction leaves its own two tests."""
    alike = {"a": [80.0, 80.2, 79.8], "b": [80.1, 80.2, 79.9], "c": [80.0, 80.1, 79.8]}
    found = decided(alike, margin=1.0)
    assert [pair.verdict for pair in found] == ["equivalent"] * 3
    for pair in found:
        usual = pair.difference.interval_at(0.1)
        assert pair.interval is not None and usual is not None
        assert -1 < pair.interval[0] <= usual[0] < usual[1] <= pair.interval[1] < 1
    assert sum(pair.level < 0.06 for pair in found) >= 2, "one is at the whole level"


@pytest.mark.parametrize("last", [[50.0], [81.05]])
def test_a_group_that_is_not_tested_changes_no_verdict_of_the_others(last: list[float]) -> None:
    """It takes the mark of the best one, which might be worse than it, and nothing else."""
    three = {"a": [81.1, 81.4, 80.8], "b": [80.0, 80.5, 79.5], "c": [79.9, 80.4, 79.6]}

    def of_the_best(found: Iterable[pairs.Pair]) -> dict[str, tuple[str, object]]:
        return {p.b: (p.verdict, p.interval) for p in found if p.a == "a" and p.b in "bc"}

    alone, with_it = (of_the_best(decided(values)) for values in (three, three | {"d": last}))
    assert alone == with_it
    assert {verdict for verdict, _ in with_it.values()} == {"better"}


def test_a_margin_of_points_says_nothing_of_other_units(results: Results) -> None:
    for method in ("a", "b"):
        for seed, value in enumerate((0.80, 0.81, 0.82, 0.79)):
            run = results.run(method, seed)
            results.score(run, value + (method == "b") * 0.001, unit="mean error", better="lower")
    assert [pair.verdict for pair in results.table().pairs] == ["undecided"]


def test_what_would_decide_is_said(results: Results) -> None:
    results.seeds("a", [80.0, 82.0, 81.0])
    results.seeds("b", [81.0, 81.5, 80.9])
    text = shown(results.compare(), 200)
    needed = statistics.seeds_needed(1.0, np.sqrt((1.0 + np.var([81.0, 81.5, 80.9], ddof=1)) / 2))
    assert f"{needed} seeds each would show a lead of 1 point over the other one" in text
    results.seeds("third", [81.0, 80.8, 81.2])
    spread = np.sqrt((1.0 + np.var([81.0, 81.5, 80.9], ddof=1) + 0.04) / 3)
    needed = statistics.seeds_needed(1.0, spread, rivals=2)
    text = shown(results.compare(), 200)
    assert f"{needed} seeds each would show a lead of 1 point over each of the other 2" in text
    del results.runs[6:], results.scores[6:]
    results.seeds("b", [1.0, 2.0, 3.0])
    del results.runs[3:6], results.scores[3:6]
    assert "would show" not in shown(results.compare(), 200)
    results.seeds("c", [1.0, 2.0, 3.5])  # undecided, but not against the best one
    assert "would show" not in shown(results.compare(), 200)


def test_as_many_seeds_as_said_show_a_lead_over_several() -> None:
    generator = np.random.default_rng(0)
    needed = statistics.seeds_needed(1.0, 0.5, rivals=5)
    assert needed and needed > (statistics.seeds_needed(1.0, 0.5) or 0)
    stars = 0
    for _ in range(150):
        values = {key: 80 + (key == "a") + generator.normal(0, 0.5, needed) for key in "abcdef"}
        means = {key: float(np.mean(scores)) for key, scores in values.items()}
        stars += pairs.marks(COLUMN, means, decided(values)) == {"a": "best"}
    assert stars / 150 > 0.8 - 2 * np.sqrt(0.8 * 0.2 / 150)


def test_no_lower_mean_is_marked_where_a_higher_one_is_not(results: Results) -> None:
    """A wide spread of the lowest must not make it look better than the one above."""
    results.seeds("a", [90.0, 90.1, 90.2])
    results.seeds("b", [88.0, 88.1, 88.2])
    results.seeds("c", [85.0, 60.0, 89.0])
    table = results.table()
    assert marks(table) == dict.fromkeys("abc", "undecided")
    by_labels = {(table.label(p.a), table.label(p.b)): p for p in table.pairs}
    pair = by_labels["a", "b"]
    assert pair.verdict == "undecided" and pair.interval is not None
    assert pair.interval[0] < 0 < pair.interval[1]


def test_one_correction_can_cover_a_whole_table(results: Results) -> None:
    for method, center in (("a", 80.0), ("b", 80.35)):
        for seed in range(3):
            run = results.run(method, seed)
            for name in ("knn", "linear", "finetune"):
                results.score(run, center + NOISE[seed + 3 * (method == "b")], eval=name)
    strict, usual = (
        results.table(settings=VerdictSettings(family=family)) for family in ("table", "column")
    )
    for one, all_ in zip(usual.pairs, strict.pairs, strict=True):
        assert one.p_adjusted is not None and one.p_adjusted == one.difference.p
        assert all_.p_adjusted == pytest.approx(min(1.0, 3 * one.p_adjusted))


def test_a_whole_tables_correction_covers_what_is_alike_too(results: Results) -> None:
    """Pairs that are within the margin one by one, and not when there are three of them."""
    for method, values in (("a", (80.0, 80.3, 79.7)), ("b", (80.1, 80.25, 79.95))):
        for seed, value in enumerate(values):
            run = results.run(method, seed)
            for name in ("knn", "linear", "finetune"):
                results.score(run, value, eval=name)
    for family, verdict in (("column", "equivalent"), ("table", "undecided")):
        table = results.table(settings=VerdictSettings(family=family, margin=0.6))  # type: ignore[arg-type]
        assert [pair.verdict for pair in table.pairs] == [verdict] * 3


def test_equal_seeds_show_no_certainty(results: Results) -> None:
    results.seeds("a", [80.0, 80.0, 80.0])
    assert "±" not in shown(results.compare())


def test_noise_has_no_winner(results: Results) -> None:
    results.seeds("a", [80.0, 82.0, 81.0])
    results.seeds("b", [81.0, 81.5, 80.9])
    results.seeds("c", [10.0, 11.0, 10.2])
    table = results.table()
    assert marks(table) == {"a": "undecided", "b": "undecided", "c": ""}
    assert "not decided against the best mean" in " ".join(shown(results.compare()).split())


def test_best_is_lowest_where_lower_is_better(results: Results) -> None:
    for method, center in (("a", 1.0), ("b", 9.0)):
        for seed, noise in enumerate(NOISE[:4] if method == "a" else NOISE[4:8]):
            results.score(results.run(method, seed), center + noise, better="lower", unit="error")
    assert marks(results.table()) == {"a": "best", "b": ""}


def test_a_score_that_is_neither_good_nor_bad_is_not_tested(results: Results) -> None:
    for method, center in (("a", 1.0), ("b", 9.0)):
        for seed in range(3):
            results.score(results.run(method, seed), center + NOISE[seed], better="neither")
    table = results.table()
    assert (table.pairs, set(marks(table).values())) == ((), {""})


def test_secondary_scores_are_shown_and_not_tested(results: Results) -> None:
    for method in ("a", "b"):
        run = results.run(method)
        results.score(run, 80.0)
        results.score(run, 95.0, score="top5", is_headline=False, unit=None, better=None)
    table = results.table()
    assert [column.title for column in table.columns] == ["knn", "knn: top5"]
    assert {pair.column.score for pair in table.pairs} == {"top1"}
    assert set(tables.flat(results.compare())["score"]) == {"top1", "top5"}


def store_predictions(folder: Path, right: np.ndarray, labels: np.ndarray) -> float:
    folder.mkdir(parents=True)
    path = folder / "predictions.npz"
    np.savez_compressed(path, predictions=np.where(right, labels, -1), labels=labels)
    return float(100 * right.mean())


@pytest.mark.parametrize("same_labels", [True, False])
def test_single_runs_are_compared_by_their_predictions(
    results: Results, tmp_path: Path, same_labels: bool
) -> None:
    labels = np.arange(100) % 10
    for method, right in (("a", np.arange(100) < 90), ("b", np.arange(100) < 60)):
        own = labels if same_labels or method == "a" else labels[::-1]
        value = store_predictions(tmp_path / method, right, own)
        results.score(results.run(method), value, folder=str(tmp_path / method))
    table = results.table()
    [pair] = table.pairs
    if same_labels:
        assert pair.difference.test == "McNemar"
        assert pair.difference.difference == pytest.approx(30)
        assert pair.interval == pair.difference.interval
        assert (pair.verdict, pair.p_adjusted) == ("undecided", None)
        assert marks(table) == {"a": "", "b": ""}
        [on_the_way] = results.table(at="equal-images").pairs
        assert on_the_way.test == "not tested"
        text = " ".join(shown(results.compare(), 120).split())
        assert "other seeds may differ" in text
        assert not set("*~≈") & set(text)
        [tests] = pair_tables(source_of(results.compare()))
        assert "undecided" in tests.texts[1]
    else:
        assert pair.test == "not tested"
        assert any("other images" in note for note in table.notes)


def test_a_single_run_is_not_compared_with_one_of_several(results: Results, tmp_path: Path) -> None:
    for method, seed, right in (("a", 0, 90), ("b", 0, 60), ("b", 1, 61)):
        folder = tmp_path / f"{method}{seed}"
        value = store_predictions(folder, np.arange(100) < right, np.zeros(100, int))
        results.score(results.run(method, seed), value, folder=str(folder))
    [pair] = results.table().pairs
    assert pair.test == "not tested"


@pytest.mark.parametrize("spoil", ["", "missing", "other order", "other score"])
def test_images_are_counted_where_every_seed_has_the_same(tmp_path: Path, spoil: str) -> None:
    labels, right_SN = np.arange(100) % 10, np.arange(200).reshape(2, 100) % 3 > 0
    scores = []
    for seed, right in enumerate(right_SN):
        folder = tmp_path / str(seed)
        own = labels[::-1] if seed and spoil == "other order" else labels
        value = store_predictions(folder, right, own) - seed * (spoil == "other score")
        scores.append(Score(f"run {seed}", seed, value, "knn", str(folder)))
    if spoil == "missing":
        (tmp_path / "1/predictions.npz").unlink()
    notes: list[str] = []
    found = pairs.right_answers(scores, notes)
    assert (found is None) == bool(spoil)
    assert found is None or np.array_equal(found, right_SN)
    told = ["run 1: predictions of knn do not give its score"]
    assert notes == told * (spoil == "other score")


@pytest.mark.parametrize(
    ("predictions", "labels"),
    [
        (np.array([0, 1]), np.array([0, 1, 1])),
        (np.array([[0], [1]]), np.array([[0], [1]])),
        (np.array([0.0, 1.0]), np.array([0, 1])),
        (np.array([0, 1]), np.array([0, -1])),
        (np.array([], int), np.array([], int)),
    ],
    ids=["lengths", "dimensions", "kind", "negative", "empty"],
)
def test_arrays_that_are_no_predictions_are_refused(
    tmp_path: Path, predictions: np.ndarray, labels: np.ndarray
) -> None:
    np.savez_compressed(tmp_path / "predictions.npz", predictions=predictions, labels=labels)
    with pytest.raises(UserError, match="do not fit together"):
        pairs.read_predictions(str(tmp_path))
    whole = np.array([3, 1], np.uint8), np.array([3, 0], np.uint16)
    np.savez_compressed(tmp_path / "predictions.npz", predictions=whole[0], labels=whole[1])
    found = pairs.read_predictions(str(tmp_path))
    assert found is not None and [each.tolist() for each in found] == [[3, 1], [3, 0]]


def test_what_would_decide_is_told_of_the_seeds_that_have_a_score() -> None:
    """Two of them show a spread; one does not, nor does one that diverged."""
    values = {"a": [80.0, 82.0], "b": [81.0, math.nan, 81.5], "c": [70.0]}
    cells = {
        (key, COLUMN.key): [Score(f"{key}{n}", n, v, "knn", "") for n, v in enumerate(each)]
        for key, each in values.items()
    }
    spread = math.sqrt((2.0 + 0.125) / 2)
    needed = statistics.seeds_needed(1.0, spread, rivals=2)
    told = pairs.what_would_decide(COLUMN, cells)
    assert told is not None and f"spread seen here ({spread:.2f} over seeds), {needed} " in told


def test_intervals_that_count_images_are_told_from_those_that_do_not(
    results: Results, tmp_path: Path
) -> None:
    labels, rng = np.arange(200) % 10, np.random.default_rng(0)
    accuracies = {"wide": (0.5, 0.7, 0.9), "narrow": (0.6, 0.61, 0.59), "one": (0.6,),
                  "untold": (0.6, 0.7)}  # fmt: skip
    for method, shares in accuracies.items():
        for seed, share in enumerate(shares):
            run, folder = results.run(method, seed), tmp_path / f"{method}{seed}"
            value = store_predictions(folder, rng.random(200) < share, labels)
            home = "nowhere" if method == "untold" else str(folder)
            results.score(run, value, baselines=beside(raw_pixels=40.0 + seed), folder=home)
            results.score(run, 30.0 + seed, eval="low-shot")
    over_seeds, over_both = (
        results.table(settings=VerdictSettings(interval=each)) for each in ("seeds", "seeds+images")
    )
    widths = [
        {g.label: np.ptp(table.cells[g.key, "knn/p0/top1"].mean.interval) for g in table.groups}
        for table in (over_seeds, over_both)
    ]
    assert widths[1]["narrow"] > widths[0]["narrow"]
    for label in ("wide", "untold", "raw pixels"):
        assert widths[1][label] >= widths[0][label]
    assert np.isnan(widths[1]["one"])
    alone = "seeds and test images (over seeds alone: untold, raw pixels and low-shot)"
    assert (over_seeds.interval_over, over_both.interval_over) == ("seeds", alone)
    told = "marks and differences are over seeds"
    assert told in rendering.legend(over_both) and told not in rendering.legend(over_seeds)


def test_predictions_of_the_end_say_nothing_of_scores_on_the_way(
    results: Results, tmp_path: Path
) -> None:
    """At an equal cost no interval counts test images, also where a run ends just there."""
    labels, rng = np.zeros(200, int), np.random.default_rng(0)
    for method, images in (("short", 600), ("long", 1000)):
        for seed in range(3):
            run, folder = results.run(method, seed), tmp_path / f"{method}{seed}"
            end = store_predictions(folder, rng.random(200) < 0.8, labels)
            results.score(run, 40.0 + seed, step=50)
            results.score(run, end, images_seen=images, folder=str(folder))
    settings = VerdictSettings(interval="seeds+images")
    assert results.table(settings=settings).interval_over == "seeds and test images"
    on_the_way = results.table(at="equal-images", settings=settings)
    assert on_the_way.interval_over == "seeds"
    assert on_the_way.cells == results.table(at="equal-images").cells
    assert not any("predictions" in note for note in on_the_way.notes)


def test_any_damage_to_arrays_is_told_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "arrays.npz"
    np.savez_compressed(path, labels=np.arange(200) % 7, other=np.arange(3.0))
    whole = path.read_bytes()
    kinds = set()
    for place in range(len(whole)):
        for flip in (0x01, 0x80):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ flip]) + whole[place + 1 :])
            try:
                arrays.read(path, ("labels",))
            except UserError as error:
                kinds.add(type(error.__cause__).__name__)
                assert str(error).startswith(repr(str(path))) and "\n" not in str(error)
    assert {"error", "BadZipFile", "NotImplementedError"} <= kinds
    np.save(path.with_suffix(".npy"), np.arange(3))
    path.with_suffix(".npy").replace(path)
    with pytest.raises(UserError, match="cannot be read"):
        arrays.read(path, ("labels",))
    assert arrays.read(tmp_path / "none.npz", ("labels",)) == {}


@pytest.mark.parametrize("spoil", ["missing", "truncated", "flipped", "other score"])
def test_predictions_that_cannot_be_used_are_named(
    results: Results, tmp_path: Path, spoil: str
) -> None:
    for method in ("a", "b"):
        value = store_predictions(tmp_path / method, np.arange(100) < 90, np.zeros(100, int))
        results.score(
            results.run(method), value - (spoil == "other score"), folder=str(tmp_path / method)
        )
    path = tmp_path / "a/predictions.npz"
    if spoil == "missing":
        path.unlink()
    elif spoil == "truncated":
        path.write_bytes(path.read_bytes()[:50])
    elif spoil == "flipped":
        content = bytearray(path.read_bytes())
        content[80] ^= 0xFF
        path.write_bytes(content)
    table = results.table()
    assert table.pairs[0].p_adjusted is None
    assert bool(table.notes) == (spoil != "missing")
    assert all("\n" not in note for note in table.notes)
    assert ("cannot be read" in str(table.notes)) == (spoil in ("truncated", "flipped"))


@pytest.mark.parametrize(("off", "is_used"), [(0.004, True), (0.02, False)])
def test_predictions_have_to_give_the_score(
    results: Results, off: float, is_used: bool, tmp_path: Path
) -> None:
    """To two decimals, as it may be stored."""
    for method, right in (("a", 90), ("b", 60)):
        value = store_predictions(tmp_path / method, np.arange(100) < right, np.zeros(100, int))
        results.score(results.run(method), value - off, folder=str(tmp_path / method))
    assert (results.table().pairs[0].difference.test == "McNemar") == is_used


def test_too_many_groups_are_shown_and_not_tested(results: Results) -> None:
    for number in range(score_tables.MOST_GROUPS + 1):
        results.seeds("mae", 80 + number + NOISE[:3], ratio=number)
    table = results.table()
    assert len(table.groups) == score_tables.MOST_GROUPS + 1
    assert table.pairs == ()
    assert any("too many" in note for note in table.notes)
    assert set(marks(table).values()) == {""}


COLUMN = Column("knn", "p0", "top1", "", "top-1 accuracy (%)", "higher", True)


def decided(values: Mapping[str, Iterable[float]], **settings: Any) -> tuple[pairs.Pair, ...]:
    """All pairs of a column, from the scores of each group."""
    cells = {
        (key, COLUMN.key): [
            Score("run", seed, value, "knn", "nowhere") for seed, value in enumerate(scores)
        ]
        for key, scores in values.items()
    }
    found, _ = pairs.test_pairs(
        [*values], [COLUMN], cells, {}, has_predictions=False, settings=VerdictSettings(**settings)
    )
    return found


@pytest.mark.parametrize("spreads", [[1.0] * 2, [1.0] * 4, [0.2, 0.5, 1.0, 2.0]])
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_false_alarms_of_a_column_stay_at_five_percent(spreads: list[float], seeds: int) -> None:
    """Of groups that are all the same, about one column in twenty calls any of them better."""
    generator = np.random.default_rng(seeds)
    trials = 400
    alarms = 0
    for _ in range(trials):
        values = {str(k): 80 + sd * generator.normal(0, 1, seeds) for k, sd in enumerate(spreads)}
        alarms += any(pair.better for pair in decided(values))
    assert alarms / trials < 0.05 + 3 * np.sqrt(0.05 * 0.95 / trials)
    if len(spreads) == 2 and seeds > 2:
        assert alarms / trials > 0.02


@pytest.mark.parametrize("seeds", [3, 5])
def test_a_tie_at_the_top_seldom_has_a_winner(seeds: int) -> None:
    """Two truths lead alike and two follow alike: a star is wrong in 5 %, any verdict in 10 %."""
    generator = np.random.default_rng(seeds)
    trials, stars, alarms = 300, 0, 0
    for _ in range(trials):
        values = {key: 80 + 5 * (key < "c") + generator.normal(0, 0.4, seeds) for key in "abcd"}
        found = decided(values)
        means = {key: float(np.mean(scores)) for key, scores in values.items()}
        stars += "best" in pairs.marks(COLUMN, means, found).values()
        alarms += any(p.better for p in found if (p.a < "c") == (p.b < "c"))
    for wrong, share in ((stars, 0.05), (alarms, 0.1)):
        assert wrong / trials < share + 3 * np.sqrt(share * (1 - share) / trials)


def test_three_seeds_show_a_lead_of_three_points() -> None:
    generator = np.random.default_rng(0)
    stars = 0
    for _ in range(200):
        values = {key: 80 + 3 * (key == "a") + generator.normal(0, 0.5, 3) for key in "abcd"}
        means = {key: float(np.mean(scores)) for key, scores in values.items()}
        stars += pairs.marks(COLUMN, means, decided(values)) == {"a": "best"}
    assert stars > 180


@given(
    st.lists(st.lists(st.floats(0, 100).map(lambda x: round(x, 2)), min_size=2, max_size=5),
             min_size=2, max_size=6),
    st.sampled_from(["column", "table"]),
)  # fmt: skip
@example([[0.0, 1.0], [1.0, 1.0], [2.0, 2.0]], "column")  # two of them cannot be told apart
def test_marks_intervals_and_means_agree(groups: list[list[float]], family: str) -> None:
    values = {str(number): scores for number, scores in enumerate(groups)}
    found = decided(values, family=family)
    for pair in found:
        if pair.p_adjusted is not None and pair.interval is not None:
            low, high = pair.interval
            higher = pair.a if pair.difference.difference > 0 else pair.b
            assert pair.better in (None, higher)
            if pair.verdict == "equivalent":
                assert -0.5 <= low <= high <= 0.5
            else:
                assert (low > 1e-9 or high < -1e-9) <= (pair.better is not None)
                assert pair.better is None or low >= 0 or high <= 0
    means = {key: float(np.mean(scores)) for key, scores in values.items()}
    marked = pairs.marks(COLUMN, means, found)
    assert len(marked) != 1 or set(marked.values()) == {"best"}
    top = max(means, key=lambda key: means[key])
    tested = [pair.other(top) for pair in found if pair.p_adjusted is not None and pair.other(top)]
    if marked and "best" not in marked.values():
        lowest = min(means[key] for key in marked)
        assert all(key in marked for key in tested if means[key] > lowest)
        _, *beside = sorted(marked, key=lambda key: -means[key])
        is_alike = [marked[key] == "equivalent" for key in beside]
        assert is_alike == sorted(is_alike, reverse=True) or len({*means.values()}) < len(means)


def test_what_was_not_tested_is_no_tie(results: Results) -> None:
    """One run a side and no predictions: a gap of 15 points is not called the same."""
    for method, value in (("a", 80.0), ("b", 65.0)):
        results.score(results.run(method), value)
    table = results.table()
    assert marks(table) == {"a": "", "b": ""}
    text = shown(results.compare())
    assert "not decided" not in text
    assert "Holm" not in text
