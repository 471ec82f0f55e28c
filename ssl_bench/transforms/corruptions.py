"""Fifteen ways to corrupt an image, at five severities each: those of ImageNet-C.

Hendrycks, Dietterich: *Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations*, ICLR 2019, arXiv:1903.12261, section 3 and appendix B.

Written from the paper's descriptions, for batches and for any size. Lengths are in units of the
image's side, so that a blur of 3 pixels at 224 is one of 0.4 at 28: filters are averages of
bilinear samples, which have no smallest width. Strengths of what is not a length (noise, contrast,
JPEG's quality, the share of pixels that pixelate keeps) are about those of the published images of
224 pixels at any size, which corrupts small images more than the milder CIFAR-10-C does: scores are
for comparing encoders here, not with published ones. Each severity is stronger than the one before.
Nothing is rounded to 8 bits afterwards, nor stored as JPEG. Further deviations are told by each
kind's function.

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

    Deviation: each pixel shows a random neighbour, all at once and twice, where the published
    images swap neighbours one after the other. Shifts may be by fractions of a pixel.
    """
    sigma, reach = ((0.7, 1.5), (0.9, 2.2), (1.0, 3.0), (1.2, 3.8), (1.5, 4.7))[level]
    scale = _scale(images_BCHW)
    glass_BCHW = gaussian(images_BCHW, sigma * scale)
    height, width = images_BCHW.shape[2:]
    for uniform_BHW2 in noise.uniform("glass", 2, height, width, 2).unbind(1):
        glass_BCHW = displace(glass_BCHW, (2 * uniform_BHW2 - 1) * reach * scale)
    return gaussian(glass_BCHW, sigma * scale)


def motion_blur(images_BCHW: Tensor, level: int, noise: Noise) -> Tensor:
    """A camera that moves: the mean along a line within 45 degrees of the horizontal."""
    length, sigma = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))[level]
    angle_B = (noise.uniform("angle") - 0.5) * math.pi / 2
    scale = _scale(images_BCHW)
    return streak(images_BCHW, angle_B, length * scale, sigma * scale)


def zoom_blur(images_BCHW: Tensor, level: int, noise: Noise) -> Tensor:
    """A camera that moves forwards: the mean over growing magnifications of the middle."""
    most = (0.11, 0.16, 0.21, 0.26, 0.33)[level]
    zooms = torch.linspace(1, 1 + most, 12).tolist()
    mean_BCHW = torch.zeros_like(images_BCHW)
    for zoom in zooms:
        mean_BCHW += sample(images_BCHW, grid(images_BCHW) / zoom)
    return mean_BCHW / len(zooms)


def snow(images_BCHW: Tensor, level: int, noise: Noise) -> Tensor:
    """Falling flakes over a whitened image.

    Deviation: flakes have one size, which is no smaller than a pixel, and become more and more.
    """
    share, length = ((0.015, 8), (0.03, 10), (0.045, 12), (0.06, 12), (0.08, 12))[level]
    kept = (0.80, 0.72, 0.66, 0.60, 0.54)[level]
    scale = _scale(images_BCHW)
    cells = [math.ceil(side / max(1.0, 3 * scale)) for side in images_BCHW.shape[2:]]
    flakes_B1MN = (noise.uniform("flakes", 1, *cells) < share).float()
    flakes_B1HW = F.interpolate(flakes_B1MN, images_BCHW.shape[2:], mode="bilinear")
    angle_B = -(0.25 + 0.5 * noise.uniform("angle")) * math.pi
    flakes_B1HW = streak(flakes_B1HW, angle_B, length * scale, length / 2 * scale)
    white_BCHW = torch.maximum(images_BCHW, 1.5 * luma(images_BCHW) + 0.5)
    hazy_BCHW = kept * images_BCHW + (1 - kept) * white_BCHW
    return hazy_BCHW + flakes_B1HW + flakes_B1HW.flip(2, 3)


def frost(images_BCHW: Tensor, level: int, noise: Noise) -> Tensor:
    """Ice crystals on a window.

    Deviation: the crystals are procedural, ridges of fractal noise, where the published images
    show pieces of pictures of ice.
    """
    kept, ice = ((1.0, 0.4), (0.85, 0.55), (0.75, 0.65), (0.65, 0.75), (0.55, 0.85))[level]
    plasmas = [_plasma(images_BCHW, noise, name, 1.5) for name in ("needles", "veins")]
    needles_B1HW = torch.maximum(*(1 - (2 * each - 1).abs() for each in plasmas)) ** 4
    patches_B1HW = (0.4 + 0.8 * _plasma(images_BCHW, noise, "patches", 2.0)).clamp(max=1)
    return kept * images_BCHW + ice * ((0.25 + 0.75 * needles_B1HW) * patches_B1HW)


def fog(images_BCHW: Tensor, level: int, noise: Noise) -> Tensor:
    """Fractal clouds of white; the image darkens behind them.

    Deviation: clouds are a sum of smooth noise of doubling fineness, where the published images
    have the diamond-square algorithm's.
    """
    density, decay = ((1.2, 2.0), (1.6, 1.9), (2.1, 1.8), (2.8, 1.7), (3.8, 1.6))[level]
    brightest_B111 = images_BCHW.amax((1, 2, 3), keepdim=True)
    clouds_B1HW = density * _plasma(images_BCHW, noise, "clouds", decay)
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

    Deviation: a smooth field of shifts that grows with severity, without the published images'
    affine part, whose severities differ in kind.
    """
    amplitude, smoothness = (0.008, 0.013, 0.018, 0.024, 0.030)[level], 0.05
    side = min(images_BCHW.shape[2:])
    noise_B2HW = noise.normal("shifts", 2, *images_BCHW.shape[2:])
    shifts_B2HW = gaussian(noise_B2HW, smoothness * side)
    rms_B111 = shifts_B2HW.square().mean((1, 2, 3), keepdim=True).sqrt()
    return displace(images_BCHW, (amplitude * side * shifts_B2HW / rms_B111).movedim(1, -1))


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
        snow, frost, fog, brightness,
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
    """The mean along each image's own line, nearer points weighing more: a Gaussian, cut off.

    The angles to the horizontal are in radians; length, on either side, and sigma in pixels.
    """
    along_K = torch.linspace(-length, length, 4 * math.ceil(length) + 5, device=angle_B.device)
    direction_B2 = torch.stack([angle_B.sin(), angle_B.cos()], dim=1)
    weights_K = (-0.5 * (along_K / sigma) ** 2).softmax(0)
    return average(images_BCHW, along_K[:, None] * direction_B2[:, None], weights_K)


def average(images_BCHW: Tensor, offsets_BK2: Tensor, weights_K: Tensor | None = None) -> Tensor:
    """The weighted mean of bilinear samples at offsets from each pixel, the border repeated.

    Offsets are down and to the right, in pixels; one image's do for all, ``(1, K, 2)``. Weights are
    1 together, the same for all samples by default.
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
