"""Scores that are read at an equal cost."""

from __future__ import annotations

import pytest
from comparisons import NOISE, Results, curve, marks, shown

from ssl_bench.analysis.comparison.score_tables import ScoreTable


@pytest.fixture
def results() -> Results:
    return Results()


def test_equal_time_is_not_read_across_devices(results: Results) -> None:
    curve(results, "a", {50: 70.0, 100: 80.0})
    curve(results, "b", {50: 60.0, 100: 65.0})
    results.runs[-1]["device"] = "a GPU"
    compared = results.compare(at="equal-time")
    assert [values(table) for table in compared.tables] == [{"a": 80.0}, {"b": 65.0}]
    assert [table.title.rpartition(", ")[2] for table in compared.tables] == [
        "on a CPU", "on a GPU",
    ]  # fmt: skip
    [note] = compared.notes
    assert note == "seconds of different devices are in tables of their own: a CPU / a GPU"
    assert len(results.compare(at="equal-images").tables) == 1


def values(table: ScoreTable) -> dict[str, float]:
    return {
        group.label: cell.mean.mean
        for group in table.groups
        for column in table.columns
        if (cell := table.cells.get((group.key, column.key)))
    }


def test_equal_cost_is_read_between_snapshots(results: Results) -> None:
    curve(results, "a", {10: 50.0, 50: 70.0, 100: 80.0})
    curve(results, "b", {25: 60.0, 75: 65.0})
    table = results.table(at="equal-images")
    assert values(table) == {"a": pytest.approx(75.0), "b": 65.0}
    assert "at 750 images seen, learning rates not annealed there (those of b are)" in table.title
    [costs] = [group.costs for group in table.groups if group.label == "a"]
    assert [costs[name] for name in ("images_seen", "flops", "seconds")] == [750, 7.5e8, 7.5]
    assert table.pairs[0].test == "not tested", "no predictions were made at that point"
    assert values(results.table()) == {"a": 80.0, "b": 65.0}


def test_only_runs_that_end_at_the_cost_are_annealed(results: Results) -> None:
    """One seed was trained for twice as long: at the end of the other, it is halfway."""
    for seed, length in enumerate((1, 2)):
        run = results.run("a", seed)
        results.score(run, 70.0 + seed, step=50, images_seen=500 * length)
        results.score(run, 80.0 + seed, images_seen=1000 * length)
    table = results.table(at="equal-images")
    assert "at 1,000 images seen, learning rates not annealed there" in table.title
    assert "(those of 1 of 2 runs of a are)" in table.title


def test_a_curve_may_begin_before_the_first_step(results: Results) -> None:
    curve(results, "a", {0: 40.0, 100: 80.0})
    assert values(results.table(at="equal-images", at_cost=250)) == {"a": 50.0}


def test_axes_differ(results: Results) -> None:
    curve(results, "a", {50: 70.0, 100: 80.0})
    curve(results, "b", {50: 60.0, 100: 65.0}, scale=0.5)
    assert values(results.table(at="equal-images")) == {"a": 70.0, "b": 65.0}
    assert values(results.table(at="equal-flops")) == {"a": 80.0, "b": 65.0}
    assert values(results.table(at="equal-time")) == {"a": 80.0, "b": 65.0}
    assert "the end of each run" in results.table(at="equal-time").title
    for row in results.scores[2:]:
        row["seconds"] *= 2
    assert values(results.table(at="equal-time")) == {"a": 80.0, "b": 60.0}


def test_nothing_is_read_beyond_a_curve(results: Results) -> None:
    curve(results, "a", {10: 50.0, 100: 80.0})
    curve(results, "b", {100: 65.0, 50: 60.0})
    table = results.table(at="equal-images", at_cost=300)
    assert values(table) == {"a": pytest.approx(50 + 30 * 20 / 90)}
    assert table.notes == (
        "b: knn of 1 run is not known at 300 images seen, only from 500 images seen to "
        "1,000 images seen",
    )
    assert [group.label for group in table.groups] == ["a", "b"]
    assert table.groups[1].costs["flops"] is None
    beyond = results.table(at="equal-images", at_cost=5000)
    assert beyond.title.endswith("learning rates not annealed there")
    assert values(beyond) == {}
    assert len(beyond.notes) == 2
    compared = results.compare(at="equal-images", at_cost=5000)
    assert compared.incomplete == ()
    assert "not known at 5,000 images seen" in shown(compared)


