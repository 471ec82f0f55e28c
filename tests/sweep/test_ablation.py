"""``ssl-bench ablate``: which runs it makes, what it says of them, and what it refuses."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from PIL import Image

from ssl_bench.api import registry
from ssl_bench.cli import flags
from ssl_bench.cli.commands import ablate as ablate_command
from ssl_bench.experiment import figures, loading
from ssl_bench.experiment.preparation import prepare_run
from ssl_bench.experiment.running import Run
from ssl_bench.sweep import ablation, ablation_results
from ssl_bench.sweep.ablation import AblationCell, Study
from ssl_bench.training import pretrain
from ssl_bench.utils.files import load_json

Call = Callable[..., tuple[int, str, str]]
MAE = registry.find("method", "mae")
CONFIG = flags.parse_run([])
NAMES = list(MAE.ablations())
SHORT = (
    "--epochs", 1, "--batch-size", 16, "--precision", "fp32", "--linear-epochs", 1,
    "--backbone", "vit_nano",
)  # fmt: skip


@pytest.fixture
def ablate(ssl_bench: Call, image_folder: Path, tmp_path: Path) -> Call:
    """``ssl-bench ablate`` on the small image folder, linear probes alone."""

    def call(*words: object) -> tuple[int, str, str]:
        folders = ("--data", image_folder, "--runs-dir", tmp_path / "runs")
        evals = () if "--evals" in words else ("--evals", "linear")
        return ssl_bench("ablate", *words, *folders, *evals, *SHORT)

    return call


def outcome(tmp_path: Path) -> Path:
    [folder] = (tmp_path / "runs/ablations").glob("*")
    return folder


def run_names(tmp_path: Path) -> set[str]:
    return {path.parent.name for path in (tmp_path / "runs").glob("*/config.json")}


@pytest.mark.parametrize("name", NAMES)
def test_each_ablation_of_the_paper_becomes_runs(name: str) -> None:
    """Every value is a cell that `ssl-bench run` understands, and no two are the same run."""
    study = ablate_command.parse([name])
    assert study is not None
    known = study.ablation
    configs = [cell.config.method_config for cell in study.cells]
    assert len(set(configs)) == len(configs)
    values = known.values or known.cells
    assert {len(scores) for scores in known.paper.values()} == {len(values)}
    runnable = [value for value in known.cells if known.cells[value] is not None] or known.values
    assert len(study.cells) == len(runnable)
    evals = study.cells[0].config.evals
    assert [plugin.name for plugin in evals] == ["finetune", "linear"]


TABLES: dict[str, tuple[str, dict[str, tuple[float, float]]]] = {
    "mask-ratio": ("figure 5", {
        "0.1": (83.2, 54.6), "0.2": (83.4, 58.9), "0.3": (83.4, 61.7), "0.4": (84.7, 67.0),
        "0.5": (84.9, 69.9), "0.6": (85.0, 71.8), "0.7": (84.9, 73.2), "0.75": (84.9, 73.5),
        "0.8": (84.5, 71.8), "0.9": (83.0, 66.1),
    }),
    "decoder-depth": ("table 1a", {
        "1": (84.8, 65.5), "2": (84.9, 70.0), "4": (84.9, 71.9), "8": (84.9, 73.5),
        "12": (84.4, 73.3),
    }),
    "decoder-width": ("table 1b", {
        "128": (84.9, 69.1), "256": (84.8, 71.3), "512": (84.9, 73.5), "768": (84.4, 73.1),
        "1024": (84.3, 73.1),
    }),
    "mask-token": ("table 1c", {"with": (84.2, 59.6), "without": (84.9, 73.5)}),
    "target": ("table 1d", {
        "pixels": (84.9, 73.5), "normalised": (85.4, 73.9), "PCA": (84.6, 72.3),
        "dVAE": (85.3, 71.6),
    }),
    "augmentation": ("table 1e", {
        "none": (84.0, 65.7), "fixed-crop": (84.7, 73.1), "random-crop": (84.9, 73.5),
        "random-crop+jitter": (84.3, 71.9),
    }),
    "sampling": ("table 1f", {
        "random-75": (84.9, 73.5), "block-50": (83.9, 72.3), "block-75": (82.8, 63.9),
        "grid-75": (84.0, 66.0),
    }),
}  # fmt: skip
"""The paper's scores, fine-tuning and linear probing, by ablation and value."""


