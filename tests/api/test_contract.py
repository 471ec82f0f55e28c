"""What every method and every evaluation must do, whoever wrote it."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import helpers
import pytest
import torch
import torch.nn.functional as F
from helpers import (
    BATCH,
    CPU,
    EVALS,
    EXAMPLE_METHOD,
    METHODS,
    SHAPE,
    build,
    fitting,
    named,
    plan,
    small,
    train,
    weights,
)
from torch import Tensor

from ssl_bench.api import registry
from ssl_bench.api.evaluation import Result
from ssl_bench.api.method import Method, total
from ssl_bench.api.ranges import OneOf
from ssl_bench.api.registry import Plugin
from ssl_bench.api.step import Step
from ssl_bench.cli import flags
from ssl_bench.config.settings import Settings
from ssl_bench.data import Dataset
from ssl_bench.errors import UserError
from ssl_bench.evaluation.features import Encoder
from ssl_bench.experiment.run_config import text_of
from ssl_bench.models import backbones
from ssl_bench.models.backbones import EncoderSpec
from ssl_bench.models.encoders import drop_paths
from ssl_bench.runs import schema
from ssl_bench.training import gradients, pretrain, setup

WITH_EXAMPLE = [*METHODS, registry.find("method", str(EXAMPLE_METHOD))]


@pytest.fixture(scope="session")
def spec(tiny: Dataset) -> EncoderSpec:
    """No larger than what is asserted needs."""
    return EncoderSpec("vit_micro", 16, 4, 3, tiny.mean, tiny.std, SHAPE)


OTHERS = ("test_resnet", "test_convnext", "swin_nano")
NEED_A_VIT = {"albef", "beit-kmeans", "data2vec", "ibot", "ijepa", "mae", "simmim", "videomae"}


def on(backbone: str, spec: EncoderSpec) -> EncoderSpec:
    """The spec, or that of another backbone."""
    if backbone == spec.backbone:
        return spec
    patch_size = 1 if "convnext" in backbone else None
    return dataclasses.replace(spec, backbone=backbone, patch_size=patch_size, architecture={})


def built(plugin: Plugin, spec: EncoderSpec) -> Method:
    """The method on the spec's backbone, unless it says that it needs a Vision Transformer."""
    try:
        return build(plugin, spec)
    except UserError as error:
        assert not spec.is_vit and (plugin.name in NEED_A_VIT or not plugin.is_ours)
        assert "Vision Transformer" in str(error)
        pytest.skip(str(error))


def test_the_centrepieces_are_found() -> None:
    assert {"mae", "mocov3", "supervised", "random-init"} <= {plugin.name for plugin in METHODS}
    assert {"knn", "linear", "finetune"} <= {plugin.name for plugin in EVALS}


@pytest.mark.parametrize("plugin", WITH_EXAMPLE + EVALS, ids=named)
def test_config_is_frozen_and_every_flag_has_help(plugin: Plugin) -> None:
    config = plugin.config
    assert config.__dataclass_params__.frozen  # type: ignore[attr-defined]
    texts = registry.field_help(config)
    missing = [field.name for field in dataclasses.fields(config) if not texts.get(field.name)]
    assert not missing
    assert plugin.summary


@pytest.mark.parametrize("plugin", METHODS + EVALS, ids=named)
def test_settings_come_back_from_a_run_and_nothing_else_does(plugin: Plugin) -> None:
    config = small(plugin)
    stored = json.loads(json.dumps(dataclasses.asdict(config)))
    assert plugin.real_config(plugin.config_of(stored)) == config
    for name, value in stored.items():
        wrong = [] if isinstance(value, str) else "wrong"
        if value is not None:
            with pytest.raises(UserError, match=name):
                plugin.config_of({**stored, name: wrong})
    with pytest.raises(UserError, match="nobodys"):
        plugin.config_of({**stored, "nobodys": 1})


@pytest.mark.parametrize("plugin", METHODS + EVALS, ids=named)
def test_presets_set_flags_that_exist(plugin: Plugin) -> None:
    known = {field.name for field in dataclasses.fields(plugin.config)}
    if plugin.kind == "method":
        known |= {field.name for field in dataclasses.fields(Settings)}
    for preset, values in plugin.presets().items():
        assert set(values) <= known, preset


