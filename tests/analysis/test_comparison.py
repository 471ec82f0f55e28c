"""What is put side by side, what is kept apart, and who is called best."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Mapping
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from ssl_bench.analysis import comparison, tables
from ssl_bench.analysis import marks as rendering
from ssl_bench.analysis.comparison import Comparison, pairs, score_tables, statistics
from ssl_bench.analysis.comparison.grouping import Column, Score
from ssl_bench.analysis.comparison.score_tables import ScoreTable
from ssl_bench.analysis.report import exports, page
from ssl_bench.analysis.report.source import Source
from ssl_bench.analysis.report.tables import main_tables, pair_tables
from ssl_bench.analysis.verdict import summary
from ssl_bench.config.command_settings import VerdictSettings
from ssl_bench.errors import UserError
from ssl_bench.runs.index import Index
from ssl_bench.runs.run_records import RUN_COLUMNS, SCORE_COLUMNS
from ssl_bench.utils import arrays
from ssl_bench.utils.files import write_json

NOISE = np.random.default_rng(0).normal(0, 0.1, 100)


def by(trials: int = 0, flags: tuple[str, ...] = (), tuned: str = "", **more: Any) -> str:
    """How a run stores who chose its settings; without ``tried``, as old ones do."""
    search = {"trials": trials, "judged_by": "linear", "flops": 10**12} if trials else {}
    return json.dumps({"preset": "quick", "tuned": tuned, "flags": [*flags], **search, **more})


def searched(*names: str, has: Iterable[str] = ("base_lr", "weight_decay", "crop_scale")) -> str:
    """The record of a search that drew these settings, of a method that has those beside."""
    space, config = dict.fromkeys(names, "a range"), dict.fromkeys([*names, *has], 0.1)
    return by(trials=8, tried=8, space=space, config=config)


class Results:
    """An index made by hand."""

    def __init__(self) -> None:
        self.runs: list[dict[str, Any]] = []
        self.scores: list[dict[str, Any]] = []

    def run(self, method: str, seed: int = 0, **values: Any) -> str:
        settings = values.pop("settings", {})
        name = f"{method}-data-seed{seed}-{len(self.runs):08d}"
        row = dict.fromkeys(RUN_COLUMNS) | {
            "run": name, "group": method + json.dumps(settings), "method": method,
            "settings": json.dumps(settings), "pretrained_on": "data", "data_fingerprint": "aa",
            "seed": seed, "state": "trained", "step": 100, "peak_memory_mib": 100.0,
            "encoder_parameters": 10, "trained_parameters": 20, "device": "a CPU",
            "chosen_by": by(),
        }  # fmt: skip
        self.runs.append(row | values)
        return name

    def score(self, run: str, value: float, step: int | None = None, **values: Any) -> None:
        seed = next(row["seed"] for row in self.runs if row["run"] == run)
        done = 1.0 if step is None else step / 100
        row = dict.fromkeys(SCORE_COLUMNS) | {
            "run": run, "eval": "knn", "protocol": "p0", "evaluated_on": "data",
            "test_fingerprint": "aa", "test_images": 100, "eval_seed": seed,
            "eval_precision": "fp32", "score": "top1", "value": value, "is_headline": True,
            "unit": "top-1 accuracy (%)", "better": "higher", "step": step,
            "images_seen": 1000 * done, "flops": 1e9 * done, "seconds": 10.0 * done, "note": "",
            "folder": "nowhere",
        }  # fmt: skip
        self.scores.append(row | values)

    def seeds(self, method: str, values: Iterable[float], **settings: Any) -> list[str]:
        runs = []
        for seed, value in enumerate(values):
            runs.append(self.run(method, seed, settings=settings))
            self.score(runs[-1], value)
        return runs

    def compare(self, **options: Any) -> Comparison:
        frames = pd.DataFrame(self.runs), pd.DataFrame(self.scores, columns=list(SCORE_COLUMNS))
        for frame, columns in zip(frames, (RUN_COLUMNS, SCORE_COLUMNS), strict=True):
            for name, (kind, _) in columns.items():
                if kind in ("int", "float"):
                    frame[name] = frame[name].astype(float)
        return comparison.compare(Index(*frames, ("a problem",)), **options)

    def table(self, **options: Any) -> ScoreTable:
        [table] = self.compare(**options).tables
        return table


@pytest.fixture
def results() -> Results:
    return Results()


def marks(table: ScoreTable) -> dict[str, str]:
    """The mark of each group's first score."""
    column = table.columns[0].key
    return {g.label: table.cells[g.key, column].mark for g in table.groups}


