"""The comparison in sentences."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from comparisons import Results, beside, by, source_of

from ssl_bench.analysis import verdict
from ssl_bench.analysis.report import cost

TIGHT = np.array([0.0, 0.1, -0.1, 0.05])


@pytest.fixture
def results() -> Results:
    return Results()


def score(results: Results, method: str, center: float, wide: float = 1.0, **values: Any) -> None:
    for seed, noise in enumerate(TIGHT):
        found = [
            row["run"] for row in results.runs if (row["method"], row["seed"]) == (method, seed)
        ]
        run = found[0] if found else results.run(method, seed)
        results.score(run, center + wide * noise, **values)


def test_the_best_is_named_with_its_lead(results: Results) -> None:
    for method, center in (("a", 90.0), ("b", 80.0), ("c", 85.0)):
        score(results, method, center)
    table = results.table()
    [(title, sentence)] = verdict.sentences(table)
    assert title == "knn"
    assert sentence.startswith("a (90.01) is better than each of the other 2, c being the nearest")
    assert "by 5.00 (4." in sentence
    assert verdict.summary(table) == "a is better than each of the others in knn."


def test_a_lower_score_that_is_better_leads_by_a_positive_number(results: Results) -> None:
    for method, center in (("a", 9.0), ("b", 5.0)):
        score(results, method, center, unit="error (%)", better="lower")
    [(_, sentence)] = verdict.sentences(results.table())
    assert sentence.startswith("b (5.01) is better than a") and "by 4.00 (3." in sentence


def test_what_is_open_is_said(results: Results) -> None:
    score(results, "a", 80.0, wide=9)
    score(results, "b", 80.3, wide=9)
    score(results, "c", 10.0)
    table = results.table()
    [(_, sentence)] = verdict.sentences(table)
    assert "its lead over a (80.11) is not decided" in sentence and "1 other is worse" in sentence
    assert verdict.summary(table) == "no method is better than each of the others in knn."


def test_several_evaluations_are_summed_up(results: Results) -> None:
    for method, knn, linear in (("a", 90.0, 70.0), ("b", 80.0, 70.01)):
        score(results, method, knn)
        score(results, method, linear, eval="linear", wide=20)
    summary = verdict.summary(results.table())
    assert summary == "a is better than each of the others in knn; in linear no method is."


@pytest.mark.parametrize("better,above", [("higher", True), ("lower", False)])
def test_a_baseline_above_all_methods_is_named(results: Results, better: str, above: bool) -> None:
    for method, center in (("a", 50.0), ("b", 30.0)):
        pixels = beside(raw_pixels=90.0)
        score(results, method, center, unit="error (%)", better=better, baselines=pixels)
    [(_, sentence)] = verdict.sentences(results.table())
    assert sentence.startswith("a (50" if above else "b (30")
    assert ("Above all of them: raw pixels (90.00)." in sentence) == above


def test_the_second_of_two_rows_may_lead(results: Results) -> None:
    for method, center in (("a", 70.0), ("b", 80.0)):
        score(results, method, center)
    [(_, sentence)] = verdict.sentences(results.table())
    assert sentence.startswith("b (80.01) is better than a") and "by 10.00 (9.8" in sentence
    low, high = re.findall(r"[(]([0-9.]+) to ([0-9.]+)[)]", sentence)[0]
    assert float(low) < 10 < float(high)


def test_all_that_is_not_decided_is_counted(results: Results) -> None:
    """A single run is tested against nothing, and is none of the worse ones."""
    score(results, "a", 80.0, wide=9)
    score(results, "b", 79.7, wide=9)
    score(results, "c", 10.0)
    results.score(results.run("d"), 75.0)
    [(_, sentence)] = verdict.sentences(results.table())
    assert "its lead over b" in sentence and "nothing tests it against d (75.00)" in sentence
    assert "1 other is worse" in sentence


def test_who_was_not_tuned_alike_is_behind(results: Results) -> None:
    score(results, "a", 80.0, wide=9)
    score(results, "b", 79.7, wide=9)
    score(results, "c", 10.0)
    for row in results.runs:
        row["chosen_by"] = by(trials=0 if row["method"] == "c" else 8)
    [(_, sentence)] = verdict.sentences(results.table())
    assert "1 other is behind, though settings were not chosen alike" in sentence


def test_who_leads_in_most_comes_first(results: Results) -> None:
    for name, a, b in (("knn", 80.0, 90.0), ("linear", 70.0, 60.0), ("low-shot", 50.0, 40.0)):
        score(results, "a", a, eval=name)
        score(results, "b", b, eval=name)
    summary = verdict.summary(results.table())
    assert summary == (
        "a is better than each of the others in linear and low-shot; b is better than each of the "
        "others in knn."
    )


def test_one_group_has_no_verdict(results: Results) -> None:
    score(results, "a", 80.0)
    table = results.table()
    assert (verdict.summary(table), list(verdict.sentences(table))) == ("", [])


def test_what_ranks_nobody_has_no_sentence(results: Results) -> None:
    for method, center in (("a", 80.0), ("b", 70.0)):
        score(results, method, center, better="neither")
    table = results.table()
    assert (verdict.summary(table), list(verdict.sentences(table))) == ("", [])


def test_a_method_without_any_score_is_in_no_sentence(results: Results) -> None:
    score(results, "a", float("nan"))
    score(results, "b", 80.0)
    score(results, "c", 70.0)
    [(_, sentence)] = verdict.sentences(results.table())
    assert sentence.startswith("b (80.01) is better than c")


def test_of_many_that_are_open_the_nearest_are_named(results: Results) -> None:
    """Also where the lowest mean leads."""
    for number, method in enumerate("abcdefg"):
        score(results, method, 80.0 + 0.1 * number, wide=9, unit="error (%)", better="lower")
    [(_, sentence)] = verdict.sentences(results.table())
    assert sentence == (
        "a (80.11) has the lowest mean; its lead over b (80.21), c (80.31), d (80.41), e (80.51) "
        "and 2 more is not decided."
    )


def test_long_labels_become_letters_that_a_note_explains(results: Results) -> None:
    for ratio in (0.5, 0.75):
        settings = {"mask_ratio": ratio, "another_setting": f"the-value-of-{ratio}"}
        results.seeds("mae", [80.0], **settings)
    compared = results.compare()
    assert [group.label for group in compared.tables[0].groups] == ["mae A", "mae B"]
    assert any(n.startswith("mae A: ") and "mask_ratio=0.5" in n for n in compared.notes)


def test_points_at_one_cost_are_not_drawn_over_it(results: Results) -> None:
    for method in "ab":
        score(results, method, 80.0)
    source = source_of(results.compare())
    assert list(cost.against_cost(source)) == []
