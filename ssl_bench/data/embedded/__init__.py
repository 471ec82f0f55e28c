"""Fashion-MNIST, shipped with the package: real data with no download. See README.md here."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

CLASSES: tuple[str, ...] = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

_FOLDER = Path(__file__).parent


def read(split: str) -> tuple[Tensor, Tensor]:
    """Images uint8 ``(N, 1, 28, 28)`` and labels int64 ``(N,)`` of split "train" or "test"."""
    with Image.open(_FOLDER / f"{split}-images.png") as atlas:
        images_NCHW = np.array(atlas).reshape(-1, 1, 28, 28)
    labels_N = np.frombuffer(gzip.decompress((_FOLDER / f"{split}-labels.gz").read_bytes()), "u1")
    return torch.from_numpy(images_NCHW), torch.from_numpy(labels_N.astype(np.int64))