def shown(compared: Comparison, width: int = 80) -> str:
    console = Console(width=width, markup=False)
    with console.capture() as capture:
        for table in tables.as_rich(compared, width):
            console.print(table)
        for note in tables.notes(compared):
            console.print(note, soft_wrap=True)
    return capture.get()


def as_they_are(results: Results) -> None:
    """Leave the accuracies as they are."""


def as_errors(results: Results) -> None:
    """Turn every accuracy into the error that it leaves: the same, but lower is better."""
    for row in results.scores:
        if row["better"] == "higher":
            row |= {"value": 100 - row["value"], "better": "lower", "unit": "error (%)"}


def source_of(compared: Comparison) -> Source:
    """What a report is made of, without its figures."""
    runs, scores = (pd.DataFrame(columns=list(c)) for c in (RUN_COLUMNS, SCORE_COLUMNS))
    return Source(Index(runs, scores, ()), compared, {})


def test_seeds_make_a_group_with_mean_and_interval(results: Results) -> None:
    runs = results.seeds("mae", [80.0, 81.0, 82.0])
    table = results.table()
    [group] = table.groups
    assert group.seeds == dict(zip(runs, range(3), strict=True))
    cell = table.cells[group.key, table.columns[0].key]
    assert (cell.mean.n, cell.mean.mean) == (3, 81.0)
    assert cell.mean.half_width == pytest.approx(2.4841, abs=1e-4)  # t(2) 4.3027 / sqrt(3)
    assert (group.costs["images_seen"], group.costs["peak_memory_mib"]) == (1000, 100)
    assert table.pairs == ()
    assert cell.mark == ""
    assert "81.00 ± 2.48" in shown(results.compare())


def test_labels_tell_what_differs_within_a_method(results: Results) -> None:
    for ratio, epochs in ((0.75, 8.0), (0.5, 8)):
        results.seeds("mae", [80.0], mask_ratio=ratio, epochs=epochs, shared=[1, 2])
    results.seeds("mocov3", [70.0], temperature=0.2)
    labels = [group.label for group in results.table().groups]
    assert labels == ["mae mask_ratio=0.5", "mae mask_ratio=0.75", "mocov3"]


def test_groups_that_no_setting_tells_apart_carry_a_hash(results: Results) -> None:
    for group in ("aaaaaaaa", "bbbbbbbb"):
        results.score(results.run("mae", group=group), 80.0)
    compared = results.compare()
    assert [g.label for g in compared.tables[0].groups] == ["mae (aaaaaaaa)", "mae (bbbbbbbb)"]
    assert any("different code" in note for note in compared.notes)


def test_other_precision_or_seed_of_the_evaluation_is_a_group_of_its_own(results: Results) -> None:
    run = results.run("mae")
    results.score(run, 80.0)
    results.score(run, 81.0, eval_precision="bf16")
    results.score(run, 82.0, eval_seed=5)
    labels = [group.label for group in results.table().groups]
    assert labels == [
        "mae evaluated_in=bf16", "mae evaluated_in=fp32",
        "mae evaluated_in=fp32, evaluated_with_seed=5",
    ]  # fmt: skip


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


def test_a_seed_counts_once(results: Results) -> None:
    """A copied folder, and a repetition that came out otherwise."""
    first, second = results.seeds("a", [80.0, 81.0])
    copied = results.run("a", seed=0)
    results.score(copied, 80.0)
    results.score(copied, 70.0, eval="linear")
    table = results.table()
    [group] = table.groups
    assert [*group.seeds] == [first, second]
    assert table.cells[group.key, "knn/p0/top1"].values == {first: 80.0, second: 81.0}
    assert table.cells[group.key, "linear/p0/top1"].values == {first: 70.0}
    compared = results.compare()
    assert compared.notes == (
        f"a: seed 0 is counted once, as {first}, and is also that of {copied}",
    )
    assert compared.incomplete == ()
    results.score(results.run("a", seed=1), 83.0)
    compared = results.compare()
    [table] = compared.tables
    assert table.cells[group.key, "knn/p0/top1"].values == {first: 80.0, second: 82.0}
    assert "their mean is taken" in compared.notes[1]
    assert "their mean is taken" not in compared.notes[0]


