"""MAE against a naive reference, and the parts it is made of."""

from __future__ import annotations

import dataclasses
from typing import Any

import helpers
import naive
import pytest
import torch
from helpers import small_mae
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ssl_bench.api.method import Batch
from ssl_bench.data import Dataset
from ssl_bench.errors import UserError
from ssl_bench.models import encoders, masking
from ssl_bench.models.backbones import EncoderSpec
from ssl_bench.transforms.augmentations import augment
from ssl_bench.utils.rng import SampleRng


def batch_of(data: Dataset, spec: EncoderSpec, count: int = 4) -> Batch:
    index_B = torch.arange(count)
    images = data.train.images_NCHW[index_B].float() / 255
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (spec.mean, spec.std))
    view = (images - mean) / std
    return Batch({"image": view}, SampleRng(0, 3, index_B))


def noise_for(sampling: str, grid: tuple[int, int], count: int, seed: int = 0) -> Any:
    """A source of fixed noise, not the project's own, and each image's patches, kept ones first."""
    rows, columns = grid
    generator = torch.Generator().manual_seed(seed)
    drawn = {
        "mask": torch.rand(count, rows * columns, generator=generator),
        "block": torch.rand(count, 32 * 4, generator=generator),
    }

    def order(image: int, hidden: int) -> list[int]:
        noise = drawn["mask"][image].tolist()
        if sampling == "random":
            return naive.random_order(noise, rows, columns)
        if sampling == "grid":
            return naive.grid_order(noise, rows, columns)
        blocks = drawn["block"][image].view(32, 4).tolist()
        return naive.block_order(noise, blocks, rows, columns, hidden)

    return lambda purpose, numbers: drawn[purpose][:, :numbers], order


@pytest.mark.parametrize("norm_pix_loss", [True, False])
@pytest.mark.parametrize(
    "sampling,mask_ratio", [("random", 0.75), ("random", 0.5), ("grid", 0.75), ("block", 0.5)]
)
def test_outputs_loss_and_gradients_equal_the_naive_reference(
    spec: EncoderSpec, sampling: str, mask_ratio: float, norm_pix_loss: bool
) -> None:
    method = small_mae(spec, sampling=sampling, mask_ratio=mask_ratio, norm_pix_loss=norm_pix_loss)
    naive.randomise(method)
    images = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    noise, order = noise_for(sampling, method.grid, len(images))
    weights, inputs = naive.weights_of(method), images.double().requires_grad_()
    orders = [order(image, 16 - method.kept) for image in range(len(images))]
    expected = naive.mae(weights, inputs, orders, method.kept, 4, (4, 4), norm_pix_loss)
    expected.loss.backward()

    keep_BK, hidden_BM = method.mask(noise)
    assert [row.sort().values.tolist() for row in hidden_BM] == expected.hidden
    patches = encoders.patchify(images, 4)
    with torch.no_grad():
        encoded = encoders.encode_visible(method.encoder, patches, keep_BK)
        predicted = method.predict(patches, keep_BK, hidden_BM)
    for image, kept in enumerate(keep_BK.tolist()):
        reference = expected.encoded[image][[0, *(1 + orders[image].index(p) for p in kept)]]
        assert naive.relative_error(encoded[image], reference) < 1e-5
        reference = expected.predicted[image][hidden_BM[image]]
        assert naive.relative_error(predicted[image], reference) < 1e-5
    images.requires_grad_()
    loss = method.reconstruction_loss(images, noise)
    loss.backward()
    assert naive.relative_error(loss, expected.loss) < 1e-5
    assert naive.relative_error(images.grad, inputs.grad) < 1e-5
    errors = naive.gradient_errors(method, weights)
    assert {"mask_token", "encoder.cls_token", "encoder.patch_embed.proj.bias"} <= set(errors)
    assert max(errors.values()) < 1e-5, max(errors, key=lambda name: errors[name])


def test_loss_of_a_batch_is_masked_by_its_draws(spec: EncoderSpec, tiny: Dataset) -> None:
    method, batch = small_mae(spec), batch_of(tiny, spec)
    noise = batch.rng.uniform("mask", 16)
    expected = method.reconstruction_loss(batch.views["image"], noise)
    assert torch.equal(method.loss(batch, helpers.FIRST_STEP), expected)


@pytest.mark.parametrize("sampling", ["random", "grid", "block"])
@pytest.mark.parametrize("grid,ratio", [((14, 14), 0.75), ((14, 14), 0.5), ((7, 9), 0.6)])
def test_masks_equal_the_naive_reference(
    sampling: str, grid: tuple[int, int], ratio: float
) -> None:
    rows, columns = grid
    noise, order = noise_for(sampling, grid, 30, seed=rows)
    kept = masking.count_kept(rows * columns, ratio)
    hidden_count = rows * columns - kept
    scores = {
        "random": lambda: masking.random_scores(noise, rows, columns),
        "grid": lambda: masking.grid_scores(noise, rows, columns),
        "block": lambda: masking.block_scores(noise, rows, columns, hidden_count),
    }[sampling]()
    keep_BK, hidden_BM = masking.split(scores, kept)
    for image in range(30):
        expected = order(image, hidden_count)
        assert sorted(keep_BK[image].tolist()) == sorted(expected[:kept])
        assert sorted(hidden_BM[image].tolist()) == sorted(expected[kept:])


