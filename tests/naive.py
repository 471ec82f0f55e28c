"""Vision Transformers, MAE and MoCo v3, written from the papers' definitions to be compared with.

Deliberately naive: float64, one image, patch, head, query at a time where the definition speaks of
one. Weights are float64 copies of a module's parameters, by name; nothing else of the project runs
here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Weights = Mapping[str, Tensor]


def randomise(module: nn.Module, seed: int = 0) -> None:
    """Weights as after some training: every parameter that is not a fixed table matters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("pos_embed"):
                continue
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("_token"):
                parameter.copy_(noise)
            elif parameter.ndim > 1:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            else:
                parameter.copy_(0.2 * noise + name.endswith("weight"))


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """Float64 leaves that require a gradient where the parameter does."""
    return {
        name: parameter.detach().double().clone().requires_grad_(parameter.requires_grad)
        for name, parameter in module.named_parameters()
    }


def under(weights: Weights, prefix: str) -> dict[str, Tensor]:
    """The weights of a submodule."""
    start = f"{prefix}."
    return {name[len(start) :]: w for name, w in weights.items() if name.startswith(start)}


def relative_error(ours: Tensor | None, theirs: Tensor | None) -> float:
    """Norm of the difference over the norm of the reference; both must be there."""
    assert ours is not None and theirs is not None
    theirs = theirs.detach()
    return float((ours.detach().double() - theirs).norm() / theirs.norm())


def gradient_errors(module: nn.Module, weights: Weights) -> dict[str, float]:
    """The relative error of each parameter's gradient; both sides have the same ones."""
    errors = {}
    for name, parameter in module.named_parameters():
        assert (parameter.grad is None) == (weights[name].grad is None), name
        if parameter.grad is not None:
            errors[name] = relative_error(parameter.grad, weights[name].grad)
    return errors


def assert_uniform(values: Tensor, bound: float, name: str) -> None:
    """Values look drawn from U(-bound, bound): within it, up to it, centred, spread as it is."""
    tolerance = 5 / math.sqrt(values.numel())
    assert values.abs().max() <= bound, name
    assert values.abs().max() > bound * (1 - tolerance), name
    assert abs(values.mean()) < bound * tolerance, name
    assert abs(values.std() / (bound / math.sqrt(3)) - 1) < tolerance, name


def assert_normal(values: Tensor, deviation: float) -> None:
    """Values look drawn from N(0, deviation^2), as far as so many can tell."""
    tolerance = 4 / math.sqrt(values.numel())
    assert abs(values.mean()) < deviation * tolerance
    assert abs(values.std() / deviation - 1) < tolerance


def linear(weights: Weights, x: Tensor) -> Tensor:
    return x @ weights["weight"].T + weights["bias"]


def layer_norm(weights: Weights, x: Tensor, epsilon: float = 1e-6) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    variance = centred.square().mean(-1, keepdim=True)
    return centred / (variance + epsilon).sqrt() * weights["weight"] + weights["bias"]


def attention(weights: Weights, x: Tensor, heads: int) -> Tensor:
    """Softmax attention among the tokens ``(T, D)`` of one image, head by head."""
    width = x.shape[1]
    size = width // heads
    qkv = linear(under(weights, "qkv"), x)
    outputs = []
    for head in range(heads):
        q, k, v = (qkv[:, part * width + head * size :][:, :size] for part in range(3))
        exponentials = (q @ k.T / math.sqrt(size)).exp()
        outputs.append(exponentials / exponentials.sum(1, keepdim=True) @ v)
    return linear(under(weights, "proj"), torch.cat(outputs, dim=1))


def perceptron(weights: Weights, x: Tensor) -> Tensor:
    hidden = linear(under(weights, "fc1"), x)
    hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
    return linear(under(weights, "fc2"), hidden)


