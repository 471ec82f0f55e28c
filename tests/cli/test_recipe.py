"""Recipes: what presets set, how they are shown, and whether what they ask for takes hold."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import CPU, METHODS, captions_of, fitting
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from ssl_bench import papers
from ssl_bench.api import Evaluation, optimizers, registry
from ssl_bench.cli import flags
from ssl_bench.cli.commands import recipe
from ssl_bench.cli.commands.recipe import DIFFERS, DISPUTED, NOT_CHECKED, UNCOMPARED
from ssl_bench.config.presets import BACKBONES, PRESET_NOTES
from ssl_bench.config.recipes import OptimizerConfig
from ssl_bench.config.settings import Settings
from ssl_bench.data import Dataset
from ssl_bench.errors import UserError
from ssl_bench.evaluation import finetuning
from ssl_bench.evaluation.features import Encoder
from ssl_bench.experiment import audit
from ssl_bench.models import backbones
from ssl_bench.models.backbones import EncoderSpec
from ssl_bench.training import setup

Call = Callable[..., tuple[int, str, str]]
PAPERS = {
    preset: plugin
    for plugin in METHODS
    for preset in plugin.presets()
    if plugin.is_ours and preset not in PRESET_NOTES
}
"""The presets that come from papers, those of every method, and whose they are."""
TUNED = [
    preset for preset, plugin in PAPERS.items() if "finetune" in plugin.presets()[preset]["evals"]
]
UNLIKE = {"imagenet-lejepa-vitl": {"optimizer"}}
"""Flags, beside the precision, with no published value: no probe is trained by AdamW here."""
FINETUNE = registry.find("eval", "finetune")
LINEAR = registry.find("eval", "linear-paper")
RUN = ("run", "--data", "./nowhere", "--evals")
CORE = [(name, preset) for name in registry.discover("method") for preset in ("quick", "small")]
TINY = ("--backbone", "vit_nano", "--image-size", "16", "--patch-size", "4")


def published_of(plugin: registry.Plugin) -> list[papers.Recipe]:
    """All that is published of a method or an evaluation, for whatever preset."""
    every = map(papers.read, papers.HERE.glob("*.toml"))
    return [stage for paper in every for stage in paper.published.get(plugin.name, {}).values()]


@lru_cache
def stages(preset: str, *words: str) -> Sequence[recipe.Stage]:
    """A recipe, of which several tests look at something."""
    return recipe.stages(flags.parse_run(["--preset", preset, *words], "recipe"))


def rows(preset: str, *words: str) -> dict[tuple[str, str], recipe.Row]:
    """A recipe's rows by stage and setting."""
    return {
        (stage.title.split(": ")[1], row.name): row
        for stage in stages(preset, *words)
        for row in stage.rows
    }


@pytest.mark.parametrize("preset,method", PAPERS.items())
def test_a_papers_preset_brings_its_method_and_evaluations(
    preset: str, method: registry.Plugin
) -> None:
    request = flags.parse_run(["--preset", preset])
    assert request.method == method
    assert request.settings.method == method.name
    expected = list(method.presets()[preset]["evals"])
    assert [plugin.name for plugin in request.evals] == expected
    chosen = flags.parse_run(["--preset", preset, "--evals", "knn"])
    assert [plugin.name for plugin in chosen.evals] == ["knn"]
    later = flags.parse_eval(["run", "--preset", preset])
    assert [plugin.name for plugin in later.evals] == expected


@pytest.mark.parametrize("preset", PAPERS)
def test_something_is_published_for_each_stage_of_a_papers_preset(preset: str) -> None:
    for stage in stages(preset):
        assert stage.beside == preset, stage.title
        assert stage.sources and any(row.published for row in stage.rows), stage.title