def test_linear_layers_are_xavier_uniform_and_tokens_normal(spec: EncoderSpec) -> None:
    """q, k and v as one matrix, and the patch embedding as a matrix too, as in MAE."""
    method = small_mae(spec, decoder_embed_dim=128, decoder_depth=2)
    linears = {name: m for name, m in method.named_modules() if isinstance(m, torch.nn.Linear)}
    assert {"decoder_embed", "decoder_pred", "encoder.blocks.0.attn.qkv"} <= set(linears)
    for name, layer in linears.items():
        naive.assert_uniform(layer.weight, (6 / sum(layer.weight.shape)) ** 0.5, name)
        assert not layer.bias.any(), name
    kernel = method.encoder.patch_embed.proj.weight
    naive.assert_uniform(kernel, (6 / (3 * 4 * 4 + 128)) ** 0.5, "patch embedding")
    for name, module in method.named_modules():
        if isinstance(module, torch.nn.LayerNorm):
            assert module.eps == 1e-6, name
            assert (module.weight == 1).all() and not module.bias.any(), name
    for token in (method.encoder.cls_token, method.mask_token):
        naive.assert_normal(token, 0.02)


def test_position_tables_are_fixed_and_put_the_column_first(spec: EncoderSpec) -> None:
    method = small_mae(spec)
    for table, width in ((method.encoder.pos_embed, 128), (method.decoder_pos_embed, 32)):
        assert not table.requires_grad
        assert not table[0, 0].any()
        for patch in range(16):
            expected = naive.position(width, patch % 4, patch // 4).float()
            torch.testing.assert_close(table[0, 1 + patch], expected, rtol=0, atol=1e-6)


def test_visible_pixels_are_no_target(spec: EncoderSpec, tiny: Dataset) -> None:
    """The loss has no gradient through a target: it sees visible pixels as input alone."""
    method = small_mae(spec, norm_pix_loss=False)
    batch = batch_of(tiny, spec, count=1)
    keep_BK, hidden_BM = method.mask(batch.rng.uniform)
    with torch.no_grad():
        method.decoder_embed.weight.zero_()

    def loss_of(images_BCHW: Tensor) -> Tensor:
        changed = dataclasses.replace(batch, views={"image": images_BCHW})
        return method.loss(changed, helpers.FIRST_STEP)

    before = loss_of(batch.views["image"])
    patches = encoders.patchify(batch.views["image"], 4)
    patches = patches.scatter(1, keep_BK[..., None].expand(-1, -1, 48), 7.0)
    changed = encoders.unpatchify(patches, 4, 4)
    assert torch.equal(before, loss_of(changed))
    patches = patches.scatter(1, hidden_BM[..., None].expand(-1, -1, 48), 7.0)
    changed = encoders.unpatchify(patches, 4, 4)
    assert not torch.equal(before, loss_of(changed))


def test_picture_keeps_visible_patches_and_fills_hidden_ones(
    spec: EncoderSpec, tiny: Dataset
) -> None:
    batch = batch_of(tiny, spec)
    with torch.no_grad():
        rows = small_mae(spec, norm_pix_loss=False).pictures(batch)
    masked = torch.isnan(rows["masked"])
    assert masked.float().mean() == 12 / 16
    assert torch.equal(rows["original"], batch.views["image"])
    assert torch.equal(rows["reconstructed"][~masked], batch.views["image"][~masked])
    assert torch.isfinite(rows["reconstructed"]).all()


def noise_of(count: int) -> Any:
    draws = SampleRng(0, 0, torch.arange(count))
    return draws.uniform


@given(st.integers(2, 400), st.floats(0.01, 0.99))
def test_count_kept_is_the_official_expression(patches: int, ratio: float) -> None:
    expected = int(patches * (1 - ratio))
    if expected > 0:
        assert masking.count_kept(patches, ratio) == expected
    else:
        with pytest.raises(UserError, match="--mask-ratio"):
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


def test_a_patch_is_normalised_by_its_unbiased_variance_plus_a_millionth(spec: EncoderSpec) -> None:
    """Small variances tell the epsilon."""
    patches = 1e-3 * torch.randn(2, 3, 48, generator=torch.Generator().manual_seed(0)) + 0.5
    wide = patches.double()
    expected = (wide - wide.mean(-1, keepdim=True)) / (wide.var(-1, keepdim=True) + 1e-6).sqrt()
    ours = small_mae(spec, norm_pix_loss=True).target(patches)
    torch.testing.assert_close(ours.double(), expected, rtol=1e-2, atol=1e-3)


def test_a_picture_gives_each_patch_its_mean_and_deviation_back(
    spec: EncoderSpec, tiny: Dataset
) -> None:
    """Of a decoder that predicts one deviation above the mean everywhere."""
    method, batch = small_mae(spec, norm_pix_loss=True), batch_of(tiny, spec)
    with torch.no_grad():
        method.decoder_pred.weight.zero_()
        method.decoder_pred.bias.fill_(1.0)
        rows = method.pictures(batch)
    [reconstructed] = [rows[name] for name in rows if name.startswith("reconstructed")]
    is_hidden = rows["masked"].isnan()
    patches = encoders.patchify(batch.views["image"], 4)
    expected = patches.mean(-1, keepdim=True) + patches.std(-1, keepdim=True)
    wanted = encoders.unpatchify(expected.expand_as(patches), 4, 4)
    torch.testing.assert_close(reconstructed[is_hidden], wanted[is_hidden], rtol=1e-4, atol=1e-4)


def test_half_of_the_views_are_mirrored(spec: EncoderSpec, tiny: Dataset) -> None:
    images = tiny.train.images_NCHW
    [recipe] = small_mae(spec, crop_scale=1.0).transforms().values()
    views = augment(images, recipe, SampleRng(0, 0, torch.arange(len(images))))
    mirrored = (views == (images / 255).flip(-1)).flatten(1).all(1)
    straight = (views == images / 255).flatten(1).all(1)
    assert (mirrored ^ straight).all()
    assert 0.35 < mirrored.float().mean() < 0.65