def test_a_copy_that_did_not_end_leaves_the_run_that_did(results: Results) -> None:
    half = results.run("a", state="unfinished")
    results.score(half, 50.0, step=50)
    done = curve(results, "a", {50: 50.0, 100: 60.0})
    for at in ("end", "equal-images"):
        table = results.table(at=at)
        [cell] = table.cells.values()
        assert cell.values == {done: 60.0}


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


def test_equal_seeds_show_no_certainty(results: Results) -> None:
    results.seeds("a", [80.0, 80.0, 80.0])
    assert "±" not in shown(results.compare())


def test_a_group_on_several_devices_has_no_time(results: Results) -> None:
    for seed, device in enumerate(["a CPU", "a GPU"]):
        results.score(results.run("a", seed, device=device), 80.0 + seed)
    results.seeds("b", [70.0])
    table = results.table()
    a, b = (group.costs for group in table.groups)
    assert (a["seconds"], a["peak_memory_mib"], a["flops"]) == (None, None, 1e9)
    assert (b["seconds"], b["peak_memory_mib"]) == (10.0, 100.0)
    assert any(note.startswith("a: its runs were on different devices") for note in table.notes)


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
        text = " ".join(shown(results.compare(), 120).split())
        assert "other seeds may differ" in text
        assert not set("*~≈") & set(text)
        [tests] = pair_tables(source_of(results.compare()))
        assert "undecided" in tests.texts[1]
    else:
        assert pair.test == "not tested"
        assert any("other images" in note for note in table.notes)


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


@pytest.mark.parametrize("mark", ["best", "equivalent", "undecided"])
def test_a_mark_is_the_same_everywhere_and_explained_there(
    results: Results, tmp_path: Path, mark: str
) -> None:
    wide = 10 if mark == "undecided" else 1
    values = wide * np.array([0.0, 0.1, -0.1, 0.2, -0.2])
    results.seeds("a", 90 + values)
    results.seeds("b", (70 if mark == "best" else 90) - values[[1, 0, 2, 4, 3]])
    compared = results.compare()
    assert marks(compared.tables[0])["a"] == mark
    sign, words = rendering.sign(mark), rendering.meaning(mark)
    assert sign.strip() in ("*", "≈", "~") and words
    every = ("best", "equivalent", "undecided")
    others = {rendering.sign(each).strip() for each in every} - {sign.strip()}
    source = source_of(compared)
    [scores], [tests] = main_tables(source), pair_tables(source)
    empty = dataclasses.replace(tests, name="runs", rows=())
    nothing = dict.fromkeys(("spaces", "pairs", "missing", "provenance", "notes", "problems"), ())
    content: dict[str, Any] = {
        "title": "",
        "facts": {},
        "answers": [],
        "lead": None,
        "reload": None,
        "tables": (scores,),
        "further": {},
        "runs": empty,
    }
    content |= {"figures": {}, **nothing}
    html = re.sub(r"<style>.*?</style>|<script>.*", "", page.render(content), flags=re.DOTALL)
    for text in (
        shown(compared, 120),
        html,
        exports.as_markdown(scores).replace("\\", ""),
        exports.as_latex(scores)
        .replace(r"$\approx$", "≈")
        .replace(r"\textasciitilde{}", "~")
        .replace("{*}", "*")
        .replace(r"\textless{}", "<"),
    ):
        plain = unescape(" ".join(text.split()))
        assert re.search(rf"9\d\.\d\d( \S+){{0,3}}{re.escape(sign)}", plain), plain
        assert f"{sign} {words}" in plain
        assert not any(f"{other} " in plain.replace("**", "") for other in others)
    assert exports.as_latex(scores).isascii()
    for data in (tables.flat(compared), scores.data):
        assert dict(zip(data["mark"], data["mark_meaning"], strict=True))[mark] == words
    assert not any(each in " ".join(row) for row in tests.texts for each in "*≈~")


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


