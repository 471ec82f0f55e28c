"""What is read off a method's objects, and that `recipe` notices when one of them is another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import METHODS

from ssl_bench.api import registry
from ssl_bench.cli import flags
from ssl_bench.cli.commands import recipe
from ssl_bench.cli.commands.recipe import DIFFERS, UNCOMPARED
from ssl_bench.experiment import facts

PAPERS = [
    preset for plugin in METHODS for preset in plugin.presets() if preset.startswith("imagenet-")
]
COURSE = "learning rate's course"
BYOL_LAYERS = "linear 4096 without bias, norm, ReLU, linear 256 without bias"
DEVIATIONS = {
    "imagenet-barlow-twins-resnet50": {COURSE: "linear from 0, cosine to 0.001, by step"},
    "imagenet-beit-kmeans-vitb": {COURSE: "linear from 0, cosine to 0.006667, by step"},
    "imagenet-byol-resnet50": {
        "tries for a crop": "up to 10, then the largest in the centre",
        "threshold of the solarisation": "128 of 255",
        "layers of the projector": BYOL_LAYERS,
        "layers of the predictor": BYOL_LAYERS,
    },
    "imagenet-dino-vits": {COURSE: "linear from 0, cosine to 0.001, by step"},
    "imagenet-ibot-vits": {COURSE: "linear from 0, cosine to 0.0005, by step"},
    "imagenet-ijepa-vitb": {COURSE: "linear from 0, cosine to 0.001, by step"},
    "imagenet-ijepa-vith": {COURSE: "linear from 0, cosine to 0.001, by step"},
    "imagenet-moco-v1-resnet50": {COURSE: "0.1 at 60 %, 0.01 at 80 %, by epoch"},
    "imagenet-moco-v2-resnet50": {COURSE: "cosine to 0, by step"},
    "imagenet-simclr-resnet50": {"tries for a crop": "up to 10, then the largest in the centre"},
    "imagenet-simmim-vitb": {COURSE: "linear from 0, 0.1 at 87.5 %, by step"},
    "imagenet-simmim-swinb": {COURSE: "linear from 0, cosine to 0.05, by step"},
    "imagenet-simsiam-resnet50": {COURSE: "cosine to 0, by step"},
    "imagenet-vicreg-resnet50": {
        "layers of the projector": "linear 8192 without bias, norm, ReLU, "
        "linear 8192 without bias, norm, ReLU, linear 8192 without bias"
    },
}
"""What a method does otherwise than published, as its docstring says."""


def rows(preset: str) -> dict[str, recipe.Row]:
    stage = recipe.stages(flags.parse_run(["--preset", preset, "--evals", "none"], "recipe"))[0]
    return {row.name: row for row in stage.rows if row.published}


def method_class(name: str) -> Any:
    return registry.find("method", name).load_class()


@pytest.mark.parametrize("preset", PAPERS)
def test_what_is_read_off_is_as_published(preset: str) -> None:
    """But for what the method says is another: nothing that a paper fixes may change unseen."""
    found = rows(preset)
    derived = {n: row for n, row in found.items() if row.basis == "compared" and " " in n}
    assert len(derived) >= 5
    unlike = {name: row.ours for name, row in derived.items() if row.mark == DIFFERS}
    assert unlike == DEVIATIONS.get(preset, {})


def test_what_is_not_read_off_is_not_claimed() -> None:
    for preset in ("imagenet-mae-vitb", "imagenet-mocov3-vits"):
        found = rows(preset)
        assert found["pixels normalised by"].basis == "stated"
        assert found["position embedding"].basis == "not checked"
        for name in ("pixels normalised by", "position embedding"):
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
    assert {*bases} == {"compared", "stated", "not checked"}
    for number in (bases.count("compared"), bases.count("stated"), bases.count("not checked")):
        assert f"{number} " in stage.summary
