"""What MAE's ablations vary: mask tokens in the encoder, PCA targets, augmentations, noise."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import helpers
import naive
import numpy as np
import pytest
import torch
from helpers import CPU, small_mae
from torch import Tensor

from ssl_bench.api import registry
from ssl_bench.api.method import Batch
from ssl_bench.api.step import Step
from ssl_bench.data import Dataset
from ssl_bench.errors import UserError
from ssl_bench.models import encoders, masking
from ssl_bench.models.backbones import EncoderSpec
from ssl_bench.runs.schema import Plan
from ssl_bench.training import pretrain, setup
from ssl_bench.transforms.augmentations import augment, evaluation_view
from ssl_bench.utils.rng import SampleRng


def batch_of(method: Any, data: Dataset, spec: EncoderSpec, count: int = 4) -> Batch:
    return setup.make_batch(method, data.train, spec, 0, 3, torch.arange(count))


def train(method: Any, data: Dataset, spec: EncoderSpec, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    plan = Plan("mae", "", {}, data.name, "", spec, 2, 24, 0, "fp32")
    pretrain.pretrain(method, data, plan, folder, CPU)
    return folder


def naive_loss_with_mask_tokens(
    weights: naive.Weights, images: Tensor, noise: Tensor, kept: int, heads: tuple[int, int]
) -> Tensor:
    """Image by image: hidden patches enter the encoder as one token, at their own position."""
    errors = []
    kernel = weights["encoder.patch_embed.proj.weight"]
    for image, scores in zip(images, noise, strict=True):
        hidden = sorted(range(len(scores)), key=lambda patch: scores[patch].item())[kept:]
        patches = naive.cut(image, 4)
        tokens = [weights["encoder.cls_token"][0, 0]]
        for index, (row, column, pixels) in enumerate(patches):
            token = torch.stack([(one * pixels).sum() for one in kernel])
            token = token + weights["encoder.patch_embed.proj.bias"]
            if index in hidden:
                token = weights["mask_token"][0, 0]
            tokens.append(token + naive.position(len(token), column, row))
        blocks = naive.under(weights, "encoder.blocks")
        encoded = naive.transformer(blocks, torch.stack(tokens), heads[0])
        encoded = naive.layer_norm(naive.under(weights, "encoder.norm"), encoded)
        narrow = naive.linear(naive.under(weights, "decoder_embed"), encoded)
        places = [torch.zeros(32, dtype=torch.float64)]
        places += [naive.position(32, column, row) for row, column, _ in patches]
        decoded = naive.transformer(
            naive.under(weights, "decoder_blocks"), narrow + torch.stack(places), heads[1]
        )
        decoded = naive.layer_norm(naive.under(weights, "decoder_norm"), decoded)
        predicted = naive.linear(naive.under(weights, "decoder_pred"), decoded)
        for patch in hidden:
            target = patches[patch][2].permute(1, 2, 0).reshape(-1)
            errors.append((predicted[1 + patch] - target).square().mean())
    return torch.stack(errors).mean()


def test_mask_tokens_in_the_encoder_equal_the_naive_reference(
    spec: EncoderSpec, tiny: Dataset
) -> None:
    method = small_mae(spec, encoder_mask_tokens=True, norm_pix_loss=False)
    naive.randomise(method)
    images = batch_of(method, tiny, spec).views["image"]
    noise = torch.rand(len(images), 16, generator=torch.Generator().manual_seed(0))
    loss = method.reconstruction_loss(images, noise)
    loss.backward()

    weights = naive.weights_of(method)
    heads = (method.encoder.blocks[0].attn.num_heads, 4)
    expected = naive_loss_with_mask_tokens(weights, images.double(), noise, method.kept, heads)
    expected.backward()
    assert naive.relative_error(loss, expected) < 1e-5
    errors = naive.gradient_errors(method, weights)
    assert max(errors.values()) < 1e-5, errors


@pytest.mark.parametrize(
    "target,norm_pix_loss,mask_tokens",
    list(itertools.product(["pixels", "pca"], [True, False], [True, False])),
)
def test_gradients_reach_every_trainable_parameter(
    spec: EncoderSpec, tiny: Dataset, target: str, norm_pix_loss: bool, mask_tokens: bool
) -> None:
    options = {"loss_target": target, "norm_pix_loss": norm_pix_loss, "pca_components": 5}
    method = small_mae(spec, encoder_mask_tokens=mask_tokens, **options)
    method.before_training(tiny.train, 0)
    method.loss(batch_of(method, tiny, spec), helpers.FIRST_STEP).backward()
    for name, parameter in method.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def components(data: Dataset, spec: EncoderSpec, norm_pix_loss: bool) -> tuple[Any, Any, Any]:
    """Every patch's vector, their mean and their right singular vectors, in NumPy's float64."""
    images = data.train.images_NCHW.double() / 255
    vectors = []
    for image in images:
        for channel, (mean, std) in enumerate(zip(spec.mean, spec.std, strict=True)):
            image[channel] = (image[channel] - mean) / std
        vectors += [pixels.permute(1, 2, 0).flatten() for _, _, pixels in naive.cut(image, 4)]
    matrix = torch.stack(vectors).numpy()
    if norm_pix_loss:
        deviation = (matrix.var(1, keepdims=True, ddof=1) + 1e-6) ** 0.5
        matrix = (matrix - matrix.mean(1, keepdims=True)) / deviation
    mean = matrix.mean(0)
    return matrix, mean, np.linalg.svd(matrix - mean, full_matrices=False)[2]


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_pca_targets_are_the_largest_principal_components(
    spec: EncoderSpec, tiny: Dataset, norm_pix_loss: bool
) -> None:
    method = small_mae(spec, loss_target="pca", pca_components=6, norm_pix_loss=norm_pix_loss)
    method.before_training(tiny.train, 0)
    view = (
        evaluation_view(tiny.train.images_NCHW, 16) - torch.tensor(spec.mean)[:, None, None]
    ) / (torch.tensor(spec.std)[:, None, None])
    target = method.target(encoders.patchify(view, 4)).flatten(0, 1).numpy()

    matrix, mean, directions = components(tiny, spec, norm_pix_loss)
    expected = (matrix - mean) @ directions[:6].T
    signs = np.sign((target * expected).sum(0))
    np.testing.assert_allclose(target, expected * signs, atol=1e-3)
    variance = target.var(0)
    assert (np.diff(variance) < 0).all()


def test_a_components_largest_entry_is_positive(spec: EncoderSpec, tiny: Dataset) -> None:
    """Or the same images would give targets of one sign here and of the other there."""
    method = small_mae(spec, loss_target="pca", pca_components=12)
    method.before_training(tiny.train, 0)
    basis = method.pca_basis_PK
    assert (basis.gather(0, basis.abs().argmax(dim=0, keepdim=True)) > 0).all()


def test_components_are_of_a_random_part_of_many_images(
    spec: EncoderSpec, tiny: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry.find("method", "mae").load(), "_PCA_IMAGES", 12)
    found = []
    for seed in (0, 0, 1):
        method = small_mae(spec, loss_target="pca", pca_components=6)
        method.before_training(tiny.train, seed)
        found.append(method.pca_mean_P)
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_components_are_those_of_1024_images_in_double_precision(
    spec: EncoderSpec, tiny: Dataset
) -> None:
    seen: list[int] = []

    class Watched:
        def __len__(self) -> int:
            return 1500

        def images(self, index_B: Tensor) -> Tensor:
            seen.extend(index_B.tolist())
            return tiny.train.images(index_B % len(tiny.train))

    code: Any = registry.find("method", "mae").load()
    small_mae(spec, loss_target="pca").before_training(Watched(), 0)
    assert len(set(seen)) == len(seen) == 1024
    patches = torch.randn(200, 12, generator=torch.Generator().manual_seed(0))
    mean, basis = code._principal_components(patches, 4)
    torch.testing.assert_close(mean, patches.double().mean(dim=0), rtol=0, atol=1e-12)
    torch.testing.assert_close(basis.T @ basis, torch.eye(4).double(), rtol=0, atol=1e-12)


def test_mixed_precision_does_not_round_components(spec: EncoderSpec, tiny: Dataset) -> None:
    method = small_mae(spec, loss_target="pca", pca_components=6)
    method.before_training(tiny.train, 0)
    patches = torch.randn(2, 3, 48)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = method.target(patches)
    assert torch.equal(mixed, method.target(patches))


@pytest.mark.parametrize("mask_tokens", [False, True])
def test_registers_are_no_patches(spec: EncoderSpec, mask_tokens: bool) -> None:
    """And what is hidden of an image changes no prediction."""
    architecture = {**spec.architecture, "reg_tokens": 2}
    method = small_mae(
        dataclasses.replace(spec, architecture=architecture), encoder_mask_tokens=mask_tokens
    )
    naive.randomise(method)
    patches = torch.randn(3, 16, 48)
    keep, hidden = method.mask(torch.rand(3, 16))
    predicted = method.predict(patches, keep, hidden)
    assert predicted.shape == (3, 12, 48)
    others = patches.scatter(1, hidden[..., None].expand(-1, -1, 48), 7.0)
    assert torch.equal(predicted, method.predict(others, keep, hidden))


def test_pictures_say_whose_mean_and_deviation_a_prediction_has(
    spec: EncoderSpec, tiny: Dataset
) -> None:
    for norm_pix_loss in (False, True):
        method = small_mae(spec, norm_pix_loss=norm_pix_loss)
        *others, name = method.pictures(batch_of(method, tiny, spec))
        assert others == ["original", "masked"]
        assert ("own mean" in name) == norm_pix_loss


def test_as_many_components_as_a_patch_has_values_only_rotate_the_pixels(
    spec: EncoderSpec, tiny: Dataset
) -> None:
    method = small_mae(spec, loss_target="pca", norm_pix_loss=False)
    method.before_training(tiny.train, 0)
    assert method.decoder_pred.out_features == 48
    patches = torch.randn(2, 3, 48)
    others = torch.randn(2, 3, 48)
    apart = method.target(patches) - method.target(others)
    torch.testing.assert_close(apart.norm(dim=-1), (patches - others).norm(dim=-1))


def test_components_are_a_function_of_images_and_seed_and_stay_with_the_weights(
    spec: EncoderSpec, tiny: Dataset, tmp_path: Path
) -> None:
    options = {"loss_target": "pca", "pca_components": 6}
    trained = small_mae(spec, **options)
    first = train(trained, tiny, spec, tmp_path / "first")
    second = train(small_mae(spec, **options), tiny, spec, tmp_path / "second")
    for name in ("method.safetensors", "encoder.safetensors"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    restored = small_mae(spec, **options)
    setup.restore(restored, first)
    patches = torch.randn(1, 2, 48)
    assert torch.equal(restored.target(patches), trained.target(patches))
    assert not torch.equal(small_mae(spec, **options).target(patches), trained.target(patches))


def test_training_on_components_goes_on_where_it_was_killed(
    spec: EncoderSpec, tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"loss_target": "pca", "pca_components": 6}
    whole = train(small_mae(spec, **options), tiny, spec, tmp_path / "whole")
    monkeypatch.setattr(pretrain, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    method = small_mae(spec, **options)
    left = iter(range(4))

    def dies(step: Step) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt

    monkeypatch.setattr(method, "after_optimizer_step", dies)
    with pytest.raises(KeyboardInterrupt):
        train(method, tiny, spec, tmp_path / "killed")
    assert (tmp_path / "killed/checkpoint.pt").exists()
    resumed = train(small_mae(spec, **options), tiny, spec, tmp_path / "killed")
    for name in ("method.safetensors", "encoder.safetensors"):
        assert (resumed / name).read_bytes() == (whole / name).read_bytes()


def test_a_picture_of_all_components_is_the_prediction_itself(
    spec: EncoderSpec, tiny: Dataset
) -> None:
    method = small_mae(spec, loss_target="pca", norm_pix_loss=False)
    method.before_training(tiny.train, 0)
    batch = batch_of(method, tiny, spec)
    patches = encoders.patchify(batch.views["image"], 4)
    _, hidden = method.mask(batch.rng.uniform)
    method.predict = lambda *_: method.target(encoders.take(patches, hidden))
    rows = method.pictures(batch)
    torch.testing.assert_close(rows["reconstructed"], rows["original"], atol=1e-4, rtol=0)


def views(spec: EncoderSpec, images: Tensor, **changes: Any) -> Tensor:
    [recipe] = small_mae(spec, **changes).transforms().values()
    return augment(images, recipe, SampleRng(0, 0, torch.arange(len(images))))


def test_no_augmentation_is_the_view_of_an_evaluation(spec: EncoderSpec, tiny: Dataset) -> None:
    images = tiny.train.images_NCHW[:20]
    same = views(spec, images, crop_scale=1.0, flip=False)
    assert torch.equal(same, evaluation_view(images, 16))


def test_fixed_crops_have_one_size_and_many_places(spec: EncoderSpec) -> None:
    """On a ramp, the span of a crop's values tells its size, and their mean its place."""
    ramp = torch.arange(0, 256, 4, dtype=torch.uint8).expand(200, 3, 64, 64)
    options = {"crop_scale": 0.765625, "flip": False}

    def spans_and_means(**changes: Any) -> tuple[Tensor, Tensor]:
        row = views(spec, ramp, **options, **changes)[:, 0, 8]
        return row[:, -1] - row[:, 0], row.mean(dim=1)

    spans, means = spans_and_means(fixed_crop=True)
    assert spans.std() < 0.01
    assert spans.mean() == pytest.approx(0.875 * 63 / 64 * 15 / 16, abs=0.03)
    assert len(means.mul(255).round().unique()) == 9
    assert spans_and_means(fixed_crop=False)[0].std() > 0.03