def transformer(weights: Weights, tokens: Tensor, heads: int) -> Tensor:
    """Pre-norm blocks ``0.``, ``1.``, ... one after the other: ``(T, D)``."""
    for index in range(1 + max(int(name.split(".")[0]) for name in weights)):
        block = under(weights, str(index))
        normed = layer_norm(under(block, "norm1"), tokens)
        tokens = tokens + attention(under(block, "attn"), normed, heads)
        normed = layer_norm(under(block, "norm2"), tokens)
        tokens = tokens + perceptron(under(block, "mlp"), normed)
    return tokens


def position(width: int, first: int, second: int) -> Tensor:
    """Sines, then cosines, of the first coordinate; then the same of the second."""
    quarter = width // 4
    return torch.tensor(
        [
            wave(coordinate / 10000 ** (k / quarter))
            for coordinate in (first, second)
            for wave in (math.sin, math.cos)
            for k in range(quarter)
        ],
        dtype=torch.float64,
    )


def cut(image: Tensor, size: int) -> list[tuple[int, int, Tensor]]:
    """Row, column and pixels ``(C, size, size)`` of each patch, row by row."""
    return [
        (row, column, image[:, row * size :, column * size :][:, :size, :size])
        for row in range(image.shape[1] // size)
        for column in range(image.shape[2] // size)
    ]


def vit(
    weights: Weights, image: Tensor, size: int, heads: int, row_first: bool, kept: Sequence[int]
) -> Tensor:
    """Class token, if any, and kept patches of an image after the final norm: ``(1 + K, D)``."""
    kernel, bias = weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"]
    tokens = [weights["cls_token"][0, 0]] if "cls_token" in weights else []
    patches = cut(image, size)
    for index in kept:
        row, column, pixels = patches[index]
        embedded = torch.stack([(one * pixels).sum() for one in kernel]) + bias
        ends = (row, column) if row_first else (column, row)
        tokens.append(embedded + position(len(embedded), *ends))
    encoded = transformer(under(weights, "blocks"), torch.stack(tokens), heads)
    return layer_norm(under(weights, "norm"), encoded)


def random_order(noise: Sequence[float], rows: int, columns: int) -> list[int]:
    """Patches in the order in which they are kept: by their noise."""
    return sorted(range(rows * columns), key=lambda patch: noise[patch])


def grid_order(noise: Sequence[float], rows: int, columns: int) -> list[int]:
    """The top left patch of each two by two first."""
    ends = range(0, rows, 2), range(0, columns, 2)
    on_grid = {row * columns + column for row in ends[0] for column in ends[1]}
    order = random_order(noise, rows, columns)
    return [p for p in order if p in on_grid] + [p for p in order if p not in on_grid]


def block_order(
    noise: Sequence[float],
    blocks: Sequence[Sequence[float]],
    rows: int,
    columns: int,
    hidden_count: int,
) -> list[int]:
    """What rectangles hide comes last (BEiT, algorithm 1), as many as there is noise for."""
    smallest = max(1, round(16 / 196 * rows * columns))
    hidden: set[int] = set()
    for area, aspect, top, left in blocks:
        missing = hidden_count - len(hidden)
        target = smallest + area * max(0, missing - smallest)
        ratio = 0.3 ** (1 - 2 * aspect)
        height = min(max(round(math.sqrt(target * ratio)), 1), rows)
        width = min(max(round(math.sqrt(target / ratio)), 1), columns)
        y, x = int(top * (rows - height + 1)), int(left * (columns - width + 1))
        inside = {r * columns + c for r in range(y, y + height) for c in range(x, x + width)}
        if len(inside - hidden) <= missing:
            hidden |= inside
    order = random_order(noise, rows, columns)
    return [p for p in order if p not in hidden] + [p for p in order if p in hidden]


@dataclass(frozen=True)
class Masked:
    """What MAE computes for a batch: per image, encoded tokens, predictions; the mean loss.

    Attributes:
        encoded: ``(1 + K, D)`` for each image.
        predicted: ``(L, P)`` for each image, in the image's own order.
        hidden: the hidden patches of each image.
    """

    encoded: list[Tensor]
    predicted: list[Tensor]
    hidden: list[list[int]]
    loss: Tensor


def mae(
    weights: Weights,
    images: Tensor,
    orders: Sequence[Sequence[int]],
    kept_count: int,
    size: int,
    heads: tuple[int, int],
    norm_pix_loss: bool,
) -> Masked:
    """Encode the first patches of each image's order, decode all in place, compare the others.

    Args:
        heads: of the encoder and of the decoder.
    """
    encoded, predicted, hidden, errors = [], [], [], []
    for image, order in zip(images, orders, strict=True):
        kept = list(order[:kept_count])
        tokens = vit(under(weights, "encoder"), image, size, heads[0], False, kept)
        visible = linear(under(weights, "decoder_embed"), tokens)
        patches = cut(image, size)
        full = [visible[0]]
        for index, (row, column, _) in enumerate(patches):
            token = weights["mask_token"][0, 0]
            if index in kept:
                token = visible[1 + kept.index(index)]
            full.append(token + position(len(token), column, row))
        decoded = transformer(under(weights, "decoder_blocks"), torch.stack(full), heads[1])
        decoded = layer_norm(under(weights, "decoder_norm"), decoded)
        prediction = linear(under(weights, "decoder_pred"), decoded)[1:]
        for index in sorted(order[kept_count:]):
            target = patches[index][2].permute(1, 2, 0).reshape(-1)
            if norm_pix_loss:
                centred = target - target.mean()
                variance = centred.square().sum() / (len(target) - 1)
                target = centred / (variance + 1e-6).sqrt()
            errors.append((prediction[index] - target).square().mean())
        encoded.append(tokens)
        predicted.append(prediction)
        hidden.append(sorted(order[kept_count:]))
    return Masked(encoded, predicted, hidden, torch.stack(errors).mean())


def batch_norm(x: Tensor) -> Tensor:
    """By the batch's own mean and biased variance."""
    centred = x - x.mean(0)
    return centred / (centred.square().mean(0) + 1e-5).sqrt()


def mlp(weights: Weights, x: Tensor, layers: int) -> Tensor:
    """Linear layers without bias, batch norm after each, affine and rectified but for the last."""
    for layer in range(layers):
        x = batch_norm(x @ weights[f"{3 * layer}.weight"].T)
        if layer < layers - 1:
            norm = under(weights, str(3 * layer + 1))
            x = (x * norm["weight"] + norm["bias"]).clamp(min=0)
    return x


def class_tokens(weights: Weights, images: Tensor, size: int, heads: int) -> Tensor:
    """Class token of each whole image, with MoCo v3's position embeddings: ``(B, D)``."""
    everything = range(len(cut(images[0], size)))
    return torch.stack([vit(weights, image, size, heads, True, everything)[0] for image in images])


def contrast(queries: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """The paper's ``ctr``: one query at a time among all keys."""
    losses = []
    for index, query in enumerate(queries):
        similarities = [(query / query.norm()) @ (key / key.norm()) for key in keys]
        exponentials = (torch.stack(similarities) / temperature).exp()
        losses.append(-(exponentials[index] / exponentials.sum()).log())
    return 2 * temperature * torch.stack(losses).mean()


@dataclass(frozen=True)
class Contrasted:
    """What MoCo v3 computes for a batch: queries and keys of both views ``(B, D)``, the loss."""

    queries: list[Tensor]
    keys: list[Tensor]
    loss: Tensor


def mocov3(
    weights: Weights, views: Sequence[Tensor], size: int, heads: int, temperature: float
) -> Contrasted:
    """Algorithm 1 of the paper, but for the momentum update."""
    queries, keys = [], []
    for view in views:
        tokens = class_tokens(under(weights, "encoder"), view, size, heads)
        projected = mlp(under(weights, "projector"), tokens, layers=3)
        queries.append(mlp(under(weights, "predictor"), projected, layers=2))
        tokens = class_tokens(under(weights, "momentum_encoder"), view, size, heads)
        keys.append(mlp(under(weights, "momentum_projector"), tokens, layers=3).detach())
    loss = contrast(queries[0], keys[1], temperature) + contrast(queries[1], keys[0], temperature)
    return Contrasted(queries, keys, loss)
