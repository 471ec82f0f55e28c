"""Fine-tuning's steps against plain AdamW on the views that the classifier saw."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial, partialmethod
from typing import Any

import helpers
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import CPU, SHAPE, Recorder
from scipy.stats import ks_2samp
from timm.data.mixup import cutmix_bbox_and_lam
from timm.layers import DropPath
from torch import Tensor, nn

from ssl_bench.api import registry
from ssl_bench.data import Dataset, Split
from ssl_bench.distributed.device import Hardware, choose
from ssl_bench.evaluation import finetuning
from ssl_bench.evaluation.features import Encoder, prepare
from ssl_bench.models import backbones
from ssl_bench.models.backbones import EncoderSpec
from ssl_bench.training import captured, resume
from ssl_bench.training.captured import Work
from ssl_bench.transforms.augmentations import augment
from ssl_bench.utils import rng
from ssl_bench.utils.rng import SampleRng

FINETUNE = registry.find("eval", "finetune")
EPOCHS, BATCH, PER_EPOCH = 2, 40, 3
RATE, FLOOR, DECAY, LAYERS = 1e-2, 1e-4, 0.3, 0.5
SEED = 3


class Seen:
    """A fine-tuning, its classifier before and after, and what came into it."""

    def __init__(self, data: Dataset, spec: EncoderSpec, **changes: Any) -> None:
        plain: dict[str, Any] = {
            **{"epochs": EPOCHS, "batch_size": BATCH, "base_lr": RATE, "min_lr": FLOOR},
            **{"weight_decay": DECAY, "layer_decay": LAYERS, "warmup": 1 / 3, "beta2": 0.9},
            **{"mixup": 0.0, "cutmix": 0.0, "drop_path": 0.0, "crop_scale": 1.0},
            **{"auto_augment": "", "random_erasing": 0.0},
        }
        self.views: list[Tensor] = []
        self.seeds: list[int] = []
        self.models: list[finetuning.Classifier] = []
        forward, build = finetuning.Classifier.forward, finetuning.classifier

        def record(model: finetuning.Classifier, images_BCHW: Tensor) -> Tensor:
            self.views.append(images_BCHW.detach().clone())
            self.seeds.append(torch.initial_seed())
            return forward(model, images_BCHW)

        def keep(*how: Any) -> finetuning.Classifier:
            model = build(*how)
            self.models += [copy.deepcopy(model), model]
            return model

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(finetuning.Classifier, "forward", record)
            patch.setattr(finetuning, "classifier", keep)
            encoder = Encoder(backbones.build(spec, 0), spec, CPU, seed=SEED)
            config = FINETUNE.config(**(plain | changes))
            self.result = FINETUNE.load_class()(config).evaluate(encoder, data)


@pytest.fixture(scope="module")
def spec(tiny: Dataset) -> EncoderSpec:
    return EncoderSpec("vit_micro", 16, 4, 3, tiny.mean, tiny.std, SHAPE)


@pytest.fixture(scope="module")
def seen(tiny: Dataset, spec: EncoderSpec) -> Seen:
    return Seen(tiny, spec)


def order(epoch: int) -> Tensor:
    return rng.permutation(120, SEED, "finetune", epoch)


@pytest.mark.parametrize("mixed", [{}, {"mixup": 0.8, "cutmix": 1.0}], ids=["plain", "mixed"])
def test_training_is_adamw_with_a_rate_for_each_layer(
    tiny: Dataset, spec: EncoderSpec, mixed: dict[str, float]
) -> None:
    seen, config = (
        Seen(tiny, spec, **mixed),
        FINETUNE.config(**{"mixup": 0.0, "cutmix": 0.0, **mixed}),
    )
    start, end = seen.models
    top = len(start.encoder.blocks) + 1
    groups: list[dict[str, Any]] = []
    for name, parameter in start.named_parameters():
        part, _, rest = name.removeprefix("encoder.").partition(".")
        layer = int(rest.split(".")[0]) + 1 if part == "blocks" else 0
        layer = top if part in ("head", "fc_norm") else layer
        spared = parameter.ndim == 1 or part in ("cls_token", "pos_embed")
        decay = 0.0 if spared else DECAY
        groups.append({"params": [parameter], "weight_decay": decay, "layer": layer})
    adamw = torch.optim.AdamW(groups, betas=(0.9, 0.9))
    start.train()
    recipe = finetuning.crop(spec, FINETUNE.config(crop_scale=1.0))
    steps, peak = EPOCHS * PER_EPOCH, RATE * BATCH / 256
    for step in range(steps):
        done = (step - 2) / (steps - 2)
        rate = FLOOR + (peak - FLOOR) * (1 + math.cos(math.pi * done)) / 2
        rate = peak * step / 2 if step < 2 else rate
        for group in adamw.param_groups:
            group["lr"] = rate * LAYERS ** (top - group["layer"])
        own = order(step // PER_EPOCH)[step % PER_EPOCH * BATCH :][:BATCH]
        view = partial(augment, recipe=recipe, draws=SampleRng(SEED, step, own, "finetune/"))
        views = prepare(tiny.train.images_NCHW[own], spec, CPU, view)
        targets = torch.eye(3)[tiny.train.labels_N[own]]
        how = finetuning.mixing(config, spec.image_size, SEED, step)
        views, targets = finetuning.mix(views, targets, *how)
        torch.testing.assert_close(seen.views[step], views)
        F.cross_entropy(start(views), targets, label_smoothing=0.1).backward()
        adamw.step()
        adamw.zero_grad()
    for name, parameter in end.named_parameters():
        expected = start.get_parameter(name)
        torch.testing.assert_close(parameter, expected, rtol=1e-3, atol=1e-5, msg=name)


def test_each_epoch_sees_every_training_image_in_another_view(
    seen: Seen, tiny: Dataset, spec: EncoderSpec
) -> None:
    whole = prepare(tiny.train.images_NCHW, spec, CPU)
    mirrored = []
    for epoch in range(EPOCHS):
        views = torch.cat(seen.views[epoch * PER_EPOCH : (epoch + 1) * PER_EPOCH])
        straight = whole[order(epoch)]
        is_straight = (views - straight).abs().flatten(1).amax(1) < 1e-4
        is_mirrored = (views - straight.flip(-1)).abs().flatten(1).amax(1) < 1e-4
        assert (is_straight ^ is_mirrored).all()
        assert 0.35 < is_mirrored.double().mean() < 0.65
        mirrored.append(is_mirrored[order(epoch).argsort()])
    assert 0.3 < (mirrored[0] != mirrored[1]).double().mean() < 0.7


def test_the_last_epoch_classifies_each_test_image_as_it_is(
    seen: Seen, tiny: Dataset, spec: EncoderSpec
) -> None:
    whole = prepare(tiny.test.images_NCHW, spec, CPU)
    assert torch.equal(torch.cat(seen.views[EPOCHS * PER_EPOCH :]), whole)
    with torch.no_grad():
        expected = seen.models[1].eval()(whole).argmax(dim=1)
    assert seen.result.predictions_N is not None
    assert torch.equal(seen.result.predictions_N, expected)


def test_each_step_drops_other_paths(seen: Seen) -> None:
    steps = EPOCHS * PER_EPOCH
    assert seen.seeds[:steps] == [rng.key(SEED, "finetune/dropout", n) for n in range(steps)]
    assert len(set(seen.seeds[:steps])) == steps


@pytest.mark.parametrize("mixed", [{}, {"mixup": 0.8, "cutmix": 1.0, "drop_path": 0.2}])
def test_recorded_steps_are_the_steps(
    tiny: Dataset, spec: EncoderSpec, monkeypatch: pytest.MonkeyPatch, mixed: dict[str, float]
) -> None:
    expected = Seen(tiny, spec, **mixed).models[1].state_dict()
    recorder = Recorder()
    monkeypatch.setattr(captured, "_as_graph", recorder)
    monkeypatch.setattr(Hardware, "records_steps", True)
    found = Seen(tiny, spec, **mixed).models[1].state_dict()
    assert recorder.recordings == 1
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_compiled_blocks_train_the_same(
    tiny: Dataset, spec: EncoderSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced and differentiated as for any backend; generating code would take a minute."""
    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any, options: Any) -> Any:
        graphs.append(graph)
        return aot_eager(graph, inputs)

    aot_eager = torch._dynamo.lookup_backend("aot_eager")
    compiled = partialmethod(nn.Module.compile, backend=backend)
    monkeypatch.setattr(nn.Module, "compile", compiled)
    monkeypatch.setattr(finetuning, "_STEPS_THAT_PAY", EPOCHS * PER_EPOCH)
    config = FINETUNE.config(epochs=EPOCHS, batch_size=BATCH, base_lr=1e-3, drop_path=0.2)
    states = []
    for hardware in (CPU, replace(CPU, compiled=True)):
        encoder = Encoder(backbones.build(spec, 0), spec, hardware, seed=SEED)
        model = finetuning.classifier(encoder, 3, config)
        finetuning.train(model, encoder, tiny.train, config)
        of_training = len(graphs)
        states.append({**model.state_dict(), "of": finetuning.predict(model, encoder, tiny.test)})
        assert len(graphs) == of_training, "of batches of other sizes"
    assert graphs
    torch.testing.assert_close(*states, rtol=1e-3, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gpu_records_compiled_steps(
    tiny: Dataset, spec: EncoderSpec, precision: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs: list[Any] = []

    def recorded(work: Work) -> Any:
        graphs.append(as_graph(work))
        return graphs[-1]

    as_graph = captured._as_graph
    monkeypatch.setattr(captured, "_as_graph", recorded)
    monkeypatch.setattr(finetuning, "_STEPS_THAT_PAY", 1)
    encoder = Encoder(backbones.build(spec, 0), spec, choose(precision, "on"), seed=SEED)
    assert encoder.hardware.records_steps
    plain = Encoder(backbones.build(spec, 0), spec, choose(precision, "off"), seed=SEED)
    config = FINETUNE.config(epochs=2, batch_size=BATCH, base_lr=1e-3, drop_path=0.2)
    start = {k: v.detach() for k, v in finetuning.classifier(plain, 3, config).named_parameters()}
    states = []
    for each in (encoder, plain):
        model = finetuning.classifier(each, 3, config)
        finetuning.train(model, each, tiny.train, config)
        states.append(model.state_dict())
    assert len(graphs) == 1
    assert helpers.difference_of_moves(states[0], states[1], start) < 0.2, (
        "0.6 without stochastic depth"
    )


def test_another_seed_starts_another_head_and_mixes_other_shares(
    tiny: Dataset, spec: EncoderSpec
) -> None:
    heads, mixed = [], []
    config, images = FINETUNE.config(mixup=0.8, cutmix=0.0), torch.eye(2)[:, None, None]
    for seed in (0, 1):
        encoder = Encoder(backbones.build(spec, 0), spec, CPU, seed=seed)
        heads.append(finetuning.classifier(encoder, 3, config).head.weight)
        mixed.append(
            finetuning.mix(images, torch.eye(2), *finetuning.mixing(config, 2, seed, 0))[1]
        )
    assert not torch.equal(*heads) and not torch.equal(*mixed)


def test_what_is_resumed_reads_as_of_the_step_that_it_is_at(
    tiny: Dataset, spec: EncoderSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which frames of a clip are read is a function of the step."""
    read: list[SampleRng] = []
    read_drawn = Split.read_drawn

    def noted(split: Split, draws: Iterable[SampleRng]) -> Any:
        read.extend(draws)
        return read_drawn(split, read)

    monkeypatch.setattr(Split, "read_drawn", noted)
    monkeypatch.setattr(resume, "training", lambda *how: nullcontext(resume.Training(4)))
    encoder = Encoder(backbones.build(spec, 0), spec, CPU, seed=SEED)
    config = FINETUNE.config(epochs=EPOCHS, batch_size=BATCH)
    finetuning.train(finetuning.classifier(encoder, 3, config), encoder, tiny.train, config)
    assert [(each.seed, each.step) for each in read] == [(SEED, 4), (SEED, 5)]
    assert torch.equal(read[0].samples_B, order(1)[BATCH : 2 * BATCH])


@pytest.mark.parametrize("last", [math.inf, -math.inf, math.nan])
def test_a_loss_that_is_no_finite_number_in_the_end_has_diverged(
    last: float, tiny: Dataset, spec: EncoderSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = EPOCHS * PER_EPOCH
    monkeypatch.setattr(resume, "training", lambda *how: nullcontext(resume.Training(steps, last)))
    encoder = Encoder(backbones.build(spec, 0), spec, CPU, seed=SEED)
    config = FINETUNE.config(epochs=EPOCHS, batch_size=BATCH)
    with pytest.raises(finetuning.Diverged, match=f"its loss is {last}"):
        finetuning.train(finetuning.classifier(encoder, 3, config), encoder, tiny.train, config)


def test_a_loss_is_computed_in_float32_whatever_the_precision(
    tiny: Dataset, spec: EncoderSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds: list[torch.dtype] = []
    cross_entropy = F.cross_entropy

    def note(logits_BC: Tensor, *how: Any, **options: Any) -> Tensor:
        kinds.append(logits_BC.dtype)
        return cross_entropy(logits_BC, *how, **options)

    monkeypatch.setattr(F, "cross_entropy", note)
    hardware = replace(CPU, precision="bf16")
    encoder = Encoder(backbones.build(spec, 0), spec, hardware, seed=SEED)
    config = FINETUNE.config(epochs=1, batch_size=120)
    model = finetuning.classifier(encoder, 3, config)
    finetuning.train(model, encoder, tiny.train, config)
    assert kinds == [torch.float32]


def test_layers_of_other_backbones_are_told_by_their_names_under_the_encoder() -> None:
    """Of any alternative, whose ^ goes and whose classes of characters stay."""
    under = finetuning._under_encoder(
        {"stem": r"^stem|^patch", "blocks": [(r"^layers\.([^.]+)", None)], "last": None}
    )
    assert all(re.match(under["stem"], f"encoder.{name}.weight") for name in ("stem", "patch"))
    assert not re.match(under["stem"], "patch.weight")
    [(pattern, suffix)] = under["blocks"]
    found = re.match(pattern, "encoder.layers.3.weight")
    assert found and found[1] == "3" and suffix is under["last"] is None
    assert finetuning._under_encoder(len)("encoder.stem") == len("stem")


def test_a_classifier_starts_near_zero_with_a_norm_of_its_own(seen: Seen) -> None:
    start = seen.models[0]
    model = finetuning.Classifier(copy.deepcopy(start.encoder), 3)
    assert isinstance(model.fc_norm, torch.nn.LayerNorm) and model.fc_norm.eps == 1e-6
    assert not model.head.bias.any() and 0 < model.head.weight.abs().max() < 1e-4


@pytest.mark.parametrize(
    "center,share,expected", [(0.5, 0.5, (4, 12)), (0.0, 0.5, (0, 4)), (0.99, 0.3, (13, 16))]
)
def test_a_cut_is_timms(center: float, share: float, expected: tuple[int, int]) -> None:
    """``rand_bbox``: half of the whole pixels on either side of a pixel, cut off at the borders."""
    assert finetuning._span(center, share, 16) == expected


def test_cuts_are_as_large_as_timms() -> None:
    """Cut off at the borders included."""
    config, images = FINETUNE.config(mixup=0.0), torch.zeros(2, 1, 32, 32)
    images[1] = 1
    ours, theirs = [], []
    state = np.random.get_state()
    np.random.seed(0)
    for step in range(1200):
        mixed, _ = finetuning.mix(images, torch.eye(2), *finetuning.mixing(config, 32, 0, step))
        ours.append(mixed[0].mean().item())
        lam = np.random.beta(1.0, 1.0)
        (top, bottom, left, right), _ = cutmix_bbox_and_lam((2, 1, 32, 32), lam)
        theirs.append((bottom - top) * (right - left) / 32**2)
    np.random.set_state(state)
    assert ks_2samp(ours, theirs).pvalue > 0.01


def test_the_last_block_is_skipped_as_often_as_asked(tiny: Dataset, spec: EncoderSpec) -> None:
    encoder = Encoder(backbones.build(spec, 0), spec, CPU, seed=0)
    blocks = finetuning.classifier(encoder, 3, FINETUNE.config(drop_path=0.3)).encoder.blocks
    assert isinstance(blocks[-1].drop_path1, DropPath)
    assert blocks[-1].drop_path1.drop_prob == pytest.approx(0.3)
    assert not isinstance(blocks[0].drop_path1, DropPath)


def test_what_several_ranks_drop_has_the_same_mean() -> None:
    shared = finetuning.SharedDropPath(DropPath(0.25), 4000, torch.arange(4000)).train()
    kept = shared(torch.ones(4000, 2))
    assert {round(each, 4) for each in kept.unique().tolist()} == {0.0, 1.3333}
    assert kept.mean().item() == pytest.approx(1, abs=0.04)
    assert torch.equal(kept[:, 0], kept[:, 1])


def test_a_rank_drops_of_its_rows_what_one_alone_would() -> None:
    """In training; and the rest is scaled up where timm's layer says so."""
    rows, ones = torch.tensor([6, 1, 3]), torch.ones(8, 2)

    def dropped(rows_R: Tensor, scaled: bool = True) -> Tensor:
        torch.manual_seed(0)
        layer = finetuning.SharedDropPath(DropPath(0.5, scaled), 8, rows_R).train()
        assert torch.equal(layer.eval()(ones[rows_R]), ones[rows_R])
        return layer.train()(ones[rows_R])

    whole = dropped(torch.arange(8))
    assert {*whole.unique().tolist()} == {0, 2} and not torch.equal(whole[rows], whole[:3])
    assert torch.equal(dropped(rows), whole[rows])
    assert {*dropped(torch.arange(8), scaled=False).unique().tolist()} == {0, 1}
