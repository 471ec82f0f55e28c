"""Garments of Fashion-MNIST on canvases, with masks: real data for segmentation with no download.

A canvas of 56 x 56 pixels has two to four garments of one split at random places, the later ones
over the earlier ones; most garments occur on no canvas, some on several. A garment is what is left
of its image when the dark pixels that touch the border, directly or through others, are taken away.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_bench.data import embedded
from ssl_bench.data.dataset import Split
from ssl_bench.utils import rng

CLASSES = ("background", *embedded.CLASSES)
COUNTS = {"train": 2000, "test": 1000}
_SIDE = 56
_FEWEST, _MOST = 2, 4
_DARKEST = 16
"""The darkest pixel that separates a garment from the background, of 255."""


def read(split: str) -> Split:
    """The canvases of split "train" or "test", the same ones on every machine."""
    images_NCHW, labels_N = embedded.read(split)
    count, side = COUNTS[split], images_NCHW.shape[-1]
    generator = rng.generator("canvases", split)
    taken_NG = torch.randint(len(images_NCHW), (count, _MOST), generator=generator)
    corner_NG2 = torch.randint(_SIDE - side + 1, (count, _MOST, 2), generator=generator)
    garments_N = torch.randint(_FEWEST, _MOST + 1, (count,), generator=generator)
    canvases_NSS = torch.zeros(count, _SIDE, _SIDE, dtype=torch.uint8)
    masks_NSS = torch.zeros_like(canvases_NSS)
    along = torch.arange(side)
    for turn in range(_MOST):
        has_turn_K = (garments_N > turn).nonzero()[:, 0]
        taken_K = taken_NG[has_turn_K, turn]
        garments_KHW = images_NCHW[taken_K, 0]
        row_K, column_K = corner_NG2[has_turn_K, turn].unbind(1)
        where = (
            has_turn_K[:, None, None],
            (row_K[:, None] + along)[:, :, None],
            (column_K[:, None] + along)[:, None, :],
        )
        is_garment_KHW = _silhouettes(garments_KHW)
        classes_K11 = (1 + labels_N[taken_K]).to(torch.uint8)[:, None, None]
        canvases_NSS[where] = garments_KHW.where(is_garment_KHW, canvases_NSS[where])
        masks_NSS[where] = classes_K11.where(is_garment_KHW, masks_NSS[where])
    return Split(canvases_NSS[:, None], torch.zeros(count, dtype=torch.int64), masks_NSS)


def _silhouettes(images_NHW: Tensor) -> Tensor:
    """Which pixels are the garment's: bool ``(N, H, W)``."""
    is_dark = F.pad(images_NHW < _DARKEST, (1, 1, 1, 1), value=True)
    outside = torch.zeros_like(is_dark)
    outside[:, 0] = True
    while True:
        grown = outside.clone()
        grown[:, 1:] |= outside[:, :-1]
        grown[:, :-1] |= outside[:, 1:]
        grown[:, :, 1:] |= outside[:, :, :-1]
        grown[:, :, :-1] |= outside[:, :, 1:]
        grown &= is_dark
        if torch.equal(grown, outside):
            return ~outside[:, 1:-1, 1:-1]
        outside = grown