def test_protocols_get_columns_of_their_own_and_a_reason(results: Results, tmp_path: Path) -> None:
    for method, protocol, epochs in (("a", "p0", 30), ("b", "p1", 90)):
        (tmp_path / protocol).mkdir()
        write_json(tmp_path / protocol / "scores.json", {"config": {"epochs": epochs, "lr": 1}})
        results.score(
            results.run(method), 80.0, eval="linear", protocol=protocol,
            folder=str(tmp_path / protocol),
        )  # fmt: skip
    table = results.table()
    assert [column.title for column in table.columns] == ["linear epochs=30", "linear epochs=90"]
    assert "linear was run under 2 protocols: epochs 30 / 90" in table.notes
    assert len(table.cells) == 2
    assert table.pairs == ()


@pytest.mark.parametrize("config", [None, [1], "text", 3])
def test_an_odd_config_of_a_protocol_is_not_read(
    results: Results, tmp_path: Path, config: Any
) -> None:
    for protocol in ("p0", "p1"):
        (tmp_path / protocol).mkdir()
        write_json(tmp_path / protocol / "scores.json", {"config": config})
        results.score(results.run("a"), 80.0, protocol=protocol, folder=str(tmp_path / protocol))
    assert any("what differs cannot be read" in note for note in results.table().notes)


def test_scores_that_are_left_out_tell_what_is_missing(results: Results) -> None:
    run = results.run("a", group=None)
    results.score(run, 80.0, test_images=None)
    compared = results.compare()
    assert compared.tables == ()
    assert compared.notes == (
        f"{run}: scores are left out, for these are not known of them: group, test_images",
    )


def test_protocols_whose_difference_is_unknown_carry_their_hash(results: Results) -> None:
    for protocol in ("p0", "p1"):
        results.score(results.run("a" + protocol), 80.0, protocol=protocol)
    table = results.table()
    assert {column.variant for column in table.columns} == {"p0", "p1"}
    assert any("2 protocols" in note for note in table.notes)


def test_versions_of_data_get_tables_of_their_own(results: Results) -> None:
    for method, version in (("a", "aa"), ("b", "bb")):
        results.score(results.run(method), 80.0, test_fingerprint=version)
    results.score(results.run("c"), 80.0, evaluated_on="other")
    compared = results.compare()
    assert len(compared.tables) == 3
    [note] = compared.notes
    assert "data in 2 versions" in note


def test_missing_evaluation_is_a_dash_and_nan_is_left_out(results: Results) -> None:
    first, second = results.seeds("a", [80.0, np.nan])
    results.score(first, 70.0, eval="linear")
    results.score(second, 70.0, eval="linear")
    results.seeds("b", [50.0])
    table = results.table()
    keys = {g.label: g.key for g in table.groups}
    cell = table.cells[keys["a"], "knn/p0/top1"]
    assert (cell.mean.n, cell.mean.mean) == (1, 80.0)
    assert (keys["b"], "linear/p0/top1") not in table.cells
    text = shown(results.compare())
    assert "80.00 (n=1)" in text
    assert " - " in text
    assert "a problem" in text


def test_runs_that_are_not_in_a_table_are_listed(results: Results) -> None:
    results.seeds("done", [80.0])
    results.run("half", state="unfinished", step=37, command="ssl-bench run")
    results.run("dead", state="failed", error="loss is nan")
    results.run("bad", state="broken", error="config.json cannot be read", group=None)
    results.runs[-1] |= {"method": None, "seed": None, "settings": None}
    results.run("new", state="running", step=None)
    results.run("idle")
    compared = results.compare()
    why = {run.state: run.why for run in compared.incomplete}
    assert why == {
        "unfinished": "at step 37; this resumes it: ssl-bench run",
        "failed": "loss is nan",
        "broken": "config.json cannot be read",
        "running": "",
        "trained": "not evaluated on anything",
    }
    text = shown(compared)
    assert all(state in text for state in why)


