"""What is put side by side, and what is kept apart."""

from __future__ import annotations

import dataclasses
import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from comparisons import NOISE, Results, beside, curve, marks, shown, source_of

from ssl_bench.analysis import comparison, tables
from ssl_bench.analysis import marks as rendering
from ssl_bench.analysis.report import exports, page
from ssl_bench.analysis.report.tables import main_tables, pair_tables
from ssl_bench.errors import UserError
from ssl_bench.runs.index import Index
from ssl_bench.utils.files import write_json


@pytest.fixture
def results() -> Results:
    return Results()


def test_seeds_make_a_group_with_mean_and_interval(results: Results) -> None:
    runs = results.seeds("mae", [80.0, 81.0, 82.0])
    for row, images in zip(results.scores, (100, 200, 2700), strict=True):
        row["images_seen"] = images
    results.score(runs[0], 70.0, eval="linear", images_seen=100)
    for rows in (results.runs, results.scores):
        rows.reverse()
    table = results.table()
    [group] = table.groups
    assert [*group.seeds] == runs, "in ascending order"
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


@pytest.mark.parametrize(
    ("lengths", "said"),
    [
        ([0.05555555555555555, 7.064102564102564], ["0.05556", "7.064"]),
        ([7.0641, 7.0642], ["7.0641", "7.0642"]),  # four digits would not tell them apart
        ([1e5 / 3, 12345678.0], ["33333", "12345678"]),
    ],
)
def test_labels_have_as_few_digits_as_tell_runs_apart(
    lengths: list[float], said: list[str], results: Results
) -> None:
    for epochs in lengths:
        results.seeds("mae", [80.0], epochs=epochs)
    labels = [group.label for group in results.table().groups]
    assert labels == [f"mae epochs={length}" for length in said]


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
    for value in (83.0, 88.0):
        results.score(results.run("a", seed=1), value)
    compared = results.compare()
    [table] = compared.tables
    assert table.cells[group.key, "knn/p0/top1"].values == {first: 80.0, second: 84.0}
    assert "their mean is taken" in compared.notes[1]
    assert "their mean is taken" not in compared.notes[0]


def test_a_repetition_of_a_seed_that_diverged_is_told(results: Results) -> None:
    [first] = results.seeds("a", [float("nan")])
    results.seeds("a", [70.0])
    compared = results.compare()
    [cell] = compared.tables[0].cells.values()
    assert cell.values == {first: 70.0}
    assert "their mean is taken" in compared.notes[0]


def test_columns_that_rank_the_runs_come_first(results: Results) -> None:
    run = results.run("a")
    for name in ("anisotropy", "rank"):
        results.score(run, 1.0, eval=name, better="neither")
    results.score(run, 2.0)
    results.score(run, 3.0, score="top5", is_headline=False)
    results.score(run, 4.0, eval="linear", better="lower")
    titles = [column.title for column in results.table().columns]
    assert titles == ["knn", "linear", "anisotropy", "rank", "knn: top5"]


def test_after_z_letters_are_doubled(results: Results) -> None:
    for number in range(28):
        results.seeds("mae", [80.0], another_setting=f"{number:02} with a very long value of it")
    labels = [group.label for group in results.table().groups]
    assert labels[:2] + labels[25:] == ["mae A", "mae B", "mae Z", "mae AA", "mae AB"]


def test_by_a_cost_the_smallest_comes_first_and_what_is_not_known_last(results: Results) -> None:
    for method, images in (("a", 3000), ("b", None), ("c", 1000)):
        own = beside(raw_pixels=60.0)
        results.score(results.run(method), 50.0, images_seen=images, baselines=own)
    results.score(results.run("d"), 50.0, eval="linear", images_seen=2000)
    compared = results.compare()
    for by, expected in (("images", ["c", "d", "a", "b"]), ("knn", ["a", "b", "c", "d"])):
        [table] = comparison.ordered(compared, by).tables
        assert [group.label for group in table.groups] == [*expected, "raw pixels"]


def test_a_copy_that_did_not_end_leaves_the_run_that_did(results: Results) -> None:
    half = results.run("a", state="unfinished")
    results.score(half, 50.0, step=50)
    done = curve(results, "a", {50: 50.0, 100: 60.0})
    for at in ("end", "equal-images"):
        table = results.table(at=at)
        [cell] = table.cells.values()
        assert cell.values == {done: 60.0}


