"""Which patches a masked-image method hides.

Each strategy turns uniform noise into a score per patch; the patches with the lowest scores stay
visible. The noise is an argument, so a mask is a function of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ssl_bench.errors import require, within

_BLOCK_ATTEMPTS = 32
_BLOCKS_ATTEMPTS, _MISSES = 64, 10
_BLOCK_SIZES = 1024  # so that a multiple of 2^-24 times it is exact


def count_kept(
    patches: int, mask_ratio: float, each: str = "patch", hides_fewer: bool = False
) -> int:
    """How many of the patches stay visible: ``int(patches * (1 - mask_ratio))``, as MAE has it.

    Args:
        each: what one of them is called.
        hides_fewer: hide ``int(patches * mask_ratio)`` of them instead, as VideoMAE does.

    Raises:
        UserError: the ratio is outside (0, 1), or leaves no patch visible.
    """
    within("--mask-ratio", mask_ratio, "(0, 1)")
    kept = int(patches * (1 - mask_ratio))
    if hides_fewer:
        kept = patches - int(patches * mask_ratio)
    more = "a larger --frames" if "frames" in each else "a smaller patch size"
    require(patches > 1, f"a single {each} cannot be masked; {more} would work")
    require(
        kept > 0,
        f"--mask-ratio {mask_ratio} leaves no {each} visible of {patches}; "
        f"up to {math.floor(100 * (1 - 1 / patches)) / 100:g} would work",
    )
    require(kept < patches, f"--mask-ratio {mask_ratio} hides no {each} of {patches}; try 0.75")
    return kept


def split(scores_BL: Tensor, kept: int) -> tuple[Tensor, Tensor]:
    """Indices of the visible and of the masked patches: int64 ``(B, kept)``, ``(B, L - kept)``."""
    order_BL = scores_BL.argsort(dim=1, stable=True)
    return order_BL[:, :kept], order_BL[:, kept:]


def as_mask(index_BM: Tensor, count: int) -> Tensor:
    """Which of an image's patches have these indices: bool ``(B, count)``."""
    mask_BL = torch.zeros(len(index_BM), count, dtype=torch.bool, device=index_BM.device)
    return mask_BL.scatter(1, index_BM, True)