def test_nothing_but_unfinished_runs(results: Results) -> None:
    results.run("half", state="unfinished")
    compared = results.compare()
    assert compared.tables == ()
    assert "unfinished" in shown(compared)
    assert tables.flat(compared).empty


@pytest.mark.parametrize(("better", "best", "sign"), [("higher", "g", 1), ("lower", "a", -1)])
def test_of_many_pairs_those_of_the_best_are_shown_with_its_lead(
    results: Results, better: str, best: str, sign: int
) -> None:
    for number, method in enumerate("abcdefg"):
        for seed in range(4):
            value = 70 + number + NOISE[4 * number + seed]
            results.score(results.run(method, seed), value, unit="error (%)", better=better)
    _, _, table = shown(results.compare(), 120).partition("differences to the best mean")
    assert len(re.findall(rf"│ {best} -", table)) == 6
    leads = [float(each) for each in re.findall(r"│ +([+-]\d+\.\d+) +│", table)]
    ends = re.findall(r"([+-]\d+\.\d+) to ([+-]\d+\.\d+)", table)
    assert len(leads) == len(ends) == 6
    for lead, (low, high) in zip(leads, ends, strict=True):
        assert sign * lead > 0 and float(low) < lead < float(high)


def test_too_many_groups_are_shown_and_not_tested(results: Results) -> None:
    for number in range(score_tables.MOST_GROUPS + 1):
        results.seeds("mae", 80 + number + NOISE[:3], ratio=number)
    table = results.table()
    assert len(table.groups) == score_tables.MOST_GROUPS + 1
    assert table.pairs == ()
    assert any("too many" in note for note in table.notes)
    assert set(marks(table).values()) == {""}


def curve(results: Results, method: str, points: dict[int, float], scale: float = 1) -> str:
    """A run whose cost is ten images and ten million FLOPs a step, times the scale."""
    run = results.run(method)
    last = max(points)
    for step, value in points.items():
        results.score(
            run, value, step=None if step == last else step, images_seen=10 * step * scale,
            flops=1e7 * step, seconds=step / 10,
        )  # fmt: skip
    return run


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


def test_axes_differ(results: Results) -> None:
    curve(results, "a", {50: 70.0, 100: 80.0})
    curve(results, "b", {50: 60.0, 100: 65.0}, scale=0.5)
    assert values(results.table(at="equal-images")) == {"a": 70.0, "b": 65.0}
    assert values(results.table(at="equal-flops")) == {"a": 80.0, "b": 65.0}
    assert values(results.table(at="equal-time")) == {"a": 80.0, "b": 65.0}
    assert "the end of each run" in results.table(at="equal-time").title


def test_nothing_is_read_beyond_a_curve(results: Results) -> None:
    curve(results, "a", {10: 50.0, 100: 80.0})
    curve(results, "b", {50: 60.0, 100: 65.0})
    table = results.table(at="equal-images", at_cost=300)
    assert values(table) == {"a": pytest.approx(50 + 30 * 20 / 90)}
    assert table.notes == (
        "b: knn of 1 run is not known at 300 images seen, only from 500 images seen to "
        "1,000 images seen",
    )
    assert [group.label for group in table.groups] == ["a", "b"]
    assert table.groups[1].costs["flops"] is None
    beyond = results.table(at="equal-images", at_cost=5000)
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
    assert values(results.table(at="equal-images")) == {"a": 80.0, "untrained": 20.0}


def test_a_cost_that_was_not_recorded_is_named(results: Results) -> None:
    curve(results, "a", {50: 70.0, 100: 80.0})
    results.score(results.run("old"), 75.0, flops=None)
    table = results.table(at="equal-flops")
    assert values(table) == {"a": 80.0}
    assert any(note.startswith("old: flops was not recorded") for note in table.notes)


def test_a_terminal_gets_the_best_rows_of_very_many(results: Results) -> None:
    for number in range(150):
        results.seeds("mae", [float(number % 90)], mask_ratio=number)
    text = shown(results.compare(), width=100)
    assert "50 of 150 rows are shown, those with the best knn" in text
    assert "89.00" in text
    assert "  1.00" not in text
    assert len(tables.flat(results.compare())) == 150


