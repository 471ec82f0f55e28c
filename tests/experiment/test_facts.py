"""What is read off a method's objects, and that `recipe` notices when one of them is another."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import METHODS

from ssl_bench.api import optimizers, registry
from ssl_bench.cli import flags
from ssl_bench.cli.commands import recipe
from ssl_bench.cli.commands.recipe import DIFFERS, DISPUTED, UNCOMPARED
from ssl_bench.config.presets import PRESET_NOTES
from ssl_bench.evaluation import finetuning, neighbors
from ssl_bench.evaluation.features import Encoder
from ssl_bench.experiment import facts, initial_values
from ssl_bench.models import prototypes
from ssl_bench.transforms import augmentations

PAPERS = [preset for plugin in METHODS for preset in plugin.presets() if preset not in PRESET_NOTES]
COURSE = "learning rate's course"
LINEAR, PLACES = "initial linear layers", "position embedding"
XAVIER, SINCOS = "Xavier uniform, bias 0", "fixed sin-cos, column first"
TO_MIN = "linear from 0, cosine to min lr, by step"
BYOL_LAYERS = "linear 4096 without bias, norm, ReLU, linear 256 without bias"
DEVIATIONS = {
    "imagenet-barlow-twins-resnet50": {COURSE: "linear from 0, cosine to 0.001, by step"},
    "imagenet-beit-kmeans-vitb": {
        COURSE: "linear from 0, cosine to 0.006667, by step",
        PLACES: "relative, each block's own",
    },
    "imagenet-byol-resnet50": {
        "tries for a crop": "up to 10, then the largest in the centre",
        "threshold of the solarisation": "128 of 255",
        "layers of the projector": BYOL_LAYERS,
        "layers of the predictor": BYOL_LAYERS,
    },
    "albef-vitb16": {COURSE: "linear from 0, cosine to 0, by step"},
    "bert-base": {
        COURSE: "linear from 0, cosine to 0, by step",
        LINEAR: "normal, 0.02, bias 0",
    },
    "imagenet-data2vec-vitb": {LINEAR: XAVIER, "initial class token": "normal, 0.02"},
    "imagenet-dino-vits": {
        COURSE: "linear from 0, cosine to 0.001, by step",
        LINEAR: XAVIER,
        PLACES: SINCOS,
    },
    "imagenet-ibot-vits": {
        COURSE: "linear from 0, cosine to 0.0005, by step",
        LINEAR: XAVIER,
        PLACES: SINCOS,
    },
    **{
        f"imagenet-ijepa-{size}": {
            COURSE: "linear from 0, cosine to 0.001, by step",
            LINEAR: XAVIER,
            f"{LINEAR} after the encoder": "normal, 0.02, bias 0",
        }
        for size in ("vitb", "vith")
    },
    **{f"imagenet-mae-{size}": {"initial patch embedding": XAVIER} for size in ("vitb", "vitl")},
    "imagenet-moco-v1-resnet50": {
        COURSE: "0.1 at 60 %, 0.01 at 80 %, by epoch",
        "order of colour changes": "jitter, grey",
        "last norm of a residual block": "starts at scale 0",
    },
    "imagenet-moco-v2-resnet50": {
        COURSE: "cosine to 0, by step",
        "last norm of a residual block": "starts at scale 0",
    },
    "imagenet-simclr-resnet50": {"tries for a crop": "up to 10, then the largest in the centre"},
    "imagenet-simmim-vitb": {
        COURSE: "linear from 0, 0.1 at 87.5 %, by step",
        LINEAR: XAVIER,
        PLACES: SINCOS,
        "initial mask token": "normal, 0.02",
    },
    "imagenet-simmim-swinb": {COURSE: "linear from 0, cosine to 0.05, by step"},
    "imagenet-simsiam-resnet50": {COURSE: "cosine to 0, by step"},
    "kinetics-videomae-vitb": {
        "interpolation of a crop": "bicubic",
        "initial patch embedding": XAVIER,
    },
    "imagenet-vicreg-resnet50": {
        "layers of the projector": "linear 8192 without bias, norm, ReLU, "
        "linear 8192 without bias, norm, ReLU, linear 8192 without bias"
    },
}
"""What a method does otherwise than published, as its docstring says."""
DEVIATIONS_OF_EVALS: dict[tuple[str, str], dict[str, str]] = {
    ("imagenet-data2vec-vitb", "finetune"): {PLACES: "learned"},
    ("imagenet-ibot-vits", "finetune"): {COURSE: TO_MIN},
    **{(f"imagenet-mocov3-{size}", "finetune"): {COURSE: TO_MIN} for size in ("vits", "vitb")},
    ("imagenet-simmim-vitb", "finetune"): {
        COURSE: TO_MIN,
        PLACES: "learned",
        "gradient clipping": "none",
    },
    ("imagenet-simmim-swinb", "finetune"): {COURSE: TO_MIN, "gradient clipping": "none"},
    **{
        (f"imagenet-{name}-resnet50", "linear-paper"): {"kind of momentum": "plain"}
        for name in ("byol", "simclr")
    },
    **{
        (f"imagenet-ijepa-{size}", "linear-paper"): {COURSE: "cosine to 0, by step"}
        for size in ("vitb", "vith")
    },
    **{
        (f"imagenet-moco-{size}-resnet50", "linear-paper"): {COURSE: "cosine to 0, by epoch"}
        for size in ("v1", "v2")
    },
    ("imagenet-simsiam-resnet50", "linear-paper"): {"LARS trust coefficient": "0.001"},
}


def rows(preset: str, evals: str = "none") -> dict[str, recipe.Row]:
    """Rows of the pre-training, or of an evaluation."""
    stage = recipe.stages(flags.parse_run(["--preset", preset, "--evals", evals], "recipe"))[-1]
    return {row.name: row for row in stage.rows if row.published}


def unlike(found: dict[str, recipe.Row]) -> dict[str, str]:
    return {name: row.ours for name, row in found.items() if " " in name and row.mark == DIFFERS}


def method_class(name: str) -> Any:
    return registry.find("method", name).load_class()


@pytest.mark.parametrize("preset", PAPERS)
def test_what_is_read_off_is_as_published(preset: str) -> None:
    """But for what the method says is another: nothing that a paper fixes may change unseen."""
    found = rows(preset)
    derived = {n: row for n, row in found.items() if row.basis == "object" and " " in n}
    assert len(derived) >= (1 if preset in ("albef-vitb16", "bert-base") else 5)
    assert unlike(found) == DEVIATIONS.get(preset, {})


def test_what_is_read_off_evaluations_is_as_published(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "_facts", lambda config: {})  # the method's, which take time
    found: dict[tuple[str, str], dict[str, str]] = {}
    for preset in PAPERS:
        for stage in recipe.stages(flags.parse_run(["--preset", preset], "recipe"))[1:]:
            shown = {row.name: row for row in stage.rows if row.published}
            name = stage.title.split(": ")[1]
            derived = [n for n, row in shown.items() if row.basis == "object" and " " in n]
            assert len(derived) >= 5 or name != "finetune" or preset.startswith("kinetics"), preset
            found[preset, name] = unlike(shown)
    assert {key: rows for key, rows in found.items() if rows} == DEVIATIONS_OF_EVALS


def test_what_is_not_read_off_is_not_claimed() -> None:
    for preset in ("imagenet-mae-vitb", "imagenet-mocov3-vits"):
        found = rows(preset)
        assert found["pixels normalised by"].basis == "stated"
        assert found["incomplete last batch"].basis == "not checked"
        for name in ("pixels normalised by", "incomplete last batch"):
            assert found[name].mark == UNCOMPARED


@pytest.mark.parametrize(
    "name,changes",
    [
        ("blur of a view", {"blur": 0.0}),
        ("deviation of the blur", {"blur_sigma": (0.1, 1.0)}),
        ("solarisation of a view", {"solarize": 0.0}),
        ("threshold of the solarisation", {"solarize_threshold": 0.25}),
        ("colour jitter of a view", {"jitter": (0.4, 0.4, 0.4, 0.1)}),
        ("colour jitter of a view", {"jitter_probability": 0.5}),
        ("grey views", {"grayscale": 0.0}),
        ("flip of a view", {"flip": 0.0}),
        ("area of a crop", {"crop_scale": (0.2, 1.0)}),
        ("shape of a crop", {"crop_ratio": (1.0, 1.0)}),
        ("tries for a crop", {"cut_crop": True}),
        ("interpolation of a crop", {"interpolation": "bicubic"}),
        ("views of an image", {"size": 96}),
    ],
)
def test_another_view_shows(
    monkeypatch: pytest.MonkeyPatch, name: str, changes: dict[str, Any]
) -> None:
    mocov3 = method_class("mocov3")
    real: Callable[..., Any] = mocov3.transforms
    changed = lambda self: {n: replace(v, **changes) for n, v in real(self).items()}  # noqa: E731
    monkeypatch.setattr(mocov3, "transforms", changed)
    row = rows("imagenet-mocov3-vits").get(name)
    assert row and row.mark == DIFFERS


def test_bilinear_crops_of_mae_show(monkeypatch: pytest.MonkeyPatch) -> None:
    mae = method_class("mae")
    real: Callable[..., Any] = mae.transforms
    bilinear = lambda self: {  # noqa: E731
        name: replace(view, interpolation="bilinear") for name, view in real(self).items()
    }
    monkeypatch.setattr(mae, "transforms", bilinear)
    assert rows("imagenet-mae-vitb")["interpolation of a crop"].mark == DIFFERS


@pytest.mark.parametrize(
    "name,changes",
    [
        ("optimiser's epsilon", {"eps": 1e-6}),
        ("optimiser's betas", {"betas": (0.8, 0.95)}),
        ("weight decay of norms and biases", {"weight_decay": 0.05}),
        ("weight_decay", {"weight_decay": 0.0}),
        ("weight_decay", {"weight_decay": 0.1}),
        ("beta2", {"betas": (0.9, 0.999)}),
        ("decay_norm_and_bias", {"weight_decay": 0.05}),
    ],
)
def test_another_optimiser_shows(
    monkeypatch: pytest.MonkeyPatch, name: str, changes: dict[str, Any]
) -> None:
    mae = method_class("mae")
    real: Callable[..., Any] = mae.optimizer

    def changed(self: Any) -> Any:
        spec = real(self)
        for group in spec.optimizer.param_groups:
            group.update(changes)
        return spec

    monkeypatch.setattr(mae, "optimizer", changed)
    assert rows("imagenet-mae-vitb")[name].mark == DIFFERS


@pytest.mark.parametrize(
    "change,name",
    [
        ({"learning_rate": lambda step: 1.0}, "learning rate's course"),
        ({"learning_rate": lambda step: 1 - step.fraction}, "learning rate's course"),
        ({"weight_decay": lambda step: 1 - step.fraction}, "weight decay's course"),
        ({"clip_norm": 1.0}, "gradient clipping"),
        (
            {"learning_rate": lambda step: optimizers.warmup_cosine(step, 2.4e-4, 40 / 1600)},
            "base_lr",
        ),
        (
            {"learning_rate": lambda step: optimizers.warmup_cosine(step, 2.4e-3, 41 / 1600)},
            "warmup",
        ),
    ],
)
def test_another_schedule_shows(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], name: str
) -> None:
    mae = method_class("mae")
    real: Callable[..., Any] = mae.optimizer
    monkeypatch.setattr(mae, "optimizer", lambda self: replace(real(self), **change))
    assert rows("imagenet-mae-vitb")[name].mark == DIFFERS


def test_another_epsilon_of_norms_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    real = facts._built

    def changed(*how: Any) -> Any:
        method = real(*how)
        for module in method.modules():
            if isinstance(module, torch.nn.LayerNorm):
                module.eps = 1e-5
        return method

    monkeypatch.setattr(facts, "_built", changed)
    assert rows("imagenet-mae-vitb")["epsilon of layer norms"].mark == DIFFERS


def test_the_summary_counts_as_compared_only_what_was() -> None:
    request = flags.parse_run(["--preset", "imagenet-mae-vitb", "--evals", "none"], "recipe")
    stage = recipe.stages(request)[0]
    bases = [row.basis for row in stage.rows if row.published]
    assert {*bases} == {"object", "flag", "stated", "not checked"}
    read, flagged = bases.count("object"), bases.count("flag")
    assert f"{read + flagged} of {len(bases)} published settings were compared" in stage.summary
    assert f"{read} as read off objects and {flagged} as a flag says" in stage.summary
    for number in (bases.count("stated"), bases.count("not checked")):
        assert f"{number} " in stage.summary


def test_what_an_optimiser_holds_is_no_flag() -> None:
    """And where no object tells, the row is the flag's."""
    found = rows("imagenet-dino-vits")
    for name in ("weight_decay", "final_weight_decay", "base_lr", "final_lr", "warmup", "beta2",
                 "clip_grad", "decay_norm_and_bias"):  # fmt: skip
        assert (found[name].basis, found[name].mark) == ("object", ""), name
    assert found["momentum"].basis == found["epochs"].basis == "flag"


