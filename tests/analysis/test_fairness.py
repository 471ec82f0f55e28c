"""What keeps a lead from being called that of a method."""

from __future__ import annotations

from typing import Any

import pytest
from comparisons import NOISE, Results, by, marks, searched, shown, source_of

from ssl_bench.analysis import tables
from ssl_bench.analysis.marks import corrected, verdict
from ssl_bench.analysis.report import exports
from ssl_bench.analysis.report.tables import main_tables
from ssl_bench.analysis.verdict import summary


@pytest.fixture
def results() -> Results:
    return Results()


@pytest.mark.parametrize(
    ("ours", "theirs", "mark"),
    [
        (by(trials=8), by(trials=8), "best"),
        (by(trials=8), by(trials=4), ""),
        (by(trials=8), by(), ""),
        (by(), by(), "best"),
        (by(tuned="by hand"), by(), ""),
        (by(flags=("base_lr",)), by(), ""),
        (by(), None, ""),
        (None, None, ""),
        (by(trials=8), "{}", "best"),
        (by(trials=8, flops=10), by(trials=8, flops=20), "best"),
        (by(trials=8, flops=21), by(trials=8, flops=10), ""),
        (by(trials=8, flops=10), by(trials=8, flops=21), ""),
        (by(trials=8, flops=10), by(trials=8, flops=0), ""),
        (by(trials=8, flops=0), by(trials=8, flops=0), ""),
        (by(flops=10), by(flops=90), "best"),
        (by(trials=8, tried=8), by(trials=8), "best"),
        (by(trials=8, tried=8), by(trials=7, tried=8), "best"),
        (by(trials=8, tried=8), by(trials=8, tried=9), ""),
        (by(trials=8, tried=8), by(trials=8, tried=8, tuned="by hand"), "best"),
        (by(trials=8, tuned="by hand"), by(trials=8, tuned="otherwise"), "best"),
        (by(trials=8, tuned="by hand"), "{}", "best"),
        (by(trials=8, trial_length=0.5), by(trials=8), ""),
        (by(trials=8, judged_by="knn"), by(trials=8), ""),
        (by(trials=8, judged_on="a@validation"), by(trials=8, judged_on="b@validation"), ""),
        (by(trials=8, judged_on="/x/a@validation"), by(trials=8, judged_on="a@validation"), "best"),
        (by(trials=8, flags=("base_lr",)), by(trials=8), ""),
        (by(trials=8, flags=("base_lr",)), by(trials=8, flags=("base_lr",)), "best"),
        (searched("base_lr"), searched("base_lr"), "best"),
        (searched("base_lr", "ratio"), searched("base_lr", has=("ratio",)), "best"),
        (searched("base_lr"), searched("base_lr", "crop_scale"), ""),
        (searched("base_lr", has=()), searched("base_lr", "crop_scale"), "best"),
        (searched("final_weight_decay"), searched("weight_decay"), "best"),
        (by(trial=2), by(trials=8), ""),
        (by(trials=8, scores=["x"]), by(trials=8), ""),
    ],
)
def test_only_what_is_tuned_alike_gets_a_star(
    results: Results, ours: str | None, theirs: str | None, mark: str
) -> None:
    results.seeds("a", 80 + NOISE[:4])
    results.seeds("b", 70 + NOISE[4:8])
    for row in results.runs:
        row["chosen_by"] = ours if row["method"] == "a" else theirs
    table = results.table()
    assert marks(table) == {"a": mark, "b": ""}
    assert any("not chosen alike" in note for note in table.notes) == (not mark)
    assert ("not chosen alike" in summary(table)) == (not mark)
    [pair] = table.pairs
    assert pair.verdict == "better"
    assert verdict(pair) == ("better" if mark else "ahead")


@pytest.mark.parametrize("tuned_seeds", [{0, 1, 2, 3}, {0}])
@pytest.mark.parametrize(("best", "other"), ["ab", "ba"])
def test_no_star_where_the_best_alone_was_searched_from_a_tuned_preset(
    results: Results, best: str, other: str, tuned_seeds: set[int]
) -> None:
    for method, center in (("a", 80), ("b", 80)):
        results.seeds(method, center - 10 * (method == other) + NOISE[4 * (method == "b") :][:4])
    for row in results.runs:
        is_tuned = row["method"] == best and row["seed"] in tuned_seeds
        row["chosen_by"] = by(trials=8, tried=8, tuned="by hand" * is_tuned)
    table = results.table()
    assert marks(table) == {"a": "", "b": ""}
    assert any(f"untuned one for {other}" in note for note in table.notes)
    [pair] = table.pairs
    assert pair.better == pair.a if best == "a" else pair.b
    assert verdict(pair) == ("ahead" if best == "a" else "behind")


