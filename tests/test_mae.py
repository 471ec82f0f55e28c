"""MAE against a naive reference written from the paper's definitions."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ssl_bench import encoders, masking, plugins, pretrain
from ssl_bench.contract import Batch
from ssl_bench.data import Dataset
from ssl_bench.draws import Draws
from ssl_bench.encoders import EncoderSpec
from ssl_bench.errors import UserError

MAE = plugins.find("method", "mae")
SMALL = {"decoder_width": 32, "decoder_depth": 2, "decoder_heads": 4}


def build(spec: EncoderSpec, **changes: Any) -> Any:
    config = MAE.config(**(SMALL | changes))
    return pretrain.build_method(MAE.load().Pretraining, config, spec, 3, seed=0)


def batch_of(data: Dataset, spec: EncoderSpec, count: int = 4) -> Batch:
    index_B = torch.arange(count)
    images = data.train.images_NCHW[index_B].float() / 255
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (spec.mean, spec.std))
    view = (images - mean) / std
    return Batch((view,), data.train.labels_N[index_B], Draws(0, 3, index_B))


def naive_block(block: Any, tokens: Tensor) -> Tensor:
    """A pre-norm transformer block for one image, one head at a time: ``(T, D)``."""

    def linear(layer: Any, x: Tensor) -> Tensor:
        return x @ layer.weight.T + layer.bias

    def norm(layer: Any, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        deviation = (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return centred / deviation * layer.weight + layer.bias

    heads, width = block.attn.num_heads, tokens.shape[1]
    size = width // heads
    qkv = linear(block.attn.qkv, norm(block.norm1, tokens))
    outputs = []
    for head in range(heads):
        q, k, v = (
            qkv[:, part * width + head * size : part * width + (head + 1) * size]
            for part in range(3)
        )
        outputs.append((q @ k.T / size**0.5).softmax(-1) @ v)
    tokens = tokens + linear(block.attn.proj, torch.cat(outputs, dim=1))
    hidden = F.gelu(linear(block.mlp.fc1, norm(block.norm2, tokens)))
    return tokens + linear(block.mlp.fc2, hidden)


def naive_layer_norm(layer: Any, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * layer.weight + (
        layer.bias
    )


def naive_loss(method: Any, images: Tensor, noise: Tensor, norm_pix_loss: bool) -> Tensor:
    """MAE image by image and patch by patch, decoder in the image's own order."""
    encoder, size = method.encoder, method.patch_size
    columns = method.grid[1]
    losses = []
    for image, scores in zip(images, noise, strict=True):
        count = len(scores)
        patches = []
        for patch in range(count):
            top, left = patch // columns * size, patch % columns * size
            patches.append(image[:, top : top + size, left : left + size])
        kept = sorted(range(count), key=lambda patch: scores[patch].item())[: method.kept]
        tokens = [encoder.cls_token[0, 0] + encoder.pos_embed[0, 0]]
        for patch in kept:
            kernel = encoder.patch_embed.proj
            embedded = (kernel.weight * patches[patch]).sum(dim=(1, 2, 3)) + kernel.bias
            tokens.append(embedded + encoder.pos_embed[0, 1 + patch])
        encoded = torch.stack(tokens)
        for block in encoder.blocks:
            encoded = naive_block(block, encoded)
        encoded = naive_layer_norm(encoder.norm, encoded)
        visible = encoded @ method.decoder_embed.weight.T + method.decoder_embed.bias
        full = [visible[0]]
        for patch in range(count):
            in_place = visible[1 + kept.index(patch)] if patch in kept else method.mask_token[0, 0]
            full.append(in_place)
        decoded = torch.stack(full) + method.decoder_pos_embed[0]
        for block in method.decoder_blocks:
            decoded = naive_block(block, decoded)
        decoded = naive_layer_norm(method.decoder_norm, decoded)
        predicted = decoded @ method.decoder_pred.weight.T + method.decoder_pred.bias
        for patch in set(range(count)) - set(kept):
            target = patches[patch].permute(1, 2, 0).reshape(-1)
            if norm_pix_loss:
                target = (target - target.mean()) / (target.var(unbiased=True) + 1e-6).sqrt()
            losses.append((predicted[1 + patch] - target).square().mean())
    return torch.stack(losses).mean()


@pytest.mark.parametrize("norm_pix_loss", [True, False])
@pytest.mark.parametrize("mask_ratio", [0.5, 0.75])
def test_loss_and_gradients_equal_the_naive_reference(
    spec: EncoderSpec, tiny: Dataset, norm_pix_loss: bool, mask_ratio: float
) -> None:
    method = build(spec, norm_pix_loss=norm_pix_loss, mask_ratio=mask_ratio)
    batch = batch_of(tiny, spec)
    loss = method.loss(batch)
    loss.backward()

    reference = copy.deepcopy(method).double()
    reference.zero_grad()
    noise = batch.draws.uniform("mask", 16)
    expected = naive_loss(reference, batch.views[0].double(), noise, norm_pix_loss)
    expected.backward()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)
    for (name, ours), theirs in zip(method.named_parameters(), reference.parameters(), strict=True):
        if ours.grad is None or theirs.grad is None:
            assert ours.grad is theirs.grad, name
            continue
        difference = (ours.grad.double() - theirs.grad).norm() / theirs.grad.norm()
        assert difference < 1e-5, name