@pytest.mark.parametrize("plugin", WITH_EXAMPLE + EVALS, ids=named)
def test_flags_are_read_without_importing_the_plugin(plugin: Plugin) -> None:
    assert plugin.outline().__name__.startswith("_outline_")


@pytest.mark.parametrize("backbone", ["vit_micro", *OTHERS])
@pytest.mark.parametrize("plugin", WITH_EXAMPLE, ids=named)
def test_gradients_reach_every_trainable_parameter_and_no_other(
    plugin: Plugin, backbone: str, spec: EncoderSpec, tiny: Dataset
) -> None:
    spec, tiny = fitting(plugin, on(backbone, spec), tiny)
    method = built(plugin, spec)
    trainable = [name for name, p in method.named_parameters() if p.requires_grad]
    if not trainable:
        pytest.skip("trains nothing")
    method.train()
    for parameter in method.parameters():
        if not spec.is_vit and not parameter.any():  # what starts at zero keeps gradients out
            torch.nn.init.constant_(parameter, 0.1)
    batch = setup.make_batch(method, tiny.train, spec, 0, 0, torch.arange(BATCH))
    loss = total(method.loss(batch, helpers.FIRST_STEP))
    assert loss.ndim == 0
    assert torch.isfinite(loss)
    loss.backward()
    for name, parameter in method.named_parameters():
        if name in trainable:
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
        else:
            assert parameter.grad is None, name
    reached = [name for name in trainable if method.get_parameter(name).grad.abs().sum() > 0]  # type: ignore[union-attr]
    unreached = set(trainable) - set(reached)
    assert not unreached, unreached


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A training under seed 0, whose folder nobody changes."""
    home, made = tmp_path_factory.mktemp("whole"), dict[tuple[str, str], Path]()

    def folder(plugin: Plugin, spec: EncoderSpec, data: Dataset) -> Path:
        key = plugin.name, spec.backbone
        if key not in made:
            made[key] = train(plugin, spec, data, home / str(len(made)))
        return made[key]

    return folder


@pytest.mark.parametrize("plugin", METHODS, ids=named)
def test_same_seed_same_weights_and_another_seed_others(
    plugin: Plugin, spec: EncoderSpec, tiny: Dataset, whole: Callable[..., Path], tmp_path: Path
) -> None:
    spec, tiny = fitting(plugin, spec, tiny)
    first = whole(plugin, spec, tiny)
    assert weights(first) == weights(train(plugin, spec, tiny, tmp_path / "second"))
    assert weights(first) != weights(train(plugin, spec, tiny, tmp_path / "third", seed=1))


class Killed(BaseException):
    """Stands for the death of the process."""


@pytest.mark.parametrize("plugin", METHODS, ids=named)
def test_each_seed_starts_from_weights_of_its_own(
    plugin: Plugin, spec: EncoderSpec, tiny: Dataset
) -> None:
    """Those of the encoder, and those of the heads."""
    spec, _ = fitting(plugin, spec, tiny)
    first, other = (dict(build(plugin, spec, seed).named_parameters()) for seed in (0, 1))
    drawn = {name: each for name, each in first.items() if len(each.unique()) > 1}
    assert drawn
    alike = [n for n, each in drawn.items() if each.requires_grad and torch.equal(each, other[n])]
    assert not alike


@pytest.mark.parametrize("backbone", ["vit_micro", *OTHERS[:1]])
@pytest.mark.parametrize("plugin", WITH_EXAMPLE, ids=named)
def test_resumed_equals_uninterrupted_bit_for_bit(
    plugin: Plugin,
    backbone: str,
    spec: EncoderSpec,
    tiny: Dataset,
    whole: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec, tiny = fitting(plugin, on(backbone, spec), tiny)
    built(plugin, spec)
    expected = whole(plugin, spec, tiny)
    if not (expected / "metrics.jsonl").exists():
        pytest.skip("trains nothing")
    monkeypatch.setattr(pretrain, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    method = build(plugin, spec)
    steps = 0
    after_step = method.after_optimizer_step

    def dies_at_step_seven(step: Step) -> None:
        nonlocal steps
        steps += 1
        if steps == 7:
            raise Killed
        after_step(step)

    monkeypatch.setattr(method, "after_optimizer_step", dies_at_step_seven)
    folder = tmp_path / "killed"
    folder.mkdir()
    with pytest.raises(Killed):
        pretrain.pretrain(method, tiny, plan(plugin, spec, tiny), folder, CPU)
    assert (folder / "checkpoint.pt").exists()
    assert not schema.is_trained(folder)

    train(plugin, spec, tiny, folder)
    assert weights(folder) == weights(expected)
    assert _losses(folder) == _losses(expected)
    assert not (folder / "checkpoint.pt").exists()


def _losses(folder: Path) -> list[tuple[int, float]]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [(line["step"], line["loss"]) for line in lines]


@pytest.mark.parametrize("plugin", WITH_EXAMPLE, ids=named)
def test_a_sample_is_seen_alike_whatever_the_batch(
    plugin: Plugin, spec: EncoderSpec, tiny: Dataset
) -> None:
    spec, tiny = fitting(plugin, spec, tiny)
    method = build(plugin, spec)
    if not method.trains:
        pytest.skip("trains nothing")
    whole = setup.make_batch(method, tiny.train, spec, 0, 5, torch.arange(12))
    part = setup.make_batch(method, tiny.train, spec, 0, 5, torch.arange(4, 9))
    for together, apart in zip(whole.views.values(), part.views.values(), strict=True):
        torch.testing.assert_close(together[4:9], apart, rtol=0, atol=1e-6)


@pytest.mark.parametrize("plugin", METHODS, ids=named)
def test_pictures_are_rows_of_images(plugin: Plugin, spec: EncoderSpec, tiny: Dataset) -> None:
    spec, tiny = fitting(plugin, spec, tiny)
    rows = setup.pictures(build(plugin, spec), tiny, spec, seed=0, count=3)
    assert all(images.shape == (3, 3, 16, 16 * spec.frames) for images in rows.values())


@pytest.fixture(scope="module")
def encoders(spec: EncoderSpec) -> list[Encoder]:
    """One of images, one of captions, and one of images that was pre-trained with captions."""
    found = [Encoder(backbones.build(spec, seed=0), spec, CPU, seed=0)]
    for name in ("bert", "albef"):
        plugin = next(each for each in METHODS if each.name == name)
        method, own = build(plugin, spec), helpers.with_text(plugin, spec)
        found.append(Encoder(method.encoder, own, CPU, seed=0, pair=method.text_side))
    return found


@pytest.fixture
def encoder(plugin: Plugin, encoders: list[Encoder], tiny: Dataset) -> Encoder:
    """The first one that the evaluation takes."""
    evaluation = plugin.load_class()(small(plugin))
    return next(each for each in encoders if evaluation.supports(each, tiny) is None)


def same(first: Tensor | None, second: Tensor | None) -> bool:
    """Whether both are absent, or equal."""
    if first is None or second is None:
        return first is second
    return torch.equal(first, second)


@pytest.mark.parametrize("backbone", ["vit_micro", *OTHERS[:1]])
@pytest.mark.parametrize("plugin", EVALS, ids=named)
def test_evaluation_predicts_every_test_image_once(
    plugin: Plugin, backbone: str, encoder: Encoder, spec: EncoderSpec, tiny: Dataset
) -> None:
    config = small(plugin)
    if backbone != spec.backbone and encoder.text is None:
        spec = on(backbone, spec)
        encoder = Encoder(backbones.build(spec, seed=0), spec, CPU, seed=0)
        if hasattr(config, "pooling"):
            config = dataclasses.replace(config, pooling="avg")
    evaluation = plugin.load_class()(config)
    reason = evaluation.supports(encoder, tiny)
    if reason and "Vision Transformer" in reason:
        assert not spec.is_vit and plugin.name in {"attention", "cka", "partial-finetune"}
        pytest.skip(reason)
    assert not evaluation.audit(encoder).count("\n")
    result: Result = evaluation.evaluate(encoder, tiny)
    headline = next(iter(result.scores.values()))
    assert math.isfinite(headline)
    if result.predictions_N is None:
        return
    assert result.predictions_N.shape == (len(tiny.test),)
    assert result.predictions_N.dtype == torch.int64
    assert all(0 <= label < len(tiny.classes) for label in result.predictions_N.tolist())
    right = (result.predictions_N == tiny.test.labels_N).double().mean().item()
    assert headline == pytest.approx(100 * right)


@pytest.mark.parametrize("plugin", EVALS, ids=named)
def test_evaluation_is_a_function_of_its_arguments(
    plugin: Plugin, encoder: Encoder, tiny: Dataset
) -> None:
    before = {name: value.clone() for name, value in encoder.trainable_copy().state_dict().items()}
    torch.manual_seed(1)
    first: Result = plugin.load_class()(small(plugin)).evaluate(encoder, tiny)
    torch.manual_seed(2)
    second: Result = plugin.load_class()(small(plugin)).evaluate(encoder, tiny)
    assert first.scores == second.scores
    assert same(first.predictions_N, second.predictions_N)
    assert first.arrays.keys() == second.arrays.keys()
    assert all(same(first.arrays[name], second.arrays[name]) for name in first.arrays)
    after = encoder.trainable_copy().state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before), "the encoder changed"


@pytest.mark.parametrize("plugin", EVALS, ids=named)
def test_nothing_is_chosen_on_the_test_split(
    plugin: Plugin, encoder: Encoder, tiny: Dataset
) -> None:
    """Other test labels change the score alone, not what was chosen nor what is predicted."""
    split = dataclasses.replace(tiny.test, labels_N=tiny.test.labels_N.flip(0))
    shuffled = dataclasses.replace(tiny, test=split)
    honest: Result = plugin.load_class()(small(plugin)).evaluate(encoder, tiny)
    other: Result = plugin.load_class()(small(plugin)).evaluate(encoder, shuffled)
    assert honest.chosen == other.chosen
    assert same(honest.predictions_N, other.predictions_N)


@pytest.mark.parametrize("plugin", METHODS, ids=named)
@pytest.mark.parametrize(
    ("images_at_once", "threads", "backbone"),
    [
        *((24, 2, "vit_micro"), (10, 1, "vit_micro"), (10, 2, "vit_micro"), (7, 3, "vit_micro")),
        *((10, 2, backbone) for backbone in OTHERS),
    ],
)
def test_gradient_of_a_batch_does_not_depend_on_its_parts(
    plugin: Plugin,
    spec: EncoderSpec,
    tiny: Dataset,
    images_at_once: int,
    threads: int,
    backbone: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    spec, tiny = fitting(plugin, on(backbone, spec), tiny)
    method = built(plugin, spec).train()
    if not method.trains:
        pytest.skip("trains nothing")
    method.before_training(tiny.train, 0)
    batch = setup.make_batch(method, tiny.train, spec, 0, 0, torch.arange(24))
    total(method.loss(batch, helpers.FIRST_STEP)).backward()
    expected = {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}

    found = []
    for _ in range(2):
        method.zero_grad()
        loss = gradients.backward(method, batch, helpers.FIRST_STEP, CPU, images_at_once)["loss"]
        whole = total(method.loss(batch, helpers.FIRST_STEP)).detach()
        torch.testing.assert_close(loss, whole, rtol=1e-5, atol=1e-6)
        found.append({name: p.grad for name, p in method.named_parameters() if p.grad is not None})
    assert found[0].keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[0][name], gradient, rtol=1e-4, atol=1e-5)
        assert torch.equal(found[0][name], found[1][name]), f"{name} depends on chance"


def test_parts_of_a_batch_are_its_images_in_order(spec: EncoderSpec, tiny: Dataset) -> None:
    method = build(next(plugin for plugin in METHODS if plugin.name == "supervised"), spec)
    batch = setup.make_batch(method, tiny.train, spec, 0, 0, torch.arange(22))
    parts = list(batch.split(4))
    assert [len(part) for part in parts] == [6, 6, 5, 5]
    assert batch.labels_B is not None
    assert torch.equal(torch.cat([part.views["image"] for part in parts]), batch.views["image"])
    labels = [part.labels_B for part in parts if part.labels_B is not None]
    assert torch.equal(torch.cat(labels), batch.labels_B)
    masks = torch.cat([part.rng.uniform("mask", 5) for part in parts])
    assert torch.equal(masks, batch.rng.uniform("mask", 5))


@pytest.mark.parametrize("plugin", METHODS, ids=named)
def test_gradients_in_bf16_are_those_in_fp32_but_for_rounding(
    plugin: Plugin, spec: EncoderSpec, tiny: Dataset
) -> None:
    """The loss to 1 %, and of all gradients that matter the direction."""
    spec, tiny = fitting(plugin, spec, tiny)
    losses, gradients_of = [], []
    for precision in ("fp32", "bf16"):
        method = build(plugin, dataclasses.replace(spec, architecture={"depth": 2})).train()
        if not method.trains:
            pytest.skip("trains nothing")
        method.before_training(tiny.train, 0)
        batch = setup.make_batch(method, tiny.train, spec, 0, 0, torch.arange(64))
        how = dataclasses.replace(CPU, precision=precision)
        losses.append(gradients.backward(method, batch, helpers.FIRST_STEP, how)["loss"].item())
        named_parameters = method.named_parameters()
        gradients_of.append({name: p.grad for name, p in named_parameters if p.grad is not None})
    exact, rounded = gradients_of
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=1e-2, abs=1e-3)
    assert exact.keys() == rounded.keys()
    largest = max(gradient.norm().item() for gradient in exact.values())
    for name, gradient in exact.items():
        if gradient.norm() > 1e-2 * largest:
            likeness = F.cosine_similarity(gradient.flatten(), rounded[name].flatten(), dim=0)
            assert likeness > 0.95, f"{name}: {likeness:.3f}"
            size = rounded[name].norm().item()
            assert size == pytest.approx(gradient.norm().item(), rel=0.1), name


@pytest.mark.parametrize("plugin", METHODS, ids=named)
def test_compiled_blocks_compute_the_same(
    plugin: Plugin, spec: EncoderSpec, tiny: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced and differentiated as for any backend; generating code would take a minute."""
    compiled = functools.partialmethod(torch.nn.Module.compile, backend="aot_eager")
    spec, tiny = fitting(plugin, spec, tiny)
    gradients_of = []
    for is_compiled in (False, True):
        method = build(plugin, dataclasses.replace(spec, architecture={"depth": 2})).train()
        if not method.trains:
            pytest.skip("trains nothing")
        if is_compiled:
            monkeypatch.setattr(torch.nn.Module, "compile", compiled)
            setup.compile_blocks(method)
        batch = setup.make_batch(method, tiny.train, spec, 0, 0, torch.arange(24))
        gradients.backward(method, batch, helpers.FIRST_STEP, CPU)
        gradients_of.append([p.grad for p in method.parameters() if p.grad is not None])
    torch.testing.assert_close(*gradients_of, rtol=1e-4, atol=1e-6)