def test_runs_that_go_on_do_not_hold_the_others_back(results: Results) -> None:
    curve(results, "a", {50: 70.0, 100: 80.0})
    half = results.run("a", seed=1, state="unfinished")
    results.score(half, 60.0, step=10, images_seen=100)
    compared = results.compare(at="equal-images")
    assert values(compared.tables[0]) == {"a": 80.0}
    assert [run.run for run in compared.incomplete] == [half]


def test_what_costs_nothing_is_read_as_it_is(results: Results) -> None:
    curve(results, "a", {50: 70.0, 100: 80.0})
    results.score(results.run("untrained"), 20.0, images_seen=0, flops=0, seconds=0)
    table = results.table(at="equal-images")
    assert values(table) == {"a": 80.0, "untrained": 20.0}
    assert table.title.endswith("the end of each run")


def test_a_cost_that_was_not_recorded_is_named(results: Results) -> None:
    curve(results, "a", {50: 70.0, 100: 80.0})
    results.score(results.run("old"), 75.0, flops=None)
    table = results.table(at="equal-flops")
    assert values(table) == {"a": 80.0}
    assert table.notes == ("old: flops was not recorded, so it cannot be read at an equal cost",)


def test_trainings_under_one_budget_end_at_an_equal_cost(results: Results) -> None:
    """Whole steps of one are never the FLOPs of another's."""
    for method, value, flops in (("a", 80.0, 1000.0), ("b", 70.0, 995.0), ("c", 60.0, 975.0)):
        results.score(results.run(method), value, flops=flops)
    results.score(results.run("d"), 90.0, flops=2000.0)
    table = results.table(at="equal-flops", at_cost=999)
    assert values(table) == {"a": 80.0, "b": 70.0}
    assert table.title.endswith("(those of a, b are)")
    [note] = [note for note in table.notes if "not known" in note]
    assert note.startswith("c (1 run), d (1 run): knn") and "--eval-every" in note


def test_of_equal_costs_the_nearest_counts_and_the_end_of_a_training(results: Results) -> None:
    run = results.run("a")
    results.score(run, 60.0, step=99, images_seen=995)
    results.score(run, 70.0, step=100, images_seen=1000)
    results.score(run, 80.0, images_seen=1000)
    results.score(results.run("b"), 50.0, images_seen=1000)
    assert values(results.table(at="equal-images", at_cost=1000)) == {"a": 80.0, "b": 50.0}


def test_equal_cost_is_read_for_each_seed_and_then_averaged(results: Results) -> None:
    for method, gain in (("a", 10.0), ("b", 0.0)):
        for seed in range(4):
            run = results.run(method, seed)
            results.score(run, 60 + gain + NOISE[seed] * len(method), step=50)
            results.score(run, 80 + gain + NOISE[10 * len(method) + seed + int(gain)])
    table = results.table(at="equal-images", at_cost=750)
    assert all(cell.mean.n == 4 for cell in table.cells.values())
    assert marks(table) == {"a": "best", "b": ""}


def test_one_command_reads_at_all_three_costs(results: Results) -> None:
    results.seeds("a", (80, 81))
    results.seeds("b", (70, 71))
    titles = [table.title for table in results.compare(at="equal-costs").tables]
    assert len(titles) == 3
    for title, words in zip(titles, ("images seen", "FLOPs", "s of the device"), strict=True):
        assert words in title


def test_each_score_has_a_curve_of_its_own(results: Results) -> None:
    run = results.run("a")
    ends = {
        ("knn", "p0", "top1"): 10.0,
        ("knn", "p0", "top5"): 20.0,
        ("knn", "p1", "top1"): 30.0,
        ("linear", "p0", "top1"): 40.0,
    }
    for (name, protocol, number), end in ends.items():
        for value, step in ((end - 8, 50), (end, None)):
            results.score(
                run, value, step, eval=name, protocol=protocol, score=number,
                is_headline=number == "top1",
            )  # fmt: skip
    table = results.table(at="equal-images", at_cost=875)
    [group] = table.groups
    read = {column.key: table.cells[group.key, column.key].mean.mean for column in table.columns}
    assert read == {"/".join(which): end - 2 for which, end in ends.items()}


def test_a_broken_run_is_read_where_it_was_evaluated_and_was_not_annealed(
    results: Results,
) -> None:
    run = results.run("a", state="broken")
    results.score(run, 60.0, step=50)
    results.score(run, 70.0, step=75)
    table = results.table(at="equal-images")
    assert values(table) == {"a": 70.0}
    assert table.title.endswith("at 750 images seen, learning rates not annealed there")
