"""data2vec 2.0 against a naive float64 reference, its masks on any grid, and its schedules."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
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
from ssl_bench.api.method import total
from ssl_bench.api.step import Batch
from ssl_bench.data import Dataset, Split
from ssl_bench.models import encoders, masking
from ssl_bench.models import weights as stored
from ssl_bench.models.backbones import EncoderSpec
from ssl_bench.training import pretrain, setup
from ssl_bench.utils.rng import SampleRng

DATA2VEC = registry.find("method", "data2vec")
HEADS, PATCH, DEPTH = SHAPE["num_heads"], 4, 3
GAP = {"class_token": False, "global_pool": "avg", "fc_norm": False}
SMALL = {
    "masks": 3,
    "mask_ratio": 0.6,
    "block_size": 2,
    "target_layers": 2,
    "decoder_embed_dim": 16,
    "decoder_depth": 3,
    "decoder_groups": 4,
}
Call = Callable[..., tuple[int, str, str]]


def build(rows: int = 4, architecture: dict[str, Any] | None = None, **changes: Any) -> Any:
    shape = {**SHAPE, "depth": DEPTH, **(architecture or {})}
    spec = EncoderSpec("vit_micro", PATCH * rows, PATCH, 3, (0.5,) * 3, (0.25,) * 3, shape)
    config = DATA2VEC.config(**(SMALL | changes))
    method: Any = setup.build_method(DATA2VEC.load_class(), config, spec, 3, seed=0)
    return method.train()


def visible_of(
    batch: Batch, rows: int, ratio: float, side: int, masks: int, surplus: float = 0.07
) -> list[list[list[int]]]:
    """The visible patches under each mask of each image, from the same numbers, one at a time."""
    patches = rows * rows
    kept = int(patches * (1 - ratio))
    blocks = max(1, int(patches * (1 - ratio + surplus) / side**2))
    order = batch.rng.uniform("mask", masks * patches).double().unflatten(1, (masks, patches))
    where = batch.rng.uniform("block", masks * blocks).double().unflatten(1, (masks, blocks))
    found = []
    for image in range(len(batch)):
        of_image = []
        for mask in range(masks):
            inside = set()
            for number in where[image, mask].tolist():
                row, column = divmod(math.floor(number * patches), rows)
                for y in range(row - side // 2, row - side // 2 + side):
                    for x in range(column - side // 2, column - side // 2 + side):
                        if 0 <= y < rows and 0 <= x < rows:
                            inside.add(y * rows + x)
            noise = order[image, mask].tolist()
            chosen = sorted(range(patches), key=lambda p: (p not in inside, noise[p]))
            of_image.append(chosen[:kept])
        found.append(of_image)
    return found


def normed(x: Tensor, dim: int) -> Tensor:
    centred = x - x.mean(dim, keepdim=True)
    return centred / (centred.square().mean(dim, keepdim=True) + 1e-5).sqrt()


def targets(weights: Weights, image: Tensor, rows: int, layers: int, start: int) -> Tensor:
    """Section 3.1: what the last blocks' feed-forward layers add, before it is added."""
    kernel, bias = weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"]
    tokens = [weights["cls_token"][0, 0]] if start else []
    for row, column, pixels in naive.cut(image, PATCH):
        embedded = torch.stack([(one * pixels).sum() for one in kernel]) + bias
        tokens.append(embedded + naive.position(len(embedded), column, row))
    x, outputs = torch.stack(tokens), []
    for index in range(DEPTH):
        block = under(weights, f"blocks.{index}")
        attended = naive.layer_norm(under(block, "norm1"), x)
        x = x + naive.attention(under(block, "attn"), attended, HEADS)
        added = naive.perceptron(under(block, "mlp"), naive.layer_norm(under(block, "norm2"), x))
        x = x + added
        outputs.append(normed(added[start:], 0))
    return normed(sum(outputs[-layers:], torch.zeros(())) / min(layers, DEPTH), 1).detach()