def test_costs_tell_the_device_of_each_row(results: Results) -> None:
    results.seeds("a", [80.0])
    assert "[1]" not in shown(results.compare())
    assert "trained" in shown(results.compare())
    for seed, device in enumerate(["a CPU", "a GPU"]):
        results.score(results.run("b", seed, device=device), 80.0 + seed)
    text = shown(results.compare(), 100)
    assert "[1] a CPU" in text and "[2] a GPU" in text
    [row] = [line for line in text.splitlines() if "│ b" in line and "[1][2]" in line]
    assert row.count(" - ") == 2, "time and memory"


def test_no_name_commands_the_terminal(results: Results) -> None:
    evil = "\x1b]0;title\x07\x9b2J"
    results.score(results.run("a" + evil, device="CPU" + evil), 80.0, evaluated_on="data" + evil)
    results.seeds("a" + evil, [70.0, 71.0], evil=evil)
    results.run("c" + evil, state="failed", error=evil)
    text = shown(results.compare())
    assert "a]0;title2J" in text
    assert not {*evil[:1], "\x07", "\x9b"} & {*text}


def test_trainings_under_one_budget_end_at_an_equal_cost(results: Results) -> None:
    """Whole steps of one are never the FLOPs of another's."""
    for method, value, flops in (("a", 80.0, 1000.0), ("b", 70.0, 995.0), ("c", 60.0, 975.0)):
        results.score(results.run(method), value, flops=flops)
    table = results.table(at="equal-flops", at_cost=999)
    assert values(table) == {"a": 80.0, "b": 70.0}
    assert "c: knn of 1 run is not known" in " ".join(table.notes)


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


@pytest.mark.parametrize("width", [60, 80, 200])
def test_tables_fit_and_cut_no_number(results: Results, width: int) -> None:
    """Many evaluations, long settings, several seeds."""
    names = [f"evaluation-{number}" for number in range(7)]
    for ratio in (0.5, 0.75):
        for seed in range(3):
            settings = {"mask_ratio": ratio, "some_long_setting": f"a-value-of-{ratio}"}
            run = results.run("mae", seed, settings=settings)
            for number, name in enumerate(names):
                results.score(run, 10 * number + ratio + NOISE[seed + number], eval=name)
    compared = results.compare()
    text = shown(compared, width)
    for line in text.splitlines():
        assert len(line) <= width or line == "a problem"
        assert line[:1] not in "┏┃┡│└" or line[-1] in "┓┃┩│┘", line
    [table] = compared.tables
    for cell in table.cells.values():
        assert cell.mean.half_width is not None
        assert f"{cell.mean.mean:.2f} ± {cell.mean.half_width:.2f}" in text
    assert "…" not in text
    assert "mask_ratio" in text
    assert all(name in text for name in names)


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
    tested = {key for pair in found if pair.p_adjusted is not None for key in (pair.a, pair.b)}
    if tested == set(means) and marked and "best" not in marked.values():
        lowest = min(means[key] for key in marked)
        assert all(key in marked for key in means if means[key] > lowest)
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


def test_a_copy_that_lost_its_cost_does_not_stand_for_the_run(results: Results) -> None:
    poor = results.run("a")
    results.score(poor, 80.0, images_seen=None, flops=None, seconds=None)
    whole = results.run("a")
    results.score(whole, 80.0)
    table = results.table()
    [group] = table.groups
    assert [*group.seeds] == [whole]
    assert group.costs["images_seen"] == 1000


def beside(**values: float) -> str:
    """Baselines of an evaluation, as the index has them."""
    return json.dumps({name.replace("_", " "): {"top1": value} for name, value in values.items()})