@pytest.mark.parametrize(
    "preset,name,kept,ours",
    [
        ("barlow-twins-resnet50", "weight_decay", {"weight_decay": 0.0}, "0"),
        ("barlow-twins-resnet50", "momentum", {"momentum": 0.5}, "0.5"),
        ("simsiam-resnet50", "momentum", {"momentum": 0.5}, "0.5"),
        ("mae-vitb", "optimizer", {"optimizer": "sgd"}, "sgd"),
    ],
)
def test_a_flag_that_a_probe_ignores_shows(
    monkeypatch: pytest.MonkeyPatch, preset: str, name: str, kept: dict[str, Any], ours: str
) -> None:
    monkeypatch.setattr(recipe, "_facts", lambda config: {})
    module = importlib.import_module(registry.find("eval", "linear-paper").load_class().__module__)
    real = module._optimizer
    ignoring = lambda probe, config: real(probe, replace(config, **kept))  # noqa: E731
    before = rows(f"imagenet-{preset}", "linear-paper")[name]
    monkeypatch.setattr(module, "_optimizer", ignoring)
    after = rows(f"imagenet-{preset}", "linear-paper")[name]
    assert (before.basis, before.mark) == ("object", "")
    assert (after.basis, after.mark, after.ours) == ("object", DIFFERS, ours)


