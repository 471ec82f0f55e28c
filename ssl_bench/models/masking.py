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
    row, column = torch.arange(rows), torch.arange(columns)
    off_grid = (row[:, None] % 2 == 1) | (column[None, :] % 2 == 1)
    scores_BL = noise("mask", rows * columns)
    return scores_BL + off_grid.reshape(1, -1).to(scores_BL, non_blocking=True)


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


def block_size(
    fraction: float,
    scales: tuple[float, float],
    aspects: tuple[float, float],
    grid: tuple[int, int],
) -> tuple[int, int]:
    """Height and width of a block, at that fraction of the way through both ranges (I-JEPA).

    Args:
        scales: shares of the grid's patches.
        aspects: height over width.
        grid: rows and columns.
    """
    scale, aspect = (low + fraction * (high - low) for low, high in (scales, aspects))
    area = int(math.prod(grid) * scale)
    sides = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    height, width = (min(max(side, 1), most) for side, most in zip(sides, grid, strict=True))
    return height, width


def block_patches(noise_BJ: Tensor, size: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Patches of blocks anywhere in a grid, row by row: int64 ``(B, J / 2, height * width)``.

    Args:
        noise_BJ: uniform in [0, 1), two numbers for each block.
    """
    device = noise_BJ.device
    room = torch.tensor([most - side + 1 for side, most in zip(size, grid, strict=True)])
    corners_BN2 = (noise_BJ.unflatten(1, (-1, 2)) * room.to(device, non_blocking=True)).long()
    row_H, column_W = (torch.arange(side, device=device) for side in size)
    first_BN = corners_BN2[..., 0] * grid[1] + corners_BN2[..., 1]
    return first_BN[..., None] + (row_H[:, None] * grid[1] + column_W).flatten()


def inside_alone(noise_BL: Tensor, inside_BM: Tensor, hidden_BM: Tensor, kept: int) -> Tensor:
    """Patches that are inside and not hidden, any of them: int64 ``(B, kept)``.

    What is missing comes from outside, and at last from what is hidden.

    Args:
        noise_BL: uniform in [0, 1).
        inside_BM, hidden_BM: patches, of which some may be there more than once.
    """
    nowhere_BL = torch.zeros_like(noise_BL)
    is_inside_BL = nowhere_BL.scatter(1, inside_BM, 1.0)
    is_hidden_BL = nowhere_BL.scatter(1, hidden_BM, 1.0)
    return split(noise_BL - is_inside_BL + 2 * is_hidden_BL, kept)[0]