@pytest.mark.parametrize("name", TABLES)
def test_the_papers_numbers_stand_beside_the_papers_values(name: str) -> None:
    source, table = TABLES[name]
    known = MAE.ablations()[name]
    assert known.source == source
    labels = [ablation.as_number(value) for value in known.values] or list(known.cells)
    columns = zip(known.paper["finetune"], known.paper["linear"], strict=True)
    assert dict(zip(labels, columns, strict=True)) == table


def test_every_ablation_that_is_promised_is_there() -> None:
    assert list(TABLES) == NAMES


def crops(scale: float, *, flip: bool = True, fixed: bool = False, jitter: float = 0) -> Any:
    return {"crop_scale": scale, "flip": flip, "fixed_crop": fixed, "color_jitter": jitter}


RESOLVED: dict[str, dict[str, dict[str, Any]]] = {
    "mask-ratio": {
        label: {"mask_ratio": float(label), "sampling": "random"}
        for label in ("0.1", "0.2", "0.3", "0.4", "0.5", "0.6", "0.7", "0.75", "0.8", "0.9")
    },
    "decoder-depth": {label: {"decoder_depth": int(label)} for label in ("1", "2", "4", "8", "12")},
    "decoder-width": {
        label: {"decoder_embed_dim": int(label)} for label in ("128", "256", "512", "768", "1024")
    },
    "mask-token": {
        "with": {"encoder_mask_tokens": True},
        "without": {"encoder_mask_tokens": False},
    },
    "target": {
        "pixels": {"loss_target": "pixels", "norm_pix_loss": False},
        "normalised": {"loss_target": "pixels", "norm_pix_loss": True},
        "PCA": {"loss_target": "pca", "norm_pix_loss": False, "pca_components": 96},
    },
    "augmentation": {
        "none": crops(1.0, flip=False),
        "fixed-crop": crops((7 / 8) ** 2, fixed=True),
        "random-crop": crops(0.2),
        "random-crop+jitter": crops(0.2, jitter=0.4),
    },
    "sampling": {
        "random-75": {"sampling": "random", "mask_ratio": 0.75},
        "block-50": {"sampling": "block", "mask_ratio": 0.5},
        "block-75": {"sampling": "block", "mask_ratio": 0.75},
        "grid-75": {"sampling": "grid", "mask_ratio": 0.75},
    },
}  # fmt: skip


@pytest.mark.parametrize("preset", ["quick", "imagenet-mae-vitl"])
@pytest.mark.parametrize("name", RESOLVED)
def test_each_cell_trains_what_its_name_says(name: str, preset: str) -> None:
    """Beside what the cell is about, every setting is that of the preset."""
    study = ablate_command.parse([name, "--preset", preset])
    assert study is not None
    plain = flags.parse_run(["--preset", preset]).method_config
    configs = {cell.value: cell.config.method_config for cell in study.cells}
    assert configs == {
        label: dataclasses.replace(plain, **changes) for label, changes in RESOLVED[name].items()
    }


def evals_of(*words: str) -> list[str]:
    study = ablate_command.parse(["mask-ratio", *words])
    assert study is not None
    return [plugin.name for plugin in study.cells[0].config.evals]


def test_evaluations_are_those_asked_for_else_the_presets_else_the_papers() -> None:
    assert evals_of("--preset", "imagenet-mae-vitl") == ["linear-paper", "finetune"]
    assert evals_of("--preset", "small") == ["finetune", "linear"]
    assert evals_of() == ["finetune", "linear"]
    assert evals_of("--preset", "imagenet-mae-vitl", "--evals", "knn") == ["knn"]


def test_a_value_is_passed_on_as_it_was_written() -> None:
    study = ablate_command.parse(["mask-ratio", "--values", "0.1234567,.5,0.50,1e-1"])
    assert study is not None
    assert [cell.value for cell in study.cells] == ["0.1234567", "0.5", "0.1"]
    assert [cell.config.method_config.mask_ratio for cell in study.cells] == [0.1234567, 0.5, 0.1]


