"""Fifteen ways to corrupt an image, at five severities each: ImageNet-C's, but for its frost.

Hendrycks, Dietterich: *Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations*, ICLR 2019, arXiv:1903.12261, section 3 and appendix B.

Written from the descriptions of the paper and of ``imagecorruptions`` 1.1.2. At 224 pixels they
move an image as far from the clean one as that package's do, within 6 %, which is tested on drawn
scenes; of photographs, results/LOG.md has fog and pixelate up to 12 and 18 % weaker, as fog depends
on its draw and the package's pixelate has cells of whole pixels. `procedural_frost` has a name of
its own, as the published one shows pictures that are not ours. For batches and for any size:
lengths are in units of the image's side, so that a blur of 3 pixels at 224 is one of 0.4 at 28.
Strengths of what is not a length (noise, contrast, JPEG's quality, the share of pixels that
pixelate keeps) are those of the published images of 224 pixels at any size, which corrupts small
images more than the milder CIFAR-10-C does: at other sizes than 224, scores are for comparing
encoders here alone. Nothing is rounded to 8 bits afterwards, nor stored as JPEG. Further deviations
are told by each kind's function.

Every draw is a function of the seed, the kind and the image's index: an image gets the same flakes
or the same direction at each severity, and in whichever batch it comes.

Shapes: B images, C channels (1 or 3), H and W pixels, M and N cells of a coarser grid, K samples of
a filter, P and Q pixels of its kernel.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ssl_bench.transforms.functional import gaussian_blur, luma
from ssl_bench.utils import rng

SEVERITIES = (1, 2, 3, 4, 5)
SMALLEST_SIDE = 16
_PUBLISHED_SIDE = 224
_LEAST_STEPS = 10


@dataclass(frozen=True)
class Noise:
    """The random numbers of a batch for one kind, a generator for each image and purpose.

    They are drawn on the CPU; ``samples`` are indices of the images in the data set.
    """

    seed: int
    kind: str
    samples: Sequence[int]
    device: torch.device

    def generators(self, purpose: str) -> Iterator[torch.Generator]:
        """Each image's own, fresh ones at each call."""
        for sample in self.samples:
            yield rng.generator(self.seed, "corruption", self.kind, purpose, sample)

    def uniform(
        self, purpose: str, *shape: int, draw: Callable[..., Tensor] = torch.rand
    ) -> Tensor:
        """Uniform numbers in [0, 1), or others that ``draw`` gives: float32 ``(B, *shape)``."""
        rows = [draw(shape, generator=each) for each in self.generators(purpose)]
        return torch.stack(rows).to(self.device)

    def normal(self, purpose: str, *shape: int) -> Tensor:
        """Standard normal numbers: float32 ``(B, *shape)``."""
        return self.uniform(purpose, *shape, draw=torch.randn)


def corrupt(images_BCHW: Tensor, kind: str, severity: int, seed: int, samples_B: Tensor) -> Tensor:
    """Corrupt each image by one of `KINDS`, from severity 1 (slight) to 5.

    Images are float32 in [0, 1], of one channel or three, and stay so; ``samples_B`` are their
    int64 indices in their data set.

    Raises:
        ValueError: there is no such kind or severity, or a side has less than 16 pixels.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {[*KINDS]}, not {kind!r}")
    if severity not in SEVERITIES:
        raise ValueError(f"severity must be 1 to 5, not {severity}")
    if min(images_BCHW.shape[2:]) < SMALLEST_SIDE:
        shape = tuple(images_BCHW.shape[2:])
        raise ValueError(f"images must have {SMALLEST_SIDE} pixels or more a side, not {shape}")
    noise = Noise(seed, kind, samples_B.tolist(), images_BCHW.device)
    return KINDS[kind](images_BCHW, severity - 1, noise).clamp(0, 1)


def gaussian_noise(images_BCHW: Tensor, level: int, noise: Noise) -> Tensor:
    """Normal noise, of every channel's own."""
    std = (0.08, 0.12, 0.18, 0.26, 0.38)[level]
    return images_BCHW + std * noise.normal("values", *images_BCHW.shape[1:])


def shot_noise(images_BCHW: Tensor, level: int, noise: Noise) -> Tensor:
    """Poisson noise of a sensor that counts few photons."""
    photons = (60, 25, 12, 5, 3)[level]
    counts = [
        torch.poisson(image_CHW * photons, generator=generator)
        for image_CHW, generator in zip(images_BCHW.cpu(), noise.generators("counts"), strict=True)
    ]
    return torch.stack(counts).to(images_BCHW.device) / photons