def test_visible_pixels_are_no_target(spec: EncoderSpec, tiny: Dataset) -> None:
    """The loss has no gradient through a target: it sees visible pixels as input alone."""
    method = build(spec, norm_pix_loss=False)
    batch = batch_of(tiny, spec, count=1)
    keep_BK, hidden_BM = method.mask(batch.draws.uniform)
    with torch.no_grad():
        method.decoder_embed.weight.zero_()
    before = method.loss(batch)
    patches = encoders.patchify(batch.views[0], 4)
    patches = patches.scatter(1, keep_BK[..., None].expand(-1, -1, 48), 7.0)
    changed = encoders.unpatchify(patches, 4, 4)
    assert torch.equal(before, method.loss(dataclasses.replace(batch, views=(changed,))))
    patches = patches.scatter(1, hidden_BM[..., None].expand(-1, -1, 48), 7.0)
    changed = encoders.unpatchify(patches, 4, 4)
    assert not torch.equal(before, method.loss(dataclasses.replace(batch, views=(changed,))))


def test_picture_keeps_visible_patches_and_fills_hidden_ones(
    spec: EncoderSpec, tiny: Dataset
) -> None:
    batch = batch_of(tiny, spec)
    with torch.no_grad():
        rows = build(spec, norm_pix_loss=False).pictures(batch)
    masked = torch.isnan(rows["masked"])
    assert masked.float().mean() == 12 / 16
    assert torch.equal(rows["original"], batch.views[0])
    assert torch.equal(rows["reconstructed"][~masked], batch.views[0][~masked])
    assert torch.isfinite(rows["reconstructed"]).all()


def noise_of(count: int) -> Any:
    draws = Draws(0, 0, torch.arange(count))
    return draws.uniform


@given(st.integers(2, 400), st.floats(0.01, 0.99))
def test_count_kept_is_the_official_expression(patches: int, ratio: float) -> None:
    expected = int(patches * (1 - ratio))
    if expected > 0:
        assert masking.count_kept(patches, ratio) == expected
    else:
        with pytest.raises(UserError, match="mask ratio"):
            masking.count_kept(patches, ratio)


def test_count_kept_rounds_as_floats_do() -> None:
    assert masking.count_kept(100, 0.9) == 9


def test_random_masks_hide_each_patch_equally_often() -> None:
    _, hidden = masking.split(masking.random_scores(noise_of(20_000), 4, 4), 4)
    frequency = torch.bincount(hidden.flatten(), minlength=16) / 20_000
    assert hidden.shape == (20_000, 12)
    assert (frequency - 0.75).abs().max() < 0.015


@pytest.mark.parametrize("rows,columns", [(4, 4), (14, 14), (8, 6)])
def test_grid_masks_keep_one_patch_of_each_two_by_two(rows: int, columns: int) -> None:
    scores = masking.grid_scores(noise_of(8), rows, columns)
    keep, _ = masking.split(scores, rows * columns // 4)
    expected = {r * columns + c for r in range(0, rows, 2) for c in range(0, columns, 2)}
    assert all(set(row.tolist()) == expected for row in keep)


@given(st.integers(3, 16), st.integers(3, 16), st.floats(0.2, 0.8))
def test_block_masks_hide_exactly_as_many_as_asked(rows: int, columns: int, ratio: float) -> None:
    kept = masking.count_kept(rows * columns, ratio)
    hidden_count = rows * columns - kept
    scores = masking.block_scores(noise_of(3), rows, columns, hidden_count)
    keep, hidden = masking.split(scores, kept)
    assert hidden.shape == (3, hidden_count)
    together = torch.cat([keep, hidden], dim=1).sort(dim=1).values
    assert torch.equal(together, torch.arange(rows * columns).expand(3, -1))


def test_block_masks_are_lumpier_than_random_ones() -> None:
    def borders(scores: Tensor) -> float:
        """Mean number of neighbouring pairs of which one alone is hidden."""
        hidden = torch.ones(len(scores), 14 * 14)
        hidden.scatter_(1, masking.split(scores, 98)[0], 0.0)
        grid = hidden.view(-1, 14, 14)
        return (grid.diff(dim=1).abs().sum() + grid.diff(dim=2).abs().sum()).item() / len(scores)

    noise = noise_of(200)
    random = borders(masking.random_scores(noise, 14, 14))
    block = borders(masking.block_scores(noise, 14, 14, 98))
    assert block < 0.6 * random


def test_block_masks_come_from_rectangles() -> None:
    scores = masking.block_scores(noise_of(50), 14, 14, 98)
    masked_by_blocks = (scores >= 1).sum(dim=1)
    assert (masked_by_blocks <= 98).all()
    assert masked_by_blocks.float().mean() > 80