def test_searches_of_unequal_cost_are_told(results: Results) -> None:
    results.seeds("a", 80 + NOISE[:4])
    results.seeds("b", 70 + NOISE[4:8])
    for row in results.runs:
        row["chosen_by"] = by(trials=8, flops=3 * 10**13 if row["method"] == "a" else 12 * 10**11)
    [note] = [note for note in results.table().notes if "searches" in note]
    assert "a 3e+13" in note and "b 1.2e+12" in note
    for row in results.runs:
        row["chosen_by"] = by(trials=8, flops=10 if row["method"] == "a" else 20)
    assert not any("searches" in note for note in results.table().notes), "they are about equal"


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(by(), by(flags=("ratio",))), (by(trials=8, tuned="by hand"), by(trials=8))],
)
def test_rows_of_one_method_are_what_is_compared(results: Results, ours: str, theirs: str) -> None:
    results.seeds("a", 80 + NOISE[:4], ratio=0.75)
    results.seeds("a", 70 + NOISE[4:8], ratio=0.5)
    for row in results.runs:
        row["chosen_by"] = theirs if "0.5" in row["settings"] else ours
    assert [*marks(results.table()).values()].count("best") == 1


@pytest.mark.parametrize("odd", ["x", "y"])
def test_each_row_of_a_method_has_to_be_tuned_as_the_others_are(results: Results, odd: str) -> None:
    results.seeds("a", 80 + NOISE[:4], size="x")
    results.seeds("a", 75 + NOISE[4:8], size="y")
    results.seeds("b", 70 + NOISE[8:12])
    for row in results.runs:
        row["chosen_by"] = by(trials=4 if odd in row["settings"] else 8)
    assert "best" not in marks(results.table()).values()


def test_who_was_not_tuned_alike_is_ahead_only_where_that_is_decided(results: Results) -> None:
    for center, is_decided in ((80, False), (90, True)):
        results.runs, results.scores = [], []
        results.seeds("a", center + 9 * NOISE[:4])
        results.seeds("b", 80 + 9 * NOISE[4:8])
        for row in results.runs:
            row["chosen_by"] = by(trials=8 if row["method"] == "a" else 0)
        assert ("ahead, behind" in corrected(results.table())) == is_decided


def test_how_settings_were_chosen_is_told_everywhere(results: Results) -> None:
    results.seeds("a", 80 + NOISE[:3])
    results.seeds("b", 70 + NOISE[3:6])
    for row in results.runs:
        row["chosen_by"] = by(tuned="by hand") if row["method"] == "a" else by(trials=8)
    compared = results.compare()
    a, b = "preset, tuned by hand", "8 trials, held-out linear"
    assert [n[:2] for n in tables.notes(compared) if "not searched" in n] == ["b:"]
    assert f"settings: {a} (a); {b} (b)" in " ".join(shown(compared, 160).split())
    frame = tables.flat(compared)
    assert dict(zip(frame["label"], frame["settings_chosen_by"], strict=True)) == {"a": a, "b": b}
    [main] = main_tables(source_of(compared))
    assert a in exports.as_latex(main) and b in exports.as_markdown(main)


@pytest.mark.parametrize(
    ("a", "b", "told"),
    [
        (
            dict(tried=4, tuned="by hand"),
            dict(tried=4),
            "a: what was not searched is of a preset tuned by hand",
        ),
        (dict(tried=4), dict(), "b: what was not searched is of a preset of which nothing tells"),
        (dict(tried=4), dict(tried=4), ""),
    ],
)
def test_what_no_search_chose_is_told_beside_the_mark(
    results: Results, a: dict[str, Any], b: dict[str, Any], told: str
) -> None:
    results.seeds("a", 80 + NOISE[:4])
    results.seeds("b", 70 + NOISE[4:8])
    for row in results.runs:
        row["chosen_by"] = by(trials=4, **(a if row["method"] == "a" else b))
    compared = results.compare()
    [table] = compared.tables
    assert marks(table)["a"] == ("" if "tuned" in a else "best")
    assert any("not searched" in note for note in table.notes) == bool(told)
    assert told in " ".join(tables.notes(compared))
    [main] = main_tables(source_of(compared))
    for text in (exports.as_latex(main), exports.as_markdown(main)):
        assert told in text
    words = {group.label: group.chosen_by for group in table.groups}
    assert (words["a"] == words["b"]) == (not told)


def test_how_many_settings_were_searched_is_told_where_it_differs(results: Results) -> None:
    results.seeds("a", 80 + NOISE[:4])
    results.seeds("b", 70 + NOISE[4:8])
    for more, said in ((), []), (("ratio", "warmup"), ["settings searched: a 3, b 1"]):
        for row in results.runs:
            row["chosen_by"] = searched("base_lr", *(more if row["method"] == "a" else ()))
        assert [note for note in results.table().notes if "settings searched" in note] == said