EXPECTED: dict[str, dict[str, dict[str, Any]]] = {
    "imagenet-mae-vitb": {
        "settings": {"backbone": "vit_base_patch16_224", "epochs": 1600, "batch_size": 4096},
        "method": {
            "base_lr": 1.5e-4, "weight_decay": 0.05, "beta2": 0.95, "mask_ratio": 0.75,
            "norm_pix_loss": True, "decoder_embed_dim": 512, "decoder_depth": 8,
            "decoder_heads": 16,
            "crop_scale": 0.2, "flip": True,
        },
        "linear-paper": {
            "epochs": 90, "batch_size": 16384, "optimizer": "lars", "base_lr": 0.1,
            "weight_decay": 0.0, "momentum": 0.9, "batch_norm": True, "head_std": 0.01,
            "pooling": "cls", "cut_crop": True, "interpolation": "bicubic", "per_epoch": False,
        },
        "finetune": {
            "epochs": 100, "batch_size": 1024, "base_lr": 5e-4, "min_lr": 1e-6, "beta2": 0.999,
            "weight_decay": 0.05, "layer_decay": 0.65, "drop_path": 0.1, "mixup": 0.8,
            "cutmix": 1.0, "label_smoothing": 0.1, "random_erasing": 0.25, "pooling": "avg",
            "auto_augment": "rand-m9-mstd0.5-inc1", "head_std": 2e-5, "crop_scale": 0.08,
        },
    },
    "imagenet-mae-vitl": {
        "settings": {"backbone": "vit_large_patch16_224", "epochs": 1600},
        "linear-paper": {"epochs": 90},
        "finetune": {"epochs": 50, "base_lr": 1e-3, "layer_decay": 0.75, "drop_path": 0.2},
    },
    "imagenet-mocov3-vits": {
        "settings": {"backbone": "vit_small_mocov3", "epochs": 300, "batch_size": 4096},
        "method": {
            "base_lr": 1.5e-4, "weight_decay": 0.1, "decay_norm_and_bias": True, "beta2": 0.999,
            "temperature": 0.2, "momentum": 0.99, "proj_hidden_dim": 4096, "proj_output_dim": 256,
            "freeze_patch_embed": True, "crop_scale": 0.08,
        },
        "linear-paper": {
            "epochs": 90, "batch_size": 1024, "optimizer": "sgd", "base_lr": 3.0, "warmup": 0.0,
            "batch_norm": False, "per_epoch": True, "cut_crop": False, "interpolation": "bilinear",
        },
        "finetune": {
            "epochs": 150, "batch_size": 1024, "base_lr": 2.5e-4, "min_lr": 1e-5,
            "layer_decay": 1.0, "drop_path": 0.1, "mixup": 0.8, "cutmix": 1.0, "pooling": "cls",
            "random_erasing": 0.25, "label_smoothing": 0.1, "auto_augment": "rand-m9-mstd0.5-inc1",
        },
    },
    "imagenet-mocov3-vitb": {"settings": {"backbone": "vit_base_patch16_224", "epochs": 300}},
}  # fmt: skip
WARMUPS = {"imagenet-mae-": (40, 10, 5), "imagenet-mocov3-": (40, 0, 5)}


@pytest.mark.parametrize("preset", EXPECTED)
def test_presets_hold_the_papers_values(preset: str) -> None:
    request = flags.parse_run(["--preset", preset])
    parts = {"settings": request.settings, "method": request.method_config}
    parts |= {plugin.name: config for plugin, config in request.evals.items()}
    for part, values in EXPECTED[preset].items():
        assert {name: getattr(parts[part], name) for name in values} == values
    epochs = request.settings.epochs, parts["linear-paper"].epochs, parts["finetune"].epochs
    shares = (parts[name].warmup for name in ("method", "linear-paper", "finetune"))
    [warmups] = [known for prefix, known in WARMUPS.items() if preset.startswith(prefix)]
    assert tuple(round(s * e, 6) for s, e in zip(shares, epochs, strict=True)) == warmups
    assert (request.settings.image_size, request.settings.patch_size) == (224, 16)


def test_the_vit_s_of_mocov3_has_12_heads() -> None:
    spec = EncoderSpec("vit_small_mocov3", 32, 16, 3, (0.5,) * 3, (0.5,) * 3)
    encoder = backbones.build(spec, seed=0)
    assert len(encoder.blocks) == 12
    assert (encoder.embed_dim, encoder.blocks[0].attn.num_heads) == (384, 12)
    assert "vit_small_mocov3" in BACKBONES


@pytest.mark.parametrize("preset", PAPERS)
def test_no_published_setting_is_missed_by_its_preset(preset: str) -> None:
    """Among what is a flag, the precision alone differs from everything that is published."""
    found = {name: row for name, row in rows(preset).items() if row.published}
    different = {name for (_, name), row in found.items() if row.mark == DIFFERS}
    different = {name for name in different if " " not in name} - {"precision"}
    assert different == UNLIKE.get(preset, set())
    warmups = [row for (_, name), row in found.items() if name == "warmup"]
    assert len(warmups) == 1 + len(PAPERS[preset].presets()[preset]["evals"]) or (
        preset not in TUNED
    )
    assert all(row.ours.endswith((" epoch", " epochs")) and not row.mark for row in warmups)


