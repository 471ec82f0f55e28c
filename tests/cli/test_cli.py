"""The command line: what it does, what it says, what it leaves behind."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import forked
import numpy as np
import pandas as pd
import pytest
import timm
import torch
from helpers import EXAMPLE_METHOD
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from ssl_bench import cli
from ssl_bench.cli import flags, habits, parser
from ssl_bench.config.command_settings import (
    CompareSettings,
    ExportSettings,
    QuerySettings,
    ReportSettings,
)
from ssl_bench.config.settings import EvalSettings
from ssl_bench.data import Split
from ssl_bench.evaluation.features import Encoder
from ssl_bench.models import weights
from ssl_bench.runs import run_folder
from ssl_bench.training import budget, pretrain, training_state
from ssl_bench.utils.files import load_json, readable

Call = Callable[..., tuple[int, str, str]]
QUICK = {
    "--epochs": 1,
    "--batch-size": 16,
    "--precision": "fp32",
    "--finetune-epochs": 1,
    "--finetune-batch-size": 16,
    "--linear-epochs": 1,
}


def with_defaults(words: Sequence[object], defaults: dict[str, object]) -> list[str]:
    """The words, and each default flag that is not among them and whose evaluation is run."""
    evals = dict(itertools.pairwise(words)).get("--evals", "finetune,linear")
    idle = [f"--{name}-" for name in ("finetune", "linear") if name not in str(evals).split(",")]
    unset = [
        pair
        for pair in defaults.items()
        if pair[0] not in words and not pair[0].startswith(tuple(idle))
    ]
    return [str(word) for pair in unset for word in pair] + [str(word) for word in words]


@pytest.fixture
def run(ssl_bench: Call, image_folder: Path, tmp_path: Path) -> Call:
    """``ssl-bench run`` on the small image folder."""

    def call(*words: object) -> tuple[int, str, str]:
        folders = {"--data": image_folder, "--runs-dir": tmp_path / "runs"}
        return ssl_bench("run", *with_defaults(words, folders | QUICK))

    return call


def only_run(tmp_path: Path) -> Path:
    [path] = (tmp_path / "runs").glob("*/config.json")
    return path.parent


@pytest.mark.parametrize("method", ["mae", "mocov3", "supervised", "random-init"])
def test_run_leaves_a_whole_folder(run: Call, tmp_path: Path, method: str) -> None:
    code, out, err = run("--method", method)
    assert code == 0, err
    folder = only_run(tmp_path)
    assert f"run folder: {folder}" in out
    for title in ("knn", "linear", "finetune", "raw pixels", "random init", "from scratch"):
        assert title in out
    for name in ("config.json", "environment.json", "cost.json", "encoder.safetensors"):
        assert (folder / name).stat().st_size > 0
    assert not (folder / "checkpoint.pt").exists()
    assert {path.name.split("-")[0] for path in folder.glob("evals/*")} == {
        "knn",
        "linear",
        "finetune",
    }
    for scores in folder.glob("evals/*/scores.json"):
        record = load_json(scores)
        stored = np.load(scores.parent / "predictions.npz")
        right = (stored["predictions"] == stored["labels"]).mean() * 100
        assert record["scores"]["top1"] == pytest.approx(right)
        assert record["baselines"]
    assert not list((tmp_path / "runs").rglob("*.tmp"))
    if method != "random-init":
        steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").open()]
        assert steps == [1, 2, 3]
        assert Image.open(folder / "figures/loss.png").format == "PNG"
    if method == "mae":
        assert Image.open(folder / "figures/pictures.png").format == "PNG"


def test_environment_says_where_numbers_come_from(run: Call, tmp_path: Path) -> None:
    run("--evals", "none")
    environment = load_json(only_run(tmp_path) / "environment.json")
    assert {"command", "code", "packages", "python", "device", "started"} <= set(environment)
    assert torch.__version__.startswith(environment["packages"]["torch"])
    cost = load_json(only_run(tmp_path) / "cost.json")
    assert cost["images_seen"] == 48
    assert cost["peak_memory_mib"] > 0


def test_same_command_reuses_what_is_done(run: Call, tmp_path: Path) -> None:
    run("--evals", "knn")
    folder = only_run(tmp_path)
    written = {path: path.stat().st_mtime_ns for path in folder.rglob("*.*") if path.is_file()}
    code, out, _ = run("--evals", "knn")
    assert code == 0
    assert "reused" in out
    after = {path: path.stat().st_mtime_ns for path in folder.rglob("*.*") if path.is_file()}
    assert {path: time for path, time in after.items() if path in written} == written


def test_whatever_changes_the_result_gets_a_folder_of_its_own(run: Call, tmp_path: Path) -> None:
    changes = [("--mask-ratio", 0.5), ("--seed", 1), ("--epochs", 2), ("--batch-size", 24),
               ("--patch-size", 8), ("--image-size", 8), ("--no-norm-pix-loss",)]  # fmt: skip
    for number, change in enumerate([(), *changes], 1):
        code, _, err = run("--evals", "none", *change)
        assert code == 0, err
        assert len(list((tmp_path / "runs").glob("*/config.json"))) == number, change


def test_killed_run_goes_on_to_the_same_weights(
    image_folder: Path, run: Call, tmp_path: Path
) -> None:
    """A process killed without warning, at any step, loses nothing that changes the result."""
    arguments = ["--evals", "none", "--epochs", "5", "--backbone", "vit_nano"]
    run(*arguments)
    whole = only_run(tmp_path)
    expected = load_file(whole / "encoder.safetensors")

    folders = {"--data": image_folder, "--runs-dir": tmp_path / "killed"}
    words = ["run", *with_defaults(arguments, folders | QUICK)]
    errors = tmp_path / "errors.txt"
    process = forked.start(killed_at_the_ninth_checkpoint, words, errors=errors)
    process.join(120)
    assert process.exitcode == -9, errors.read_text()
    [path] = (tmp_path / "killed").glob("*/checkpoint.pt")
    assert path.parent.name == whole.name
    code, _, err = run(*arguments, "--runs-dir", tmp_path / "killed")
    assert code == 0, err
    weights = load_file(path.parent / "encoder.safetensors")
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    resumed = (path.parent / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in resumed] == list(range(1, 16))


def killed_at_the_ninth_checkpoint(words: list[str]) -> None:
    pretrain.SECONDS_BETWEEN_CHECKPOINTS = 0.0
    write, numbers = training_state.save, itertools.count(1)

    def save(*arguments: Any) -> None:
        write(*arguments)
        if next(numbers) == 9:
            os.kill(os.getpid(), signal.SIGKILL)

    training_state.save = save  # type: ignore[assignment]
    cli.main(words)


@pytest.mark.parametrize("backbone", ["vit_micro", "vit_tiny_patch16_224"])
def test_encoder_loads_with_timm(run: Call, tmp_path: Path, backbone: str) -> None:
    code, _, err = run("--evals", "none", "--backbone", backbone)
    assert code == 0, err
    folder = only_run(tmp_path)
    arguments = load_json(folder / "encoder.json")["timm"]
    path = str(folder / "encoder.safetensors")
    theirs = timm.create_model(**arguments, checkpoint_path=path).eval()
    ours, _ = weights.load(folder)
    images = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(theirs.forward_features(images), ours.eval().forward_features(images))


def test_eval_adds_an_evaluation_later(ssl_bench: Call, run: Call, tmp_path: Path) -> None:
    run("--evals", "none")
    folder = only_run(tmp_path)
    code, out, err = ssl_bench(
        "eval", folder.name, "--runs-dir", tmp_path / "runs", "--evals", "knn"
    )
    assert code == 0, err
    assert "knn" in out
    assert len(list(folder.glob("evals/knn-*/scores.json"))) == 1


def test_features_are_extracted_once(
    ssl_bench: Call, run: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An evaluation that comes later finds them, of the baseline as well; a damaged file is not."""
    run("--evals", "knn")
    folder, runs_dir = only_run(tmp_path), tmp_path / "runs"
    kept = sorted(runs_dir.glob("**/features/*"))
    assert [path.name.split("-")[0] for path in kept] == 2 * ["test", "train"]
    extracted: list[int] = []
    extract = Encoder._extract

    def record(encoder: Encoder, split: Split) -> dict[str, Tensor]:
        extracted.append(len(split))
        return extract(encoder, split)

    monkeypatch.setattr(Encoder, "_extract", record)
    precision = ("--precision", "fp32")
    later = ("eval", folder.name, "--runs-dir", runs_dir, "--evals", "linear", *precision)
    code, _, err = ssl_bench(*later)
    assert code == 0, err
    assert not extracted
    for path in kept:
        path.write_bytes(path.read_bytes()[:-1])
    code, _, err = ssl_bench(*later, "--linear-epochs", 2)
    assert code == 0, err
    assert extracted == [48, 12, 48, 12]
    assert sorted(runs_dir.glob("**/features/*")) == kept


