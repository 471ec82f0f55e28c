"""Codebooks of patches, which make a token of a patch: the number of the entry nearest to it.

Shapes: K entries, N patches, P values in a patch.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor

from ssl_bench.errors import require
from ssl_bench.models import weights
from ssl_bench.utils import rng

_ROUNDS = 10
_AT_ONCE = 4096


def nearest(patches: Tensor, codebook_KP: Tensor) -> Tensor:
    """The tokens of patches ``(..., P)``: int64 ``(...)``; the first of entries that are alike."""
    with torch.autocast(patches.device.type, enabled=False):
        halves_K = codebook_KP.square().sum(dim=1) / 2
        return (patches @ codebook_KP.T - halves_K).argmax(dim=-1)


def fit(patches_NP: Tensor, count: int, seed: int) -> Tensor:
    """The centres of Lloyd's k-means: ``(count, P)``.

    Equal patches count as one, so that blank ones do not get many centres. The first centres are
    drawn from the patches; one that is nearest to no patch stays where it is.

    Raises:
        UserError: there are fewer different patches than centres.
    """
    patches_NP = patches_NP.unique(dim=0)
    require(
        len(patches_NP) >= count,
        f"codebook size {count} is more than the {len(patches_NP)} different patches that training "
        f"images have to fit it to; up to {len(patches_NP)} would work",
    )
    centres_KP = patches_NP[rng.permutation(len(patches_NP), seed, "codebook")[:count]]
    for _ in range(_ROUNDS):
        tokens = [nearest(part, centres_KP) for part in patches_NP.split(_AT_ONCE)]
        tokens_N = torch.cat(tokens)
        sums_KP = torch.zeros_like(centres_KP).index_add(0, tokens_N, patches_NP)
        sizes_K1 = tokens_N.bincount(minlength=count)[:, None]
        centres_KP = torch.where(sizes_K1 > 0, sums_KP / sizes_K1.clamp(min=1), centres_KP)
    return centres_KP


def read(file: str) -> tuple[Tensor, str]:
    """The codebook in a file of the user's, float32 ``(K, P)`` in [0, 1], and its hash.

    Raises:
        UserError: the file cannot be read, or holds something else.
    """
    tensors = weights.read(Path(file).expanduser())
    codebook = tensors.get("codebook")
    others = ", ".join(sorted(map(repr, tensors.keys() - {"codebook"})))
    require(
        isinstance(codebook, Tensor) and not others,
        f"tokenizer {file!r} holds {others or 'nothing'}; a tensor 'codebook' alone would work",
    )
    assert isinstance(codebook, Tensor)
    require(
        codebook.ndim == 2 and len(codebook) > 1 and codebook.is_floating_point(),
        f"the codebook of tokenizer {file!r} is {codebook.dtype} of shape {tuple(codebook.shape)}; "
        "floats in a row for each of two tokens or more would work",
    )
    codebook_KP = codebook.float()
    require(
        bool(((codebook_KP >= 0) & (codebook_KP <= 1)).all()),
        f"the codebook of tokenizer {file!r} has values outside [0, 1], where pixels lie",
    )
    return codebook_KP, hashlib.sha256(codebook_KP.numpy().tobytes()).hexdigest()[:8]