OWN_DEFAULTS: dict[str, dict[str, str]] = {
    "albef": {"warmup": "3 epochs", "text_heads": "4", "max_tokens": "64"},
    **{
        name: {"base_lr": "0.00015", "weight_decay": "0.05", "optimizer": "adamw"}
        for name in ("barlow-twins", "byol", "moco", "simclr", "simsiam", "vicreg")
    },
    "beit-kmeans": {"final_lr": "0", "warmup": "80 epochs", "mask_ratio": "0.4", "drop_path": "0"},
    "bert": {
        "loss": "mlm",
        "base_lr": "0.0005", "weight_decay": "0.05", "warmup": "4 epochs", "text_width": "0",
        "text_depth": "6", "text_heads": "4", "max_tokens": "64", "vocabulary_size": "8192",
    },
    "data2vec": {"warmup": "7.5 epochs"},
    "ibot": {"final_lr": "0.001", "warmup": "80 epochs"},
    "ijepa": {"warmup": "60 epochs"},
    "lejepa": {"warmup": "10 epochs", "final_lr": "0", "decay_norm_and_bias": "no"},
    "mae": {"warmup": "160 epochs"},
    "mocov3": {"warmup": "30 epochs"},
    "simmim": {
        "warmup": "80 epochs", "mask_patch_size": "0", "drop_path": "0", "step_schedule": "no",
    },
    "videomae": {"warmup": "160 epochs", "crop_scale": "0.43"},
}  # fmt: skip
"""Defaults that are no published setting of the method's first paper."""
OWN_DEFAULTS["byol"] |= {"warmup": "100 epochs", "momentum": "0.99"}
OWN_DEFAULTS["moco"] |= {
    "warmup": "20 epochs", "decay_norm_and_bias": "no", "temperature": "0.2", "head": "mlp",
    "blur": "yes", "step_schedule": "no",
}  # fmt: skip
OWN_DEFAULTS["simsiam"] |= {"warmup": "10 epochs", "decay_norm_and_bias": "no"}
for _name in ("barlow-twins", "vicreg"):
    OWN_DEFAULTS[_name] |= {"warmup": "100 epochs", "final_lr": "0"}


@pytest.mark.parametrize(
    "preset,stage",
    [
        *{plugin.name: (preset, plugin) for preset, plugin in [*PAPERS.items()][::-1]}.values(),
        ("imagenet-mae-vitb", FINETUNE),
        ("imagenet-mae-vitb", LINEAR),
    ],
    ids=lambda each: getattr(each, "name", each),
)
def test_defaults_are_published_ones(preset: str, stage: registry.Plugin) -> None:
    """Where a flag is left out, and no preset sets it, the paper's value counts."""
    values = vars(stage.config())
    values = {"epochs": PAPERS[preset].presets()[preset]["epochs"]} | values
    quoted = recipe.published(stage, preset, PAPERS[preset]).settings
    found = {
        name: (
            recipe._text(name, values[name], values),
            [recipe._text("", each.value, values) for each in entries],
        )
        for name, entries in quoted.items()
        if name in vars(stage.config())
    }
    assert len(found) >= 9
    other = {name: ours for name, (ours, published) in found.items() if ours not in published}
    assert other == OWN_DEFAULTS.get(stage.name, {})


@pytest.mark.parametrize("kind", ["method", "eval"])
def test_published_names_are_flags_or_have_a_space(kind: registry.Kind) -> None:
    """A misspelt flag would be shown as something that is fixed and the same."""
    shared = {field.name for field in dataclasses.fields(Settings)}
    for plugin in registry.discover(kind).values():
        known = {field.name for field in dataclasses.fields(plugin.config)}
        known |= shared if kind == "method" else set()
        for stage in published_of(plugin):
            for name, several in stage.settings.items():
                assert name in known or " " in name, (plugin.name, name)
                assert several
                assert name in known or all(isinstance(each.value, str) for each in several)
                assert all(each.source for each in several)
                assert name not in known or not any(each.ours or each.unless for each in several)
                assert all(set(each.unless) <= known for each in several)