@pytest.mark.parametrize(
    ("patches", "joined"),
    [
        (16, {"0.75": ["0.7", "0.75"]}),
        (4, {"0.2": ["0.1", "0.2"], "0.5": ["0.3", "0.4", "0.5"], "0.75": ["0.6", "0.7", "0.75"]}),
        (196, {}),
    ],
)
def test_shares_that_hide_as_much_are_one_training(
    patches: int, joined: dict[str, list[str]]
) -> None:
    """The one whose name is nearest to what is really hidden is run, and drawn there."""
    labels = ["0.1", "0.2", "0.3", "0.4", "0.5", "0.6", "0.7", "0.75"]
    cells = [AblationCell(label, CONFIG) for label in labels for _ in range(2)]
    study = Study("mae", "mask-ratio", MAE.ablations()["mask-ratio"], cells, (), Path("runs"))
    kept, shares, note = ablation_results._joined(study, patches)
    dropped = {label for group in joined.values() for label in group} - joined.keys()
    assert [cell.value for cell in kept.cells] == [
        label for label in labels for _ in range(2) if label not in dropped
    ]
    for label in labels:
        assert shares[label] * patches == pytest.approx(round(shares[label] * patches))
        assert 0 <= shares[label] - float(label) < 1 / patches + 1e-9
    assert note.count("one training") == len(joined)
    for name in joined:
        assert f"one training, run as {name}." in note


def test_what_differs_from_the_paper_is_told(tmp_path: Path) -> None:
    plan = {"data": "images", "epochs": 800, "batch_size": 64, "encoder": {"backbone": "vit_nano"},
            "method_config": {"decoder_depth": 1, "sampling": "random"}}  # fmt: skip
    paper = {"data": "ImageNet-1k", "epochs": 800, "batch_size": 4096, "decoder_depth": 8,
             "sampling": "random", "backbone": "vit_large_patch16_224"}  # fmt: skip
    assert ablation_results.differing(paper, plan) == (
        "Unlike the paper: data images (ImageNet-1k), batch size 64 (4096), decoder depth 1 (8), "
        "backbone vit_nano (vit_large_patch16_224)."
    )
    assert ablation_results.differing({"epochs": 800}, plan) == ""
    known = MAE.ablations()["mask-ratio"].settings
    assert known.keys() <= {*vars(CONFIG.settings), *vars(CONFIG.method_config)}


def test_captions_say_what_was_held_constant(ablate: Call, tmp_path: Path) -> None:
    code, out, err = ablate("target", "--values", "pixels")
    assert code == 0, err
    [ours] = re.findall(r"ours: .*?seed 0", " ".join(out.split()))
    told = (
        "vit_nano/4", "1 epoch", "images", "batch 16", "mask ratio 0.75", "sampling random",
        "decoder depth 1", "decoder embed dim 64", "encoder mask tokens no", "crop scale 1",
    )  # fmt: skip
    assert all(f"{each}, " in ours for each in told), ours
    assert "norm pix loss" not in ours and "loss target" not in ours
    [paper] = re.findall(r"paper \(table 1d\): .*? random crops", " ".join(out.split()))
    assert "normalised" not in paper and "mask ratio 0.75" in paper
    assert "one training" not in out

    code, out, err = ablate("mask-ratio", "--values", "0.7,0.75")
    assert code == 0, err
    out = " ".join(out.split())
    [ours] = re.findall(r"ours: .*?seed 0", out)
    assert "norm pix loss yes, " in ours and "mask ratio" not in ours
    assert "Of 16 patches, 0.7 and 0.75 leave 4 visible: one training, run as 0.75." in out
    assert "Unlike the paper: data images (ImageNet-1k)" in out
    assert len(run_names(tmp_path)) == 2, "0.75 and the target's, and no second one of 0.7"


def test_no_setting_tells_what_is_varied() -> None:
    texts = {name: known.setting for name, known in MAE.ablations().items()}
    assert [name for name in texts if "mask ratio" not in texts[name]] == ["mask-ratio", "sampling"]
    assert [name for name in texts if "random sampling" not in texts[name]] == ["sampling"]
    assert [name for name in texts if "normalised" not in texts[name]] == ["target"]
    assert [name for name in texts if "decoder depth 8" not in texts[name]] == ["decoder-depth"]
    assert [name for name in texts if "decoder width 512" not in texts[name]] == ["decoder-width"]
    assert [name for name in texts if "random crops" not in texts[name]] == ["augmentation"]


def test_cells_are_the_runs_of_the_same_flags(
    ablate: Call, ssl_bench: Call, image_folder: Path, tmp_path: Path
) -> None:
    for ratio in (0.5, 0.75):
        code, _, err = ssl_bench(
            "run", "--mask-ratio", ratio, "--data", image_folder, "--runs-dir", tmp_path / "runs",
            "--evals", "linear", *SHORT,
        )  # fmt: skip
        assert code == 0, err
    before = run_names(tmp_path)
    code, out, err = ablate("mask-ratio", "--values", "0.5,0.75")
    assert code == 0, err
    assert out.count("pre-trained already: reused") == 2
    assert run_names(tmp_path) == before