def test_features_need_not_be_kept(run: Call, tmp_path: Path) -> None:
    code, _, err = run("--evals", "knn", "--no-keep-features")
    assert code == 0, err
    assert not list((tmp_path / "runs").glob("**/features"))


def test_eval_of_weights_from_elsewhere(
    ssl_bench: Call, image_folder: Path, tmp_path: Path
) -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=16, patch_size=8)
    torch.save({"model": model.state_dict()}, tmp_path / "foreign.pth")
    common = ("--runs-dir", tmp_path / "runs", "--evals", "knn", "--data", image_folder)
    backbone = ("--backbone", "vit_tiny_patch16_224")
    code, out, err = ssl_bench("eval", tmp_path / "foreign.pth", *backbone, *common)
    assert code == 0, err
    assert "foreign" in out
    code, told, err = ssl_bench("eval", tmp_path / "foreign.pth", *common)
    assert code == 0, err
    assert "192 wide, 12 blocks, 3 heads, 2 x 2 patches of 8 px" in told
    assert len(list((tmp_path / "runs").glob("weights-foreign-*"))) == 1


def test_weights_are_asked_again_for_another_backbone(
    ssl_bench: Call, image_folder: Path, tmp_path: Path
) -> None:
    """Weights may fit two encoders, which differ in what no weight shows."""
    path, runs_dir = tmp_path / "foreign.pth", tmp_path / "runs"
    model = timm.create_model("vit_tiny_patch16_224", img_size=16, patch_size=8)
    torch.save(model.state_dict(), path)
    for backbone in ("vit_tiny_patch16_224", "deit_tiny_patch16_224"):
        ssl_bench("eval", path, "--backbone", backbone, "--evals", "knn", "--data", image_folder,
                  "--runs-dir", runs_dir)  # fmt: skip
    folders = runs_dir.glob("weights-foreign-*/encoder.json")
    kept = sorted(load_json(path)["backbone"] for path in folders)
    assert kept == ["deit_tiny_patch16_224", "vit_tiny_patch16_224"]


