"""iBOT against a naive float64 reference, its masks, and its order of operations."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import distillation
import helpers
import naive
import pytest
import torch
from distillation import SPEC, TEMPERATURES, cross_entropy, logits, views_of
from helpers import SHAPE, batch_of, waves
from naive import Weights, under
from torch import Tensor

from ssl_bench.api import registry
from ssl_bench.api.method import total
from ssl_bench.api.step import Step
from ssl_bench.data import Dataset
from ssl_bench.errors import UserError
from ssl_bench.models import encoders, masking
from ssl_bench.models.prototypes import between_views, of_hidden_patches, sharpened
from ssl_bench.training import setup
from ssl_bench.utils.rng import SampleRng

IBOT = registry.find("method", "ibot")
PATCHES = 16
Call = Callable[..., tuple[int, str, str]]


def build(**changes: Any) -> Any:
    temps = dict(zip(("warmup_patch_temp", "patch_temp"), reversed(TEMPERATURES), strict=True))
    return distillation.build(IBOT, **(temps | changes))


def tokens(weights: Weights, image: Tensor, hidden: Collection[int], embed: Tensor) -> Tensor:
    """Class token and patches of an image after the final norm, some embeddings replaced."""
    kernel, bias = weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"]
    rows = [weights["cls_token"][0, 0]]
    for index, (row, column, pixels) in enumerate(naive.cut(image, 4)):
        embedded = torch.stack([(one * pixels).sum() for one in kernel]) + bias
        embedded = embed[0] if index in hidden else embedded
        rows.append(embedded + naive.position(len(embedded), column, row))
    blocks = under(weights, "blocks")
    encoded = naive.transformer(blocks, torch.stack(rows), SHAPE["num_heads"])
    return naive.layer_norm(under(weights, "norm"), encoded)


def hidden_by(numbers: Iterator[list[float]], rows: int, columns: int, most: float) -> set[int]:
    """Block-wise masking of one image, ``loader.py``: four numbers for each attempt."""
    hidden: set[int] = set()
    while len(hidden) < most:
        missing = most - len(hidden)
        for _ in range(10):
            area, aspect, top, left = next(numbers)
            smallest = (min(rows, columns) // 3) ** 2
            wanted = smallest + area * (missing - smallest)
            ratio = math.exp(math.log(0.3) + aspect * (math.log(1 / 0.3) - math.log(0.3)))
            height, width = round(math.sqrt(wanted * ratio)), round(math.sqrt(wanted / ratio))
            if height >= rows or width >= columns:
                continue
            y, x = math.floor(top * (rows - height + 1)), math.floor(left * (columns - width + 1))
            block = {r * columns + c for r in range(y, y + height) for c in range(x, x + width)}
            if 0 < len(block - hidden) <= missing:
                hidden |= block
                break
        else:
            break
    return hidden


def masks_of(count: int, step: int, probability: float = 0.5) -> list[list[set[int]]]:
    """The hidden patches of each image in each large crop."""
    masks = []
    for view in ("global_0", "global_1"):
        draws = SampleRng(0, step, torch.arange(count)).within(view)
        ratios = draws.uniform("mask ratio", 2).double().tolist()
        attempts = draws.uniform("block", 256).double().view(count, 64, 4).tolist()
        masks.append(
            [
                hidden_by(iter(tries), 4, 4, PATCHES * (0.1 + 0.4 * spread))
                if chance < probability
                else set()
                for (chance, spread), tries in zip(ratios, attempts, strict=True)
            ]
        )
    return masks


def both_losses(
    weights: Weights, views: list[Tensor], centers: Mapping[str, Tensor], step: int
) -> tuple[Tensor, Tensor, Weights]:
    """Algorithm 1: the losses of class tokens and patches, and the centres' next values."""
    student, teacher = under(weights, "student"), under(weights, "encoder")
    heads = under(weights, "student_head"), under(weights, "teacher_head")
    embed, temp = weights["masked_embed"], TEMPERATURES[step // 2]
    patch_temp = TEMPERATURES[1 - step // 2]
    masks = masks_of(len(views[0]), step)
    ours, theirs = [], []
    for view, hidden in zip(views, masks, strict=True):
        pairs = list(zip(view, hidden, strict=True))
        seen = [tokens(student, image, mask, embed) for image, mask in pairs]
        ours.append(logits(heads[0], torch.stack(seen)))
        seen = [tokens(teacher, image, (), embed) for image, _ in pairs]
        theirs.append(logits(heads[1], torch.stack(seen)).detach())
    cls = [
        cross_entropy(theirs[t][:, 0], ours[1 - t][:, 0], centers["center_K"], temp).mean()
        for t in (0, 1)
    ]
    patches = []
    for targets, guesses, hidden in zip(theirs, ours, masks, strict=True):
        for target, guess, mask in zip(targets, guesses, hidden, strict=True):
            center = centers["patch_center_K"]
            each = cross_entropy(target[1:], guess[1:], center, patch_temp)
            chosen = [each[patch] for patch in sorted(mask)]
            patches.append(sum(chosen, torch.zeros(())) / max(len(chosen), 1))
    every = torch.cat(theirs)
    means = {"center_K": every[:, 0].mean(0), "patch_center_K": every[:, 1:].mean((0, 1))}
    return torch.stack(cls).mean(), torch.stack(patches).mean(), means


def reference(
    weights: Weights, views: list[Tensor], centers: Mapping[str, Tensor], step: int
) -> tuple[Tensor, Weights]:
    cls, patches, means = both_losses(weights, views, centers, step)
    return cls + patches, means


def test_losses_and_every_gradient_are_the_papers() -> None:
    method = build(cls_weight=0.5, patch_weight=2.0)
    generator = torch.Generator().manual_seed(1)
    for center in (method.center_K, method.patch_center_K):
        center.copy_(0.1 * torch.randn(12, generator=generator))
    centers = {name: method.get_buffer(name).double() for name in ("center_K", "patch_center_K")}
    weights, views = naive.weights_of(method), views_of(8)
    masks = masks_of(8, 0)
    assert 2 < sum(not mask for view in masks for mask in view) < 14
    found = method.loss(batch_of(method, views), Step(0, 4, 2, 8))
    doubles = [view.double() for view in views]
    cls, patches, means = both_losses(weights, doubles, centers, 0)
    assert found["cls"].item() == pytest.approx(0.5 * cls.item(), rel=1e-5)
    assert found["patches"].item() == pytest.approx(2 * patches.item(), rel=1e-5)
    for ours, theirs in zip(method.means_2K, means.values(), strict=True):
        assert naive.relative_error(ours, theirs) < 1e-5
    total(found).backward()
    (0.5 * cls + 2 * patches).backward()
    assert max(naive.gradient_errors(method, weights).values()) < 1e-5


@pytest.mark.parametrize("norm_last_layer", [True, False])
def test_training_keeps_the_official_order_of_operations(
    norm_last_layer: bool, tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loss and gradients in each step; clipping, freezing, averages, centres, temperatures."""
    temps = dict(zip(("warmup_patch_temp", "patch_temp"), reversed(TEMPERATURES), strict=True))
    distillation.assert_trained_alike(
        IBOT, reference, tiny, tmp_path, monkeypatch, norm_last_layer=norm_last_layer, **temps
    )


def test_losses_are_those_of_the_official_code() -> None:
    """``iBOTLoss`` of two large crops and two small ones, with temperatures of 0.04."""
    large, small, patches = waves(8, 6, 0), waves(8, 6, 0.9), waves(72, 6, 0.5)
    teacher, teacher_patches = waves(8, 6, 0.3).detach(), waves(72, 6, 0.6).detach()
    remainder = torch.arange(36).view(4, 9) % 3
    hidden = torch.cat([remainder == 0, remainder == 1])
    hidden[0] = False
    center = torch.zeros(6)
    cls = between_views(
        torch.cat([large, small]).view(4, 4, 6), sharpened(teacher.view(2, 4, 6), center, 0.04)
    )
    assigned = sharpened(teacher_patches, center, 0.04)
    of_patches = of_hidden_patches(patches, assigned, hidden, torch.arange(72))
    assert cls.item() == pytest.approx(4.46482426, rel=1e-8)
    assert of_patches.item() == pytest.approx(0.05365330244, rel=1e-8)
    (cls + of_patches).backward()
    norms = [x.grad.norm().item() for x in (large, patches, small) if x.grad is not None]
    assert norms == pytest.approx([1.291077287, 0.2523078008, 1.695417087])


@pytest.mark.parametrize("grid", [(2, 2), (4, 4), (7, 8), (14, 14)])
def test_blocks_are_those_of_the_official_loader(grid: tuple[int, int]) -> None:
    count, (rows, columns) = 60, grid
    draws = SampleRng(0, 3, torch.arange(count))
    share = 0.6 * draws.uniform("share", 1)[:, 0]
    found = masking.blocks(draws.uniform, rows, columns, share * rows * columns)
    attempts = draws.uniform("block", 256).double().view(count, 64, 4).tolist()
    for image, tries in enumerate(attempts):
        most = (share[image] * rows * columns).item()
        expected = hidden_by(iter(tries), rows, columns, most)
        assert set(found[image].nonzero()[:, 0].tolist()) == expected
    hidden = found.sum(1)
    assert (hidden <= share * rows * columns).all() and (hidden > 0).sum() > count / 3


@pytest.mark.parametrize("sampling", ["block", "random"])
def test_half_of_the_crops_hide_what_the_ratio_says(sampling: str) -> None:
    method = build(sampling=sampling)
    hidden = method.hide(batch_of(method, views_of(400)))
    assert hidden.shape == (800, PATCHES)
    count = hidden.sum(1).double()
    if sampling == "random":  # whole numbers from 10 to 50 % of 16 patches
        assert ((count == 0) | ((count >= 1) & (count <= 7))).all()
        assert count[count > 0].mean() == pytest.approx(0.3 * PATCHES - 0.5, abs=0.3)
    assert (count == 0).double().mean() == pytest.approx(0.5, abs=0.08)
    assert not torch.equal(hidden[:400], hidden[400:])
    every = build(sampling=sampling, mask_probability=1.0, mask_spread=0.0, mask_ratio=0.5)
    hidden = every.hide(batch_of(every, views_of(50)))
    assert hidden.any(1).all() and hidden.sum(1).max() <= 8 == every.most


def test_what_shapes_depend_on_changes_neither_loss_nor_gradients() -> None:
    """Where they are fixed, patches are compared that are not hidden, and count for nothing."""
    found = []
    for is_fixed in (False, True):
        method = build()
        naive.randomise(method)
        method.fixed_shapes = is_fixed
        batch = batch_of(method, views_of(6))
        compared = method.compared(method.hide(batch))
        losses = method.loss(batch, helpers.FIRST_STEP)
        sum(losses.values()).backward()
        gradients = [p.grad for p in method.parameters() if p.grad is not None]
        found.append((len(compared), losses, gradients, method.hide(batch).sum()))
    (own, losses, gradients, hidden), (fixed, same_losses, same_gradients, _) = found
    assert own == hidden > 0 and fixed == 12 * method.most > own
    torch.testing.assert_close(losses, same_losses)
    torch.testing.assert_close(gradients, same_gradients)


def test_a_batch_with_nothing_hidden_trains() -> None:
    method = build()
    method.hide = lambda batch: torch.zeros(8, PATCHES, dtype=torch.bool)
    losses = method.loss(batch_of(method, views_of(4)), helpers.FIRST_STEP)
    assert losses["patches"] == 0
    sum(losses.values()).backward()
    gradients = [p.grad for p in method.student_head.parameters() if p.grad is not None]
    assert gradients and all(gradient.isfinite().all() for gradient in gradients)


def test_masks_depend_on_the_sample_alone() -> None:
    method = build()
    views = views_of(6)
    whole = method.hide(batch_of(method, views)).view(2, 6, PATCHES)
    parts = batch_of(method, views).split(3)
    alone = [method.hide(part).view(2, 2, PATCHES) for part in parts]
    assert torch.equal(torch.cat(alone, dim=1), whole)


def test_small_crops_reach_the_student_and_not_the_teacher() -> None:
    method = build(local_crops=2)
    sizes = [view.size for view in method.transforms().values()]
    assert sizes == [16, 16, 8, 8]
    views = [torch.randn(4, 3, size, size) for size in sizes]
    before = method.loss(batch_of(method, views), helpers.FIRST_STEP)
    means = method.means_2K
    views[3] = views[3] + 1
    after = method.loss(batch_of(method, views), helpers.FIRST_STEP)
    assert before["cls"] != after["cls"] and before["patches"] == after["patches"]
    assert torch.equal(means, method.means_2K)


def test_stochastic_depth_is_the_students_alone() -> None:
    method = build(drop_path=0.5)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in method.student.blocks]
    assert rates == [0.0, 0.5]
    assert not any("DropPath" in type(m).__name__ for m in method.encoder.modules())


def test_each_centre_has_a_momentum_of_its_own() -> None:
    method = build(center_momentum=0.5, patch_center_momentum=0.75)
    method.loss(batch_of(method, views_of(4)), helpers.FIRST_STEP)
    mean, patch_mean = method.means_2K
    method.after_optimizer_step(helpers.FIRST_STEP)
    torch.testing.assert_close(method.center_K, 0.5 * mean)
    torch.testing.assert_close(method.patch_center_K, 0.25 * patch_mean)


def test_a_collapse_is_looked_for_in_the_students_features() -> None:
    """Of the first large crop, of which some patches are hidden."""
    method, views = build(mask_probability=1.0), views_of(4)
    batch = batch_of(method, views)
    method.loss(batch, helpers.FIRST_STEP)
    hidden = method.hide(batch)[:4]
    encoded = encoders.encode_tokens(method.student, views[0], hidden, method.masked_embed)
    torch.testing.assert_close(method.watched_BD, encoded[:, 0])


def test_mixed_precision_rounds_the_networks_and_not_the_losses() -> None:
    method, views = build(mask_probability=1.0), views_of(4)
    for center in (method.center_K, method.patch_center_K):
        center.normal_(generator=torch.Generator().manual_seed(0))
    batch, outputs = batch_of(method, views), list[Tensor]()
    for part in (method.teacher_head.last_layer, method.student_head):
        part.register_forward_hook(lambda *call: outputs.append(call[-1]))
    with torch.autocast("cpu", torch.bfloat16):
        losses = method.loss(batch, helpers.FIRST_STEP)
        tokens = encoders.encode_tokens(method.encoder, torch.cat(views))
        patches = method.teacher_head.bottleneck(tokens).float()[:, 1:]
    teacher, teacher_patches, student_patches, student = outputs
    assert {each.dtype for each in outputs} == {torch.bfloat16}
    teacher = teacher.float().view(2, 4, -1)
    torch.testing.assert_close(method.means_2K[0], teacher.mean((0, 1)))
    mean = method.teacher_head.last_layer(patches.mean((0, 1)))
    torch.testing.assert_close(method.means_2K[1], mean)
    assigned = sharpened(teacher, method.center_K, TEMPERATURES[0])
    expected = between_views(student.float(), assigned)
    assert losses["cls"].item() == pytest.approx(expected.item(), rel=1e-6)
    assigned = sharpened(teacher_patches.float(), method.patch_center_K, TEMPERATURES[1])
    hidden = method.hide(batch)
    index = hidden.flatten().nonzero()[:, 0]
    expected = of_hidden_patches(student_patches.float(), assigned, hidden, index)
    assert losses["patches"].item() == pytest.approx(expected.item(), rel=1e-6)


def test_temperatures_rise_during_their_share_of_the_training() -> None:
    """Those of class tokens and of patches, by epoch."""
    method = build(temp_warmup=0.5)
    logits_of = method.teacher_head.last_layer
    views = torch.cat(views_of(4))
    index = torch.arange(20)
    with torch.no_grad():
        bottleneck = method.teacher_head.bottleneck(method.encoder.forward_features(views))
        cls = logits_of(bottleneck[:, 0]).unflatten(0, (2, -1))
        patches = logits_of(bottleneck[:, 1:].flatten(0, 1)[index])
        for epoch, done in ((0, 0.0), (1, 0.25), (4, 1.0), (9, 1.0)):
            found = method.assign(views, index, Step(4 * epoch + 3, 40, 4, 8))
            for assigned, logits, ends in (
                (found[0], cls, TEMPERATURES),
                (found[1], patches, TEMPERATURES[::-1]),
            ):
                temperature = ends[0] + done * (ends[1] - ends[0])
                expected = sharpened(logits, torch.zeros(12), temperature)
                torch.testing.assert_close(assigned, expected)


def test_registers_are_no_patches() -> None:
    architecture = {**SHAPE, "reg_tokens": 2}
    spec = distillation.dataclasses.replace(SPEC, architecture=architecture)
    config = IBOT.config(**(distillation.SMALL | {"mask_probability": 1.0}))
    method: Any = setup.build_method(IBOT.load_class(), config, spec, 3, seed=0)
    naive.randomise(method)
    batch = batch_of(method, views_of(4))
    method.hide = lambda batch: torch.zeros(8, PATCHES, dtype=torch.bool)
    assert method.loss(batch, helpers.FIRST_STEP)["patches"] == 0
    unmasked = method.means_2K.clone()
    method.encoder.reg_token.data.add_(1)
    method.loss(batch, helpers.FIRST_STEP)
    assert not torch.equal(unmasked, method.means_2K)  # patches attend to registers
    tokens_BTD = method.teacher_head(
        method.encoder.forward_features(torch.cat(list(batch.views.values())))[:, 3:]
    )
    torch.testing.assert_close(method.means_2K[1], tokens_BTD.mean((0, 1)))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--backbone", "resnet18"], "needs a plain Vision Transformer"),
        (["--patch-size", 28], "patches, which are 1 x 1"),
        (["--mask-ratio", 0.9], "mask spread 0.2"),
        (["--mask-ratio", 0.1], "mask spread 0.2"),
        (["--mask-probability", 0], "--mask-probability 0"),
        (["--batch-size", 1], "--batch-size"),
    ],
)
def test_mistakes_get_one_line(
    ssl_bench: Call, tmp_path: Path, words: list[Any], message: str
) -> None:
    code, _, err = ssl_bench("run", "--method", "ibot", *words, "--runs-dir", tmp_path / "runs")
    assert (code, err.count("\n")) == (2, 1), err
    assert message in err
    assert not (tmp_path / "runs").exists()


def test_a_vision_transformer_without_a_class_token_is_refused() -> None:
    architecture = {**SHAPE, "class_token": False, "global_pool": "avg"}
    spec = distillation.dataclasses.replace(SPEC, architecture=architecture)
    with pytest.raises(UserError, match="class token"):
        setup.build_method(IBOT.load_class(), IBOT.config(), spec, 3, seed=0)
