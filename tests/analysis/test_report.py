"""The report: what it draws, writes and refuses, and the page in a real browser."""

from __future__ import annotations

import base64
import dataclasses
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import forked
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from finished_runs import CLASSES, IMAGES, NASTY, make_run
from hypothesis import given
from hypothesis import strategies as st

from ssl_bench import cli
from ssl_bench.analysis import comparison, report, tables
from ssl_bench.analysis.comparison import statistics
from ssl_bench.analysis.report import (
    accuracy,
    cost,
    drawing,
    exports,
    origins,
    predictions,
    representations,
    searching,
    training,
)
from ssl_bench.analysis.report.drawing import Drawing
from ssl_bench.analysis.report.source import Source
from ssl_bench.analysis.report.tables import Cell, Table
from ssl_bench.cli import parser
from ssl_bench.config import chosen
from ssl_bench.config.command_settings import ReportSettings, VerdictSettings
from ssl_bench.errors import UserError
from ssl_bench.models.backbones import EncoderSpec
from ssl_bench.runs import index
from ssl_bench.utils import files
from ssl_bench.utils.files import write_json

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("all") / "runs"
    for seed in (0, 1):
        make_run(folder, "mae", seed)
        make_run(folder, NASTY, seed)
    for ratio in (0.25, 0.5):
        make_run(folder, "mae", 0, ratio, evals=("knn",))
    make_run(folder, "elsewhere", 0, data=NASTY, evals=("knn",))
    broken = make_run(folder, "mocov3", 0, evals=("knn",))
    (broken / "config.json").write_text("{")
    half = make_run(folder, "mocov3", 1, evals=("knn",))
    (half / "encoder.json").unlink()
    write_json(half / "failed.json", {"error": "loss is NaN", "at": "2026-01-01T00:00:00"})
    cut = make_run(folder, "mocov3", 2, evals=("embedding",))
    [arrays] = cut.glob("evals/embedding-*/arrays.npz")
    arrays.write_bytes(arrays.read_bytes()[:100])
    return folder


@dataclasses.dataclass(frozen=True)
class Written:
    folder: Path
    lines: list[str]

    @property
    def html(self) -> str:
        return (self.folder / "index.html").read_text()


@pytest.fixture(scope="module")
def written(runs_dir: Path) -> Written:
    output = runs_dir.parent / "report"
    settings = ReportSettings(output=output, title=NASTY, runs_dir=runs_dir)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "_DOTS_PER_INCH", 50)
        return Written(output, report.write(settings))


THEMES = [
    "Accuracy", "Other scores", "Accuracy against cost", "Ablations", "Training",
    "Reconstructions", "Attention", "Embeddings", "Similarity", "Robustness", "Confusions",
    "Differences by class",
]  # fmt: skip


@pytest.mark.parametrize("theme", THEMES)
def test_every_figure_is_drawn(written: Written, theme: str) -> None:
    assert f">{theme}</h2>" in written.html
    assert not [line for line in written.lines if "cannot be drawn" in line]


def test_each_figure_has_every_format_and_its_numbers(written: Written) -> None:
    endings: dict[str, set[str]] = {}
    for path in (written.folder / "figures").iterdir():
        endings.setdefault(path.stem, set()).add(path.suffix)
        assert path.stat().st_size > 0
    assert endings
    for name, found in endings.items():
        has_numbers = not name.startswith("pictures-")
        assert found == {".png", ".svg", ".pdf"} | ({".csv"} if has_numbers else set())


def test_nothing_is_loaded_from_elsewhere(written: Written) -> None:
    """Every address on the page is inside it, and so is every address in a picture."""
    pictures = re.findall(r'src="data:image/svg\+xml;base64,([^"]*)"', written.html)
    assert pictures
    for text in (written.html, *(base64.b64decode(picture).decode() for picture in pictures)):
        addresses = re.findall(r'(?:src|href)="([^"]*)"', text)
        addresses += re.findall(r"url\(['\"]?([^)]*)\)", text)
        assert all(address.startswith(("#", "data:")) for address in addresses)
        assert "@import" not in text and "<foreignObject" not in text
    assert "default-src &#39;none&#39;" in written.html or "default-src 'none'" in written.html