def test_jitter_changes_colours_and_none_changes_nothing(spec: EncoderSpec, tiny: Dataset) -> None:
    images = tiny.train.images_NCHW[:20]
    plain = views(spec, images)
    assert torch.equal(plain, views(spec, images, color_jitter=0.0))
    little, much = (
        (views(spec, images, color_jitter=strength) - plain).abs().mean() for strength in (0.1, 0.4)
    )
    assert 0 < little < much
    [view] = small_mae(spec, color_jitter=0.4).transforms().values()
    assert view.jitter == (0.4, 0.4, 0.4, 0.1), "hue changes by a quarter of it"


@pytest.mark.parametrize("sampling", ["random", "grid"])
def test_noise_may_be_given_as_numbers(spec: EncoderSpec, tiny: Dataset, sampling: str) -> None:
    method = small_mae(spec, sampling=sampling)
    batch = batch_of(method, tiny, spec)
    noise = batch.rng.uniform("mask", 16)
    expected = method.reconstruction_loss(batch.views["image"], noise)
    assert torch.equal(method.loss(batch, helpers.FIRST_STEP), expected)
    other = method.reconstruction_loss(batch.views["image"], noise.flip(1))
    differs = not torch.isclose(method.loss(batch, helpers.FIRST_STEP), other, rtol=1e-4)
    assert differs == (sampling == "random"), "the grid leaves nothing to chance"


