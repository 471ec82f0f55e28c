"""SimMIM, on a Vision Transformer and on Swin, against a naive float64 reference of the paper."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import naive
import pytest
import torch
from helpers import FIRST_STEP, SHAPE
from naive import Weights, under
from torch import Tensor

from ssl_bench.api import registry
from ssl_bench.api.step import Batch, Step
from ssl_bench.errors import UserError
from ssl_bench.models.backbones import EncoderSpec
from ssl_bench.training import setup
from ssl_bench.utils.rng import SampleRng

SIMMIM = registry.find("method", "simmim")
STATISTICS = ((0.5,) * 3, (0.25,) * 3)
VIT = EncoderSpec("vit_micro", 16, 4, 3, *STATISTICS, SHAPE)
SWIN = EncoderSpec("swin_nano", 16, None, 3, *STATISTICS)  # 8 x 8 patches, windows of 4 x 4
ODD = EncoderSpec("swin_nano", 12, 4, 3, *STATISTICS)  # 3 x 3 patches, which merging pads
HEADS = (2, 4, 8)


def build(spec: EncoderSpec, **changes: Any) -> Any:
    return setup.build_method(SIMMIM.load_class(), SIMMIM.config(**changes), spec, 3, seed=0)


def batch_of(spec: EncoderSpec, count: int = 3) -> Batch:
    shape = (count, 3, spec.image_size, spec.image_size)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return Batch({"image": images}, SampleRng(0, 0, torch.arange(count)))


def embedded(weights: Weights, image: Tensor, hidden: Tensor, size: int) -> list[list[Tensor]]:
    """Rows of embedded patches, a mask token for each that is hidden."""
    embed = under(weights, "encoder.patch_embed")
    rows: list[list[Tensor]] = [[] for _ in hidden]
    for row, column, pixels in naive.cut(image, size):
        token = torch.stack([(one * pixels).sum() for one in embed["proj.weight"]])
        token = token + embed["proj.bias"]
        if "norm.weight" in embed:
            token = naive.layer_norm(under(embed, "norm"), token, 1e-5)
        rows[row].append(weights["mask_token"][0, 0] if hidden[row, column] else token)
    return rows


def vit(weights: Weights, rows: list[list[Tensor]]) -> dict[tuple[int, int], Tensor]:
    """Encoded patches by row and column."""
    tokens = [weights["encoder.cls_token"][0, 0]]
    places = [(row, column) for row in range(len(rows)) for column in range(len(rows))]
    for row, column in places:
        token = rows[row][column]
        tokens.append(token + naive.position(len(token), column, row))
    blocks = under(weights, "encoder.blocks")
    encoded = naive.transformer(blocks, torch.stack(tokens), SHAPE["num_heads"])
    encoded = naive.layer_norm(under(weights, "encoder.norm"), encoded)
    return dict(zip(places, encoded[1:], strict=True))


def swin(weights: Weights, rows: list[list[Tensor]]) -> dict[tuple[int, int], Tensor]:
    """The same for Swin: attention among all tokens, without those of other windows."""
    for stage, heads in enumerate(HEADS):
        layer = under(weights, f"encoder.layers.{stage}")
        if stage:
            rows = merged(under(layer, "downsample"), rows)
        side = len(rows)
        x = torch.stack([token for row in rows for token in row])
        for index in range(2):
            block = under(layer, f"blocks.{index}")
            shift = 2 if index == 1 and side > 4 else 0
            normed = naive.layer_norm(under(block, "norm1"), x, 1e-5)
            x = x + window_attention(under(block, "attn"), normed, side, min(side, 4), shift, heads)
            x = x + naive.perceptron(
                under(block, "mlp"), naive.layer_norm(under(block, "norm2"), x, 1e-5)
            )
        rows = [list(x[side * row : side * (row + 1)]) for row in range(side)]
    norm = under(weights, "encoder.norm")
    return {
        (row, column): naive.layer_norm(norm, token, 1e-5)
        for row, tokens in enumerate(rows)
        for column, token in enumerate(tokens)
    }


def merged(weights: Weights, rows: list[list[Tensor]]) -> list[list[Tensor]]:
    """Two by two tokens to one, first down and then across; zeros where there is none."""
    side, nothing = len(rows), torch.zeros_like(rows[0][0])

    def at(row: int, column: int) -> Tensor:
        return rows[row][column] if row < side and column < side else nothing

    def four(row: int, column: int) -> Tensor:
        tokens = [at(2 * row + down, 2 * column + across) for across in (0, 1) for down in (0, 1)]
        normed = naive.layer_norm(under(weights, "norm"), torch.cat(tokens), 1e-5)
        return weights["reduction.weight"] @ normed

    half = range((side + 1) // 2)
    return [[four(row, column) for column in half] for row in half]


def window_attention(
    weights: Weights, x: Tensor, side: int, window: int, shift: int, heads: int
) -> Tensor:
    """Attention within windows that lie shifted over the grid, head by head."""
    offset, penalty = relations(side, window, shift)
    size = x.shape[1] // heads
    qkv = naive.linear(under(weights, "qkv"), x)
    outputs = []
    for head in range(heads):
        q, k, v = (qkv[:, part * x.shape[1] + head * size :][:, :size] for part in range(3))
        bias = weights["relative_position_bias_table"][offset, head] + penalty
        exponentials = (q @ k.T / math.sqrt(size) + bias).exp()
        outputs.append(exponentials / exponentials.sum(1, keepdim=True) @ v)
    return naive.linear(under(weights, "proj"), torch.cat(outputs, dim=1))


@cache
def relations(side: int, window: int, shift: int) -> tuple[Tensor, Tensor]:
    """Of each two tokens: where their distance stands in the table, and what attention loses.

    Windows go round at the ends of the grid, and attention does not.
    """
    offset = torch.zeros(side**2, side**2, dtype=torch.int64)
    penalty = torch.zeros(side**2, side**2, dtype=torch.float64)
    for first in range(side**2):
        for second in range(side**2):
            distances = []
            for here, there in zip(divmod(first, side), divmod(second, side), strict=True):
                ends = (here - shift) % side, (there - shift) % side
                if ends[0] // window != ends[1] // window:
                    penalty[first, second] = -math.inf
                elif (here < shift) != (there < shift):
                    penalty[first, second].clamp_(max=-100.0)
                distances.append(ends[0] - ends[1] + window - 1)
            if penalty[first, second] > -math.inf:
                offset[first, second] = distances[0] * (2 * window - 1) + distances[1]
    return offset, penalty


def reference(
    weights: Weights, images: Tensor, hidden: Tensor, size: int, stride: int, is_swin: bool
) -> tuple[list[Tensor], Tensor]:
    """Predicted images, and the mean absolute error of the hidden pixels of all of them."""
    predicted, errors = [], []
    for image, is_hidden in zip(images, hidden, strict=True):
        rows = embedded(weights, image, is_hidden, size)
        encoded = swin(weights, rows) if is_swin else vit(weights, rows)
        channels, height, width = image.shape
        picture = torch.zeros_like(image)
        for (row, column), token in encoded.items():
            square = naive.linear(under(weights, "head"), token).view(stride, stride, channels)
            top, left = row * stride, column * stride
            part = square.permute(2, 0, 1)[:, : height - top, : width - left]
            picture[:, top : top + stride, left : left + stride] = part
        predicted.append(picture)
        for y in range(height):
            for x in range(width):
                if is_hidden[y // size, x // size]:
                    errors.append((picture[:, y, x] - image[:, y, x]).abs())
    return predicted, torch.stack(errors).mean()


@pytest.mark.parametrize(
    ("spec", "changes"),
    [(VIT, {}), (VIT, {"mask_patch_size": 8, "mask_ratio": 0.5}), (SWIN, {}), (ODD, {})],
    ids=["vit", "vit-squares", "swin", "swin-odd"],
)
def test_predictions_loss_and_gradients_equal_the_naive_reference(
    spec: EncoderSpec, changes: dict[str, Any]
) -> None:
    method = build(spec, **changes)
    naive.randomise(method)
    batch = batch_of(spec)
    images, hidden = batch.views["image"], method.mask(batch.rng)
    loss = method.loss(batch, FIRST_STEP)
    loss.backward()

    weights = naive.weights_of(method)
    is_swin = spec is not VIT
    size = method.encoder.patch_embed.patch_size[0]
    stride = 4 * size if is_swin else size
    predicted, expected = reference(weights, images.double(), hidden, size, stride, is_swin)
    expected.backward()
    assert naive.relative_error(method.predict(images, hidden), torch.stack(predicted)) < 1e-5
    assert naive.relative_error(loss, expected) < 1e-5
    errors = naive.gradient_errors(method, weights)
    for name, error in errors.items():
        gradient = weights[name].grad
        assert gradient is not None
        is_unused = gradient.norm() < 1e-12  # distances, in a window of one token
        assert error < 1e-5 or is_unused, (name, error)


def test_the_papers_masks_hide_30_of_49_squares_of_32_pixels() -> None:
    method = build(EncoderSpec("vit_micro", 224, 16, 3, *STATISTICS, SHAPE))
    hidden = method.mask(SampleRng(0, 0, torch.arange(2000)))
    squares = hidden.unflatten(1, (7, 2)).unflatten(3, (7, 2)).sum(dim=(2, 4))
    assert hidden.shape == (2000, 14, 14)
    assert set(squares.unique().tolist()) == {0, 4}
    assert (squares.sum(dim=(1, 2)) == 4 * 30).all()
    assert ((squares > 0).double().mean(dim=0) - 30 / 49).abs().max() < 0.05
    assert len(squares.flatten(1).unique(dim=0)) == 2000


@pytest.mark.parametrize(
    ("backbone", "image_size", "patch_size", "expected"),
    [
        *(("vit_nano", 224, 16, 32), ("vit_nano", 96, 16, 16), ("vit_nano", 28, 7, 7)),
        *(("swin_nano", 32, 2, 8), ("swin_nano", 64, 2, 8), ("swin_nano", 28, 2, 4)),
        ("swin_tiny_patch4_window7_224", 192, 4, 32),
        ("swin_tiny_patch4_window7_224", 32, 4, 8),
    ],
)
def test_squares_suit_image_and_backbone(
    backbone: str, image_size: int, patch_size: int, expected: int
) -> None:
    spec = EncoderSpec(backbone, image_size, patch_size, 3, *STATISTICS)
    with torch.device("meta"):
        assert build(spec).mask_size == expected


@pytest.mark.parametrize("spec", [VIT, SWIN], ids=["vit", "swin"])
def test_the_mask_token_of_a_vit_alone_is_decayed(spec: EncoderSpec) -> None:
    method = build(spec, weight_decay=0.03)
    recipe = method.optimizer()
    assert recipe.clip_norm == 5.0 and not recipe.clip_each
    decay = {id(p): g["weight_decay"] for g in recipe.optimizer.param_groups for p in g["params"]}
    for name, parameter in method.named_parameters():
        if parameter.requires_grad:
            is_exempt = parameter.ndim == 1 or name == "encoder.cls_token"
            is_exempt |= spec is SWIN and name == "mask_token"
            assert decay[id(parameter)] == (0.0 if is_exempt else 0.03), name


def test_the_learning_rate_falls_to_a_tenth_at_seven_eighths() -> None:
    """As at 700 of the paper's 800 epochs, after 10 of warm-up."""
    method = build(VIT, step_schedule=True, warmup=10 / 800, base_lr=5e-5)
    learning_rate = method.optimizer().learning_rate
    rates = [learning_rate(Step(epoch, 800, 1, 2048)) for epoch in (0, 5, 10, 699, 700, 799)]
    assert rates == pytest.approx([0, 2e-4, 4e-4, 4e-4, 4e-5, 4e-5])
    cosine = build(VIT, warmup=0.0, base_lr=5e-5, final_lr=0.05).optimizer().learning_rate
    assert cosine(Step(0, 100, 1, 256)) == pytest.approx(5e-5)
    assert cosine(Step(100, 100, 1, 256)) == pytest.approx(0.05 * 5e-5)