def decoded(weights: Weights, x: Tensor, rows: int, groups: int) -> Tensor:
    """Convolutions over a grid ``(L, D)``, one place, neighbour and group of channels at a time."""
    layers = len({name.split(".")[1] for name in weights if name.startswith("blocks.")})
    for layer in range(layers):
        conv = under(weights, f"blocks.{layer}")
        outputs, inputs = len(conv["weight"]) // groups, x.shape[1] // groups
        reach, places = conv["weight"].shape[-1] // 2, []
        for place in range(rows * rows):
            row, column = divmod(place, rows)
            value = conv["bias"]
            for y in range(max(0, row - reach), min(rows, row + reach + 1)):
                for z in range(max(0, column - reach), min(rows, column + reach + 1)):
                    near = conv["weight"][..., y - row + reach, z - column + reach]
                    parts = [
                        near[group * outputs :][:outputs]
                        @ x[y * rows + z, group * inputs :][:inputs]
                        for group in range(groups)
                    ]
                    value = value + torch.cat(parts)
            value = normed(value, 0)
            places.append(value * (1 + torch.erf(value / math.sqrt(2))) / 2)
        new = torch.stack(places)
        x = new + x if new.shape == x.shape else new
    return naive.linear(under(weights, "proj"), x)


def reference(weights: Weights, batch: Batch, rows: int, config: Any, start: int) -> Tensor:
    """The mean over masks of patches' losses, and of the class token's with its weight."""
    losses = []
    how = config.mask_ratio, config.block_size, config.masks, config.block_surplus
    noise = batch.rng.normal("decoder", rows * rows * SHAPE["embed_dim"]).double()
    for number, of_image in enumerate(visible_of(batch, rows, *how)):
        image = batch.views["image"][number].double()
        wanted = targets(under(weights, "teacher"), image, rows, config.target_layers, start)
        for visible in of_image:
            seen = naive.vit(under(weights, "encoder"), image, PATCH, HEADS, False, visible)
            grid = list(config.mask_noise * noise[number].view(rows * rows, -1))
            for place, token in zip(visible, seen[start:], strict=True):
                grid[place] = token
            decoder = under(weights, "decoder")
            predicted = decoded(decoder, torch.stack(grid), rows, config.decoder_groups)
            root = math.sqrt(len(wanted[0]))
            hidden = [patch for patch in range(rows * rows) if patch not in visible]
            errors = [(predicted[p] - wanted[p]).square().sum() / root for p in hidden]
            loss = torch.stack(errors).mean()
            if start:
                error = (seen[0] - wanted.mean(0)).square().sum() / root
                loss = loss + config.cls_weight * error
            losses.append(loss)
    return torch.stack(losses).mean()


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ({}, {}),
        ({}, {"target_layers": 10, "decoder_embed_dim": 32, "masks": 1, "decoder_kernel": 5}),
        (GAP, {"cls_weight": 0.0, "block_size": 3}),
        ({}, {"mask_noise": 0.5, "block_surplus": 0.6, "masks": 2}),
    ],
    ids=["class-token", "all-layers", "no-class-token", "more-blocks"],
)
def test_loss_and_every_gradient_are_those_of_the_paper(
    architecture: dict[str, Any], changes: dict[str, Any]
) -> None:
    method = build(4, architecture, **changes)
    naive.randomise(method)
    weights, batch = naive.weights_of(method), random_batch(2, 4 * PATCH)
    expected = reference(weights, batch, 4, method.config, 0 if architecture else 1)
    expected.backward()
    loss = total(method.loss(batch, step_at(0)))
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    errors = naive.gradient_errors(method, weights)
    # A key's bias has no gradient but rounding.
    assert max(error for name, error in errors.items() if "qkv.bias" not in name) < 1e-5
    assert len(errors) > 40 and not any(name.startswith("teacher") for name in errors)