class _Names(HTMLParser):
    """Tags that are open, anchors, and the addresses inside the page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.names: list[str] = []
        self.links: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        found = dict(attrs)
        self.names += [str(found["id"])] if "id" in found else []
        if (found.get("href") or "").startswith("#"):
            self.links.add(str(found["href"])[1:])


def test_each_cell_leads_to_its_runs(written: Written, runs_dir: Path) -> None:
    page = _Names()
    page.feed(written.html)
    assert len(page.names) == len(set(page.names))
    assert page.links <= set(page.names)
    for folder in runs_dir.glob("mae-*"):
        assert str(folder) in written.html
    assert "c0ffeec0ff with uncommitted changes" in written.html
    assert "torch 2.11" in written.html


def test_names_are_escaped_everywhere(written: Written) -> None:
    page = _Names()
    page.feed(written.html)
    assert page.tags.count("script") == 1
    assert "b" not in page.tags
    assert "<script>alert" not in written.html
    assert "&lt;script&gt;alert(1)" in written.html
    for path in (written.folder / "tables").glob("*.md"):
        assert "<script>" not in path.read_text()
    for path in (written.folder / "figures").glob("*.svg"):
        assert "<script" not in path.read_text()


def test_latex_is_a_table_whose_names_are_escaped(written: Written) -> None:
    [path, *_] = sorted((written.folder / "tables").glob("scores-*.tex"))
    text = path.read_text()
    assert r"\toprule" in text and r"\bottomrule" in text
    assert r"\textless{}script\textgreater{}" in text
    lines = [line for line in text.splitlines() if not line.startswith(("%", r"\resizebox"))]
    bare = re.sub(r"\\[&%$#_{}]|\$\\(pm|bullet|circ)\$", "", "\n".join(lines))
    assert not set("$#^~_<>|") & set(bare)


@given(st.text(max_size=40))
def test_latex_and_markdown_keep_a_name_in_its_cell(name: str) -> None:
    cell = Cell(name, name)
    table = Table("t", name, name, (name, "b"), frozenset({1}), ((cell, cell),), pd.DataFrame())
    rows = exports.as_latex(table).splitlines()
    body = rows[rows.index(r"\midrule") + 1]
    assert len(re.findall(r"(?<!\\)&", body)) == 1
    assert not re.search(r"(?<!\\)[%#_$]", re.sub(r"\$\\(pm|bullet|circ)\$", "", body))
    lines = exports.as_markdown(table).splitlines()
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 3 for line in lines[2:5])
    assert not re.search(r"<", lines[4])


def test_sentences_of_a_caption_are_apart_in_latex() -> None:
    table = Table("t", "Scores", "Of all.", ("a",), frozenset(), (), pd.DataFrame(), ("x 1", "y"))
    assert r"\caption{Scores. Of all. x 1. y.}" in exports.as_latex(table)


def test_a_row_of_latex_never_starts_with_an_argument() -> None:
    rows = tuple((Cell(name), Cell("1")) for name in ("[2ex] a", "*b", '"c"'))
    table = Table("t", "t", "t", ("[1pt]", "b"), frozenset({1}), rows, pd.DataFrame())
    text = exports.as_latex(table)
    assert not re.search(r"(\\\\|rule)\s*[\[*]", text)
    assert r"\textquotedbl" not in text


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@a", "a"])
def test_a_spreadsheet_runs_no_name(name: str) -> None:
    frame = pd.DataFrame({"group": [name], "difference": [-1.5]})
    text = tables.as_csv(frame).decode()
    assert text == f"group,difference\n{name if name == 'a' else chr(39) + name},-1.5\n"


def test_numbers_are_those_of_the_runs(written: Written, runs_dir: Path) -> None:
    frames = [pd.read_csv(path) for path in (written.folder / "tables").glob("scores-tiny-*.csv")]
    found = pd.concat(frames)
    cell = found[found["group"].str.startswith("mae") & (found["evaluation"] == "knn")]
    cell = cell[cell["n"] == 2].iloc[0]
    values = [
        json.loads(path.read_text())["scores"]["top1"]
        for path in runs_dir.glob("mae-tiny-seed*-0.75/evals/knn-*/scores.json")
    ]
    assert cell["mean"] == pytest.approx(np.mean(values))
    # The quantile of t with one degree of freedom.
    assert cell["high"] - cell["mean"] == pytest.approx(12.7062 * np.std(values, ddof=1) / 2**0.5)


def test_what_is_wrong_is_named_and_the_rest_is_shown(written: Written) -> None:
    said = "\n".join(written.lines)
    for name in ("mocov3-tiny-seed0-0.75", "embedding-beef-seed2-fp32"):
        assert name in said
        assert name in written.html
    assert "loss is NaN" in written.html


def test_what_is_missing_names_the_command(written: Written) -> None:
    [line] = [line for line in written.lines if "not drawn" in line]
    part = written.html.partition('id="missing"')[2].partition("</section>")[0]
    assert f"{part.count('<li>')} figures" in line
    assert "--evals partial-finetune</code>" in written.html


def test_a_method_looks_the_same_whoever_else_is_there() -> None:
    known = ["mae", "mocov3", "supervised"]
    alone = drawing.looks(["mae", "mine"], known)
    together = drawing.looks(["mine", "mocov3", "theirs", "mae"], known)
    assert all(alone[name] == together[name] for name in ("mae", "mine"))
    assert len({look.color for look in together.values()}) == len(together)
    assert len({(look.marker, look.line) for look in together.values()}) > 1


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_pareto_front(points: list[tuple[int, int]]) -> None:
    frame = pd.DataFrame(points, columns=["cost", "value"])
    front = cost.pareto(frame["cost"], frame["value"], True)
    for (price, value), is_on in zip(points, front, strict=True):
        beaten = any((c <= price and v > value) or (c < price and v >= value) for c, v in points)
        assert is_on != beaten


def test_a_front_of_what_is_better_lower() -> None:
    costs, errors = pd.Series([1.0, 2.0, 3.0]), pd.Series([0.5, 0.4, 0.6])
    assert list(cost.pareto(costs, errors, False)) == [True, True, False]


def source_of(runs_dir: Path) -> Source:
    found = index.load(runs_dir)
    looks = drawing.looks(found.runs["method"].fillna("unknown"), [])
    return Source(found, comparison.compare(found), looks)


def change(path: Path, **changes: Any) -> None:
    write_json(path, json.loads(path.read_text()) | changes)


def figures(drawn: Iterator[Any]) -> list[Drawing]:
    return [each for each in drawn if isinstance(each, Drawing)]


def test_captions_tell_how_many_images_were_measured(written: Written, runs_dir: Path) -> None:
    source = source_of(runs_dir)
    [drawn] = figures(accuracy.by_corruption(source))
    assert f"20 of the {IMAGES} test images of tiny." in drawn.caption
    assert "CIFAR-10-C" in drawn.caption
    for drawn in figures(representations.similarities(source)):
        assert f"features of 20 of the {IMAGES} test images of tiny." in drawn.caption
    assert f"{IMAGES} test images of tiny (robustness on 20 of them)." in written.html
    assert "robustness is measured on 20 of the test images" in written.html


def test_each_corruption_has_its_own_accuracies(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "mae", 0, evals=("robustness",))
    [home] = folder.glob("evals/robustness-*")
    stored = np.load(home / "arrays.npz")["accuracy"]
    [drawn] = figures(accuracy.by_corruption(source_of(tmp_path)))
    for kind, own in zip(("fog", "snow"), stored, strict=True):
        of_kind = drawn.data[drawn.data["corruption"] == kind].set_index("severity")["accuracy"]
        assert of_kind.to_dict() == pytest.approx({0: 70.0, **dict(enumerate(own, 1))})


def test_figures_name_a_size_of_the_data_as_tables_do(tmp_path: Path) -> None:
    make_run(tmp_path, "mae", 0, 0.5, evals=("knn",))
    source = source_of(tmp_path)
    scores = source.comparison.scores
    sizes = {"aa": 32, "bb": 64}
    several = pd.concat(
        scores.assign(test_fingerprint=digest, settings=json.dumps({"image_size": size}))
        for digest, size in sizes.items()
    )
    source = Source(
        source.index, dataclasses.replace(source.comparison, scores=several), source.looks
    )
    titles = [title for title, _ in source.evaluations(source.headlines)]
    assert [title.endswith(f"tiny at {size} px") for title, size in
            zip(titles, sizes.values(), strict=True)] == [True, True]  # fmt: skip


def test_a_curve_is_of_groups_that_differ_in_nothing_else(tmp_path: Path) -> None:
    for ratio in (0.25, 0.5, 0.75):
        make_run(tmp_path, "mae", 0, ratio, evals=("knn",))
        newer = make_run(tmp_path, "mae", 1, ratio, evals=("knn",))
        change(newer / "config.json", method_version=2)
        again = newer / "evals" / "knn-beef-seed1-bf16"
        shutil.copytree(newer / "evals" / "knn-beef-seed1-fp32", again)
        change(again / "scores.json", precision="bf16")
    [drawn] = figures(accuracy.over_settings(source_of(tmp_path)))
    assert set(drawn.data["n"]) == {1}
    assert set(drawn.data["curve"]) == {
        "evaluated_in=fp32, version=1", "evaluated_in=fp32, version=2",
        "evaluated_in=bf16, version=2",
    }  # fmt: skip


def test_groups_that_nothing_tells_apart_are_on_no_curve(tmp_path: Path) -> None:
    for ratio in (0.25, 0.5, 0.75):
        make_run(tmp_path, "mae", 0, ratio, evals=("knn",))
    twin = make_run(tmp_path, "mae", 1, 0.75, evals=("knn",))
    config = json.loads((twin / "config.json").read_text())
    change(twin / "config.json", encoder=config["encoder"] | {"mean": [0.4] * 3})
    assert figures(accuracy.over_settings(source_of(tmp_path))) == []


def test_each_baseline_is_of_one_encoder(tmp_path: Path) -> None:
    make_run(tmp_path, "mae", 0, evals=("knn",))
    other = make_run(tmp_path, "mocov3", 0, evals=("knn",))
    config = json.loads((other / "config.json").read_text())
    change(other / "config.json", encoder=config["encoder"] | {"patch_size": 8})
    [drawn] = figures(accuracy.by_evaluation(source_of(tmp_path)))
    [legend] = drawn.figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert len(names) == 2
    assert all(f"patches of {side} px" in "".join(names) for side in (4, 8))


def test_a_baseline_counts_a_seed_once_however_many_methods_have_it(tmp_path: Path) -> None:
    """And each counts the same: it is their mean, not the one in the middle."""
    for method, seed in (("mae", 0), ("mocov3", 0), ("mae", 1), ("mae", 2)):
        folder = (
            make_run(tmp_path, method, seed, evals=("knn",)) / f"evals/knn-beef-seed{seed}-fp32"
        )
        change(folder / "scores.json", baselines={"random init": {"top1": 10.0 + 20.0 * seed**2}})
    [drawn] = figures(accuracy.by_evaluation(source_of(tmp_path)))
    [line] = [each for each in drawn.figure.axes[0].lines if each.get_linestyle() != "None"
              and each.get_color() == drawing.FAINT]  # fmt: skip
    assert [*np.asarray(line.get_xdata())] == [pytest.approx((10 + 30 + 90) / 3)] * 2


def test_a_figure_has_the_intervals_of_its_table(tmp_path: Path) -> None:
    labels = np.arange(IMAGES) % len(CLASSES)
    for seed in (0, 1):
        folder = make_run(tmp_path, "mae", seed, evals=("knn",)) / f"evals/knn-beef-seed{seed}-fp32"
        right = np.arange(IMAGES) < IMAGES / 2 + seed
        np.savez(folder / "predictions.npz", predictions=np.where(right, labels, -1), labels=labels)
        change(folder / "scores.json", scores={"top1": float(100 * right.mean())})
    found = index.load(tmp_path)
    looks = drawing.looks(found.runs["method"], [])
    settings = VerdictSettings(interval="seeds+images")
    source = Source(found, comparison.compare(found, settings=settings), looks)
    [table], [drawn] = source.comparison.tables, figures(accuracy.by_evaluation(source))
    shown = table.cells[table.groups[0].key, table.headlines[0].key].mean
    over_seeds = statistics.mean_interval(drawn.data["value"])
    assert shown.interval[0] < over_seeds.interval[0]
    assert set(drawn.data["low"]) == {shown.interval[0]}
    assert "over seeds and test images (over seeds alone: random init)" in drawn.caption


def test_what_costs_nothing_is_a_line_and_counts_for_the_front(tmp_path: Path) -> None:
    make_run(tmp_path, "mae", 0, evals=("knn",))
    free = make_run(tmp_path, "free", 0, evals=("knn",))
    shutil.rmtree(free / "snapshots")
    change(free / "cost.json", images_seen=0, flops=0, seconds=0.0)
    change(free / "evals" / "knn-beef-seed0-fp32" / "scores.json", scores={"top1": 99.0})
    going = make_run(tmp_path, "going", 0, evals=("knn",))
    (going / "encoder.json").unlink()
    drawn = figures(cost.against_cost(source_of(tmp_path)))
    assert len(drawn) == 1
    for each in drawn:
        assert {name.split()[0] for name in each.data["group"]} == {"mae", "free"}
        assert set(each.data.loc[each.data["on_front"], "group"]) == {"free"}
        assert "not tested" in each.caption
    for path in tmp_path.rglob("scores.json"):
        change(path, better="lower", unit="error (%)")
    for each in figures(cost.against_cost(source_of(tmp_path))):
        assert "mae" in " ".join(each.data.loc[each.data["on_front"], "group"])


def test_differences_by_class_are_corrected(runs_dir: Path) -> None:
    for drawn in figures(predictions.class_differences(source_of(runs_dir))):
        known = drawn.data.dropna(subset=["p"])
        assert list(known["p_holm"]) == pytest.approx(statistics.holm(list(known["p"])))
        assert "Holm" in drawn.caption


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_a_class_is_judged_on_its_own_images(seeds: tuple[int, ...]) -> None:
    labels = np.array([0, 0, 0, 0, 1, 1])
    first, second = np.array([0, 0, 1, 1, 1, 1]), np.array([0, 1, 1, 1, 1, 0])
    ours, theirs = (dict.fromkeys(seeds, (each, labels)) for each in (first, second))
    assert predictions._compare(ours, theirs, 0, "auto").difference == pytest.approx(25)


def test_differences_by_class_name_their_tests(tmp_path: Path) -> None:
    """Two methods find the same seeds hard in one class, and others in the other classes."""
    labels, ranks = np.arange(IMAGES) % len(CLASSES), np.arange(IMAGES) // len(CLASSES)
    wrong = {
        "mae": zip((0, 2, 4, 6, 8), (0, 1, 2, 3, 4), (0, 1, 2, 3, 4), strict=True),
        "mocov3": zip((1, 3, 5, 7, 10), (2, 4, 1, 3, 0), (3, 4, 0, 2, 1), strict=True),
    }
    for method, by_seed in wrong.items():
        for seed, of_class in enumerate(by_seed):
            folder = make_run(tmp_path, method, seed, evals=("knn",))
            predictions_N = np.where(ranks < np.array(of_class)[labels], -1, labels)
            path = folder / f"evals/knn-beef-seed{seed}-fp32/predictions.npz"
            np.savez(path, predictions=predictions_N, labels=labels)
    source = source_of(tmp_path)
    captions: dict[statistics.Pairing, str] = {
        "auto": "Welch's t test (2 of 3 classes) and the t test of pairs of one seed (1 of 3",
        "never": "intervals by Welch's t test, each",
        "always": "intervals by the t test of pairs of one seed, each",
    }
    for pairing, told in captions.items():
        settings = VerdictSettings(pairing=pairing)
        asked = dataclasses.replace(source, settings=settings)
        [drawn] = figures(predictions.class_differences(asked))
        assert told in drawn.caption


def test_of_many_methods_the_best_are_shown(tmp_path: Path) -> None:
    for number, method in enumerate("abcdefgh"):
        scores = make_run(tmp_path, method, 0, evals=("knn",)) / "evals/knn-beef-seed0-fp32"
        change(scores / "scores.json", scores={"top1": 50.0 + number})
    source = source_of(tmp_path)
    drawn = figures(predictions.class_differences(source))
    pairs = [each.title.partition(":")[0].split(" against ") for each in drawn]
    assert pairs == [[other, "h"] for other in "bcdefg"]
    assert all("22 more pairs of methods are not shown" in each.caption for each in drawn)
    [matrices] = figures(predictions.confusions(source))
    assert set(matrices.data["group"]) == set("cdefgh")
    assert "2 more methods are not shown" in matrices.caption


def test_a_prediction_of_no_class_is_no_other_class(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "mae", 0, evals=("knn",))
    labels = np.arange(IMAGES) % len(CLASSES)
    stored = np.where(np.arange(IMAGES) < 3, -1, labels)
    np.savez(folder / "evals/knn-beef-seed0-fp32/predictions.npz", predictions=stored,
             labels=labels)  # fmt: skip
    [drawn] = figures(predictions.confusions(source_of(tmp_path)))
    is_right = drawn.data["true"] == drawn.data["predicted"]
    assert set(drawn.data.loc[~is_right, "predicted"]) == {"none"}
    assert drawn.data["images"].sum() == IMAGES


def test_a_row_of_a_matrix_is_the_share_of_its_class(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "mae", 0, evals=("knn",)) / "evals/knn-beef-seed0-fp32"
    labels = np.array([0, 0, 0, 0, 1, 1, 2, 2])
    stored = np.array([0, 0, 0, 1, 1, 1, 1, 0])
    np.savez(folder / "predictions.npz", predictions=stored, labels=labels)
    [drawn] = figures(predictions.confusions(source_of(tmp_path)))
    [cells] = drawn.figure.axes[0].collections
    expected = [[75, 25, 0], [0, 100, 0], [50, 50, 0]]
    assert np.asarray(cells.get_array()).reshape(3, 3).tolist() == expected


def test_an_unknown_seed_is_not_invented(tmp_path: Path) -> None:
    make_run(tmp_path, "mae", 0)
    folder = make_run(tmp_path, "mocov3", 3)
    config = json.loads((folder / "config.json").read_text())
    del config["seed"]
    write_json(folder / "config.json", config)
    source = source_of(tmp_path)
    table = origins.run_table(source)
    assert sorted(row[2].text for row in table.rows) == ["-", "0"]
    told = [each for block in origins.provenance(source) for each in block["origins"]]
    assert sorted(each["facts"]["seed"] for each in told) == ["-", "0"]


def test_runs_whose_names_differ_in_signs_have_places_of_their_own(tmp_path: Path) -> None:
    for name in ("A_b", "a-b"):
        make_run(tmp_path / "made", "mae", 0, evals=("knn",)).rename(tmp_path / name)
        shutil.rmtree(tmp_path / "made")
    blocks = origins.provenance(source_of(tmp_path))
    assert len({each["anchor"] for block in blocks for each in block["origins"]}) == 2


def test_a_legend_tells_what_it_leaves_out() -> None:
    figure, [axis] = drawing.panels(1)
    [line] = axis.plot([0, 1])
    drawing.legend(figure, {f"name {number}": line for number in range(40)})
    assert figure.legends[0].get_texts()[-1].get_text() == "… and 4 more"


def test_a_reconstruction_is_measured_where_it_shows_something() -> None:
    spec = EncoderSpec("vit_nano", 4, 2, 1, (0.5,), (0.5,))
    original = torch.zeros(2, 1, 4, 4)
    masked = original.clone()
    masked[:, :, :2] = torch.nan
    rows = {"original": original, "masked": masked, "painted": original + 0.2}
    found = pd.DataFrame(training._errors(rows, spec)).set_index(["row", "image"])
    assert found.loc[("masked", 0), "hidden"] == 0.5
    assert found.loc[("masked", 1), "mse"] == 0
    assert found.loc[("painted", 1), "mse"] == pytest.approx(0.01)


def test_trainings_that_end_within_a_step_cost_the_same() -> None:
    costs, values = pd.Series([1000.0, 999.0, 100.0]), pd.Series([3.0, 2.0, 1.0])
    assert list(cost.pareto(costs, values, True)) == [True, False, True]


class TestFolder:
    """What happens to the folder that is written."""

    @pytest.fixture(autouse=True)
    def few_figures(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(report, "_FIGURES", report._FIGURES[:1])

    def test_a_report_of_some_methods_and_evaluations(self, runs_dir: Path, tmp_path: Path) -> None:
        output = tmp_path / "report"
        some = {"method": ("mae",), "evals": ("knn",)}
        report.write(ReportSettings(output=output, runs_dir=runs_dir, **some))  # type: ignore[arg-type]
        [table] = (output / "tables").glob("*scores*.csv")
        content = pd.read_csv(table)
        assert {"mae", "mocov3"} & set(content["method"]) == {"mae"}
        assert set(content["evaluation"]) == {"knn"}

    def test_an_older_report_is_replaced(self, runs_dir: Path, tmp_path: Path) -> None:
        output = tmp_path / "report"
        settings = ReportSettings(runs=("mae-tiny-seed0-0.5",), output=output, runs_dir=runs_dir)
        report.write(settings)
        (output / "old.txt").touch()
        report.write(settings)
        assert not (output / "old.txt").exists()
        assert (output / "index.html").exists()
        assert [path.name for path in tmp_path.iterdir()] == ["report"]

    def test_what_is_no_report_is_kept(
        self, ssl_bench: Command, runs_dir: Path, tmp_path: Path
    ) -> None:
        mine = tmp_path / "mine"
        mine.mkdir()
        (mine / "thesis.tex").touch()
        for output, words in ((mine, "is no report"), (mine / "thesis.tex", "is a file")):
            code, _, err = ssl_bench("report", "--runs-dir", runs_dir, "-o", output)
            assert (code, err.count("\n")) == (2, 1)
            assert words in err
        assert [path.name for path in mine.iterdir()] == ["thesis.tex"]

    def test_a_failure_leaves_what_was_there(
        self, runs_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        output = tmp_path / "report"
        settings = ReportSettings(runs=("mae-tiny-seed0-0.5",), output=output, runs_dir=runs_dir)
        report.write(settings)
        before = (output / "index.html").read_bytes()

        def full(_: Any) -> str:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(report.page, "render", full)
        with pytest.raises(UserError, match="No space left"):
            report.write(settings)
        assert (output / "index.html").read_bytes() == before
        assert [path.name for path in tmp_path.iterdir()] == ["report"]

    @pytest.mark.parametrize("moment", ["while it writes", "between its two renames"])
    def test_what_a_killed_report_left_is_gone_after_the_next(
        self, runs_dir: Path, tmp_path: Path, moment: str
    ) -> None:
        """Not so the folder of one that is still writing, or of another report."""
        output = tmp_path / "[report] *"
        settings = ReportSettings(runs=("mae-tiny-seed0-0.5",), output=output, runs_dir=runs_dir)
        report.write(settings)
        killed = (
            "import os, pathlib, sys\n"
            "from ssl_bench.utils.files import new_folder\n"
            "output = pathlib.Path(sys.argv[1])\n"
            "with new_folder(output) as folder:\n"
            "    (folder / 'index.html').touch()\n"
            "    if 'renames' in sys.argv[2]: output.rename(folder.with_suffix('.old'))\n"
            "    os.kill(os.getpid(), 9)\n"
        )
        done = subprocess.run([sys.executable, "-c", killed, str(output), moment], check=False)
        assert done.returncode == -9 and len(list(tmp_path.iterdir())) > 1
        theirs = tmp_path / f".{output.name}.mine.tmp"
        theirs.mkdir()
        with (
            suppress(KeyboardInterrupt),
            files.new_folder(tmp_path / "another") as another,
            files.new_folder(output) as alive,
        ):
            (alive / "half").touch()
            assert (output / "index.html").stat().st_size > 0, "the older one is back"
            report.write(settings)
            assert (alive / "half").exists() and another.exists()
            raise KeyboardInterrupt
        assert {path.name for path in tmp_path.iterdir()} == {output.name, theirs.name}
        assert {path.name for path in output.iterdir()} >= {"index.html", "report.json"}

    def test_what_cannot_be_read_is_not_told_as_what_cannot_be_written(
        self, runs_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def gone(_: Source) -> Iterator[Any]:
            raise OSError(5, "Input/output error")
            yield

        monkeypatch.setattr(report, "_FIGURES", (gone,))
        settings = ReportSettings(
            runs=("mae-tiny-seed0-0.5",), output=tmp_path / "report", runs_dir=runs_dir
        )
        assert any("Input/output error" in line for line in report.write(settings))

    def test_no_runs(self, ssl_bench: Command, tmp_path: Path) -> None:
        code, _, err = ssl_bench("report", "--runs-dir", tmp_path, "-o", tmp_path / "report")
        assert (code, err.count("\n")) == (2, 1)
        assert not (tmp_path / "report").exists()

    def test_a_run_that_has_nothing_yet(self, tmp_path: Path) -> None:
        folder = make_run(tmp_path / "runs", "mae", 0)
        for name in ("evals", "snapshots", "figures"):
            shutil.rmtree(folder / name)
        for name in ("metrics.jsonl", "encoder.json", "cost.json"):
            (folder / name).unlink()
        output = tmp_path / "report"
        lines = report.write(ReportSettings(output=output, runs_dir=tmp_path / "runs"))
        assert "No run has a score yet" in (output / "index.html").read_text()
        assert not [line for line in lines if "cannot be drawn" in line]


def test_long_names_are_folded_and_groups_of_a_method_are_told_apart(runs_dir: Path) -> None:
    found = index.load(runs_dir)
    methods = sorted(set(found.runs["method"].dropna()))
    source = Source(found, comparison.compare(found), drawing.looks(methods, []))
    with drawing.style():
        drawn = [d for d in accuracy.by_evaluation(source) if isinstance(d, Drawing)]
        axis = max((d.figure.axes[0] for d in drawn), key=lambda each: len(each.get_yticklabels()))
        shown = [" ".join(label.get_text().split()) for label in axis.get_yticklabels()]
    labels = [label for label in source.labels if " ".join(label.split()) in shown]
    assert len(labels) == len(shown) and not any("…" in label for label in shown)
    rows = {
        np.asarray(line.get_ydata())[0]: line for line in axis.lines if line.get_markersize() == 6.5
    }
    looks = [(line.get_color(), line.get_marker()) for line in rows.values()]
    assert len(set(looks)) == len(looks) > 2


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.mark.browser
@pytest.mark.skipif(
    CHROMIUM is None and "REQUIRE_BROWSER" not in os.environ,
    reason="no chromium: apt-get install chromium",
)
class TestBrowser:
    """The page in headless Chromium, opened from disk."""

    @pytest.fixture
    def open_page(self, browser: Any, written: Written) -> Iterator[Callable[..., Any]]:
        said: list[str] = []
        contexts = []

        def asked(request: Any) -> None:
            if not request.url.startswith(("file:", "data:")):
                said.append(request.url)

        def open_page(width: int = 1280, **options: Any) -> Any:
            context = browser.new_context(viewport={"width": width, "height": 900}, **options)
            contexts.append(context)
            page = context.new_page()
            page.on("console", lambda message: said.append(message.text))
            page.on("pageerror", lambda error: said.append(str(error)))
            page.on("request", asked)
            page.on("dialog", lambda dialog: said.append(dialog.message))
            page.goto((written.folder / "index.html").as_uri())
            return page

        yield open_page
        for context in contexts:
            context.close()
        assert said == []

    def test_all_images_load(self, open_page: Callable[..., Any]) -> None:
        widths = open_page().evaluate("[...document.images].map(image => image.naturalWidth)")
        assert len(widths) > 10
        assert min(widths) > 0

    @pytest.mark.parametrize("width", [390, 1280])
    def test_the_page_never_scrolls_sideways(
        self, open_page: Callable[..., Any], width: int
    ) -> None:
        page = open_page(width)
        page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")

    def test_tables_sort_by_click_and_by_key(self, open_page: Callable[..., Any]) -> None:
        page = open_page()
        table = page.locator("table.sortable").first
        place = next(n for n, text in enumerate(table.locator("th").all_inner_texts())
                     if text.startswith("knn"))  # fmt: skip
        head = table.locator("th").nth(place)

        def values() -> list[float]:
            cells = table.locator(f"tbody td:nth-child({place + 1})")
            return [
                float(value) for value in cells.evaluate_all("all => all.map(c => c.dataset.sort)")
            ]

        assert head.get_attribute("aria-sort") == "none"
        head.locator("button").click()
        assert head.get_attribute("aria-sort") == "descending"
        assert values() == sorted(values(), reverse=True)
        assert len(set(values())) > 1
        head.locator("button").press("Enter")
        assert head.get_attribute("aria-sort") == "ascending"
        assert values() == sorted(values())

    def test_what_is_missing_sorts_last(self, open_page: Callable[..., Any]) -> None:
        page = open_page()
        table = page.locator("#table-runs")
        head = table.locator("th").nth(4)
        for _ in range(2):
            head.locator("button").click()
            cells = table.locator("tbody td:nth-child(5)")
            known = cells.evaluate_all("all => all.map(c => 'sort' in c.dataset)")
            assert known == sorted(known, reverse=True)

    def test_dark_mode_follows_the_system_and_the_button(
        self, open_page: Callable[..., Any]
    ) -> None:
        def paper(page: Any) -> str:
            return page.evaluate("getComputedStyle(document.body).backgroundColor")

        light, dark = open_page(color_scheme="light"), open_page(color_scheme="dark")
        bright, dim = paper(light), paper(dark)
        assert bright != dim
        light.locator("button.theme").click()
        dark.locator("button.theme").click()
        assert (paper(light), paper(dark)) == (dim, bright)

    def test_a_cell_opens_where_its_runs_come_from(self, open_page: Callable[..., Any]) -> None:
        page = open_page()
        link = page.locator("table.sortable tbody a").first
        target = link.get_attribute("href")
        link.click()
        page.wait_for_function("name => document.getElementById(name.slice(1)).open", arg=target)

    def test_a_second_click_opens_it_again(self, open_page: Callable[..., Any]) -> None:
        page = open_page()
        link = page.locator("table.sortable tbody a").first
        target = link.get_attribute("href")
        for _ in range(2):
            link.click()
            page.wait_for_function(
                "name => document.getElementById(name.slice(1)).open", arg=target
            )
            page.evaluate("name => document.getElementById(name.slice(1)).open = false", target)

    def test_an_odd_address_breaks_nothing(self, open_page: Callable[..., Any]) -> None:
        page = open_page()
        page.evaluate("location.hash = '#%E0%A4%A'")
        page.wait_for_timeout(50)

    def test_numbers_and_figures_can_be_saved(self, open_page: Callable[..., Any]) -> None:
        page = open_page()
        for link in page.locator("figure").first.locator("a[download]").all():
            with page.expect_download() as download:
                link.click()
            assert download.value.path().stat().st_size > 0


def test_a_watched_report_is_written_again_when_runs_change(tmp_path: Path) -> None:
    def written() -> bytes | None:
        return page.read_bytes() if page.exists() else None

    def wait_for_another(than: bytes | None) -> bytes:
        for _ in range(600):
            if process.exitcode is not None:
                pytest.fail(f"it ended: {errors.read_text()}")
            if (now := written()) not in (None, than):
                assert now
                return now
            time.sleep(0.1)
        pytest.fail("the page was not written again")

    runs, page = tmp_path / "runs", tmp_path / "report" / "index.html"
    make_run(runs, "mae", 0, evals=("knn",))
    args = ["report", "--runs-dir", str(runs), "-o", str(page.parent), "--watch", "0.2"]
    errors = tmp_path / "errors.txt"
    process = forked.start(quickly_drawn, args, errors=errors)
    try:
        first = wait_for_another(None)
        assert b'http-equiv="refresh" content="1"' in first
        time.sleep(1)
        assert written() == first  # nothing has changed
        make_run(runs, "newcomer", 0, evals=("knn",))
        while b"newcomer" not in (first := wait_for_another(first)):
            pass
        os.kill(process.pid, signal.SIGINT)
        process.join(60)
    finally:
        process.kill()
    assert process.exitcode == 130 and "Traceback" not in errors.read_text()


def quickly_drawn(args: list[str]) -> None:
    """A command in a process of its own, with figures of few dots."""
    drawing._DOTS_PER_INCH = 50
    sys.exit(cli.main(args))


def test_watch_goes_without_seconds() -> None:
    def parsed(*args: str) -> ReportSettings:
        return parser.parse("report", ReportSettings, args)

    assert parsed("mae").watch is None
    assert parsed("mae", "--watch").watch == parsed("--watch", "-o", "a").watch == 10
    assert parsed("--watch", "0.5").watch == 0.5
    with pytest.raises(UserError, match="watch"):
        parsed("--watch", "0")


@pytest.mark.parametrize(
    ("costs", "said"),
    [
        ([1.25e12, 5e12, 2e13], ["2T", "5T", "10T", "20T"]),
        ([3e3, 4e5], ["10k", "100k"]),
        ([2e9, 3e9], None),
    ],
)
def test_an_axis_of_costs_has_ticks_enough(costs: list[float], said: list[str] | None) -> None:
    figure, axis = plt.subplots()
    axis.plot(costs, costs)
    drawing.scale(axis, costs)
    figure.canvas.draw()
    low, high = axis.get_xlim()
    ticks = zip(axis.get_xticks(), axis.get_xticklabels(), strict=True)
    seen = [label.get_text() for at, label in ticks if low <= at <= high]
    assert len(seen) >= 3 if said is None else seen == said
    plt.close(figure)


def test_crossings_are_read_between_budgets_and_not_beyond() -> None:
    def curve(*points: tuple[float, float]) -> pd.DataFrame:
        return pd.DataFrame(points, columns=["flops", "mean"])

    rising, flat = curve((1, 70), (16, 90)), curve((1, 80), (16, 80))
    assert cost.crossings(rising, flat, "flops") == pytest.approx([4])
    assert cost.crossings(flat, rising, "flops") == pytest.approx([4])
    assert cost.crossings(rising, curve((8, 80), (64, 80)), "flops") == []
    assert cost.crossings(rising, curve((1, 60), (4, 70), (16, 95)), "flops") != []
    assert cost.crossings(rising, flat.iloc[:1], "flops") == []
    assert cost.crossings(curve((1, 70), (2, 70)), curve((4, 80), (8, 60)), "flops") == []


def test_a_budget_is_at_the_mean_cost_of_its_seeds() -> None:
    scores = pd.DataFrame({"key": ["a", "a"], "flops": [10.0, 30.0], "value": [60.0, 70.0]})
    [row] = cost._ends(scores, "flops").to_dict("records")
    assert (row["flops"], row["mean"], row["n"]) == (20.0, 65.0, 2)


def test_budgets_show_where_methods_change_places(tmp_path: Path) -> None:
    tops = {"mae": (60.0, 70.0, 90.0), "byol": (70.0, 72.0, 74.0)}
    for method, values in tops.items():
        for number, value in enumerate(values):
            for seed in (0, 1):
                folder = make_run(tmp_path, method, seed, evals=("knn",))
                shutil.rmtree(folder / "snapshots")
                change(folder / "config.json", epochs=4**number, seed=seed)
                spent = {"images_seen": 100 * 4**number, "flops": 4.0**number * 1e9}
                change(folder / "cost.json", **spent, seconds=4.0**number)
                change(folder / "evals" / f"knn-beef-seed{seed}-fp32" / "scores.json",
                       scores={"top1": value + seed})  # fmt: skip
                folder.rename(tmp_path / f"{method}-{number}-{seed}")
    [drawn] = figures(cost.over_budgets(source_of(tmp_path)))
    assert len(drawn.figure.axes) == 3
    assert "byol and mae at" in drawn.caption
    assert set(drawn.data["cost"]) == {"flops", "images_seen", "seconds"}
    assert list(drawn.data["n"]) == [2] * 18
    make_run(tmp_path / "one", "mae", 0, evals=("knn",))
    assert figures(cost.over_budgets(source_of(tmp_path / "one"))) == []


@given(st.lists(st.integers(0, 100), min_size=1, max_size=7), st.sampled_from(["higher", "lower"]))
def test_the_expected_best_of_k_is_a_mean_over_all_subsets(
    scores: list[int], better: chosen.Better
) -> None:
    ours, best_of = searching.expected_best(scores, better), max if better == "higher" else min
    for k, best in enumerate(ours, 1):
        subsets = [best_of(each) for each in itertools.combinations(scores, k)]
        assert best == pytest.approx(sum(subsets) / len(subsets))


def test_what_more_trials_find_is_drawn_for_each_method(tmp_path: Path) -> None:
    for method, scores in {"mae": [60.0, 80.0, 70.0], "byol": [50.0, 50.5, 55.0]}.items():
        folder = make_run(tmp_path, method, 0, evals=("knn",))
        known = {"trials": 3, "judged_by": "linear", "judged_on": "tiny@validation",
                 "scores": scores, "flops": 10**12}  # fmt: skip
        change(folder / "config.json", chosen_by=known)
    [drawn] = figures(searching.best_of_trials(source_of(tmp_path)))
    assert list(drawn.data.loc[drawn.data["method"] == "mae", "best"]) == pytest.approx(
        [70, (80 + 70 + 80) / 3, 80]
    )
    change(folder / "config.json", chosen_by={"trials": 3, "scores": ["x"]})
    [drawn] = figures(searching.best_of_trials(source_of(tmp_path)))
    assert set(drawn.data["method"]) == {"mae"}
    lower = known | {"scores": [3.0, 1.0, 2.0], "better": "lower"}
    change(folder / "config.json", chosen_by=lower)
    drawn = next(each for each in figures(searching.best_of_trials(source_of(tmp_path))))
    assert list(drawn.data.loc[drawn.data["method"] == "byol", "best"])[-1] == 1


def test_the_last_step_of_a_search_stands_beside_the_noise_of_seeds(tmp_path: Path) -> None:
    known = {"trials": 2, "judged_by": "knn", "judged_on": "tiny@validation",
             "scores": [60.0, 61.0]}  # fmt: skip
    for method, spread in {"mae": 1.0, "byol": 3.0}.items():
        for seed, value in enumerate((70.0, 70.0 + spread, 70.0 + 2 * spread)):
            folder = make_run(tmp_path, method, seed, evals=("knn",))
            change(folder / "config.json", chosen_by=known)
            [home] = folder.glob("evals/*")
            change(home / "scores.json", scores={"top1": value})
    [drawn] = figures(searching.best_of_trials(source_of(tmp_path)))
    assert "mae 0.5" in drawn.caption and "byol 0.5" in drawn.caption
    assert "standard deviation of 2.2" in drawn.caption  # sqrt((1 + 9) / 2)
    assert "by construction" in drawn.caption


def test_what_searches_drew_is_listed_by_role(tmp_path: Path) -> None:
    space = {"base_lr": "1 to 2", "final_weight_decay": "3 to 4", "mask_ratio": "5 to 6"}
    for seed in (0, 1):
        folder = make_run(tmp_path, "mae", seed, evals=("knn",))
        known = {"trials": 2, "space": space, "flags": ["crop_scale"]}
        change(folder / "config.json", chosen_by=known)
    make_run(tmp_path, "byol", 0, evals=("knn",))
    [table] = searching.spaces(source_of(tmp_path))
    assert table.texts == [
        ("method", "settings", "base lr", "weight decay", "crop scale", "its own", "by hand"),
        ("mae", "3", "base lr 1 to 2", "final weight decay 3 to 4", "-", "mask ratio 5 to 6",
         "crop scale"),
    ]  # fmt: skip
    assert table.data.to_dict("list")["setting"] == [*space]
    change(folder / "config.json", chosen_by={})
    change(folder.with_name(folder.name.replace("seed1", "seed0")) / "config.json", chosen_by={})
    assert [*searching.spaces(source_of(tmp_path))] == []