def cells(grid: tuple[int, int], size: int) -> Tensor:
    """The patches of each of a grid's square cells, both row by row: int64 ``(U, size * size)``.

    Args:
        grid: rows and columns of patches.
        size: side of a cell, in patches.

    Raises:
        UserError: there is no whole number of cells, or but one.
    """
    fits = [each for each in range(1, max(grid)) if grid[0] % each == grid[1] % each == 0]
    require(
        size in fits or math.prod(grid) == 1,  # which nothing can be hidden of
        f"--mask-cell {size}: {grid[0]} x {grid[1]} patches cannot be divided into several squares "
        f"of so many by so many; {', '.join(map(str, fits))} would work",
    )
    patches_RC = torch.arange(math.prod(grid)).view(grid)
    return patches_RC.unfold(0, size, size).unfold(1, size, size).flatten(2).flatten(0, 1)


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
    14 x 14 grid, or the same fraction of another grid. One that is longer than the grid is cut to
    it, and one that would hide too many is skipped; what is missing after 32 attempts is drawn
    patch by patch, so every image hides equally many.
    """
    smallest = max(1, round(16 / 196 * rows * columns))
    scores_BL = noise("mask", rows * columns)
    uniform_BA4 = noise("block", _BLOCK_ATTEMPTS * 4).reshape(-1, _BLOCK_ATTEMPTS, 4)
    shape = len(scores_BL), rows, columns
    hidden_BRC = torch.zeros(shape, dtype=torch.bool, device=scores_BL.device)
    for area_B, aspect_B, top_B, left_B in uniform_BA4.permute(1, 2, 0):
        missing_B = masked - hidden_BRC.sum(dim=(1, 2))
        area = smallest + area_B * (missing_B - smallest).clamp(min=0)
        aspect = torch.exp((2 * aspect_B - 1) * math.log(1 / 0.3))
        height = (area * aspect).sqrt().round().clamp(1, rows)
        width = (area / aspect).sqrt().round().clamp(1, columns)
        inside_BRC = _rectangles(height, width, top_B, left_B, rows, columns)
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
    hidden_BRC = torch.zeros(len(most_B), rows, columns, dtype=torch.bool, device=most_B.device)
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
        inside_BRC = _rectangles(height, width, top_B, left_B, rows, columns)
        added_B = (inside_BRC & ~hidden_BRC).sum(dim=(1, 2))
        fits_B = (height < rows) & (width < columns) & (added_B > 0) & (added_B <= missing_B)
        fits_B &= wanted_B
        hidden_BRC |= inside_BRC & fits_B[:, None, None]
        misses_B = torch.where(fits_B, 0, misses_B + 1)
    return hidden_BRC.flatten(1)


def visible_block_scores(
    noise: Callable[[str, int], Tensor], rows: int, columns: int, count: int, size: int
) -> Tensor:
    """Squares stay visible (data2vec 2.0; ``data_utils.py``, facebookresearch/fairseq ``26323eb``).

    Their centres are any patches, so that they may overlap and reach beyond the grid. Of too many
    patches inside of them any are hidden, and of too few outside any stay visible.

    Args:
        count: squares in an image.
        size: their side, in patches.
    """
    scores_BL = noise("mask", rows * columns)
    centre_BN = (noise("block", count) * (rows * columns)).long()
    patch_L = torch.arange(rows * columns, device=scores_BL.device)
    inside_BNL = torch.ones(1, dtype=torch.bool, device=scores_BL.device)
    for centre, patch in (
        (centre_BN // columns, patch_L // columns),
        (centre_BN % columns, patch_L % columns),
    ):
        first = (centre - size // 2)[..., None]
        inside_BNL = inside_BNL & (patch >= first) & (patch < first + size)
    return scores_BL - inside_BNL.any(dim=1).to(scores_BL)


def _rectangles(
    height_B: Tensor, width_B: Tensor, top_B: Tensor, left_B: Tensor, rows: int, columns: int
) -> Tensor:
    """The patches of a rectangle of each image: bool ``(B, rows, columns)``.

    Args:
        top_B, left_B: uniform in [0, 1): where it lies, of all places where it fits.
    """
    row = torch.arange(rows, device=top_B.device)[None, :, None]
    column = torch.arange(columns, device=top_B.device)[None, None, :]
    top = (top_B * (rows - height_B + 1)).floor()[:, None, None]
    left = (left_B * (columns - width_B + 1)).floor()[:, None, None]
    inside_BRC = (row >= top) & (row < top + height_B[:, None, None])
    return inside_BRC & (column >= left) & (column < left + width_B[:, None, None])


class MultiBlocks(nn.Module):
    """I-JEPA's masks: target blocks, and a context of patches in a large block and in no target.

    An image's target blocks are of one size. One number tells both their scale and their aspect
    ratio, as in the official code.

    Args:
        grid: rows and columns.
        targets: target blocks in an image.
        target_scales: smallest and largest share of the grid's patches in one of them.
        context_scale: smallest share in the context block, which is a square.
        context_ratio: share of the grid's patches in the context.
    """

    target_sizes_S2: Tensor
    context_sizes_S2: Tensor

    def __init__(
        self,
        grid: tuple[int, int],
        targets: int,
        target_scales: tuple[float, float],
        context_scale: float,
        context_ratio: float,
    ) -> None:
        super().__init__()
        patches = math.prod(grid)
        require(
            patches > 1, "an image of one patch has no context; a smaller patch size would work"
        )
        self.grid, self.targets = grid, targets
        self.kept = max(1, int(patches * context_ratio))
        target_sizes = block_sizes(target_scales, (0.75, 1.5), grid)
        context_sizes = block_sizes((context_scale, 1.0), (1.0, 1.0), grid)
        self.most_in_target = max(map(math.prod, target_sizes))
        self.most_in_context = max(map(math.prod, context_sizes))
        self.register_buffer("target_sizes_S2", torch.tensor(target_sizes), persistent=False)
        self.register_buffer("context_sizes_S2", torch.tensor(context_sizes), persistent=False)

    def forward(self, noise: Callable[[str, int], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Patches of the context and of each target block, and which of the latter are no filling.

        Returns:
            int64 ``(B, kept)`` and ``(B, targets, M)``, bool ``(B, M)``.
        """
        targets_BNM, is_own_BM = block_patches(
            noise("targets", 1 + 2 * self.targets),
            self.target_sizes_S2,
            self.most_in_target,
            self.grid,
        )
        around_B1M, _ = block_patches(
            noise("context", 3), self.context_sizes_S2, self.most_in_context, self.grid
        )
        noise_BL = noise("patches", math.prod(self.grid))
        inside_BM, hidden_BM = around_B1M.flatten(1), targets_BNM.flatten(1)
        return inside_alone(noise_BL, inside_BM, hidden_BM, self.kept), targets_BNM, is_own_BM