def test_every_flag_of_a_stage_is_shown() -> None:
    found = rows("imagenet-mae-vitb")
    for plugin in (registry.find("method", "mae"), LINEAR, FINETUNE):
        shown = {name for stage, name in found if stage == plugin.name}
        assert {field.name for field in dataclasses.fields(plugin.config)} <= shown
    assert found["mae", "peak lr"].ours.startswith("0.0024 ")


def test_what_differs_is_marked() -> None:
    plain = rows("imagenet-mae-vitb")
    assert plain["mae", "mask_ratio"].mark == ""
    assert plain["mae", "initial patch embedding"].mark == DIFFERS
    assert plain["mae", "norm of a patch"].mark == ""
    assert plain["mae", "incomplete last batch"].mark == UNCOMPARED
    assert plain["finetune", "layer_decay"].mark == DISPUTED
    assert plain["finetune", "layer_decay"].published == (
        ("0.65", "FINETUNE.md"),
        ("0.75", "table 9"),
    )
    assert plain["finetune", "scratch_lr"].published == ()
    changed = rows(
        "imagenet-mae-vitb", "--mask-ratio", "0.5", "--epochs", "800",
        "--finetune-layer-decay", "0.9", "--finetune-auto-augment", "",
    )  # fmt: skip
    assert changed["mae", "mask_ratio"] == recipe.Row(
        "mask_ratio", "0.5", (("0.75", "table 1, PRETRAIN.md"),)
    )
    for name in (("mae", "mask_ratio"), ("mae", "warmup"), ("finetune", "layer_decay"),
                 ("finetune", "auto_augment")):  # fmt: skip
        assert changed[name].mark == DIFFERS, name
    assert changed["mae", "warmup"].ours == "20 epochs"


@pytest.mark.parametrize(
    "words,stage,name,ours",
    [
        ((), "mae", "norm of a patch", "(x - mean) / sqrt(unbiased var + 1e-06)"),
        (("--no-norm-pix-loss",), "mae", "norm of a patch", "not used"),
        ((), "mae", "tries for a crop", "up to 10, then the largest in the centre"),
        ((), "mae", "interpolation of a crop", "bicubic"),
        (("--crop-scale", "1"), "mae", "tries for a crop", "not used"),
        (("--crop-scale", "1"), "mae", "interpolation of a crop", "not used"),
        (("--fixed-crop",), "mae", "shape of a crop", "1 to 1"),
        (("--fixed-crop",), "mae", "interpolation of a crop", "bicubic"),
        ((), "linear-paper", "LARS trust coefficient", "0.001"),
        (("--linear-paper-optimizer", "sgd"), "linear-paper", "LARS trust coefficient", "not used"),
        ((), "linear-paper", "batch statistics of", "the whole batch"),
        (("--no-linear-paper-batch-norm",), "linear-paper", "batch statistics of", "not used"),
        ((), "finetune", "choice of mixup or cutmix", NOT_CHECKED),
        (("--finetune-mixup", "0"), "finetune", "choice of mixup or cutmix", "not used"),
        (("--finetune-mixup", "0", "--finetune-cutmix", "0"), "finetune",
         "choice of mixup or cutmix", "not used"),
        ((), "finetune", "RandAugment's order", NOT_CHECKED),
        (("--finetune-auto-augment", ""), "finetune", "RandAugment's order", "not used"),
        ((), "finetune", "random erasing's filling", NOT_CHECKED),
        (("--finetune-random-erasing", "0"), "finetune", "random erasing's filling", "not used"),
        (("--finetune-crop-scale", "1"), "finetune", "interpolation of a crop", "not used"),
    ],
)  # fmt: skip
def test_what_no_flag_is_named_after_is_not_claimed_where_it_is_not_used(
    words: tuple[str, ...], stage: str, name: str, ours: str
) -> None:
    row = rows("imagenet-mae-vitb", *words)[stage, name]
    assert row.ours == ours
    marks = {"not used": DIFFERS, "1 to 1": DIFFERS, NOT_CHECKED: UNCOMPARED}
    assert row.mark == marks.get(ours, UNCOMPARED if row.basis == "stated" else "")