def test_each_rate_of_stochastic_depth_is_no_compilation_of_its_own(
    spec: EncoderSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any, options: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = functools.partialmethod(torch.nn.Module.compile, backend=backend)
    monkeypatch.setattr(torch.nn.Module, "compile", compiled)
    [plugin] = [each for each in METHODS if each.name == "dino"]
    outputs = []
    for is_compiled in (False, True):
        method = build(plugin, dataclasses.replace(spec, architecture={"depth": 12})).train()
        student: Any = method.student
        drop_paths(student, 0.1)
        if is_compiled:
            setup.compile_blocks(method)
        torch.manual_seed(0)
        tokens_BTD = torch.randn(24, 5, student.embed_dim)
        outputs.append(student.blocks(tokens_BTD))
    torch.testing.assert_close(*outputs)
    assert 0 < len(graphs) < 8


@pytest.mark.parametrize("plugin", METHODS, ids=lambda plugin: plugin.name)
def test_what_is_drawn_from_the_ranges_makes_a_config(plugin: Plugin) -> None:
    """`ssl-bench sweep --search` may come upon any value of ``search_space``."""
    base = small(plugin)
    shares = torch.rand(20, generator=torch.Generator().manual_seed(0)).tolist()
    drawn = {
        name: [*map(range_.at, (0.0, 1 - 2**-53, *shares))]
        for name, range_ in plugin.search().items()
    }
    for name, values in drawn.items():
        range_, kind = plugin.search()[name], type(getattr(base, name))
        assert all(isinstance(value, kind) for value in values) or kind is type(None), name
        for value in range_.values if isinstance(range_, OneOf) else (range_.low, range_.high):
            dataclasses.replace(base, **{name: value})
    for at in range(8 if drawn else 0):
        trial = {name: values[at] for name, values in drawn.items()}
        words = [f"--{name.replace('_', '-')}={text_of(value)}" for name, value in trial.items()]
        config = flags.parse_run(["--method", plugin.name, *words]).method_config
        assert {name: getattr(config, name) for name in trial} == trial