def impulse_noise(images_BCHW: Tensor, level: int, noise: Noise) -> Tensor:
    """Salt and pepper: some values become 0 or 1, of every channel's own."""
    share = (0.03, 0.06, 0.09, 0.17, 0.27)[level]
    uniform_BCHW = noise.uniform("impulse", *images_BCHW.shape[1:])
    peppered_BCHW = images_BCHW.masked_fill(uniform_BCHW < share / 2, 0)
    return peppered_BCHW.masked_fill(uniform_BCHW >= 1 - share / 2, 1)


def defocus_blur(images_BCHW: Tensor, level: int, noise: Noise) -> Tensor:
    """The mean over a disk."""
    radius = (3, 4, 6, 8, 10)[level] * _scale(images_BCHW)
    steps = torch.linspace(-1, 1, 33, device=images_BCHW.device)
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    disk_K2 = radius * torch.stack([y, x], -1)[y**2 + x**2 <= 1]
    return average(images_BCHW, disk_K2[None])


def glass_blur(images_BCHW: Tensor, level: int, noise: Noise) -> Tensor:
    """Frosted glass: pixels moved about between two slight blurs.

    From the last pixel to the first, each takes what stands at a random neighbour by then, so that
    some colours travel far.
    """
    sigma, reach, times = ((0.7, 1, 2), (0.9, 2, 1), (1.0, 2, 3), (1.1, 3, 2), (1.5, 4, 2))[level]
    scale = _scale(images_BCHW)
    shifts_BHW2 = scattered(images_BCHW, reach, times, noise)
    glass_BCHW = displace(gaussian(images_BCHW, sigma * scale), shifts_BHW2 * scale)
    return gaussian(glass_BCHW, sigma * scale)


def motion_blur(images_BCHW: Tensor, level: int, noise: Noise) -> Tensor:
    """A camera that moves within 45 degrees of the horizontal, and leaves a fading trace."""
    radius, sigma = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))[level]
    angle_B = (noise.uniform("angle") - 0.5) * math.pi / 2
    scale = _scale(images_BCHW)
    return streak(images_BCHW, angle_B, 2 * radius * scale, sigma * scale)


def zoom_blur(images_BCHW: Tensor, level: int, noise: Noise) -> Tensor:
    """A camera that moves forwards: the mean of the image and growing magnifications of it."""
    most, step = ((11, 1), (15, 1), (20, 2), (24, 2), (30, 3))[level]
    total_BCHW = images_BCHW.clone()
    zooms = [1 + percent / 100 for percent in range(0, most + 1, step)]
    for zoom in zooms:
        total_BCHW += sample(images_BCHW, grid(images_BCHW) / zoom)
    return total_BCHW / (len(zooms) + 1)


def snow(images_BCHW: Tensor, level: int, noise: Noise) -> Tensor:
    """Falling flakes over a whitened image.

    Deviation: flakes are no smaller than a pixel.
    """
    mean, size, least = ((0.1, 3, 0.5), (0.2, 2, 0.5), (0.55, 4, 0.9), (0.55, 4.5, 0.85),
                         (0.55, 2.5, 0.85))[level]  # fmt: skip
    radius, sigma, kept = ((10, 4, 0.8), (12, 4, 0.7), (12, 8, 0.7), (12, 8, 0.65),
                           (12, 12, 0.55))[level]  # fmt: skip
    scale = _scale(images_BCHW)
    cells = [math.ceil(side / max(1.0, size * scale)) for side in images_BCHW.shape[2:]]
    field_B1MN = mean + 0.3 * noise.normal("flakes", 1, *cells)
    field_B1HW = F.interpolate(
        field_B1MN, images_BCHW.shape[2:], mode="bilinear", align_corners=True
    )
    flakes_B1HW = field_B1HW.masked_fill(field_B1HW < least, 0).clamp(0, 1)
    angle_B = -(0.25 + 0.5 * noise.uniform("angle")) * math.pi
    flakes_B1HW = streak(flakes_B1HW, angle_B, 2 * radius * scale, sigma * scale)
    white_BCHW = torch.maximum(images_BCHW, 1.5 * luma(images_BCHW) + 0.5)
    hazy_BCHW = kept * images_BCHW + (1 - kept) * white_BCHW
    return hazy_BCHW + flakes_B1HW + flakes_B1HW.flip(2, 3)