def test_eval_keeps_seeds_and_precisions_apart(ssl_bench: Call, run: Call, tmp_path: Path) -> None:
    run("--evals", "knn")
    folder, csv = only_run(tmp_path), tmp_path / "table.csv"
    runs_dir = ("--runs-dir", tmp_path / "runs")
    ssl_bench("eval", folder, "--evals", "knn", "--precision", "fp32", "--seed", 1)
    ssl_bench("eval", folder, "--evals", "knn", "--precision", "bf16")
    assert len(list(folder.glob("evals/knn-*/scores.json"))) == 3
    code, _, err = ssl_bench("compare", *runs_dir, "--csv", csv)
    assert code == 0, err
    table = pd.read_csv(csv)
    assert sorted(table.loc[table["method"] == "mae", "label"]) == [
        "mae evaluated_in=bf16",
        "mae evaluated_in=fp32",
        "mae evaluated_in=fp32, evaluated_with_seed=1",
    ]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_diverged_training_is_told_what_may_help(run: Call, precision: str) -> None:
    code, _, err = run("--base-lr", 1e30, "--evals", "none", "--precision", precision)
    assert (code, err.count("\n")) == (2, 1)
    assert "the loss is nan" in err
    assert ("--precision fp32" in err) == (precision == "bf16")


def test_diverged_finetuning_is_no_score(run: Call, tmp_path: Path) -> None:
    code, out, err = run("--evals", "knn,finetune", "--finetune-base-lr", 1e30,
                         "--finetune-epochs", 3)  # fmt: skip
    assert code == 2
    assert "diverged" in err
    assert "knn" in out, "what was found before is shown"
    assert not list(only_run(tmp_path).glob("evals/finetune-*"))