def test_nothing_false_is_said_of_small_images() -> None:
    found = rows("quick", "--evals", "linear-paper,finetune")
    for name in (("mae", "tries for a crop"), ("linear-paper", "LARS trust coefficient"),
                 ("finetune", "choice of mixup or cutmix"), ("finetune", "RandAugment's order"),
                 ("finetune", "random erasing's filling")):  # fmt: skip
        assert found[name].ours == "not used", name
        assert found[name].mark == DIFFERS, name
    for stage in ("linear-paper", "finetune"):
        view = found[stage, "view for testing"]
        assert (view.ours, view.mark) == (NOT_CHECKED, UNCOMPARED)
        assert found[stage, "views are made of"].ours == (
            "the stored square: of photographs, the centre"
        )
    assert not [row for row in found.values() if "224" in row.ours or "256 px" in row.ours]


def test_where_paper_and_code_disagree_both_are_shown() -> None:
    for preset in ("imagenet-mae-vitb", "imagenet-mae-vitl"):
        found = rows(preset)
        for name, published in {
            "pooling": (("avg", "FINETUNE.md"), ("cls", "appendix A.1")),
            "random_erasing": (("0.25", "FINETUNE.md"), ("0", "table 9: none")),
        }.items():
            assert found["finetune", name].published == published
            assert found["finetune", name].mark == DISPUTED
    large = found["finetune", "drop_path"]
    assert large == recipe.Row("drop_path", "0.2", (("0.2", "FINETUNE.md"), ("0.1", "table 9")))
    assert large.mark == DISPUTED
    base = rows("imagenet-mae-vitb")["finetune", "drop_path"]
    assert base == recipe.Row("drop_path", "0.1", (("0.1", "table 9, FINETUNE.md"),))


@pytest.mark.parametrize("preset", TUNED)
def test_fine_tuning_quotes_the_view_for_testing_of_its_own_source(preset: str) -> None:
    """MoCo v3 fine-tunes as DeiT does, others by themselves, and none is quoted from MAE alone."""
    found = {name: row for (stage, name), row in rows(preset).items() if stage == "finetune"}
    [(_, source)] = found["view for testing"].published
    method = PAPERS[preset].name
    files = {
        "beit-kmeans": "datasets.py",
        "data2vec": "mae_finetuning_image_dataset.py",
        "ibot": "run_class_finetuning.py",
        "mae": "util/datasets.py",
        "mocov3": "DeiT datasets.py",
        "simmim": "data_finetune.py",
        "videomae": "datasets.py",
    }
    size = "short side 224" if method == "videomae" else "256 for 224"
    assert source == f"{files[method]}: {size}"
    sources = [source for row in found.values() for _, source in row.published]
    of_mae = [source for source in sources if "MAE" in source]
    assert method == "mae" or all("DeiT" in each or "torch" in each for each in of_mae)
    assert method in ("mae", "mocov3") or not of_mae


def test_recipe_has_a_help_of_its_own(ssl_bench: Call) -> None:
    code, out, _ = ssl_bench("recipe", "--help")
    assert code == 0
    assert out.startswith("usage: ssl-bench recipe PRESET [FLAGS OF ssl-bench run]")
    assert all(f"  {preset} " in out for preset in ("quick", "small", *PAPERS))
    assert f"  {DIFFERS} " in out and f"  {DISPUTED} " in out
    assert "--mask-ratio" not in out
    assert ssl_bench("recipe", "quick", "--epochs", "3", "-h")[1] == out


