"""BERT's encoder, written from the paper's definitions to be compared with.

Deliberately naive, as in `naive`: float64, one text, token and head at a time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from naive import Weights, under
from torch import Tensor


def linear(weights: Weights, name: str, row_D: Tensor) -> Tensor:
    return weights[f"{name}.weight"] @ row_D + weights[f"{name}.bias"]


def norm(weights: Weights, name: str, row_D: Tensor) -> Tensor:
    centred_D = row_D - row_D.mean()
    scaled_D = centred_D / (centred_D.square().mean() + 1e-12).sqrt()
    return weights[f"{name}.weight"] * scaled_D + weights[f"{name}.bias"]


def gelu(row_D: Tensor) -> Tensor:
    return row_D * (1 + torch.erf(row_D / math.sqrt(2))) / 2


def attend(
    weights: Weights, name: str, row_D: Tensor, source: Sequence[Tensor], heads: int
) -> Tensor:
    """What one token takes from the rows of the source."""
    query_D = linear(weights, f"{name}.query", row_D)
    keys = [linear(weights, f"{name}.key", each) for each in source]
    values = [linear(weights, f"{name}.value", each) for each in source]
    parts = []
    for columns in torch.arange(len(query_D)).chunk(heads):
        scores = [query_D[columns] @ key[columns] / math.sqrt(len(columns)) for key in keys]
        shares = torch.stack(scores).softmax(dim=0)
        parts.append(
            sum(share * value[columns] for share, value in zip(shares, values, strict=True))
        )
    return linear(weights, f"{name}.out", torch.cat(parts))


def layer(
    weights: Weights, rows: Sequence[Tensor], heads: int, image: Sequence[Tensor] = ()
) -> list[Tensor]:
    found = []
    for row_D in rows:
        row_D = norm(
            weights, "attention_norm", row_D + attend(weights, "attention", row_D, rows, heads)
        )
        if image:
            crossed = attend(weights, "cross_attention", row_D, image, heads)
            row_D = norm(weights, "cross_norm", row_D + crossed)
        grown = gelu(linear(weights, "grow", row_D))
        found.append(norm(weights, "norm", row_D + linear(weights, "shrink", grown)))
    return found


def encode(
    weights: Weights, ids: Sequence[int], depth: int, heads: int, second: int | None = None
) -> list[Tensor]:
    """The hidden state of each token of one text without padding.

    Args:
        second: where the second text of a pair begins, for an encoder of pairs.
    """
    rows = []
    for place, number in enumerate(ids):
        row_D = weights["words.weight"][number] + weights["positions.weight"][place]
        if second is not None:
            row_D = row_D + weights["segments.weight"][int(place >= second)]
        rows.append(norm(weights, "norm", row_D))
    for number in range(depth):
        rows = layer(under(weights, f"layers.{number}"), rows, heads)
    return rows


def fuse(
    weights: Weights, rows: Sequence[Tensor], image: Sequence[Tensor], depth: int, heads: int
) -> list[Tensor]:
    for number in range(depth):
        rows = layer(under(weights, f"fusion.{number}"), rows, heads, image)
    return list(rows)


def logits(weights: Weights, row_D: Tensor) -> Tensor:
    """Of each word at one token."""
    hidden_D = norm(weights, "transform_norm", gelu(linear(weights, "transform", row_D)))
    return weights["words.weight"] @ hidden_D + weights["bias"]