def test_quick_preset_takes_a_small_folder_of_odd_images(ssl_bench: Call, tmp_path: Path) -> None:
    for index in range(60):
        path = tmp_path / "few" / "ab"[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(index).integers(0, 255, (30, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    code, out, err = ssl_bench("run", "--data", tmp_path / "few", "--epochs", 1, "--batch-size", 8,
                               "--runs-dir", tmp_path / "[runs]")  # fmt: skip
    assert code == 0, err
    assert f"run folder: {tmp_path}/[runs]/mae-few" in out
    assert "a fifth of the images" in out


def test_compare_shows_runs_side_by_side(ssl_bench: Call, run: Call, tmp_path: Path) -> None:
    run("--evals", "knn")
    run("--evals", "knn", "--method", "random-init")
    run("--evals", "knn", "--method", "random-init", "--knn-neighbors", "1,3")
    csv = tmp_path / "table.csv"
    code, out, err = ssl_bench("compare", "--runs-dir", tmp_path / "runs", "--csv", csv)
    assert code == 0, err
    table = pd.read_csv(csv)
    # The baseline "random init" is the method random-init, and not shown again.
    assert sorted({*table["method"]}) == ["mae", "random-init", "raw pixels"]
    assert len(table[table["method"] == "random-init"]) == 2
    assert table["protocol"].nunique() == 2, "scores of two protocols must not share a column"
    assert "knn was run under 2 protocols: neighbors 1+5+10+20+50+100+200 / 1+3" in out
    assert "one run a side" in " ".join(out.split())


def test_compare_shows_the_rest_beside_what_is_wrong(
    ssl_bench: Call, run: Call, tmp_path: Path
) -> None:
    for seed in range(4):
        run("--evals", "knn", "--method", "random-init", "--seed", seed)
    good, unfinished, bad, nan = sorted((tmp_path / "runs").glob("random-init-*"))
    (unfinished / "encoder.json").unlink()
    (bad / "config.json").write_text("{")
    [path] = nan.glob("evals/*/scores.json")
    path.write_text(path.read_text().replace('"top1": ', '"top1": NaN, "was": ', 1))
    (tmp_path / "runs" / "being-written").mkdir()
    code, out, err = ssl_bench("compare", "--runs-dir", tmp_path / "runs")
    assert code == 0, err
    words = " ".join(out.split())
    assert "unfinished" in words
    assert "broken" in words
    assert "nan" in words.lower()
    assert ssl_bench("compare", "--runs-dir", tmp_path / "runs", good.name)[0] == 0
    assert ssl_bench("compare", "--runs-dir", tmp_path / "runs", bad.name)[0] == 0
    assert ssl_bench("compare", "--runs-dir", tmp_path / "runs", "nowhere")[0] == 2


def test_compare_shows_unfinished_runs_as_such(ssl_bench: Call, run: Call, tmp_path: Path) -> None:
    run("--evals", "none")
    (only_run(tmp_path) / "encoder.json").unlink()
    code, out, _ = ssl_bench("compare", "--runs-dir", tmp_path / "runs")
    assert code == 0
    assert "unfinished" in out


def test_list_names_everything(ssl_bench: Call) -> None:
    code, out, _ = ssl_bench("list")
    assert code == 0
    for name in ("mae", "mocov3", "knn *", "linear *", "fashion-mnist", "cifar10", "vit_micro",
                 "quick (default)"):  # fmt: skip
        assert name in out
    code, out, _ = ssl_bench("list", "backbones")
    assert "vit_base_patch16_224" in out


def test_a_run_may_stand_before_or_after_the_flags(
    ssl_bench: Call, run: Call, tmp_path: Path
) -> None:
    run("--evals", "none")
    folder = only_run(tmp_path)
    for words in ([folder, "--evals", "knn"], ["--evals", "linear", folder]):
        code, _, err = ssl_bench("eval", *words)
        assert code == 0, err
    assert {path.name.split("-")[0] for path in folder.glob("evals/*")} == {"knn", "linear"}


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_knows_flags_and_names(ssl_bench: Call, shell: str) -> None:
    code, out, _ = ssl_bench("completion", shell)
    assert code == 0
    for word in ("--mask-ratio", "--temperature", "mocov3", "fashion-mnist", "compare"):
        assert word in out
    for word in ("sweep", "--search-seed", "--parallel-jobs", "--slurm-options", "sobol"):
        assert word in out
    [spec] = (line for line in out.splitlines() if line.startswith("COMPLETION_SPEC"))
    assert "'None'" not in spec


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash here")
def test_completion_offers_methods_and_runs(ssl_bench: Call, tmp_path: Path) -> None:
    script = tmp_path / "completion.bash"
    script.write_text(ssl_bench("completion", "bash")[1])
    for folder in ("runs/mae-x", "runs/moco-y", "runs/.index", "other/mae-z"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "config.json").touch()

    def offered(*words: str) -> list[str]:
        line = " ".join(f"'{word}'" for word in ("ssl-bench", *words))
        ask = f"COMP_WORDS=({line}); COMP_CWORD={len(words)}; _tyro_ssl_bench"
        ask = f'source {script}; {ask}; printf "%s\\n" "${{COMPREPLY[@]-nothing}}"'
        done = subprocess.run(["bash", "-c", ask], cwd=tmp_path, capture_output=True, text=True)
        assert not done.stderr
        return done.stdout.split()

    assert offered("show", "m") == ["mae-x", "moco-y"]
    assert offered("run", "--match", "mo") == ["moco-y"]
    assert offered("compare", "--method", "moc") == ["moco", "mocov3"]
    assert offered("eval", "--runs-dir", "other", "ma") == ["mae-z"]
    assert offered("run", "--method", "moco") == ["moco", "mocov3"]
    assert "mae-x" not in offered("run", "m")
    # As bash cuts --method=moco and --method=.
    assert offered("run", "--method", "=", "mocov") == ["mocov3"]
    assert {"mae", "moco"} <= {*offered("sweep", "--seed", "=", "3", "--method", "=")}
    assert offered("run", "--evals", "knn,linear-p") == ["knn,linear-paper"]
    assert "--data" in offered("run", "--evals", "knn", "--da")
    assert offered("run", "--log", "tensor") == ["tensorboard"]
    assert offered("list", "me") == ["methods"]
    assert offered("completion", "") == ["bash", "zsh"]
    assert "mask-ratio" in offered("ablate", "mask")
    # The shell's own completion of files takes over where there is nothing to offer.
    assert offered("run", "--data", "my-photos") == offered("run", "--config", "a") == ["nothing"]
    assert "complete -o default " in script.read_text()


@pytest.mark.parametrize(
    "words,text",
    [
        (["completion", "--help"], "usage: ssl-bench completion bash|zsh"),
        (["run", "--config", "--help"], "usage: ssl-bench run --config PATH"),
        (["run", "--help"], "--config PATH"),
        (["query", "--help"], "`runs`"),
    ],
)
def test_help_is_shown(words: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.suppress(SystemExit):
        assert cli.main(words) == 0
    assert text in capsys.readouterr().out


@pytest.mark.parametrize(
    "words", [["--help"], ["run", "--help"], ["run", "--method", "mocov3", "-h"]]
)
def test_help_imports_no_torch(words: list[str]) -> None:
    code = (
        "import sys\nfrom ssl_bench.cli import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit as stop: assert not stop.code\n"
        "heavy = {'torch', 'timm', 'pandas', 'matplotlib', 'PIL', 'tyro', 'rich'}\n"
        "heavy &= set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout


@pytest.mark.parametrize(
    "words,message",
    [
        (["--method", "mea"], "unknown method 'mea'; did you mean 'mae'?"),
        (["--method", "mocov2"], "mean 'moco'? `ssl-bench recipe imagenet-moco-v2-resnet50`"),
        (["--method", "MoCo_v1"], "mean 'moco'? `ssl-bench recipe imagenet-moco-v1-resnet50`"),
        (["--method", "sigreg"], "did you mean 'lejepa'?"),
        (["--method", "sigreg"], "did you mean 'lejepa'?"),
        (["--method", "nothing.py"], "method file 'nothing.py' does not exist"),
        (["--evals", "knn,linaer"], "unknown eval 'linaer'; did you mean 'linear'?"),
        (["--preset", "quikc"], "unknown preset 'quikc'; did you mean 'quick'?"),
        (["--data", "cifar"], "unknown data set 'cifar'; did you mean 'cifar10'?"),
        (["--data", "./nowhere"], "./nowhere"),
        (["--backbone", "vit_tinny_patch16_224"], "did you mean 'vit_tiny_patch16_224'?"),
        (["--backbone", "resnet50"], "needs a plain Vision Transformer"),
        (["--backbone", "resnet18", "--patch-size", "8"], "--patch-size"),
        (["--mask-rato", "0.5"], "unknown flag '--mask-rato'; did you mean --mask-ratio?"),
        (["--temperature", "1"], ", mocov3 and simclr have it, 'mae' does not"),
        (["--method", "mocov3", "--mask-cell", "2"], "'mae' has it, 'mocov3' does not"),
        (["stray"], "unexpected argument 'stray'"),
        (["--data", ""], "--data needs a value"),
        (["--match", ""], "--match needs a value"),
        (["--data-dir", ""], "--data-dir needs a value"),
        (["--epochs", "many"], "'many'"),
        (["--epochs", "-1"], "epochs -1"),
        (["--epochs", "0"], "epochs 0"),
        (["--seed", "1", "--seed", "2"], "flag '--seed' is given 2 times"),
        (["--evals", ","], "--evals needs a value"),
        (["--evals", "knn", "linear"], "--evals knn,linear"),
        (["--seeds", "0,1"], "`ssl-bench sweep --seed"),
        (["--seed", "0,1,2"], "`ssl-bench sweep --seed 0,1,2`"),
        (["--method", "mocov3", "--batch-size", "1"], "--batch-size 1 is too small for mocov3"),
        (["--patch-size", "16"], "a single patch cannot be masked"),
        (["--mask-ratio", "1e-17"], "hides no patch"),
        (["--linear-weight-decays", "0,5"], "--linear-weight-decays 5.0"),
        (["--epochs"], "--epochs"),
        (["--sampling", "spiral"], "--sampling 'spiral' is none of random, block, grid"),
        (["--batch-size", "0"], "--batch-size 0"),
        (["--micro-batch-size", "0"], "--micro-batch-size 0"),
        (["--method", f"{EXAMPLE_METHOD}", "--batch-size", "16",
          "--micro-batch-size", "8"], "cannot be split"),
        (["--devices", "0"], "devices 0"),
        (["--nodes", "0"], "nodes 0"),
        (["--devices", "3", "--batch-size", "16"], "--batch-size 16 cannot be divided among 3"),
        (["--nodes", "2", "--batch-size", "16"], "started by Slurm, such as by srun --nodes 2"),
        (["--strategy", "fsdp"], "--devices 2 or more would work"),
        (["--strategy", "dp"], "--strategy 'dp' is none of auto, ddp, fsdp; did you mean ddp?"),
        (["--log", "tensorbord"], "did you mean tensorboard?"),
        (["--epoch", "3", "--dataset", "x", "--foo"],
         "'--epoch' (--epochs does it here), '--dataset' (--data does it here), '--foo' (see"),
        (["--low-shot-shares", "0.1", "--evals", "knn"], "--evals knn,low-shot would work"),
        (["--no-linear-paper-batch-norm", "--low-shot-shares", "0.1"],
         "--no-linear-paper-batch-norm, --low-shot-shares: linear-paper and low-shot are not"),
        (["--knn-temperature", "0.1", "--evals", "none"], "--evals knn would work"),
        (["--compile", "perhaps"], "perhaps"),
        (["--batch-size", "1000"], "--batch-size 1000 is larger than the 48 training images"),
        (["--mask-ratio", "0"], "--mask-ratio 0.0"),
        (["--mask-ratio", "1"], "--mask-ratio 1.0"),
        (["--mask-ratio", "1.5"], "(0, 1)"),
        (["--mask-ratio", "0.99"], "leaves no patch visible of 16"),
        (["--image-size", "18", "--patch-size", "4"], "18 is not divisible by patch size 4"),
        (["--patch-size", "0"], "--patch-size 0"),
        (["--patch-size", "1"], "--patch-size 1 makes a patch of each of 256 pixels"),
        (["--image-size", "37"], "--image-size 36 or 40 would work"),
        (["--image-size", "37", "--patch-size", "16"], "--image-size 32 or 48 would work"),
        (["--decoder-embed-dim", "30"], "--decoder-embed-dim 30"),
        (["--base-lr", "0"], "--base-lr 0.0"),
        (["--base-lr", "inf"], "--base-lr inf is out of range; it must be finite and above 0"),
        (["--method", "simclr", "--temperature", "1e-9"], "in [0.001, 10]"),
        (["--method", "dino", "--teacher-temp", "100"], "in [0.001, 10]"),
        (["--method", "vicreg", "--invariance", "0", "--variance", "0", "--covariance", "0"],
         "a weight above 0 would work"),
        (["--linear-epochs", "0"], "--linear-epochs 0"),
        (["--finetune-layer-decay", "2"], "--finetune-layer-decay 2.0"),
        (["--knn-temperature", "0"], "--knn-temperature 0.0"),
        (["--precision", "fp8"], "fp8"),
        (["--resume"], "the same command resumes"),
        (["--resume", "runs/x"], "leave it out"),
        (["--run-name", "mine"], "--name does it here"),
        (["--tag", "mine"], "--tags does it here"),
        (["--num-workers", "8"], "a thread for each core"),
        (["-j", "8"], "a thread for each core"),
        (["--lr", "0.1"], "--base-lr"),
        (["--batch", "64"], "--batch-size"),
        (["--bs=64"], "--batch-size"),
        (["--wd", "0"], "--weight-decay"),
        (["--arch", "vit_small"], "--backbone does it here"),
        (["--model", "vit_small"], "--backbone does it here"),
        (["--dataset", "cifar10"], "--data does it here"),
        (["--gpus", "2"], "--devices"),
        (["--output-dir", "out"], "--runs-dir"),
        (["-o", "out"], "--runs-dir"),
        (["--amp"], "--precision bf16"),
        (["--warmup-epochs", "5"], "--warmup"),
        (["--img-size", "32"], "--image-size"),
        (["--epoch", "3"], "--epochs"),
        (["--seeds", "0,1"], "`ssl-bench sweep --seed 0..4`"),
        (["--seed", "0, 1,2"], "`ssl-bench sweep --seed 0,1,2`"),
        (["--seed", "0..4"], "`ssl-bench sweep --seed 0..4`"),
        (["--mask-ratio", "0.5,0.75"], "`ssl-bench sweep --mask-ratio 0.5,0.75`"),
        (["--eval", "knn"], "--evals does it here"),
        (["--checkpoint", "x.pth"], "`ssl-bench eval --weights FILE`"),
        (["--batch-size", "1e3"], "1000 would work"),
        (["--batch-size", "2k"], "2000 would work"),
        (["--weight-decay", "5M"], "5e+06 would work"),
        (["--evals", "knn, linaer"], "did you mean 'linear'?"),
        (["--backbone", "vit-b/16"], "--backbone vit_base_patch16_224 --patch-size 16"),
        (["--backbone", "ViT-B-16"], "--backbone vit_base_patch16_224 --patch-size 16"),
        (["--backbone", "vit_large_patch16"], "--backbone vit_large_patch16_224 --patch-size 16"),
        (["--backbone", "swin_tini"], "'swin_tiny_patch4_window7_224'"),
        (["--backbone", "nothing_like_it"], "such as vit_tiny_patch16_224"),
        (["--backbone=--help"], "--help"),
        (["--data", "-nowhere"], "-nowhere"),
        (["--method=--help"], "--method needs a value"),
    ],
)  # fmt: skip
def test_a_mistake_gets_one_line_and_leaves_nothing(
    run: Call, tmp_path: Path, words: list[str], message: str
) -> None:
    code, _, err = run(*words)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "words,message",
    [
        (["rnu"], "unknown command 'rnu'; did you mean 'run'?"),
        (["list", "method"], "did you mean 'methods'?"),
        (["completion"], "bash|zsh"),
        (["completion", "csh"], "unknown shell 'csh'; known: bash, zsh"),
        (["eval"], "say what to evaluate"),
        (["eval", "nothing"], "no run in"),
        (["compare"], "no run in"),
        (["compare", "--runs-dri", "x"], "did you mean --runs-dir?"),
        (["compare", "--at-cost", "5"], "--at-cost needs --at"),
        (["compare", "--at", "equal-images", "--at-cost", "0"], "--at-cost 0"),
        (["compare", "--at", "equal-luck"], "end, equal-images, equal-flops, equal-time"),
        (["compare", "--resume"], "unknown flag '--resume'"),
        (["eval", "x", "--checkpoint", "y.pth"], "--weights does it here"),
        (["eval", "x", "--seeds", "1"], "did you mean --seed"),
        (["report", "--out", "x"], "--output"),
        (["status", "--output", "x"], "--runs-dir"),
        (["sweep", "--paralel-jobs", "3"], "did you mean --parallel-jobs?"),
        (["sweep", "--workers", "3", "--foo", "4"], "'--foo'"),
        (["compare", "--interval", "seed"], "did you mean seeds?"),
        (["sweep", "--workers", "3"], "a thread for each core"),
        (["sweep", "--data=--help", "--dry-run"], "--help"),
        (["sweep", "--cluster=--help"], "--help"),
        (["sweep", "--cluster", "slurm", "--partition=--help", "--time=-h"], "-h"),
    ],
)
def test_other_commands_complain_in_one_line_too(
    ssl_bench: Call,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = ssl_bench(*words)
    assert (code, err.count("\n")) == (2, 1), err
    assert message.lower() in err.lower()


@pytest.mark.parametrize(
    ("name", "meant"),
    [("vit_tiny", "vit_tiny_patch16_224"), ("ViT-S", "vit_small_patch16_224"),
     ("vit_huge", "vit_huge_patch14_224"), ("deit_small", "deit_small_patch16_224"),
     ("vit_nano", "vit_nano"), ("vit_base_patch16_384", "vit_base_patch16_384"),
     ("swin_tiny", "swin_tiny_patch4_window7_224"), ("swin_t", "swin_tiny_patch4_window7_224"),
     ("swin_nano", "swin_nano"), ("ResNet-50", "resnet50"), ("resnet18", "resnet18"),
     ("convnext_t", "convnext_tiny"), ("beit_base", "beit_base_patch16_224"),
     ("dino_vits", "vit_small_patch16_224"), ("wide_resnet50", "wide_resnet50_2")],
)  # fmt: skip
def test_a_backbone_may_be_called_as_people_call_it(name: str, meant: str) -> None:
    """Then the run has the same folder as under timm's name."""
    assert flags.parse_run(["--backbone", name]) == flags.parse_run(["--backbone", meant])
    assert flags.parse_run(["--backbone", name]).settings.backbone == meant


def test_what_people_call_a_backbone_is_one_of_timm() -> None:
    for pattern, of_timm in habits._ALIASES:
        sizes = re.findall(r"\w+", pattern.split("(")[1].split(")")[0].replace("[0-7]", "0"))
        for size in sizes or ["0"]:
            name = pattern.split("(")[0].replace("[-_ ]?", "_") + size
            found = habits.backbone(name)
            assert found and timm.is_model(found[0]), (name, of_timm, found)


def test_advice_names_flags_that_are_there() -> None:
    """Of the command it is for; and what a habit is called is no flag there."""
    commands = {
        "run": {flag.name for flag in flags.offer([]).flags},
        "mocov3": {flag.name for flag in flags.offer(["--method", "mocov3"]).flags},
        **{cls.__name__: set(parser.flags_of(cls)) for cls in (EvalSettings, CompareSettings,
           ReportSettings, ExportSettings, QuerySettings)},
    }  # fmt: skip
    for known in commands.values():
        for names, _, _ in habits._FLAGS:
            for name in names.split():
                text = habits.advice(name, known)
                named = {each.replace("-", "_") for each in re.findall(r"--([a-z-]+)", text)}
                elsewhere = {"weights", "seed"} if "`ssl-bench" in text else set()
                optional = {"strategy", "budget_flops", "budget_time"}
                assert named - elsewhere - optional <= known, (name, text)


@pytest.mark.parametrize("name", ["set [v2]", "a*b", "what?", "sp ace \N{GRINNING FACE}", "-dash",
                                  "a=b", "a,b", "quote\"'", "new\nline", "--help"])  # fmt: skip
def test_a_data_set_may_be_called_anything(
    ssl_bench: Call, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The same command trains once, even where the length is measured, and a sweep knows it."""
    (tmp_path / "sets").mkdir()
    monkeypatch.chdir(tmp_path / "sets")
    image_folder.rename(name)
    speeds = iter((0.01, 0.02))
    monkeypatch.setattr(budget, "seconds_per_step", lambda *_: next(speeds))
    small = ("--image-size", 16, "--batch-size", 16, "--precision", "fp32", "--evals", "none",
             "--backbone", "vit_nano", "--runs-dir", "runs", f"--data={name}")  # fmt: skip
    for _ in range(2):
        code, out, err = ssl_bench("run", *small, "--budget-time", "0.061s")
        assert code == 0, err
    assert "reused" in out
    [path] = Path("runs").glob("*/config.json")
    shown = readable(name)  # a new line would be one in every table
    assert load_json(path)["data"] == shown and path.parent.name.startswith(f"mae-{shown}-seed0-")
    code, out, err = ssl_bench("sweep", *small, "--epochs", 2, "--seed", "0,1", "--dry-run")
    assert code == 0 and "1 done, 1 new" in out, out + err


def test_eval_of_an_unfinished_run_says_how_to_finish_it(
    ssl_bench: Call, run: Call, tmp_path: Path
) -> None:
    run("--evals", "none")
    folder = only_run(tmp_path)
    (folder / "encoder.json").unlink()
    code, _, err = ssl_bench("eval", folder)
    assert code == 2
    assert "not finished" in err


def test_damaged_checkpoint_is_named(run: Call, tmp_path: Path) -> None:
    run("--evals", "none")
    folder = only_run(tmp_path)
    (folder / "encoder.json").unlink()
    (folder / "checkpoint.pt").write_bytes(b"half")
    code, _, err = run("--evals", "none")
    assert code == 2
    assert "checkpoint.pt" in err
    assert "delete it" in err


def test_nobodys_settings_of_matplotlib_matter(image_folder: Path, tmp_path: Path) -> None:
    """A notebook hands on its backend; a person may have figures set by LaTeX."""
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\n")
    defaults = {"--data": image_folder, "--runs-dir": tmp_path / "runs"}
    words = with_defaults(["--backbone", "vit_nano", "--evals", "none"], defaults | QUICK)
    backend = {"MPLBACKEND": "module://matplotlib_inline.nowhere", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "ssl_bench", "run", *words],
        capture_output=True,
        cwd=tmp_path,
        env={**os.environ, **backend, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert Image.open(only_run(tmp_path) / "figures/loss.png").format == "PNG"


def test_run_in_use_is_left_alone(run: Call, tmp_path: Path) -> None:
    run("--evals", "none")
    with run_folder.locked(only_run(tmp_path)):
        code, _, err = run("--evals", "none")
    assert code == 2
    assert "in use" in err


@pytest.mark.parametrize(
    "words,message",
    [
        (["--method", "simclr", "--batch-size", "1"], "--batch-size 1 is too small for simclr"),
        (["--batch-size", "49"], "larger than the 48 training images"),
        (["--method", "moco", "--queue-size", "20"], "no multiple of batch size 16"),
        (["--method", "moco", "--queue-size", "64"], "more than the 48 training images"),
        (["--method", "dino", "--freeze-last-layer", "1"], "--freeze-last-layer 0 would work"),
    ],
)
def test_a_batch_that_will_not_do_is_told_before_images_are_decoded(
    run: Call, image_folder: Path, words: list[str], message: str
) -> None:
    (image_folder / "train/a/0.png").write_bytes(b"no image")
    code, _, err = run(*words)
    assert (code, err.count("\n")) == (2, 1)
    assert message in err


@pytest.mark.parametrize(
    "spoil,message",
    [
        (lambda root: (root / "train/a/0.png").write_bytes(b"no image"), "cannot read image"),
        (lambda root: (root / "train/c").mkdir(), "empty class: no images in"),
        (
            lambda root: [path.unlink() for path in (root / "train/a").glob("*")],
            "empty class: no images in",
        ),
    ],
)
def test_bad_images_are_named(
    run: Call, image_folder: Path, tmp_path: Path, spoil: Callable[[Path], object], message: str
) -> None:
    spoil(image_folder)
    code, _, err = run()
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_tiny_folder_gets_smaller_batches_and_a_warning(
    ssl_bench: Call, image_folder: Path, tmp_path: Path
) -> None:
    runs, data = ("--runs-dir", tmp_path / "runs"), ("--data", image_folder)
    quick = ("--epochs", 1, "--backbone", "vit_nano", "--evals", "knn")
    code, out, err = ssl_bench("run", *runs, *data, *quick)
    assert code == 0, err
    [told] = [line for line in out.splitlines() if "--batch-size" in line]
    assert "32" in told and "48" in told
    [coarse] = [line for line in out.splitlines() if "12 test images" in line and "note" in line]
    assert "8.33 points" in coarse
    assert load_json(only_run(tmp_path) / "config.json")["batch_size"] == 32
    code, out, _ = ssl_bench("eval", only_run(tmp_path), "--evals", "knn", *runs)
    assert code == 0 and coarse in out.splitlines()
