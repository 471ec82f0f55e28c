"""Filters of no smallest width: images blurred, moved and distorted by fractions of a pixel.

Shapes: B images, C channels, H and W pixels, K samples of a filter, P and Q pixels of its kernel.
Images are float32, and no operation changes its arguments.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_bench.transforms.functional import gaussian_blur


def gaussian(images_BCHW: Tensor, sigma: float) -> Tensor:
    """`functional.gaussian_blur` of one width for all, in pixels."""
    sigma_B = images_BCHW.new_full((len(images_BCHW),), sigma)
    return gaussian_blur(images_BCHW, sigma_B, math.ceil(3 * sigma))


def streak(images_BCHW: Tensor, angle_B: Tensor, length: float, sigma: float) -> Tensor:
    """The mean along each image's own line, nearer points weighing more: a Gaussian, cut off.

    Args:
        angle_B: of the line to the horizontal, in radians.
        length: where the Gaussian is cut off, on either side, in pixels.
        sigma: its standard deviation in pixels.
    """
    along_K = torch.linspace(-length, length, 4 * math.ceil(length) + 5, device=angle_B.device)
    direction_B2 = torch.stack([angle_B.sin(), angle_B.cos()], dim=1)
    weights_K = (-0.5 * (along_K / sigma) ** 2).softmax(0)
    return average(images_BCHW, along_K[:, None] * direction_B2[:, None], weights_K)


def average(images_BCHW: Tensor, offsets_BK2: Tensor, weights_K: Tensor | None = None) -> Tensor:
    """The weighted mean of bilinear samples at offsets from each pixel, the border repeated.

    Args:
        offsets_BK2: down and to the right, in pixels; one image's do for all, ``(1, K, 2)``.
        weights_K: of each sample, 1 together; the same for all by default.
    """
    samples = offsets_BK2.shape[1]
    weights_K = offsets_BK2.new_full((samples,), 1 / samples) if weights_K is None else weights_K
    radius = math.ceil(offsets_BK2.abs().max().item())
    pixel_P = torch.arange(-radius, radius + 1, device=offsets_BK2.device)
    near_BK2P = (1 - (offsets_BK2[..., None] - pixel_P).abs()).clamp(min=0)
    kernels_BPQ = torch.einsum("k,bkp,bkq->bpq", weights_K, near_BK2P[:, :, 0], near_BK2P[:, :, 1])
    batch, channels = images_BCHW.shape[:2]
    kernels_NPQ = kernels_BPQ.expand(batch, -1, -1).repeat_interleave(channels, dim=0)
    padded_BCHW = F.pad(images_BCHW, (radius,) * 4, mode="replicate")
    averages_1NHW = F.conv2d(
        padded_BCHW.flatten(0, 1)[None], kernels_NPQ[:, None], groups=batch * channels
    )
    return averages_1NHW.view_as(images_BCHW)


def grid(images_BCHW: Tensor) -> Tensor:
    """Where each pixel is, from -1 to 1, to the right and down: ``(1, H, W, 2)``."""
    y, x = (
        (2 * torch.arange(side, device=images_BCHW.device) + 1) / side - 1
        for side in images_BCHW.shape[2:]
    )
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)[None]


def sample(images_BCHW: Tensor, grid_BHW2: Tensor) -> Tensor:
    """The images at places given as `grid` gives them, bilinear, the border reflected."""
    grid_BHW2 = grid_BHW2.expand(len(images_BCHW), -1, -1, -1)
    return F.grid_sample(images_BCHW, grid_BHW2, padding_mode="reflection", align_corners=False)


def displace(images_BCHW: Tensor, shifts_BHW2: Tensor) -> Tensor:
    """Each pixel from somewhere else: shifts to the right and down, in pixels."""
    height, width = images_BCHW.shape[2:]
    units_2 = 2 / shifts_BHW2.new_tensor([width, height])
    return sample(images_BCHW, grid(images_BCHW) + shifts_BHW2 * units_2)