def test_block_noise_must_be_a_source(spec: EncoderSpec, tiny: Dataset) -> None:
    method = small_mae(spec, sampling="block")
    batch = batch_of(method, tiny, spec)
    with pytest.raises(UserError, match="source"):
        method.reconstruction_loss(batch.views["image"], torch.rand(4, 16))
    loss = method.reconstruction_loss(batch.views["image"], batch.rng.uniform)
    assert torch.equal(loss, method.loss(batch, helpers.FIRST_STEP))


@pytest.mark.parametrize("change", [{"color_jitter": 2.1}, {"pca_components": 0}, {"mask_cell": 0}])
def test_impossible_options_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="out of range"):
        registry.find("method", "mae").config(**change)


def cells_of(rows: int, columns: int, size: int) -> list[set[int]]:
    """The patches of each cell, one at a time."""
    return [
        {(top + y) * columns + left + x for y in range(size) for x in range(size)}
        for top in range(0, rows, size)
        for left in range(0, columns, size)
    ]


@pytest.mark.parametrize("grid,size", [((8, 8), 4), ((8, 8), 2), ((6, 9), 3), ((16, 16), 4)])
def test_cells_are_squares_of_patches(grid: tuple[int, int], size: int) -> None:
    cells = masking.cells(grid, size)
    assert list(map(set, cells.tolist())) == cells_of(*grid, size)
    assert (cells.diff(dim=1) > 0).all(), "row by row"