def test_baselines_are_rows_that_nothing_is_tested_against(results: Results) -> None:
    for method in ("mae", "mocov3"):
        for seed in (0, 1):
            run = results.run(method, seed, settings={"backbone": "vit", "image_size": 32})
            results.score(
                run, 20.0 + seed, baselines=beside(raw_pixels=45.0, random_init=9.0 + seed)
            )
    compared = results.compare()
    [table] = compared.tables
    assert [(g.label, g.is_baseline) for g in table.groups] == [
        ("mae", False), ("mocov3", False), ("raw pixels", True), ("random init", True),
    ]  # fmt: skip
    cells = {g.label: table.cells[g.key, table.columns[0].key] for g in table.groups}
    assert cells["raw pixels"].mean.mean == 45 and cells["raw pixels"].mean.n == 2
    assert cells["random init"].mean.mean == 9.5
    assert {pair.a for pair in table.pairs} | {pair.b for pair in table.pairs} == {
        group.key for group in table.groups if not group.is_baseline
    }
    [note] = [note for note in tables.notes(compared) if "higher mean" in note]
    assert "raw pixels (45.00)" in note and "random" not in note
    text = shown(compared)
    assert "raw pixels" in text and "45.00" in text
    flat = tables.flat(compared)
    assert not flat.loc[flat["method"] == "raw pixels", "runs"].any()
    [page] = main_tables(source_of(compared))
    assert [row[0].text for row in page.rows][2:] == ["raw pixels", "random init"]
    assert not page.rows[2][0].link


@pytest.mark.parametrize(
    ("better", "pixels", "best"),
    [("higher", 45.0, "b (30.00)"), ("higher", 25.0, ""), ("lower", 10.0, "a (20.00)"),
     ("lower", 25.0, "")],
)  # fmt: skip
def test_a_baseline_that_is_better_than_every_method_is_told(
    results: Results, better: str, pixels: float, best: str
) -> None:
    for method, value in (("a", 20.0), ("b", 30.0)):
        own = beside(raw_pixels=pixels)
        results.score(results.run(method), value, better=better, baselines=own)
    told = [
        note for note in tables.notes(results.compare()) if f"raw pixels ({pixels:.2f})" in note
    ]
    assert len(told) == bool(best)
    assert all(best in note and better in note for note in told)


def test_a_baseline_has_the_seed_of_its_evaluation_and_a_score_in_each_column(
    results: Results,
) -> None:
    run = results.run("a", seed=0)
    own = json.dumps({"random init": {"top1": 9.0, "top5": 40.0}})
    results.score(run, 80.0, eval_seed=5, baselines=own)
    results.score(run, 95.0, eval_seed=5, baselines=own, score="top5", is_headline=False)
    table = results.table()
    [group] = [group for group in table.groups if group.is_baseline]
    assert [*group.seeds.values()] == [5]
    means = [table.cells[group.key, column.key].mean.mean for column in table.columns]
    assert means == [9.0, 40.0]


def test_an_untrained_encoder_has_one_row(results: Results) -> None:
    for seed in (0, 1):
        results.score(results.run("mae", seed), 20.0, baselines=beside(random_init=9.0 + seed))
        results.score(results.run("random-init", seed), 9.0 + seed)
    assert [group.label for group in results.table().groups] == ["mae", "random-init"]
    results.score(results.runs[0]["run"], 20.0, eval="linear", baselines=beside(random_init=12.0))
    compared = results.compare()
    [table] = compared.tables
    assert [group.label for group in table.groups] == ["mae", "random-init", "random init"]
    shown_in = {column for key, column in table.cells if key == table.groups[-1].key}
    assert shown_in == {"linear/p0/top1"}
    assert "12.00 (n=1)" in shown(compared)


def test_baselines_of_several_encoders_are_told_apart(results: Results) -> None:
    for size, random in ((32, 10.0), (64, 20.0)):
        settings = {"backbone": "vit", "image_size": 96, "patch_size": size}
        run = results.run("mae", settings=settings)
        results.score(run, 30.0, baselines=beside(raw_pixels=45.0, random_init=random))
    labels = [group.label for group in results.table().groups if group.is_baseline]
    assert labels == ["raw pixels", "random init patch_size=32", "random init patch_size=64"]