def procedural_frost(images_BCHW: Tensor, level: int, noise: Noise) -> Tensor:
    """Ice crystals on a window, not ImageNet-C's frost, hence the name.

    The crystals are ridges of fractal noise, where the published images show pieces of six pictures
    of ice.
    """
    kept, ice = ((1.0, 0.4), (0.85, 0.55), (0.75, 0.65), (0.65, 0.75), (0.55, 0.85))[level]
    plasmas = [_plasma(images_BCHW, noise, name, 1.5) for name in ("needles", "veins")]
    needles_B1HW = torch.maximum(*(1 - (2 * each - 1).abs() for each in plasmas)) ** 4
    patches_B1HW = (0.4 + 0.8 * _plasma(images_BCHW, noise, "patches", 2.0)).clamp(max=1)
    return kept * images_BCHW + ice * ((0.25 + 0.75 * needles_B1HW) * patches_B1HW)


def fog(images_BCHW: Tensor, level: int, noise: Noise) -> Tensor:
    """Fractal clouds of white; the image darkens behind them."""
    density, decay = ((1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4))[level]
    brightest_B111 = images_BCHW.amax((1, 2, 3), keepdim=True)
    clouds_B1HW = density * diamond_square(images_BCHW, noise, decay**2)
    return (images_BCHW + clouds_B1HW) * brightest_B111 / (brightest_B111 + density)


def brightness(images_BCHW: Tensor, level: int, noise: Noise) -> Tensor:
    """A greater value, at the same hue and saturation."""
    value_B1HW = images_BCHW.amax(1, keepdim=True)
    brighter_B1HW = (value_B1HW + (0.1, 0.2, 0.3, 0.4, 0.5)[level]).clamp(max=1)
    ratio_BCHW = images_BCHW / value_B1HW.clamp(min=1e-6)
    return torch.where(value_B1HW > 1e-6, ratio_BCHW * brighter_B1HW, brighter_B1HW)


def contrast(images_BCHW: Tensor, level: int, noise: Noise) -> Tensor:
    """Less difference to each channel's mean."""
    mean_BC11 = images_BCHW.mean((2, 3), keepdim=True)
    return torch.lerp(mean_BC11, images_BCHW, (0.4, 0.3, 0.2, 0.1, 0.05)[level])


def elastic_transform(images_BCHW: Tensor, level: int, noise: Noise) -> Tensor:
    """Small regions stretched and moved.

    Of ``imagecorruptions`` the smooth field, whose shifts have the root mean square that uniform
    noise of half a hundredth of 224 pixels has after its blur; without ImageNet-C's affine part.
    """
    alpha = 250 * (0.05, 0.065, 0.085, 0.1, 0.12)[level]
    smoothness = 0.01 * _PUBLISHED_SIDE
    rms = alpha * 0.005 * _PUBLISHED_SIDE / 3**0.5 / (2 * math.pi**0.5 * smoothness)
    scale = _scale(images_BCHW)
    noise_B2HW = noise.normal("shifts", 2, *images_BCHW.shape[2:])
    shifts_B2HW = gaussian(noise_B2HW, smoothness * scale)
    rms_B111 = shifts_B2HW.square().mean((1, 2, 3), keepdim=True).sqrt()
    return displace(images_BCHW, (rms * scale * shifts_B2HW / rms_B111).movedim(1, -1))


def pixelate(images_BCHW: Tensor, level: int, noise: Noise) -> Tensor:
    """A lower resolution, shown in squares."""
    share = (0.6, 0.5, 0.4, 0.3, 0.25)[level]
    for side, axis in zip(images_BCHW.shape[2:], (2, 3), strict=True):
        edges_N = torch.arange(side + 1, device=images_BCHW.device) / side
        cells_M = torch.arange(round(share * side) + 1, device=images_BCHW.device)
        cells_M = cells_M / cells_M[-1]
        # How much of each cell is on each pixel.
        overlap_MN = torch.minimum(cells_M[1:, None], edges_N[1:])
        overlap_MN -= torch.maximum(cells_M[:-1, None], edges_N[:-1])
        overlap_MN.clamp_(min=0)
        means_NN = (overlap_MN / overlap_MN.sum(0)).mT @ F.normalize(overlap_MN, p=1, dim=1)
        images_BCHW = (images_BCHW.movedim(axis, -1) @ means_NN.mT).movedim(-1, axis)
    return images_BCHW