@pytest.mark.parametrize(
    "name,kept,ours",
    [
        ("weight_decay", {"weight_decay": 0.0}, "0"),
        ("beta2", {"beta2": 0.95}, "0.95"),
        ("layer_decay", {"layer_decay": 1.0}, "1"),
        ("decay_norm_and_bias", {"decay_norm_and_bias": True}, "yes"),
    ],
)
def test_a_flag_that_fine_tuning_ignores_shows(
    monkeypatch: pytest.MonkeyPatch, name: str, kept: dict[str, Any], ours: str
) -> None:
    monkeypatch.setattr(recipe, "_facts", lambda config: {})
    real: Callable[..., Any] = finetuning.optimizer
    ignoring = lambda model, config: real(model, replace(config, **kept))  # noqa: E731
    monkeypatch.setattr(finetuning, "optimizer", ignoring)
    row = rows("imagenet-mae-vitb", "finetune")[name]
    assert (row.basis, row.mark, row.ours) == ("object", DIFFERS, ours)


def test_another_order_of_colour_changes_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "order of colour changes"
    assert rows("imagenet-mocov3-vits")[name].mark == ""
    monkeypatch.setattr(augmentations, "COLOUR_STEPS", ("jitter", "grayscale", "solarize", "blur"))
    assert rows("imagenet-mocov3-vits")[name].mark == DIFFERS