def test_a_trial_that_failed_is_told_and_counts_as_tried(results: Results) -> None:
    results.seeds("a", [80.0])
    results.runs[0]["chosen_by"] = by(trials=3, tried=4, trial_length=0.25)
    [group] = results.table().groups
    assert group.chosen_by.startswith("4 trials of 0.25 of the length (1 failed), held-out linear")


def spent(results: Results, **flops: float) -> None:
    """Give the runs of each method that many FLOPs, a row of several numbers in turn."""
    for row in results.scores:
        row["flops"] = flops[row["run"].split("-")[0]]


@pytest.mark.parametrize(
    ("flops", "factor", "mark"),
    [
        (dict(a=1.0e12, b=1.05e12, c=1e12), "", "best"),
        (dict(a=1.9e12, b=1e12, c=1e12), "1.9", "best"),
        (dict(a=1e12, b=50e12, c=1e12), "50", "best"),
        (dict(a=50e12, b=50e12, c=1e12), "50", ""),
        (dict(a=2e12, b=1e12, c=1e12), "2", "best"),
        (dict(a=2.1e12, b=1e12, c=1e12), "2.1", ""),
        (dict(a=50e12, b=0.0, c=0.0), "", "best"),
    ],
)
def test_more_than_twice_the_flops_of_another_method_cost_the_mark(
    results: Results, flops: dict[str, float], factor: str, mark: str
) -> None:
    for number, method in enumerate("abc"):
        results.seeds(method, 80 - 10 * number + NOISE[4 * number :][:4])
    spent(results, **flops)
    table = results.table()
    assert marks(table)["a"] == mark
    [*told] = (note for note in table.notes if "FLOPs of pre-training differ" in note)
    assert bool(told) == bool(factor) and all(f"factor of {factor}:" in note for note in told)
    assert any("times the FLOPs of" in note for note in table.notes) == (not mark)
    assert ("times the FLOPs" in summary(table)) == (not mark)
    assert marks(results.table(at="equal-images"))["a"] == "best"


@pytest.mark.parametrize("big", ["x", "z"])  # which come before and after y in the table
def test_of_several_budgets_the_largest_of_each_method_counts(results: Results, big: str) -> None:
    """The best one has to beat no other method that was given less than half of its FLOPs alone."""
    for number, (method, size) in enumerate([("a", big), ("b", big), ("a", "y"), ("b", "y")]):
        for run in results.seeds(method, 80 - 5 * number + NOISE[4 * number :][:4], size=size):
            for row in results.scores:
                if row["run"] == run:
                    row["flops"] = 1e12 if size == "y" else 4e12
    table = results.table()
    assert list(marks(table).values()).count("best") == 1
    assert any("factor of 4:" in note for note in table.notes)


def test_seeds_whose_settings_came_about_otherwise_are_no_equals(results: Results) -> None:
    results.seeds("a", 80 + NOISE[:4])
    results.seeds("b", 70 + NOISE[4:8])
    for row in results.runs:
        is_odd = row["method"] == "a" and row["seed"] == 3
        row["chosen_by"] = by() if is_odd else by(trials=8)
    assert "best" not in marks(results.table()).values()


def test_labels_are_no_rival_of_methods_that_learn_without(results: Results) -> None:
    for number, method in enumerate(("mocov3", "mae", "supervised")):
        results.seeds(method, 70 + 10 * number + NOISE[4 * number :][:4])
    table = results.table()
    assert marks(table)["supervised"] == "best"
    assert [n for n in table.notes if "without labels" in n and "mae" in n and "knn" in n]
    results.seeds("dino", 80 + NOISE[4:8][::-1])
    assert not any("without labels" in note for note in results.table().notes)


@pytest.mark.parametrize(
    ("theirs", "is_told"), [(by(trials=8), True), (by(trials=4), False), (by(), False)]
)
def test_of_those_without_labels_only_what_is_tuned_alike_is_ahead(
    results: Results, theirs: str, is_told: bool
) -> None:
    for number, method in enumerate(("mocov3", "mae", "supervised")):
        results.seeds(method, 70 + 10 * number + NOISE[4 * number :][:4])
    for row in results.runs:
        row["chosen_by"] = theirs if row["method"] == "mocov3" else by(trials=8)
    assert any("without labels" in note for note in results.table().notes) == is_told


def test_without_methods_of_labels_nothing_is_said_of_them(results: Results) -> None:
    results.seeds("mae", 80 + NOISE[:4])
    results.seeds("mocov3", 70 + NOISE[4:8])
    assert not any("without labels" in note for note in results.table().notes)