def jpeg_compression(images_BCHW: Tensor, level: int, noise: Noise) -> Tensor:
    """JPEG by Pillow, on the CPU, at a low quality."""
    quality = (25, 18, 15, 10, 7)[level]
    pixels_BHWC = (images_BCHW.cpu() * 255).round().byte().movedim(1, -1)
    corrupted = []
    for pixels_HWC in pixels_BHWC.numpy():
        buffer = io.BytesIO()
        Image.fromarray(pixels_HWC.squeeze(-1) if pixels_HWC.shape[-1] == 1 else pixels_HWC).save(
            buffer, "JPEG", quality=quality
        )
        corrupted.append(np.asarray(Image.open(buffer)).reshape(pixels_HWC.shape))
    corrupted_BCHW = torch.from_numpy(np.stack(corrupted)).movedim(-1, 1).to(images_BCHW.device)
    return corrupted_BCHW.float() / 255


KINDS: Mapping[str, Callable[[Tensor, int, Noise], Tensor]] = {
    kind.__name__: kind
    for kind in (
        gaussian_noise, shot_noise, impulse_noise,
        defocus_blur, glass_blur, motion_blur, zoom_blur,
        snow, procedural_frost, fog, brightness,
        contrast, elastic_transform, pixelate, jpeg_compression,
    )
}  # fmt: skip
"""Every kind by name, in the paper's order: noise, blur, weather, digital. Each function takes the
images, the severity less one and the random numbers."""


def _scale(images_BCHW: Tensor) -> float:
    """Pixels for a pixel of the published images."""
    return min(images_BCHW.shape[2:]) / _PUBLISHED_SIDE


def _plasma(images_BCHW: Tensor, noise: Noise, name: str, decay: float) -> Tensor:
    """Fractal noise from 0 to 1: ``(B, 1, H, W)``; each finer part is ``decay`` times weaker."""
    size = images_BCHW.shape[2:]
    octaves = math.ceil(math.log2(max(size)))
    total_B1HW = torch.zeros_like(images_BCHW[:, :1])
    for octave in range(1, octaves + 1):
        cells = [min(side, 2**octave + 1) for side in size]
        noise_B1MN = noise.uniform(f"{name} {octave}", 1, *cells) - 0.5
        smooth_B1HW = F.interpolate(noise_B1MN, size, mode="bicubic")
        total_B1HW += smooth_B1HW * decay**-octave
    low_B111, high_B111 = (f((1, 2, 3), keepdim=True) for f in (total_B1HW.amin, total_B1HW.amax))
    return (total_B1HW - low_B111) / (high_B111 - low_B111)


def gaussian(images_BCHW: Tensor, sigma: float) -> Tensor:
    """`functional.gaussian_blur` of one width for all, in pixels."""
    sigma_B = images_BCHW.new_full((len(images_BCHW),), sigma)
    return gaussian_blur(images_BCHW, sigma_B, math.ceil(3 * sigma))


def streak(images_BCHW: Tensor, angle_B: Tensor, length: float, sigma: float) -> Tensor:
    """The mean along a line from each pixel onwards, nearer points weighing more: half a Gaussian.

    The angles to the horizontal are in radians, each image's own; length and sigma in pixels. The
    border is repeated.
    """
    steps = math.ceil(max(length, 2 * _LEAST_STEPS))
    along_K = torch.linspace(0, length, steps + 1, device=angle_B.device)
    weights_K = (-0.5 * (along_K / sigma) ** 2).softmax(0)
    direction_B2 = torch.stack([angle_B.cos(), angle_B.sin()], dim=1)[:, None, None]
    total_BCHW = torch.zeros_like(images_BCHW)
    for along, weight in zip(along_K, weights_K, strict=True):
        shifts_BHW2 = (along * direction_B2).expand(-1, *images_BCHW.shape[2:], -1)
        total_BCHW += weight * displace(images_BCHW, shifts_BHW2, padding="border")
    return total_BCHW