def doubled(parameter: torch.Tensor) -> None:
    parameter.mul_(2)


def anew(std: float, cut: float = 2.0) -> Callable[[torch.Tensor], Any]:
    return lambda parameter: torch.nn.init.trunc_normal_(parameter, std=std, a=-cut, b=cut)


@pytest.mark.parametrize(
    "preset,part,change,name",
    [
        ("imagenet-mae-vitb", "mask_token", doubled, "initial mask token"),
        ("imagenet-mae-vitb", "mask_token", anew(0.02, cut=0.02), "initial mask token"),
        ("imagenet-mae-vitb", "cls_token", torch.nn.init.zeros_, "initial class token"),
        ("imagenet-mae-vitb", "qkv.weight", doubled, LINEAR),
        ("imagenet-mae-vitb", "fc1.bias", torch.nn.init.ones_, LINEAR),
        ("imagenet-mae-vitb", "fc1.weight", anew(0.02), LINEAR),
        ("imagenet-mae-vitb", "decoder_embed.weight", doubled, f"{LINEAR} after the encoder"),
        ("imagenet-mae-vitb", "pos_embed", doubled, PLACES),
        ("imagenet-mocov3-vits", "qkv.weight", torch.nn.init.xavier_uniform_, LINEAR),
        ("imagenet-mocov3-vits", "patch_embed.proj.weight", doubled, "initial patch embedding"),
        ("imagenet-simclr-resnet50", "projector.0.weight", doubled, f"{LINEAR} after the encoder"),
        ("imagenet-simsiam-resnet50", "bn3.weight", torch.nn.init.ones_,
         "last norm of a residual block"),
    ],
)  # fmt: skip
def test_another_initial_value_shows(
    monkeypatch: pytest.MonkeyPatch,
    preset: str,
    part: str,
    change: Callable[[torch.Tensor], Any],
    name: str,
) -> None:
    """As measured in the very modules, once they are built."""
    real = facts._drawn

    @torch.no_grad()
    def changed(*how: Any) -> Any:
        method = real(*how)
        named = [p for each, p in method.named_parameters() if each.endswith(part)]
        assert named
        for parameter in named:
            change(parameter)
        return method

    monkeypatch.setattr(facts, "_drawn", changed)
    assert rows(preset)[name].mark == DIFFERS


