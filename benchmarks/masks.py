"""What is hidden in a step of iBOT and of I-JEPA: the same for everybody, who then does as much.

Masks are functions of noise, by this project's samplers in every contestant's step, of which they
take a thousandth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from benchmarks.cases import Case
from ssl_bench.models import masking

_SPREAD, _PROBABILITY = 0.2, 0.5
"""Of iBOT's mask ratio, and of a crop to be masked at all, as its paper has them."""
_BLOCKS = 4, (0.15, 0.2), 0.85, 0.25
"""I-JEPA's target blocks, their scales, the context block's, and the context's share."""


@dataclass(frozen=True)
class Given:
    """Mask noise ``(B, N)`` instead of draws, and torch's own normal numbers."""

    noise: Tensor
    samples_B: Tensor

    def rows(self, which: slice) -> Given:
        """Of some samples."""
        return Given(self.noise[which], self.samples_B[which])

    def within(self, view: str) -> Given:
        """Of one of two views."""
        return self if view.endswith("0") else replace(self, noise=self.noise.flip(1))

    def uniform(self, purpose: str, count: int) -> Tensor:
        """The last so many columns; I-JEPA's blocks all get the largest size.

        Smaller ones would be filled up by ours, which takes several sizes in a batch, and not by
        others, which take one.
        """
        noise = self.noise[:, -count:]
        if purpose != "targets":
            return noise
        sizes = _multi_blocks(math.isqrt(self.noise.shape[1])).target_sizes_S2.prod(dim=1)
        largest = (sizes.argmax() + 0.5) / len(sizes)
        return torch.cat([largest.to(noise).expand(len(noise), 1), noise[:, 1:]], dim=1)

    def normal(self, purpose: str, count: int) -> Tensor:
        """Of any purpose."""
        return torch.randn(len(self.samples_B), count).to(self.samples_B.device)


def hidden_patches(case: Case, noise: Tensor) -> Tensor:
    """Which patches of both large crops are hidden from iBOT's student: bool ``(2 * B, L)``."""
    views = [_given(noise).within(name) for name in ("global_0", "global_1")]

    def both(purpose: str, count: int) -> Tensor:
        return torch.cat([view.uniform(purpose, count) for view in views])

    chance, spread = both("mask ratio", 2).unbind(1)
    most = (case.mask_ratio + _SPREAD * (2 * spread - 1)) * case.patches
    side = math.isqrt(case.patches)
    return masking.blocks(both, side, side, torch.where(chance < _PROBABILITY, most, 0))


def blocks(case: Case, noise: Tensor) -> tuple[Tensor, list[Tensor]]:
    """I-JEPA's patches of the context ``(B, K)``, and of each target block ``(B, M)``."""
    context_BK, targets_BNM, is_own_BM = _multi_blocks(math.isqrt(case.patches))(
        _given(noise).uniform
    )
    assert is_own_BM.all()
    return context_BK, list(targets_BNM.unbind(1))


def _given(noise: Tensor) -> Given:
    return Given(noise, torch.arange(len(noise), device=noise.device))


@lru_cache
def _multi_blocks(side: int) -> masking.MultiBlocks:
    return masking.MultiBlocks((side, side), *_BLOCKS)