def test_what_was_scored_on_the_way_is_not_the_end(results: Results) -> None:
    done = results.run("a")
    results.score(done, 60.0)
    results.score(done, 50.0, step=50)
    [cell] = results.table().cells.values()
    assert cell.values == {done: 60.0}


def test_a_group_on_several_devices_has_no_time(results: Results) -> None:
    for seed, device in enumerate(["a CPU", "a GPU"]):
        results.score(results.run("a", seed, device=device), 80.0 + seed)
    results.seeds("b", [70.0])
    table = results.table()
    a, b = (group.costs for group in table.groups)
    assert (a["seconds"], a["peak_memory_mib"], a["flops"]) == (None, None, 1e9)
    assert (b["seconds"], b["peak_memory_mib"]) == (10.0, 100.0)
    assert any(note.startswith("a: its runs were on different devices") for note in table.notes)


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


def test_what_reads_text_is_in_no_column_of_images(results: Results, tmp_path: Path) -> None:
    for method, more in (("a", {}), ("b", {"reads": "text"})):
        (tmp_path / method).mkdir()
        write_json(tmp_path / method / "scores.json", {"config": {"epochs": 3}, **more})
        run = results.run(method)
        results.score(run, 80.0, protocol=method, folder=str(tmp_path / method))
    table = results.table()
    assert [column.title for column in table.columns] == ["knn reads=images", "knn reads=text"]
    assert "knn was run under 2 protocols: reads images / text" in table.notes


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


@pytest.mark.parametrize("none", [np.nan, np.inf, -np.inf])
def test_missing_evaluation_is_a_dash_and_what_is_not_finite_is_left_out(
    none: float, results: Results
) -> None:
    first, second = results.seeds("a", [80.0, none])
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


def test_a_copy_that_lost_its_cost_does_not_stand_for_the_run(results: Results) -> None:
    poor = results.run("a")
    results.score(poor, 80.0, images_seen=None, flops=None, seconds=None)
    whole = results.run("a")
    results.score(whole, 80.0)
    table = results.table()
    [group] = table.groups
    assert [*group.seeds] == [whole]
    assert group.costs["images_seen"] == 1000


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


def test_a_pair_in_json_is_that_of_the_table(results: Results) -> None:
    results.seeds("a", [90.0, 90.3, 90.5])
    results.seeds("b", [70.0, 79.2, 80.9])
    results.seeds("c", [79.9, 80.3, 80.6])
    compared = results.compare()
    [table] = compared.tables
    rows = json.loads(json.dumps(tables.as_json(compared)))["pairs"]
    for row, pair in zip(rows, table.pairs, strict=True):
        assert (row["a"], row["b"]) == (table.label(pair.a), table.label(pair.b))
        assert row["difference"] == pair.difference.difference
        assert tuple(row["interval"]) == pair.interval
        assert (row["level"], row["p_adjusted"]) == (pair.level, pair.p_adjusted)
        assert row["p"] == pair.difference.p
        assert (row["test"], row["verdict"]) == (pair.test, pair.verdict)
    assert any(row["p"] < row["p_adjusted"] for row in rows)
    assert any(row["level"] < 0.05 for row in rows)
    assert {row["difference"] > 0 for row in rows} == {True, False}


def test_a_flat_row_has_the_runs_of_its_score_and_their_mean(results: Results) -> None:
    runs = results.seeds("a", [80.0, 84.0, float("nan")])
    results.score(runs[1], 70.0, eval="linear")
    compared = results.compare()
    [table] = compared.tables
    [cell] = [cell for (_, key), cell in table.cells.items() if key == "knn/p0/top1"]
    knn, linear = tables.flat(compared).to_dict("records")
    assert (knn["n"], knn["mean"], knn["half_width"]) == (2, 82.0, cell.mean.half_width)
    assert (knn["seeds"], knn["runs"]) == ("0 1 2", " ".join(runs))
    assert (linear["n"], linear["mean"], linear["seeds"], linear["runs"]) == (
        *(1, 70.0),
        *("1", runs[1]),
    )