def test_two_sizes_of_one_folder_have_two_titles(results: Results) -> None:
    for size in (32, 64):
        run = results.run("mae", settings={"image_size": size})
        results.score(run, 20.0, test_fingerprint=f"ff{size}")
    titles = [table.title for table in results.compare().tables]
    assert titles == ["data at 32 px, 100 test images", "data at 64 px, 100 test images"]
    results.score(results.run("moco", settings={"image_size": 64}), 20.0, test_fingerprint="gg")
    titles = [table.title for table in results.compare().tables]
    assert len(set(titles)) == 3 and "data at 64 px (version gg), 100 test images" in titles


def test_runs_and_scores_are_chosen_and_ordered(results: Results) -> None:
    for method, knn, data in (("mae", 10.0, "a"), ("moco", 30.0, "a"), ("dino", 20.0, "b")):
        run = results.run(method)
        results.score(run, knn, evaluated_on=data)
        results.score(run, 100 - knn, eval="linear", evaluated_on=data)
        results.score(run, knn, eval="depth", evaluated_on=data, unit="error", better="lower")
    index = Index(pd.DataFrame(results.runs), pd.DataFrame(results.scores), ())
    only = comparison.select(index, ("mae", "moco"), ("a",), ("knn",))
    assert set(only.runs["method"]) == {"mae", "moco"} and set(only.scores["eval"]) == {"knn"}
    assert set(comparison.select(index, (), ("b",), ()).runs["method"]) == {"dino"}
    for wanted in ((("mea",), (), ()), ((), ("c",), ()), ((), (), ("kn",)), (("mae",), ("b",), ())):
        with pytest.raises(UserError):
            comparison.select(index, *wanted)
    compared = results.compare()

    def order(by: str) -> list[str]:
        [first, *_] = comparison.ordered(compared, by).tables
        return [group.label for group in first.groups]

    assert order("knn") == ["moco", "mae"] and order("linear") == ["mae", "moco"]
    assert order("depth") == ["mae", "moco"]
    with pytest.raises(UserError, match="depth, knn, linear"):
        order("accuracy")
    with pytest.raises(UserError, match=r"--sort 'knm'.*did you mean knn"):
        order("knm")


def test_everything_is_there_as_json(results: Results) -> None:
    results.seeds("mae", [20.0, 21.0])
    results.seeds("moco", [30.0, float("nan")])
    text = json.dumps(tables.as_json(results.compare()), allow_nan=False)
    content = json.loads(text)
    assert {row["method"]: row["n"] for row in content["scores"]} == {"mae": 2, "moco": 1}
    assert [pair["evaluation"] for pair in content["pairs"]] == ["knn"]
    assert {"incomplete", "notes"} <= content.keys()


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
        (by(trials=8, tuned="by hand"), by(trials=8, tried=8), "best"),
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


def test_searches_of_unequal_cost_are_told(results: Results) -> None:
    results.seeds("a", 80 + NOISE[:4])
    results.seeds("b", 70 + NOISE[4:8])
    for row in results.runs:
        row["chosen_by"] = by(trials=8, flops=3 * 10**13 if row["method"] == "a" else 12 * 10**11)
    [note] = [note for note in results.table().notes if "searches" in note]
    assert "a 3e+13" in note and "b 1.2e+12" in note


def test_rows_of_one_method_are_what_is_compared(results: Results) -> None:
    results.seeds("a", 80 + NOISE[:4], ratio=0.75)
    results.seeds("a", 70 + NOISE[4:8], ratio=0.5)
    for row in results.runs:
        row["chosen_by"] = by(flags=("ratio",) if "0.5" in row["settings"] else ())
    assert [*marks(results.table()).values()].count("best") == 1


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
    assert marks(table)["a"] == "best"
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


def test_without_methods_of_labels_nothing_is_said_of_them(results: Results) -> None:
    results.seeds("mae", 80 + NOISE[:4])
    results.seeds("mocov3", 70 + NOISE[4:8])
    assert not any("without labels" in note for note in results.table().notes)


def test_one_command_reads_at_all_three_costs(results: Results) -> None:
    results.seeds("a", (80, 81))
    results.seeds("b", (70, 71))
    titles = [table.title for table in results.compare(at="equal-costs").tables]
    assert len(titles) == 3
    for title, words in zip(titles, ("images seen", "FLOPs", "s of the device"), strict=True):
        assert words in title