def scattered(images_BCHW: Tensor, reach: int, times: int, noise: Noise) -> Tensor:
    """Where each pixel's colour comes from, after so many passes: shifts, ``(B, H, W, 2)``.

    In a pass every pixel but those at the border, the last one first, takes the colour that stands
    up to ``reach`` pixels before it or less than that behind it, in each direction.
    """
    height, width = images_BCHW.shape[2:]
    y_HW, x_HW = torch.meshgrid(
        *(torch.arange(side, device=images_BCHW.device) for side in (height, width)), indexing="ij"
    )
    inner_HW = (y_HW > reach) & (y_HW <= height - reach)
    inner_N = (inner_HW & (x_HW > reach) & (x_HW <= width - reach)).flatten()
    own_N = torch.arange(height * width, device=images_BCHW.device)
    source_BN = own_N.expand(len(images_BCHW), -1)
    for number in range(times):
        draws_BHW2 = noise.uniform(f"glass {number}", height, width, 2)
        steps_BHW2 = (2 * reach * draws_BHW2).long() - reach
        taken_BN = own_N + (steps_BHW2[..., 1] * width + steps_BHW2[..., 0]).flatten(1)
        taken_BN = torch.where(inner_N, taken_BN, own_N)
        # What is further on has been replaced by then: its own source is followed, and so on.
        moved_again_BN = inner_N[taken_BN] & (taken_BN > own_N)
        while moved_again_BN.any():
            further_BN = taken_BN.gather(1, taken_BN)
            still_BN = moved_again_BN & moved_again_BN.gather(1, taken_BN)
            taken_BN = torch.where(moved_again_BN, further_BN, taken_BN)
            moved_again_BN = still_BN
        source_BN = source_BN.gather(1, taken_BN)
    shifts_BN2 = torch.stack([source_BN % width - own_N % width,
                              source_BN // width - own_N // width], dim=-1)  # fmt: skip
    return shifts_BN2.unflatten(1, (height, width)).float()


def diamond_square(images_BCHW: Tensor, noise: Noise, decay: float) -> Tensor:
    """Fractal clouds from 0 to 1 by the diamond-square algorithm on a torus: ``(B, 1, H, W)``.

    Each halving of the distance between points divides their random part by ``decay``.
    """
    batch, height, width = len(images_BCHW), *images_BCHW.shape[2:]
    size = step = 2 ** (max(height, width) - 1).bit_length()
    heights_BNN = images_BCHW.new_zeros(batch, size, size)
    strength = 1.0
    while step >= 2:
        half, cells = step // 2, size // step
        for_squares, for_rows, for_columns = (
            strength * (2 * noise.uniform(f"clouds {step}", 3, cells, cells) - 1)
        ).unbind(1)
        corners = heights_BNN[:, ::step, ::step].clone()
        below = corners + corners.roll(-1, 1)
        centers = (below + below.roll(-1, 2)) / 4 + for_squares
        heights_BNN[:, half::step, half::step] = centers
        beside = corners + corners.roll(-1, 2) + centers + centers.roll(1, 1)
        heights_BNN[:, ::step, half::step] = beside / 4 + for_rows
        under = below + centers + centers.roll(1, 2)
        heights_BNN[:, half::step, ::step] = under / 4 + for_columns
        step, strength = half, strength / decay
    low_B11, high_B11 = (f((1, 2), keepdim=True) for f in (heights_BNN.amin, heights_BNN.amax))
    return ((heights_BNN - low_B11) / (high_B11 - low_B11))[:, None, :height, :width]


def average(images_BCHW: Tensor, offsets_BK2: Tensor) -> Tensor:
    """The mean of bilinear samples at offsets from each pixel, the border repeated.

    Offsets are down and to the right, in pixels; one image's do for all, ``(1, K, 2)``.
    """
    samples = offsets_BK2.shape[1]
    weights_K = offsets_BK2.new_full((samples,), 1 / samples)
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


def sample(
    images_BCHW: Tensor, grid_BHW2: Tensor, padding: Literal["reflection", "border"] = "reflection"
) -> Tensor:
    """The images at places given as `grid` gives them, bilinear."""
    grid_BHW2 = grid_BHW2.expand(len(images_BCHW), -1, -1, -1)
    return F.grid_sample(images_BCHW, grid_BHW2, padding_mode=padding, align_corners=False)


def displace(
    images_BCHW: Tensor,
    shifts_BHW2: Tensor,
    padding: Literal["reflection", "border"] = "reflection",
) -> Tensor:
    """Each pixel from somewhere else: shifts to the right and down, in pixels."""
    height, width = images_BCHW.shape[2:]
    units_2 = 2 / shifts_BHW2.new_tensor([width, height])
    return sample(images_BCHW, grid(images_BCHW) + shifts_BHW2 * units_2, padding)
