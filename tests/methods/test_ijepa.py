"""I-JEPA against a naive float64 reference, its masks on any grid, and its schedules."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import helpers
import naive
import pytest
import torch
from helpers import CPU, SHAPE, random_batch, step_at
from naive import Weights, under
from torch import Tensor

from ssl_bench.api import optimizers, registry
from ssl_bench.api.step import Batch
from ssl_bench.data import Dataset, Split
from ssl_bench.errors import UserError
from ssl_bench.models import encoders, masking
from ssl_bench.models import weights as stored
from ssl_bench.models.backbones import EncoderSpec
from ssl_bench.training import pretrain, setup

IJEPA = registry.find("method", "ijepa")
HEADS, PATCH = SHAPE["num_heads"], 4
SMALL = {"predictor_embed_dim": 16, "predictor_depth": 2}
GAP = {"class_token": False, "global_pool": "avg", "fc_norm": False}
Call = Callable[..., tuple[int, str, str]]
Masks = list[tuple[list[int], list[list[int]]]]


def build(rows: int = 4, architecture: dict[str, Any] | None = None, **changes: Any) -> Any:
    shape = {**SHAPE, **(architecture or {})}
    spec = EncoderSpec("vit_micro", PATCH * rows, PATCH, 3, (0.5,) * 3, (0.25,) * 3, shape)
    config = IJEPA.config(**(SMALL | changes))
    method: Any = setup.build_method(IJEPA.load_class(), config, spec, 3, seed=0)
    return method.train()


def masks_of(
    batch: Batch,
    rows: int,
    kept: int,
    blocks: int = 4,
    target_scales: tuple[float, float] = (0.15, 0.2),
    context_scale: float = 0.85,
) -> Masks:
    """Context and target patches of each image, from the same random numbers, one at a time."""
    low, high = target_scales
    patches = rows * rows

    def inside(noise: Sequence[float], size: Sequence[int]) -> list[int]:
        size = [max(1, min(side, rows)) for side in size]
        top, left = (math.floor(n * (rows - side + 1)) for n, side in zip(noise, size, strict=True))
        row, column = (range(first, first + n) for first, n in zip((top, left), size, strict=True))
        return [r * rows + c for r in row for c in column]

    found = []
    drawn = batch.rng.uniforms({"targets": 1 + 2 * blocks, "context": 3, "patches": patches})
    for where, around, order in zip(*(noise.tolist() for noise in drawn.values()), strict=True):
        first, second = ((math.floor(1024 * noise[0]) + 0.5) / 1024 for noise in (where, around))
        area, aspect = int(patches * (low + (high - low) * first)), 0.75 + 0.75 * first
        target = [round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)]
        least = int(patches * (context_scale + (1 - context_scale) * second))
        context = [round(least**0.5)] * 2
        targets = [inside(where[2 * n + 1 : 2 * n + 3], target) for n in range(blocks)]
        block, hidden = inside(around[1:], context), {patch for each in targets for patch in each}
        chosen = sorted(range(patches), key=lambda p: (p in hidden, p not in block, order[p]))
        found.append((chosen[:kept], targets))
    return found


def masks_by(method: Any, batch: Batch) -> Masks:
    """The same from the method, without what fills blocks up."""
    found = []
    for context, targets, is_own in zip(*method.masks(batch.rng.uniform), strict=True):
        found.append((context.tolist(), [target[is_own].tolist() for target in targets]))
    return found


def reference(weights: Weights, images: Tensor, masks: Masks, rows: int, start: int) -> Tensor:
    """Section 3: the smooth L1 distance of predictions from the target encoder's features.

    Args:
        start: tokens before those of the patches.
    """
    predictor, losses = under(weights, "predictor"), []
    for image, (context, targets) in zip(images, masks, strict=True):
        everything, errors = range(rows * rows), []
        encoder = under(weights, "encoder")
        features = naive.vit(encoder, image, PATCH, HEADS, False, everything)[start:].detach()
        own = under(weights, "context_encoder")
        seen = naive.vit(own, image, PATCH, HEADS, False, context)[start:]
        seen = naive.linear(under(predictor, "predictor_embed"), seen)
        for target in targets:
            tokens = [*seen, *[predictor["mask_token"][0, 0]] * len(target)]
            for index, patch in enumerate([*context, *target]):
                where = naive.position(len(seen[0]), patch % rows, patch // rows)
                tokens[index] = tokens[index] + where
            found = naive.transformer(
                under(predictor, "predictor_blocks"), torch.stack(tokens), HEADS
            )[len(context) :]
            found = naive.layer_norm(under(predictor, "predictor_norm"), found)
            found = naive.linear(under(predictor, "predictor_proj"), found)
            for patch, predicted in zip(target, found, strict=True):
                wanted = features[patch] - features[patch].mean()
                wanted = wanted / (wanted.square().mean() + 1e-5).sqrt()
                error = (predicted - wanted).abs()
                errors.append(torch.where(error < 1, error**2 / 2, error - 0.5).mean())
        losses.append(torch.stack(errors).mean())
    return torch.stack(losses).mean()


@pytest.mark.parametrize("architecture", [{}, GAP], ids=["class-token", "no-class-token"])
def test_loss_and_every_gradient_are_those_of_the_paper(architecture: dict[str, Any]) -> None:
    method = build(6, architecture)
    naive.randomise(method)
    weights, batch = naive.weights_of(method), random_batch(3, 6 * PATCH)
    masks = masks_by(method, batch)
    assert len({len(targets[0]) for _, targets in masks}) > 1  # blocks are filled up
    start = 0 if architecture else 1
    expected = reference(weights, batch.views["image"].double(), masks, 6, start)
    expected.backward()
    loss = method.loss(batch, step_at(0))
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    errors = naive.gradient_errors(method, weights)
    # A key's bias has no gradient but rounding.
    assert max(error for name, error in errors.items() if "qkv.bias" not in name) < 1e-5
    assert len(errors) > 50


def test_training_keeps_the_official_order_of_operations(
    tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loss in each step; learning rate, weight decay, and then the average, of half a line."""
    batch_size, total, base_lr = 4, 4, 0.5
    method = build(base_lr=base_lr, warmup=0.0, final_lr=0.1, momentum=0.8)
    naive.randomise(method)
    method.encoder.load_state_dict(method.context_encoder.state_dict())
    weights = naive.weights_of(method)
    batches = [random_batch(batch_size, 16, step) for step in range(total)]
    monkeypatch.setattr(setup, "batches", lambda *a: (batches[each.step] for each in a[-1]))
    monkeypatch.setattr(optimizers, "adamw", lambda groups, beta2: torch.optim.SGD(groups, lr=0.0))
    count = batch_size * total
    data = dataclasses.replace(
        tiny, train=Split(tiny.train.images_NCHW[:count], tiny.train.labels_N[:count])
    )
    spec = EncoderSpec("vit_micro", 16, PATCH, 3, (0.5,) * 3, (0.25,) * 3, SHAPE)
    plan = dataclasses.replace(helpers.plan(IJEPA, spec, data), epochs=1, batch_size=batch_size)
    pretrain.pretrain(method, data, plan, tmp_path, CPU)
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]

    assert len(records) == total
    for step, record in enumerate(records):
        images = batches[step].views["image"].double()
        loss = reference(weights, images, masks_of(batches[step], 4, 4), 4, 1)
        loss.backward()
        assert record["loss"] == pytest.approx(loss.item(), rel=1e-5), step
        half_cosine = (1 + math.cos(math.pi * step / total)) / 2
        rate = base_lr * batch_size / 256 * (0.1 + 0.9 * half_cosine)
        decay = 0.4 + (0.04 - 0.4) * half_cosine
        momentum = 0.8 + 0.2 * step / total
        with torch.no_grad():
            for weight in weights.values():
                if weight.grad is not None:
                    decayed = decay * weight if weight.ndim > 1 else 0
                    weight.sub_(rate * (weight.grad + decayed))
                    weight.grad = None
            for name, weight in under(weights, "encoder").items():
                fast = weights[f"context_encoder.{name}"]
                weight.mul_(momentum).add_((1 - momentum) * fast)
    for name, parameter in method.named_parameters():
        assert naive.relative_error(parameter, weights[name]) < 1e-5, name
    encoder, _ = stored.load(tmp_path)
    assert torch.equal(encoder.norm.weight, method.encoder.norm.weight)
    assert not torch.equal(encoder.norm.weight, method.context_encoder.norm.weight)