def test_training_keeps_the_official_order_of_operations(
    tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loss in each step; a clipped update; and then the average, whose momentum has risen."""
    batch_size, steps, base_lr, clip = 4, 4, 0.5, 1.5
    method = build(
        base_lr=base_lr, warmup=0.0, momentum=0.8, final_momentum=0.9,
        momentum_warmup=0.5, clip_grad=clip, cls_weight=0.5,
    )  # fmt: skip
    naive.randomise(method)
    method.teacher.load_state_dict(method.encoder.state_dict())
    weights = naive.weights_of(method)
    batches = [random_batch(batch_size, 16, step) for step in range(steps)]
    monkeypatch.setattr(setup, "batches", lambda *a: (batches[each.step] for each in a[-1]))
    monkeypatch.setattr(optimizers, "adamw", lambda groups, beta2: torch.optim.SGD(groups, lr=0.0))
    count = batch_size * steps
    data = dataclasses.replace(
        tiny, train=Split(tiny.train.images_NCHW[:count], tiny.train.labels_N[:count])
    )
    shape = {**SHAPE, "depth": DEPTH}
    spec = EncoderSpec("vit_micro", 16, PATCH, 3, (0.5,) * 3, (0.25,) * 3, shape)
    plan = dataclasses.replace(helpers.plan(DATA2VEC, spec, data), epochs=1, batch_size=batch_size)
    pretrain.pretrain(method, data, plan, tmp_path, CPU)
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]

    assert len(records) == steps
    clipped = 0
    for step, record in enumerate(records):
        loss = reference(weights, batches[step], 4, method.config, 1)
        loss.backward()
        assert record["loss"] == pytest.approx(loss.item(), rel=1e-5), step
        rate = base_lr * batch_size / 256 * (1 + math.cos(math.pi * step / steps)) / 2
        momentum = [0.85, 0.9, 0.9, 0.9][step]
        with torch.no_grad():
            trained = [(each, each.grad) for each in weights.values() if each.grad is not None]
            norm = torch.stack([gradient.norm() for _, gradient in trained]).norm().item()
            clipped += norm > clip
            for weight, gradient in trained:
                decayed = 0.05 * weight if weight.ndim > 1 else 0
                weight.sub_(rate * (gradient * min(1, clip / (norm + 1e-6)) + decayed))
                weight.grad = None
            for name, weight in under(weights, "teacher").items():
                weight.mul_(momentum).add_((1 - momentum) * weights[f"encoder.{name}"])
    assert clipped
    for name, parameter in method.named_parameters():
        assert naive.relative_error(parameter, weights[name]) < 1e-5, name
    encoder, _ = stored.load(tmp_path)
    assert torch.equal(encoder.norm.weight, method.encoder.norm.weight)
    assert not torch.equal(encoder.norm.weight, method.teacher.norm.weight)


@pytest.mark.parametrize(
    ("rows", "ratio", "side", "kept"),
    [(14, 0.8, 3, 39), (14, 0.75, 3, 49), (7, 0.8, 3, 9), (4, 0.6, 2, 6), (4, 0.8, 3, 3)],
)
def test_masks_are_those_of_one_image_at_a_time(
    rows: int, ratio: float, side: int, kept: int
) -> None:
    method, batch = build(rows, mask_ratio=ratio, block_size=side), random_batch(50, PATCH)
    visible, hidden = method.mask(batch)
    assert visible.shape == (150, kept)
    everything = torch.cat([visible, hidden], dim=1).sort(dim=1).values
    assert torch.equal(everything, torch.arange(rows * rows).expand(150, -1))
    expected = [set(each) for image in visible_of(batch, rows, ratio, side, 3) for each in image]
    assert [set(each) for each in visible.tolist()] == expected


def test_masks_have_as_many_blocks_as_the_official_ones_and_reach_every_patch() -> None:
    """5 squares of 3 x 3 in 14 x 14 patches, for 39 that are visible."""
    method = build(14, mask_ratio=0.8, block_size=3)
    assert (method.blocks, method.kept) == (5, 39)
    draws = SampleRng(0, 0, torch.arange(2000))
    scores = masking.visible_block_scores(draws.uniform, 14, 14, 5, 3)
    assert 30 < (scores < 0).sum(dim=1).float().mean() < 45
    visible, _ = masking.split(scores, 39)
    assert torch.bincount(visible.flatten(), minlength=196).min() > 0


def test_what_an_image_gives_does_not_depend_on_its_batch() -> None:
    """Neither its masks nor its loss, and each of its masks is another one."""
    method, batch = build(8), random_batch(6, 8 * PATCH, step=3)
    visible, _ = method.mask(batch)
    parts = list(batch.split(4))
    assert torch.equal(visible, torch.cat([method.mask(part)[0] for part in parts]))
    assert len({tuple(sorted(each)) for each in visible.tolist()}) == 18
    whole = total(method.loss(batch, step_at(3)))
    means = [len(part) * total(method.loss(part, step_at(3))) for part in parts]
    torch.testing.assert_close(whole, torch.stack(means).sum() / 6)


def test_mixed_precision_rounds_the_networks_and_not_the_losses() -> None:
    method, batch = build(), random_batch(3, 16)
    code, outputs = DATA2VEC.load(), list[Tensor]()
    for part in (method.decoder, method.encoder.norm):
        part.register_forward_hook(lambda *call: outputs.append(call[-1]))
    with torch.autocast("cpu", torch.bfloat16):
        losses = method.loss(batch, step_at(0))
        added = encoders.feed_forward_outputs(method.teacher, batch.views["image"])
    wanted = code.contextualised(*(each[:, 1:].float() for each in added[-2:]))
    wanted = wanted.repeat_interleave(3, dim=0)
    tokens, predicted = outputs
    assert predicted.dtype == torch.bfloat16
    _, hidden = method.mask(batch)
    parts = encoders.take(predicted.float(), hidden), encoders.take(wanted, hidden)
    assert losses["patches"].item() == pytest.approx(code.distance(*parts).item(), rel=1e-6)
    cls = 2.56 * code.distance(tokens[:, 0].float(), wanted.mean(dim=1))
    assert losses["cls"].item() == pytest.approx(cls.item(), rel=1e-6)


def test_what_is_watched_does_not_depend_on_the_order_of_parts() -> None:
    method, batch = build(), random_batch(7, 16)
    for order in (slice(None), slice(None, None, -1)):
        for part in list(batch.split(3))[order]:
            method.loss(part, step_at(0))
        targets_BLD = method.targets(batch.views["image"][:3])
        torch.testing.assert_close(method.watched_BD, targets_BLD[:, 10])


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--decoder-groups", 5), "would work"),
        (("--decoder-kernel", 4), "odd"),
        (("--momentum", 0.9999, "--final-momentum", 0.999), "final momentum"),
        (("--mask-ratio", 0.99), "would work"),
        (("--masks", 0), "masks"),
        (("--patch-size", 16), "smaller patch size"),
        (("--backbone", "resnet18"), "Vision Transformer"),
        (("--backbone", "vit_base_patch16_gap_224"), "cls-weight 0 would work"),
        (("--backbone", "vit_base_patch16_rpn_224"), "plain blocks"),
    ],
)
def test_bad_input_gets_one_line(
    flags: tuple[object, ...], named: str, ssl_bench: Call, image_folder: Path, tmp_path: Path
) -> None:
    where = ("--data", image_folder, "--batch-size", 8, "--runs-dir", tmp_path, "--evals", "none")
    code, _, err = ssl_bench("run", "--method", "data2vec", *where, *flags)
    assert code == 2 and named in err and err.strip().count("\n") == 0