def test_numbers_are_those_of_the_runs(ablate: Call, tmp_path: Path) -> None:
    code, out, err = ablate("mask-ratio", "--values", "0.75,.5", "--seeds", "0,1")
    assert code == 0, err
    folder = outcome(tmp_path)
    assert f"figure, table and runs: {folder}" in out
    assert Image.open(folder / "figure.png").format == "PNG"
    cells = load_json(folder / "cells.json")["cells"]
    assert [cell["value"] for cell in cells] == ["0.75", "0.75", "0.5", "0.5"]
    assert {cell["run"] for cell in cells} == run_names(tmp_path)
    found: dict[str, list[float]] = {}
    for cell in cells:
        home = tmp_path / "runs" / cell["run"]
        assert load_json(home / "config.json")["method_config"]["mask_ratio"] == float(
            cell["value"]
        )
        [scores] = home.glob("evals/linear-*/scores.json")
        assert load_json(scores)["scores"] == cell["evals"]["linear"]["scores"]
        found.setdefault(cell["value"], []).append(load_json(scores)["scores"]["top1"])
    table = pd.read_csv(folder / "table.csv", index_col="value")
    assert list(table.index) == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.9]
    for value, scores in found.items():
        row = table.loc[float(value)]
        assert row["runs"] == 2
        assert row["linear"] == pytest.approx(sum(scores) / 2, abs=1e-3)
        t = 12.7062
        assert row["linear half width"] == pytest.approx(
            t * abs(scores[0] - scores[1]) / 2, abs=1e-2
        )
        assert row["linear std"] == pytest.approx(abs(scores[0] - scores[1]) / 2**0.5, abs=1e-3)
    assert table.loc[0.75, "linear of the paper"] == 73.5
    assert table["linear"].count() == 2

    code, out, _ = ablate("mask-ratio", "--values", "0.75,.5", "--seeds", "0,1")
    assert code == 0
    assert out.count("pre-trained already: reused") == 4
    assert outcome(tmp_path) == folder