@pytest.mark.parametrize("rows", [2, 3, 4, 6, 7, 8, 14])
def test_masks_are_those_of_one_image_at_a_time(rows: int) -> None:
    method, batch = build(rows), random_batch(100, PATCH)
    assert masks_by(method, batch) == masks_of(batch, rows, max(1, rows * rows // 4))


@pytest.mark.parametrize("scales", [(0.1, 0.3), (0.2, 0.2)])
def test_blocks_are_as_many_and_as_large_as_asked_for(scales: tuple[float, float]) -> None:
    sizes: Any = {"min_target_scale": scales[0], "max_target_scale": scales[1]}
    method = build(8, targets=3, min_context_scale=0.5, context_ratio=0.4, **sizes)
    batch = random_batch(100, PATCH)
    assert masks_by(method, batch) == masks_of(batch, 8, 25, 3, scales, 0.5)


def test_mixed_precision_rounds_the_networks_and_not_the_loss() -> None:
    method, batch = build(), random_batch(3, 16)
    outputs: list[Tensor] = []
    for part in (method.encoder.norm, method.predictor):
        part.register_forward_hook(lambda *call: outputs.append(call[-1]))
    with torch.autocast("cpu", torch.bfloat16):
        loss = method.loss(batch, step_at(0))
    features, predicted = outputs
    assert predicted.dtype == torch.bfloat16
    _, targets, is_own = method.masks(batch.rng.uniform)
    wanted = encoders.take(features[:, 1:].float(), targets.flatten(1)).view_as(predicted)
    expected = IJEPA.load().distance(predicted.float(), wanted, is_own)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_every_patch_is_seen_and_wanted_and_contexts_hold_no_target() -> None:
    found = masks_by(build(14), random_batch(512, PATCH))
    seen = {patch for context, _ in found for patch in context}
    wanted = {patch for _, targets in found for target in targets for patch in target}
    assert seen == wanted == set(range(196))
    assert not any(set(context) & set().union(*targets) for context, targets in found)


def test_a_context_is_its_share_of_the_patches_rounded_down() -> None:
    masks = masking.MultiBlocks((6, 6), 4, (0.15, 0.2), 0.85, 0.3)
    context_BK, _, _ = masks(lambda purpose, count: torch.rand(3, count))
    assert context_BK.shape == (3, 10), "10.8 of 36"


def test_masks_depend_on_image_and_step_alone() -> None:
    method, batch = build(8), random_batch(12, PATCH, step=3)
    parts = [masks_by(method, part) for part in batch.split(5)]
    assert masks_by(method, batch) == [masks for part in parts for masks in part]
    assert masks_by(method, batch) != masks_by(method, random_batch(12, PATCH, step=4))


OFFICIAL_SIZES = {
    16: {(5, 7): 5.2, (6, 6): 1.9, (6, 7): 26.4, (7, 6): 29.2, (8, 6): 30.0, (9, 6): 7.2},
    14: {(5, 6): 26.9, (6, 5): 12.5, (6, 6): 21.2, (7, 5): 36.6, (8, 5): 2.8},
    8: {(3, 3): 48.6, (4, 3): 51.4},
    6: {(2, 2): 30.7, (2, 3): 7.6, (3, 2): 61.7},
}
"""How often, in percent of 2,000 seeds, the official sampler has target blocks of these sizes."""


@pytest.mark.parametrize("rows", OFFICIAL_SIZES)
def test_target_blocks_are_as_large_as_the_official_ones(rows: int) -> None:
    sizes = Counter(masking.block_sizes((0.15, 0.2), (0.75, 1.5), (rows, rows)))
    assert sizes.keys() == OFFICIAL_SIZES[rows].keys()
    for size, percent in OFFICIAL_SIZES[rows].items():
        assert 100 * sizes[size] / sizes.total() == pytest.approx(percent, abs=3), size


def test_what_is_watched_does_not_depend_on_the_order_of_parts() -> None:
    method, batch = build(), random_batch(7, 16)
    for order in (slice(None), slice(None, None, -1)):
        for part in list(batch.split(3))[order]:
            method.loss(part, step_at(0))
        features_BLD = method.target_features(batch.views["image"][:3])
        torch.testing.assert_close(method.watched_BD, features_BLD[:, 10])


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--predictor-embed-dim", 30), "32 would work"),
        (("--min-target-scale", 0.3), "max target scale"),
        (("--context-ratio", 1), "--context-ratio"),
        (("--targets", 0), "targets"),
        (("--patch-size", 16), "smaller patch size"),
        (("--backbone", "resnet18"), "Vision Transformer"),
    ],
)
def test_bad_input_gets_one_line(
    flags: tuple[object, ...], named: str, ssl_bench: Call, image_folder: Path, tmp_path: Path
) -> None:
    where = ("--data", image_folder, "--batch-size", 8, "--runs-dir", tmp_path, "--evals", "none")
    code, _, err = ssl_bench("run", "--method", "ijepa", *where, *flags)
    assert code == 2 and named in err and err.strip().count("\n") == 0


def test_a_predictor_has_the_heads_of_the_encoder() -> None:
    assert {block.attn.num_heads for block in build().predictor.predictor_blocks} == {HEADS}
    with pytest.raises(UserError, match="heads"):
        build(predictor_embed_dim=6)