@pytest.mark.parametrize(
    "change,expected",
    [
        (torch.nn.init.zeros_, "0"),
        (torch.nn.init.xavier_uniform_, "Xavier uniform, bias 0"),
        (lambda weight: weight.uniform_(-(200**-0.5), 200**-0.5), "torch's default, bias 0"),
        (lambda weight: weight.uniform_(-0.3, 0.3), "uniform, 0.3, bias 0"),
        (lambda weight: weight.uniform_(0, 0.3), "other, bias 0"),
        (lambda weight: weight.normal_(std=0.02), "normal, 0.02, bias 0"),
        (lambda weight: weight.normal_(std=0.021), "normal, 0.021, bias 0"),
        (anew(0.02), "normal, 0.02, bias 0"),
        (anew(0.02, cut=0.02), "normal, 0.02, cut at that, bias 0"),
        (anew(0.02, cut=0.04), "normal, 0.02, cut at twice that, bias 0"),
        (lambda weight: weight.exponential_().mul_(weight.new_empty(1).bernoulli_() * 2 - 1),
         "other, bias 0"),
    ],
)  # fmt: skip
def test_a_distribution_is_told_by_its_values(
    change: Callable[[torch.Tensor], Any], expected: str
) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(200, 300)
    with torch.no_grad():
        change(layer.weight)
        layer.bias.zero_()
    assert initial_values._layer(layer) == expected


def test_another_training_of_an_evaluation_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    preset, probe = "imagenet-mae-vitb", registry.find("eval", "linear-paper").load_class()
    monkeypatch.setattr(recipe, "_facts", lambda config: {})
    before = rows(preset, "finetune"), rows(preset, "linear-paper")
    constant = lambda step, peak, *_: peak  # noqa: E731
    monkeypatch.setattr(optimizers, "warmup_cosine", constant)
    monkeypatch.setattr(optimizers.LARS.__init__, "__defaults__", (0.0, 0.0, 0.9, 0.002))
    real: Callable[..., Any] = finetuning.crop_and_flip
    other = lambda *how: replace(real(*how), interpolation="bilinear", flip=0.0)  # noqa: E731
    monkeypatch.setattr(finetuning, "crop_and_flip", other)
    monkeypatch.setattr(importlib.import_module(probe.__module__), "crop_and_flip", other)
    slow = lambda groups, beta2: torch.optim.Adam(groups, betas=(0.8, beta2), eps=1e-6)  # noqa: E731
    monkeypatch.setattr(optimizers, "adamw", slow)
    copy: Callable[..., Any] = Encoder.trainable_copy
    fixed = lambda *how, **kind: copy(*how, **kind).requires_grad_(False)  # noqa: E731
    monkeypatch.setattr(Encoder, "trainable_copy", fixed)
    after = rows(preset, "finetune"), rows(preset, "linear-paper")
    changed = (
        {COURSE, "interpolation of a crop", "kind of optimiser", "optimiser's betas", PLACES},
        {COURSE, "flip of a view", "LARS trust coefficient"},
    )
    for one, other_rows, names in zip(before, after, changed, strict=True):
        assert {name for name, row in one.items() if " " in name and row.mark == DIFFERS} == set()
        assert names <= {name for name, row in other_rows.items() if row.mark == DIFFERS}


