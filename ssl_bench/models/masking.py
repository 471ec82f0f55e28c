"""Which patches a masked-image method hides.

Each strategy turns uniform noise into a score per patch; the patches with the lowest scores stay
visible. The noise is an argument, so a mask is a function of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ssl_bench.errors import require, within

_BLOCK_ATTEMPTS = 32
_BLOCKS_ATTEMPTS, _MISSES = 64, 10


def count_kept(patches: int, mask_ratio: float) -> int:
    """How many of the patches stay visible: ``int(patches * (1 - mask_ratio))``, as MAE has it.

    Raises:
        UserError: the ratio is outside (0, 1), or leaves no patch visible.
    """
    within("mask ratio", mask_ratio, "(0, 1)")
    kept = int(patches * (1 - mask_ratio))
    require(patches > 1, "an image of one patch cannot be masked; a smaller patch size would work")
    require(
        kept > 0,
        f"mask ratio {mask_ratio} leaves no patch visible of {patches}; "
        f"up to {math.floor(100 * (1 - 1 / patches)) / 100:g} would work",
    )
    require(kept < patches, f"mask ratio {mask_ratio} hides no patch of {patches}; try 0.75")
    return kept


def split(scores_BL: Tensor, kept: int) -> tuple[Tensor, Tensor]:
    """Indices of the visible and of the masked patches: int64 ``(B, kept)``, ``(B, L - kept)``."""
    order_BL = scores_BL.argsort(dim=1, stable=True)
    return order_BL[:, :kept], order_BL[:, kept:]


def random_scores(noise: Callable[[str, int], Tensor], rows: int, columns: int) -> Tensor:
    """Uniform sampling without replacement, as in MAE."""
    return noise("mask", rows * columns)


def grid_scores(noise: Callable[[str, int], Tensor], rows: int, columns: int) -> Tensor:
    """One patch of every two by two stays visible (MAE, figure 6, right).

    With odd sides, or a mask ratio other than 0.75, patches on the grid are kept first, and chance
    decides among equals.
    """
    scores_BL = noise("mask", rows * columns)
    row = torch.arange(rows, device=scores_BL.device)
    column = torch.arange(columns, device=scores_BL.device)
    off_grid = (row[:, None] % 2 == 1) | (column[None, :] % 2 == 1)
    return scores_BL + off_grid.reshape(1, -1)


def block_scores(
    noise: Callable[[str, int], Tensor], rows: int, columns: int, masked: int
) -> Tensor:
    """Rectangles are hidden until ``masked`` patches are (BEiT, algorithm 1; MAE, figure 6).

    Their aspect ratio is log-uniform in [0.3, 1/0.3], and they have at least 16 patches of a
    14 x 14 grid, or the same fraction of another grid. One that would hide too many is skipped;
    what is missing after 32 attempts is drawn patch by patch, so every image hides equally many.
    """
    smallest = max(1, round(16 / 196 * rows * columns))
    scores_BL = noise("mask", rows * columns)
    uniform_BA4 = noise("block", _BLOCK_ATTEMPTS * 4).reshape(-1, _BLOCK_ATTEMPTS, 4)
    row = torch.arange(rows, device=scores_BL.device)[None, :, None]
    column = torch.arange(columns, device=scores_BL.device)[None, None, :]
    hidden_BRC = torch.zeros(len(scores_BL), rows, columns, dtype=torch.bool, device=row.device)
    for area_B, aspect_B, top_B, left_B in uniform_BA4.permute(1, 2, 0):
        missing_B = masked - hidden_BRC.sum(dim=(1, 2))
        area = smallest + area_B * (missing_B - smallest).clamp(min=0)
        aspect = torch.exp((2 * aspect_B - 1) * math.log(1 / 0.3))
        height = (area * aspect).sqrt().round().clamp(1, rows)
        width = (area / aspect).sqrt().round().clamp(1, columns)
        top = (top_B * (rows - height + 1)).floor()[:, None, None]
        left = (left_B * (columns - width + 1)).floor()[:, None, None]
        inside_BRC = (row >= top) & (row < top + height[:, None, None])
        inside_BRC = inside_BRC & (column >= left) & (column < left + width[:, None, None])
        added_B = (inside_BRC & ~hidden_BRC).sum(dim=(1, 2))
        hidden_BRC |= inside_BRC & (added_B <= missing_B)[:, None, None]
    return scores_BL + hidden_BRC.flatten(1).to(scores_BL)


def blocks(noise: Callable[[str, int], Tensor], rows: int, columns: int, most_B: Tensor) -> Tensor:
    """Rectangles that hide so many patches at most, and mostly fewer: bool ``(B, L)``.

    iBOT's, after BEiT's (``loader.py``, bytedance/ibot ``da316d8``): of each rectangle, which is
    smaller than the grid and has an aspect ratio log-uniform in [0.3, 1/0.3], ten are tried; the
    last one is where none of them hides more patches than before and few enough. The official code
    has no bound of 64 tries in all; at its mask ratios none of 76,000 images took more than 50.

    Args:
        most_B: how many patches, not rounded.
    """
    smallest = (min(rows, columns) // 3) ** 2
    uniform_BA4 = noise("block", _BLOCKS_ATTEMPTS * 4).unflatten(1, (_BLOCKS_ATTEMPTS, 4))
    row = torch.arange(rows, device=most_B.device)[None, :, None]
    column = torch.arange(columns, device=most_B.device)[None, None, :]
    hidden_BRC = torch.zeros(len(most_B), rows, columns, dtype=torch.bool, device=row.device)
    misses_B = torch.zeros_like(most_B)
    for area_B, aspect_B, top_B, left_B in uniform_BA4.permute(1, 2, 0):
        missing_B = most_B - hidden_BRC.sum(dim=(1, 2))
        wanted_B = (missing_B > 0) & (misses_B < _MISSES)
        # To know that nothing is left to do, a host would have to wait for its accelerator.
        if wanted_B.device.type == "cpu" and not wanted_B.any():
            break
        area = (smallest + area_B * (missing_B - smallest)).clamp(min=0)
        aspect = torch.exp((2 * aspect_B - 1) * math.log(1 / 0.3))
        height, width = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
        top = (top_B * (rows - height + 1)).floor()[:, None, None]
        left = (left_B * (columns - width + 1)).floor()[:, None, None]
        inside_BRC = (row >= top) & (row < top + height[:, None, None])
        inside_BRC = inside_BRC & (column >= left) & (column < left + width[:, None, None])
        added_B = (inside_BRC & ~hidden_BRC).sum(dim=(1, 2))
        fits_B = (height < rows) & (width < columns) & (added_B > 0) & (added_B <= missing_B)
        fits_B &= wanted_B
        hidden_BRC |= inside_BRC & fits_B[:, None, None]
        misses_B = torch.where(fits_B, 0, misses_B + 1)
    return hidden_BRC.flatten(1)