def block_sizes(
    scales: tuple[float, float], aspects: tuple[float, float], grid: tuple[int, int]
) -> list[tuple[int, int]]:
    """Heights and widths of blocks, at 1,024 equal steps through both ranges at once (I-JEPA).

    Args:
        scales: shares of the grid's patches.
        aspects: height over width.
        grid: rows and columns.
    """
    sizes = []
    for number in range(_BLOCK_SIZES):
        fraction = (number + 0.5) / _BLOCK_SIZES
        scale, aspect = (low + fraction * (high - low) for low, high in (scales, aspects))
        area = int(math.prod(grid) * scale)
        sides = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        height, width = (min(max(side, 1), most) for side, most in zip(sides, grid, strict=True))
        sizes.append((height, width))
    return sizes


def block_patches(
    noise_BJ: Tensor, sizes_S2: Tensor, most: int, grid: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Blocks anywhere in a grid, all of an image's of one size, drawn for each image.

    Args:
        noise_BJ: uniform in [0, 1): one number for the size, then two for each block.
        sizes_S2: heights and widths to choose from.
        most: patches in the largest of them.

    Returns:
        The patches, row by row, repeating the first of a block to fill it up: int64
        ``(B, (J - 1) / 2, most)``. Which of them do not repeat it: bool ``(B, most)``.
    """
    size_B = (noise_BJ[:, 0] * len(sizes_S2)).long()
    height_B1, width_B1 = sizes_S2[size_B].split(1, dim=1)
    top_BN = (noise_BJ[:, 1::2] * (grid[0] - height_B1 + 1)).long()
    left_BN = (noise_BJ[:, 2::2] * (grid[1] - width_B1 + 1)).long()
    slot_M = torch.arange(most, device=noise_BJ.device)
    is_own_BM = slot_M < height_B1 * width_B1
    slot_BM = slot_M * is_own_BM
    within_BM = slot_BM // width_B1 * grid[1] + slot_BM % width_B1
    return (top_BN * grid[1] + left_BN)[..., None] + within_BM[:, None], is_own_BM


def inside_alone(noise_BL: Tensor, inside_BM: Tensor, hidden_BM: Tensor, kept: int) -> Tensor:
    """Patches that are inside and not hidden, any of them: int64 ``(B, kept)``.

    What is missing comes from outside, and at last from what is hidden.

    Args:
        noise_BL: uniform in [0, 1).
        inside_BM: patches, of which some may be there more than once.
        hidden_BM: likewise.
    """
    nowhere_BL = torch.zeros_like(noise_BL)
    is_inside_BL = nowhere_BL.scatter(1, inside_BM, 1.0)
    is_hidden_BL = nowhere_BL.scatter(1, hidden_BM, 1.0)
    return split(noise_BL - is_inside_BL + 2 * is_hidden_BL, kept)[0]
