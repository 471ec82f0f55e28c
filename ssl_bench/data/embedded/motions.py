"""Clips of garments of Fashion-MNIST in motion: video with no download, whose class is the motion.

A clip of 16 x 16 pixels has one garment of one split. It is drawn at 32 x 32 and then halved, so
that small encoders learn from patches of 4 pixels within minutes. The square is a torus: what
leaves it on one side comes back on the other. The garment has a place, an angle and a size, drawn
independently of the class, and the class says which of them changes in time, and how. At every
moment each of them is uniform, the size in its logarithm, whatever the class: no single frame tells
anything of it, nor does the garment.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_bench.data import embedded
from ssl_bench.data.dataset import Split
from ssl_bench.data.sampling import Sampling
from ssl_bench.utils import rng

COUNTS = {"train": 6000, "test": 2000}
LENGTH = 16
"""Frames of a whole clip."""
USUAL = Sampling(frames=8, stride=2)
_MOTIONS = {
    "right": (1, 0, 0, 0),
    "left": (-1, 0, 0, 0),
    "down": (0, 1, 0, 0),
    "up": (0, -1, 0, 0),
    "clockwise": (0, 0, 1, 0),
    "counter-clockwise": (0, 0, -1, 0),
    "growing": (0, 0, 0, 1),
    "shrinking": (0, 0, 0, -1),
    "bouncing sideways": (1, 0, 0, 0),
    "bouncing up and down": (0, 1, 0, 0),
}
"""What changes: column, row, angle, size."""
CLASSES = tuple(_MOTIONS)
_SIDE = 32
"""Of the square in the pixels that it is drawn in."""
_HALVED = _SIDE // 2
_SIZES = 0.4, 0.75
"""Of a garment, as a share of its image's; one of the largest still fits the torus, turned."""
_SPEEDS = 0.75, 1.5
"""In pixels a frame, of 32 across the square and of 28 in a turn; what has grown from the smallest
size to the largest in 16 is small again, and the other way round."""
_UNITS = 32, 32, 28, 16
_UNTIL_TURN = 7
"""Frames until what bounces turns back."""
_AT_ONCE = 250


def read(split: str, sampling: Sampling) -> Split:
    """The clips of split "train" or "test", the same ones on every machine.

    Raises:
        UserError: the frames that are wanted span more than a clip has.
    """
    first = sampling.centre(LENGTH, "a clip of fashion-motions")
    time_F = first + sampling.stride * torch.arange(sampling.frames, dtype=torch.float64)
    count, generator = COUNTS[split], rng.generator("motions", split)
    images_NCHW, _ = embedded.read(split)
    garments_NCHW = images_NCHW[torch.randperm(len(images_NCHW), generator=generator)[:count]]
    labels_N = torch.randperm(count, generator=generator) % len(CLASSES)
    drawn_N6 = torch.rand(count, 6, dtype=torch.float64, generator=generator)
    clips_NFSS = torch.empty(count, sampling.frames, _HALVED, _HALVED, dtype=torch.uint8)
    for part in torch.arange(count).split(_AT_ONCE):
        poses_BF4 = _poses(labels_N[part], drawn_N6[part], time_F)
        clips_NFSS[part] = _drawn(garments_NCHW[part], poses_BF4)
    return Split(clips_NFSS, labels_N, frames=sampling.frames)


def _poses(labels_B: Tensor, drawn_B6: Tensor, time_F: Tensor) -> Tensor:
    """Column, row, angle and size, in [0, 1) of their range: ``(B, F, 4)``.

    Args:
        drawn_B6: uniform in [0, 1): these four at the start, the speed, and the phase of a bounce.
    """
    start_B4, speed_B1, phase_B1 = drawn_B6.split([4, 1, 1], dim=1)
    speed_B1 = _SPEEDS[0] + (_SPEEDS[1] - _SPEEDS[0]) * speed_B1
    wave_BF = 2 * ((time_F / (2 * _UNTIL_TURN) + phase_B1) % 1 - 0.5).abs()
    bounces_B1 = torch.tensor([name.startswith("bouncing") for name in CLASSES])[labels_B, None]
    moved_BF = speed_B1 * torch.where(bounces_B1, _UNTIL_TURN * wave_BF, time_F)
    along_B4 = torch.tensor([*_MOTIONS.values()], dtype=torch.float64)[labels_B]
    along_B4 = along_B4 / torch.tensor(_UNITS)
    return (start_B4[:, None] + along_B4[:, None] * moved_BF[..., None]) % 1


def _drawn(garments_B1HW: Tensor, poses_BF4: Tensor) -> Tensor:
    """The frames, uint8 ``(B, F, S, S)``: bilinear, then halved by means of four pixels, all in
    float64, alike on every machine."""
    column, row, turn, size = poses_BF4[..., None, None].unbind(2)
    pixel_S = torch.arange(_SIDE, dtype=torch.float64) + 0.5

    def apart(place: Tensor, pixel: Tensor) -> Tensor:
        """From the garment's centre to a pixel, the short way round the torus."""
        return (pixel - place * _SIDE + _SIDE / 2) % _SIDE - _SIDE / 2

    x_BF1S, y_BFS1 = apart(column, pixel_S), apart(row, pixel_S[:, None])
    scale = _SIZES[0] * (_SIZES[1] / _SIZES[0]) ** size * garments_B1HW.shape[-1] / 2
    cosine, sine = (2 * math.pi * turn).cos() / scale, (2 * math.pi * turn).sin() / scale
    grid_BFSS2 = torch.stack(
        [x_BF1S * cosine + y_BFS1 * sine, y_BFS1 * cosine - x_BF1S * sine], dim=-1
    )
    frames_B1KS = F.grid_sample(
        garments_B1HW.double(), grid_BFSS2.flatten(1, 2), align_corners=False
    )
    frames_BFSS = F.avg_pool2d(frames_B1KS.view(*poses_BF4.shape[:2], _SIDE, _SIDE), 2)
    return frames_BFSS.round().to(torch.uint8)