@pytest.mark.parametrize("columns,width", [("80", 80), ("160", 160), (None, 120)])
def test_tables_are_as_wide_as_the_terminal(
    ssl_bench: Call, monkeypatch: pytest.MonkeyPatch, columns: str | None, width: int
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns:
        monkeypatch.setenv("COLUMNS", columns)
    code, out, _ = ssl_bench("recipe", "imagenet-mae-vitb")
    assert code == 0
    assert width - 20 < max(len(line) for line in out.splitlines()) <= width


@pytest.mark.parametrize("words", [["recipe", "imagenet-mae-vitb"], ["recipe", "--help"], ["list"]])
def test_a_reader_that_stops_ends_a_command_silently(words: list[str]) -> None:
    """As in `ssl-bench recipe quick | head`, here with nobody reading from the start."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "ssl_bench", *words]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


def test_quick_is_put_beside_the_methods_first_paper() -> None:
    request = flags.parse_run(["--preset", "quick"], "recipe")
    besides = {stage.title: stage.beside for stage in recipe.stages(request)}
    assert besides["pre-training: mae"] == besides["evaluation: finetune"] == "imagenet-mae-vitb"
    assert besides["evaluation: knn"] == "imagenet-mae-vitb"
    assert besides["evaluation: linear"] == ""
    other = flags.parse_run(["--preset", "quick", "--method", "mocov3"], "recipe")
    assert recipe.stages(other)[0].beside == "imagenet-mocov3-vits"
    bare = flags.parse_run(["--preset", "quick", "--method", "supervised"], "recipe")
    assert all(not row.published for stage in recipe.stages(bare) for row in stage.rows)


def test_a_preset_may_be_a_flag(ssl_bench: Call) -> None:
    words = ("--method", "mocov3", "--epochs", "3")
    by_flag = ssl_bench("recipe", *words, "--preset", "small")
    assert by_flag == ssl_bench("recipe", "small", *words)
    assert by_flag[0] == 0
    code, _, err = ssl_bench("recipe", "quick", "--preset", "small")
    assert (code, err.count("\n")) == (2, 1)


def test_a_method_stands_for_its_papers_preset(ssl_bench: Call) -> None:
    assert ssl_bench("recipe", "dino") == ssl_bench("recipe", "imagenet-dino-vits")
    by_method = ssl_bench("recipe", "ijepa", "--epochs", "3")
    assert by_method == ssl_bench("recipe", "imagenet-ijepa-vitb", "--epochs", "3")
    code, _, err = ssl_bench("recipe", "supervised")
    assert (code, err.count("\n")) == (2, 1) and "'supervised'" in err


def test_recipe_command_prints_tables_without_pandas() -> None:
    code = (
        "import sys\nfrom ssl_bench.cli import main\n"
        "assert main(['recipe', 'imagenet-mae-vitb', '--epochs', '800']) == 0\n"
        "heavy = {'pandas', 'matplotlib'} & set(sys.modules)\nassert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for text in ("pre-training: mae, beside imagenet-mae-vitb", "evaluation: linear-paper",
                 "evaluation: finetune", "efb2a80", "rand-m9-mstd0.5-inc1", "16384"):  # fmt: skip
        assert text in done.stdout
    [warmup] = [line for line in done.stdout.splitlines() if "20 epochs" in line]
    assert DIFFERS in warmup and "40 epochs" in warmup


@pytest.mark.parametrize(
    "words,message",
    [
        (["recipe"], "say which preset"),
        (["recipe", "--epochs", "3"], "say which preset"),
        (["recipe", "imagenet-mae-vitx"], "did you mean 'imagenet-mae-vit"),
        (["recipe", "imagenet-mae-vitb", "--mask-rato", "1"], "did you mean --mask-ratio?"),
        (["recipe", "imagenet-mae-vitb", "--mask-ratio", "2"], "--mask-ratio 2.0"),
        (["recipe", "imagenet-mae-vitb", "--method", "mocov3"], "--method mae would work"),
        (["run", "--preset", "imagenet-mocov3-vits", "--method", "mae"], "--method mocov3 would"),
        (["run", "--preset", "imagenet-mae-vitb"], "no such folder or file: ./imagenet"),
        ([*RUN, "linear-paper", "--linear-paper-batch-size", "1"], "--linear-paper-batch-size 1"),
        ([*RUN, "finetune", "--finetune-random-erasing", "2"], "--finetune-random-erasing 2.0"),
        ([*RUN, "finetune", "--finetune-min-lr", "-1"], "--finetune-min-lr -1"),
    ],
)  # fmt: skip
def test_mistakes_get_one_line(
    ssl_bench: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = ssl_bench(*words)
    assert (code, err.count("\n")) == (2, 1), err
    assert message in err
    assert not (tmp_path / "runs").exists()


def test_list_tells_what_a_papers_preset_is(ssl_bench: Call) -> None:
    _, out, _ = ssl_bench("list", "presets")
    assert all(preset in out for preset in PAPERS)
    assert "mocov3 as published" in out


def audited(spec: EncoderSpec, config: Any, seed: int = 0) -> str:
    """Fine-tuning's audit of a fresh encoder."""
    encoder = Encoder(backbones.build(spec, seed), spec, CPU, seed)
    return FINETUNE.load_class()(config).audit(encoder)


class TestAudit:
    """What is asked for and reaches nothing stops a run."""

    @pytest.mark.parametrize(
        "method,preset", [*((plugin.name, name) for name, plugin in PAPERS.items()), *CORE]
    )
    def test_every_shipped_preset_passes(
        self, preset: str, method: str, spec: EncoderSpec, tiny: Dataset
    ) -> None:
        request = flags.parse_run(["--preset", preset, "--method", method])
        assert request.method is not None
        is_resnet = request.settings.backbone.startswith("resnet")
        small = dataclasses.replace(
            spec,
            backbone="resnet18" if is_resnet else "vit_nano",
            patch_size=None if is_resnet else 4,
        )
        narrow = {"proj_hidden_dim": 32, "proj_output_dim": 32, "queue_size": 256}
        narrow |= {"mask_patch_size": 0}  # a photograph's squares are larger than these images
        narrow |= {"text_width": 32, "text_heads": 2}
        config = dataclasses.replace(
            request.method_config,
            **{k: v for k, v in narrow.items() if hasattr(request.method_config, k)},
        )
        plugin = request.method.load_class()
        small, data = fitting(request.method, small, tiny)
        small = setup.with_text(small, plugin, config, map(captions_of, range(3)))
        audit.method(setup.build_method(plugin, config, small, 3, 0))
        kept, _, told = audit.evaluations(small, request.evals, data, 0, CPU)
        assert kept
        # Those that train nothing have nothing to tell.
        tell = [each.name for each in kept if each.load_class().audit is not Evaluation.audit]
        assert [line.partition(":")[0] for line in told] == tell

    def test_a_run_says_what_is_trained_decayed_and_frozen(
        self, ssl_bench: Call, image_folder: Path, tmp_path: Path
    ) -> None:
        code, out, err = ssl_bench(
            "run", "--preset", "imagenet-mae-vitb", "--data", image_folder, *TINY, "--epochs", 1,
            "--batch-size", 16, "--decoder-embed-dim", 64, "--decoder-depth", 1,
            "--precision", "fp32",
            "--linear-paper-epochs", 1, "--finetune-epochs", 1, "--runs-dir", tmp_path / "runs",
        )  # fmt: skip
        assert code == 0, err
        [line] = [line for line in out.splitlines() if line.startswith("recipe: ")]
        assert "2 frozen; linear-paper: " in line
        assert "; finetune: 0.2 M parameters in 18 decayed and 38 undecayed tensors" in line
        [folder] = (tmp_path / "runs").glob("mae-*")
        code, out, err = ssl_bench("eval", folder, "--finetune-epochs", 1, "--evals", "finetune")
        assert code == 0, err
        assert "recipe: finetune: 0.2 M" in out

    def test_drop_path_on_one_block_stops_a_run_before_it_leaves_anything(
        self, ssl_bench: Call, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(BACKBONES, "one_block", {**BACKBONES["vit_nano"], "depth": 1})
        words = ["run", "--data", image_folder, "--backbone", "one_block", "--evals", "finetune",
                 "--batch-size", 16, "--runs-dir", tmp_path / "runs"]  # fmt: skip
        code, _, err = ssl_bench(*words, "--finetune-drop-path", "0.1")
        assert (code, err.count("\n")) == (2, 1), err
        assert "drop path 0.1 skips no block of 1" in err
        assert not (tmp_path / "runs").exists()

    def test_drop_path_takes_hold_on_two_blocks(self, spec: EncoderSpec) -> None:
        audit.drop_path(backbones.build(spec, 0, depth=2, drop_path_rate=0.1), 0.1)
        with pytest.raises(UserError, match="skips no block of 6"):
            audit.drop_path(backbones.build(spec, 0), 0.1)

    def test_layer_decay_must_know_the_names_of_the_blocks(
        self, spec: EncoderSpec, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As where the trunk is wrapped, or its layers are called ``encoder_layer_0``."""

        class Wrapped(nn.Module):
            def __init__(self, inner: VisionTransformer) -> None:
                super().__init__()
                self.inner = inner
                self.cls_token, self.num_prefix_tokens = inner.cls_token, 1
                self.num_features = inner.num_features

            @property
            def blocks(self) -> nn.Module:
                return self.inner.blocks

        copy = Encoder.trainable_copy
        monkeypatch.setattr(Encoder, "trainable_copy", lambda *a, **k: Wrapped(copy(*a, **k)))
        with pytest.raises(
            UserError, match=r"layer decay 0.5 matches no layer for 'encoder\.inner"
        ):
            audited(spec, FINETUNE.config(layer_decay=0.5))
        assert audited(spec, FINETUNE.config(layer_decay=1.0))

    def test_layer_decay_must_reach_every_level(self, spec: EncoderSpec) -> None:
        model = finetuning.Classifier(backbones.build(spec, 0).requires_grad_(True), 3)
        config = OptimizerConfig()

        def check() -> None:
            audit.layer_decay(model, optimizers.layer_decay_groups(model, config, 0.5), 0.5)

        check()
        optimizers.freeze(model, "encoder.blocks.2")
        with pytest.raises(
            UserError, match=r"no parameter of block 2, whose rate would be 0\.0625"
        ):
            check()
        model.encoder.blocks[2].requires_grad_(True)
        optimizers.freeze(model, "encoder.cls_token", "encoder.pos_embed", "encoder.patch_embed")
        with pytest.raises(UserError, match="no parameter of the embeddings"):
            check()

    def test_weight_decay_must_reach_something_and_spare_something(self) -> None:
        vectors, matrices = nn.LayerNorm(4), nn.Linear(4, 4, bias=False)

        def check(module: nn.Module, **changes: Any) -> str:
            config = OptimizerConfig(**changes)
            groups = optimizers.parameter_groups(module, config)
            exempts = not config.decay_norm_and_bias
            return audit.weight_decay(module, groups, config.weight_decay, exempts)

        with pytest.raises(UserError, match="reaches none of the 2 trained parameters"):
            check(vectors)
        with pytest.raises(UserError, match="exempts norms and biases, and none of the 1"):
            check(matrices)
        assert check(vectors, weight_decay=0.0) == (
            "0.0 M parameters in 0 decayed and 2 undecayed tensors, 0 frozen"
        )
        assert "1 decayed and 0 undecayed" in check(matrices, decay_norm_and_bias=True)
        both = nn.Sequential(vectors, matrices)
        assert "1 decayed and 2 undecayed" in check(both)
        with pytest.raises(UserError, match="is to reach norms and biases too, and 2 of the 3"):
            audit.weight_decay(
                both, optimizers.parameter_groups(both, OptimizerConfig()), 0.05, False
            )

    def test_each_parameter_must_be_in_one_group(self) -> None:
        module = nn.Linear(3, 3)
        whole = optimizers.parameter_groups(module, OptimizerConfig())
        with pytest.raises(UserError, match="'bias' in 0 of its groups instead of 1"):
            audit.weight_decay(module, whole[:1], 0.05, True)
        with pytest.raises(UserError, match="'weight' in 2 of its groups instead of 1"):
            audit.weight_decay(module, [*whole, whole[0]], 0.05, True)
        module.weight.requires_grad_(False)
        with pytest.raises(UserError, match="'weight' in 1 of its groups instead of 0"):
            audit.weight_decay(module, whole, 0.05, True)

    def test_a_methods_frozen_parts_must_exist(
        self, spec: EncoderSpec, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """MoCo v3 freezes the patch embedding; under another name there is nothing to freeze."""
        plugin = registry.find("method", "mocov3")
        config = plugin.config(proj_hidden_dim=16, proj_output_dim=8)
        method = setup.build_method(plugin.load_class(), config, spec, 3, 0)
        assert "0 undecayed tensors" in audit.method(method)
        frozen = [n for n, p in method.encoder.named_parameters() if not p.requires_grad]
        assert {"patch_embed.proj.weight", "patch_embed.proj.bias"} <= set(frozen)

        build = backbones.build

        def renamed(*arguments: Any, **overrides: Any) -> VisionTransformer:
            encoder = build(*arguments, **overrides)
            encoder.patch_embed.projection = encoder.patch_embed.proj
            del encoder.patch_embed.proj
            encoder.patch_embed.__dict__["proj"] = encoder.patch_embed.projection
            return encoder

        monkeypatch.setattr(backbones, "build", renamed)
        with pytest.raises(UserError, match="nothing to freeze"):
            setup.build_method(plugin.load_class(), config, spec, 3, 0)

    def test_nothing_is_asked_of_what_trains_nothing(self, spec: EncoderSpec) -> None:
        plugin = registry.find("method", "random-init")
        method = setup.build_method(plugin.load_class(), plugin.config(), spec, 3, 0)
        assert audit.method(method) == "nothing is trained"

    def test_an_audit_leaves_no_trace(self, spec: EncoderSpec, tiny: Dataset) -> None:
        torch.manual_seed(0)
        before = torch.get_rng_state()
        evals = {FINETUNE: FINETUNE.config(), LINEAR: LINEAR.config()}
        audit.evaluations(spec, evals, tiny, 0, CPU)
        assert torch.equal(torch.get_rng_state(), before)