def test_a_killed_ablation_goes_on(
    ablate: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = pretrain.pretrain, iter(range(1))

    def killed_the_second_time(*arguments: Any) -> Any:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(pretrain, "pretrain", killed_the_second_time)
    code, _, err = ablate("mask-token")
    assert code == 130
    assert "resumes" in err
    assert not (tmp_path / "runs/ablations").exists()
    monkeypatch.setattr(pretrain, "pretrain", real)
    code, out, _ = ablate("mask-token")
    assert code == 0
    assert out.count("pre-trained already: reused") == 1
    assert len(run_names(tmp_path)) == 2


@pytest.mark.parametrize(
    "words,complaint",
    [
        (("mask-ratio", "--values", "0.5,0.99"), "--mask-ratio 0.99 leaves no patch visible of 16"),
        (("mask-ratio", "--values", "0.5,x"), "--mask-ratio"),
        (("mask-ratio", "--values", "0.5,1"), "--mask-ratio 1.0 is out of range"),
        (("decoder-width", "--values", "32,30"), "--decoder-embed-dim 30 must be a multiple of 4"),
        (("decoder-depth", "--values", "1.5"), "--decoder-depth"),
        (("target", "--values", "dVAE"), "it has pixels, normalised, PCA"),
        (("target", "--no-norm-pix-loss"), "sets --norm-pix-loss itself"),
        (("mask-ratio", "--mask-ratio", 0.5), "sets --mask-ratio itself"),
        (("mask-ratio", "--mask_ratio=0.5"), "sets --mask-ratio itself"),
        (("mask-ratio", "--seed", 1, "--seeds", "0,1"), "--seed and --seeds"),
        (("mask-ratio", "--seeds", "one"), "--seeds"),
        (("mask-ratio", "--values"), "--values needs a value"),
        (("mask-ratio", "--values", ","), "--values needs a value"),
        (("mask-ratio", "--values", ""), "--values needs a value"),
        (("mask-ratio", "--values="), "--values needs a value"),
        (("mask-ratio", "--seeds", ","), "--seeds needs a value"),
        (("mask-ratio", "--evals", "none"), "needs --evals"),
        (("mask-ratio", "--method", "mocov3"), "method 'mocov3' has no ablations; "),
        (("mask-ration",), "unknown ablation 'mask-ration'; mae has mask-ratio"),
        ((), "say which ablation of mae: mask-ratio"),
    ],
)
def test_mistakes_get_one_line_before_anything_is_trained(
    ablate: Call, tmp_path: Path, words: tuple[object, ...], complaint: str
) -> None:
    code, _, err = ablate(*words)
    assert code == 2
    assert complaint in err
    assert err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_help_lists_the_ablations_without_torch() -> None:
    code = (
        "import sys; from ssl_bench.cli import main; main(['ablate', '--help']); "
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in (*NAMES, "--values", "--seeds", "DALL-E"):
        assert name in done.stdout


def test_papers_numbers_are_no_code_of_the_method(tmp_path: Path) -> None:
    source = MAE.path.read_text()
    assert "73.5" not in source and "73.5" in MAE.paper_file.read_text()
    for folder, text in (("copy", source), ("other", source.replace("0.02", "0.03"))):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mae.py").write_text(text)
    copy, other = (
        registry.find("method", str(tmp_path / folder / "mae.py")) for folder in ("copy", "other")
    )
    copy.paper_file.write_bytes(MAE.paper_file.read_bytes())
    assert copy.ablations() == MAE.ablations()
    assert copy.fingerprint == MAE.fingerprint != other.fingerprint


def finished(evaluation: str, scores: Sequence[float]) -> list[Run]:
    return [Run(Path(), [{"eval": evaluation, "scores": {"top1": score}}]) for score in scores]


def test_the_papers_linear_probe_stands_beside_every_linear_probe() -> None:
    known = MAE.ablations()["target"]
    cells = [AblationCell("PCA", CONFIG), AblationCell("pixels", CONFIG)]
    for evaluation in ("linear", "linear-paper"):
        scores = ablation_results.collect(known, cells, finished(evaluation, [50.0, 60.0]))
        table = ablation_results.tabulate(scores)
        assert list(table.index) == ["pixels", "normalised", "PCA", "dVAE"]
        assert table[f"{evaluation} of the paper"].tolist() == [73.5, 73.9, 72.3, 71.6]
        assert table[evaluation].dropna().to_dict() == {"pixels": 60.0, "PCA": 50.0}
        assert table["runs"].tolist() == [1, 0, 1, 0]
    scores = ablation_results.collect(known, cells, finished("knn", [50.0, 60.0]))
    assert ablation_results.tabulate(scores)["knn of the paper"].isna().all()


def ys(line: Any) -> list[float]:
    return [float(value) for value in line.get_ydata()]


@pytest.mark.parametrize("name,values", [("decoder-width", ("32", "128")), ("target", ("PCA",))])
def test_figure_shows_both_sides_on_axes_of_their_own(
    name: str, values: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[plt.Figure] = []
    monkeypatch.setattr(figures, "_save", lambda figure, output: drawn.append(figure))
    known = MAE.ablations()[name]
    cells = [AblationCell(value, CONFIG) for value in values for _ in range(2)]
    ours = [50.0 + index for index in range(len(cells))]
    scores = ablation_results.collect(known, cells, finished("linear", ours))
    legend = ("ours: data", f"paper: {known.setting}")
    output = tmp_path / "figure.png"
    figures.ablation(scores, "title", name, legend, known.note, bool(known.flag), output)
    left, right = drawn[0].axes
    assert sorted(ys(left.lines[-1])) == ours
    means = [sum(ours[at : at + 2]) / 2 for at in range(0, len(ours), 2)]
    assert sorted(ys(left.lines[0])) == means
    bars: Any = left.containers[0]
    [whiskers] = bars.lines[2]
    heights = [float(segment[1, 1] - segment[0, 1]) for segment in whiskers.get_segments()]
    assert heights == pytest.approx([12.7062] * len(values), rel=1e-4)
    assert ys(right.lines[0]) == list(known.paper["linear"])
    spans = [np.ptp(axis.get_ylim()) for axis in (left, right)]
    assert spans[0] == pytest.approx(spans[1])
    for axis, shown in ((left, ours), (right, known.paper["linear"])):
        low, high = axis.get_ylim()
        assert low < min(shown) <= max(shown) < high
    labels = [label.get_text() for label in left.get_xticklabels()]
    assert set(values) <= set(labels)
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == list(legend)
    plt.close(drawn[0])


def test_check_of_a_run_writes_nothing(image_folder: Path, tmp_path: Path) -> None:
    words = ["--data", str(image_folder), "--runs-dir", str(tmp_path / "runs"), "--batch-size", "8"]
    request = flags.parse_run(words)
    prepare_run(request, loading.data_of(request))
    assert not (tmp_path / "runs").exists()