@pytest.mark.parametrize("preset", ["imagenet-dino-vits", "imagenet-ibot-vits"])
@pytest.mark.parametrize("temperature", [0.05, 0.2])
def test_another_temperature_of_the_student_shows(
    monkeypatch: pytest.MonkeyPatch, preset: str, temperature: float
) -> None:
    monkeypatch.setattr(prototypes, "_STUDENT_TEMPERATURE", temperature)
    row = rows(preset)["temperature of the student"]
    assert (row.ours, row.mark) == (f"{temperature}", DIFFERS)


def test_another_temperature_in_one_of_two_losses_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    ibot = importlib.import_module(method_class("ibot").__module__)
    real = ibot.of_hidden_patches
    hotter = lambda student_PK, *how: real(student_PK / 2, *how)  # noqa: E731
    monkeypatch.setattr(ibot, "of_hidden_patches", hotter)
    assert rows("imagenet-ibot-vits")["temperature of the student"].ours == "0.1 or 0.2"


@pytest.mark.parametrize(
    "square,ours",
    [
        (lambda x: x.var(-1, keepdim=True) + 1e-5, "(x - mean) / sqrt(unbiased var + 1e-05)"),
        (lambda x: x.var(-1, keepdim=True, correction=0) + 1e-6, "(x - mean) / sqrt(var + 1e-06)"),
        (lambda x: (x.std(-1, keepdim=True) + 1e-6).square(), "other"),
        (lambda x: torch.ones(()), "not used"),
    ],
)
def test_another_norm_of_patches_shows(
    monkeypatch: pytest.MonkeyPatch, square: Callable[[torch.Tensor], torch.Tensor], ours: str
) -> None:
    mae = importlib.import_module(method_class("mae").__module__)
    statistics = lambda x: (x.mean(-1, keepdim=True), square(x).sqrt())  # noqa: E731
    monkeypatch.setattr(mae, "_patch_statistics", statistics)
    row = rows("imagenet-mae-vitb")["norm of a patch"]
    assert (row.ours, row.mark) == (ours, DIFFERS)


def test_knn_votes_as_published(monkeypatch: pytest.MonkeyPatch) -> None:
    """But for how many neighbours vote, of which there is a choice."""
    monkeypatch.setattr(recipe, "_facts", lambda config: {})
    for preset in PAPERS:
        if preset.startswith("imagenet-"):
            found = rows(preset, "knn")
            compared = {n for n, row in found.items() if row.mark != UNCOMPARED}
            assert compared == {"neighbors", "temperature", "weight of a vote"}
            assert {n for n, row in found.items() if row.mark == DIFFERS} == {"neighbors"}
            assert found["temperature"].basis == found["weight of a vote"].basis == "object"
    twenty = ["--preset", "imagenet-dino-vits", "--evals", "knn", "--knn-neighbors", "20"]
    [*_, stage] = recipe.stages(flags.parse_run(twenty, "recipe"))
    assert [row.mark for row in stage.rows if row.name == "neighbors"] == [DISPUTED]


@pytest.mark.parametrize(
    "replaced,differing",
    [
        (lambda queries, t: (queries, 0.1), {"temperature": "0.1"}),
        (lambda queries, t: (queries, 2 * t), {"temperature": "0.14"}),
        (lambda queries, t: (queries.abs().sqrt(), t), {"weight of a vote": "other"}),
    ],
)
def test_other_votes_of_knn_show(
    monkeypatch: pytest.MonkeyPatch,
    replaced: Callable[..., tuple[Any, float]],
    differing: dict[str, str],
) -> None:
    monkeypatch.setattr(recipe, "_facts", lambda config: {})
    real: Callable[..., Any] = neighbors.votes

    def other(features: Any, labels: Any, which: Any, queries: Any, counts: Any, t: float,
              classes: int) -> Any:  # fmt: skip
        queries, t = replaced(queries, t)
        return real(features, labels, which, queries, counts, t, classes)

    monkeypatch.setattr(neighbors, "votes", other)
    found = rows("imagenet-mae-vitb", "knn")
    assert {
        n: row.ours for n, row in found.items() if row.mark == DIFFERS and n != "neighbors"
    } == (differing)


def test_lengths_of_features_must_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "_facts", lambda config: {})
    monkeypatch.setattr(neighbors.F, "normalize", lambda queries, dim: queries)
    found = rows("imagenet-mae-vitb", "knn")
    assert found["temperature"].mark == DIFFERS