@pytest.mark.parametrize("spec", [VIT, ODD], ids=["vit", "swin"])
def test_pictures_keep_what_is_seen(spec: EncoderSpec) -> None:
    method, batch = build(spec), batch_of(spec)
    rows = method.pictures(batch)
    is_hidden = rows["masked"].isnan()
    assert 0.5 < is_hidden.double().mean() < 0.8
    assert torch.equal(rows["reconstructed"][~is_hidden], rows["original"][~is_hidden])
    predicted = method.predict(batch.views["image"], method.mask(batch.rng))
    assert torch.equal(rows["reconstructed"][is_hidden], predicted[is_hidden])


@pytest.mark.parametrize(
    ("spec", "changes", "message"),
    [
        (VIT, {"mask_patch_size": 6}, r"--mask-patch-size 6 .* 4 px patches .* 16 px; 4, 8 would"),
        (VIT, {"mask_patch_size": 16}, "4, 8 would work"),
        (VIT, {"mask_patch_size": 8, "mask_ratio": 0.8}, r"hides all 4 squares .* up to 0.75"),
        (VIT, {"mask_patch_size": 4, "mask_ratio": 0.99}, r"hides all 16 squares .* up to 0.93 "),
        (SWIN, {"drop_path": 0.1}, "--drop-path 0.1 is for Vision Transformers"),
        (VIT, {"step_schedule": True, "final_lr": 0.1}, "--step-schedule has none"),
        (VIT, {"clip_grad": 0.0}, "--clip-grad"),
        (VIT, {"mask_ratio": 1.0}, "--mask-ratio"),
        (EncoderSpec("vit_nano", 16, 16, 3, *STATISTICS), {}, "16 px patches; another --patch"),
    ],
    ids=str,
)
def test_settings_that_cannot_be(spec: EncoderSpec, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        build(spec, **changes)
    assert "\n" not in str(raised.value)


def test_the_largest_mask_ratio_that_is_named_works() -> None:
    assert build(VIT, mask_patch_size=4, mask_ratio=0.93).kept == 1


@pytest.mark.parametrize("backbone", ["resnet18", "convnext_atto"])
def test_other_backbones_are_refused_in_one_line(
    ssl_bench: Callable[..., tuple[int, str, str]],
    backbone: str,
    image_folder: Path,
    tmp_path: Path,
) -> None:
    words = ("run", "--method", "simmim", "--backbone", backbone, "--image-size", 32)
    where = ("--data", image_folder, "--runs-dir", tmp_path / "runs")
    code, _, err = ssl_bench(*words, "--batch-size", 16, *where)
    assert (code, err.count("\n")) == (2, 1), err
    assert "Vision Transformer" in err and "Swin" in err
    assert not list((tmp_path / "runs").glob("*"))


def test_dropped_paths_reach_the_last_block() -> None:
    method = build(VIT, drop_path=0.3)
    assert method.encoder.blocks[-1].drop_path1.drop_prob == 0.3