@pytest.mark.parametrize("sampling", ["random", "grid", "block"])
@pytest.mark.parametrize("cell,ratio,kept", [(2, 0.75, 1), (2, 0.5, 2), (1, 0.75, 4)])
def test_cells_are_hidden_whole_and_as_many_in_each_image(
    spec: EncoderSpec, sampling: str, cell: int, ratio: float, kept: int
) -> None:
    method = small_mae(spec, mask_cell=cell, mask_ratio=ratio, sampling=sampling)
    keep, hidden = method.mask(SampleRng(0, 3, torch.arange(300)).uniform)
    seen: set[int] = set()
    for visible, masked in zip(keep.tolist(), hidden.tolist(), strict=True):
        assert sorted(visible + masked) == list(range(16))
        whole = [each for each in cells_of(4, 4, cell) if each & set(visible)]
        assert len(whole) == kept and set().union(*whole) == set(visible)
        seen |= set(visible)
    assert len(seen) == (kept * cell**2 if sampling == "grid" and ratio == 0.75 else 16)


def test_cells_are_chosen_by_the_numbers_that_patches_would_be(spec: EncoderSpec) -> None:
    """As the same draws choose among as many patches; and the loss is of what they hide."""
    method = small_mae(spec, mask_cell=2)
    noise = torch.rand(50, 4, generator=torch.Generator().manual_seed(0))
    keep, hidden = method.mask(noise)
    for visible, numbers in zip(keep.tolist(), noise.tolist(), strict=True):
        assert set(visible) == cells_of(4, 4, 2)[naive.random_order(numbers, 2, 2)[0]]
    images = torch.randn(50, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    patches = encoders.patchify(images, 4)
    target = method.target(encoders.take(patches, hidden))
    expected = (method.predict(patches, keep, hidden) - target).square().mean()
    assert torch.equal(method.reconstruction_loss(images, noise), expected)


@pytest.mark.parametrize(
    ("cell", "ratio", "named"),
    [
        (3, 0.75, "--mask-cell 3.*1, 2 would"),
        (4, 0.75, "1, 2 would"),
        (2, 0.9, "no cell .* of 4; up"),
    ],
)
def test_cells_that_do_not_fit_are_refused(
    spec: EncoderSpec, cell: int, ratio: float, named: str
) -> None:
    with pytest.raises(UserError, match=named):
        small_mae(spec, mask_cell=cell, mask_ratio=ratio)
