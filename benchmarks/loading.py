"""Images a second from JPEG files to normalised crops: the part ``loading``.

RandomResizedCrop to 224 pixels (scale 0.08 to 1, bilinear), mirrored or not, normalised, in batches
of 64, with two workers. Everyone reads the same files, which lie in the system's cache after the
first pass. The peers are given their better batch size: 256 slows their workers' shared memory.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

NAMES: Mapping[str, str] = {
    "ours": "ssl-bench, streamed",
    "torchvision": "torchvision's ImageFolder, Pillow",
    "torchvision-own": "torchvision's ImageFolder, its own decoder, transforms.v2",
}
_PHOTOGRAPHS, _SIDES = 512, (500, 375)
_BATCH, _SIZE, _WORKERS = 64, 224, 2
_MEAN, _STD = (0.5, 0.45, 0.4), (0.25, 0.25, 0.25)


def measure(name: str, seconds: float, folder: Path | None = None) -> dict[str, float]:
    """One contestant for some seconds, in this process, as fast as its OpenMP threads let it.

    Args:
        name: a key of `NAMES`.
        seconds: how long to measure, after a first pass over some batches.
        folder: ``train/CLASS/*.jpg`` and ``test/CLASS/*.jpg``; synthetic photographs by default.

    Returns:
        ``images_per_second``.
    """
    if folder is None:
        with tempfile.TemporaryDirectory() as temporary:
            return measure(name, seconds, _photographs(Path(temporary)))
    batches = _ours(folder) if name == "ours" else _theirs(folder, own=name == "torchvision-own")
    for _ in range(8):
        next(batches)
    images, started = 0, time.perf_counter()
    while (passed := time.perf_counter() - started) < seconds:
        images += len(next(batches))
    return {"images_per_second": images / passed}


def _photographs(folder: Path) -> Path:
    """A folder of JPEG files of smooth noise with some grain, which compress as photographs do."""
    import numpy as np
    from PIL import Image

    width, height = _SIDES
    generator = np.random.default_rng(0)
    for number in range(_PHOTOGRAPHS + 4):
        part = "train" if number < _PHOTOGRAPHS else "test"
        path = folder / part / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = generator.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
        smooth = np.asarray(
            Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        )
        grain = generator.normal(0, 4, (height, width, 1))
        pixels = (np.asarray(smooth) + grain).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(path, quality=90)
    return folder


def _ours(folder: Path) -> Iterator[Any]:
    import torch

    from ssl_bench import data
    from ssl_bench.distributed import device
    from ssl_bench.transforms.augmentations import Augmentation, normalize
    from ssl_bench.transforms.loader import views
    from ssl_bench.utils import rng

    device.choose()
    train = data.load(str(folder), _SIZE, storage="stream").train
    recipe = Augmentation(_SIZE, (0.08, 1.0), interpolation="bilinear")

    def steps() -> Iterator[rng.SampleRng]:
        step = 0
        while True:
            for index_B in torch.randperm(len(train)).split(_BATCH):
                if len(index_B) == _BATCH:
                    yield rng.SampleRng(0, step, index_B)
                    step += 1

    for _, (view,) in views(train, [recipe], steps()):
        yield normalize(view, _MEAN, _STD, in_place=True)


def _theirs(folder: Path, own: bool) -> Iterator[Any]:
    import torch
    from torch.utils.data import DataLoader
    from torchvision import datasets, io, transforms
    from torchvision.transforms import v2

    if own:
        transform: Any = v2.Compose(
            [
                v2.RandomResizedCrop(_SIZE, antialias=True),
                v2.RandomHorizontalFlip(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(_MEAN, _STD),
            ]
        )
        arguments: Any = {"loader": lambda path: io.decode_image(path, io.ImageReadMode.RGB)}
    else:
        transform = transforms.Compose(
            [
                transforms.RandomResizedCrop(_SIZE),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(_MEAN, _STD),
            ]
        )
        arguments = {}
    loader = DataLoader(
        datasets.ImageFolder(str(folder / "train"), transform, **arguments),
        batch_size=_BATCH,
        shuffle=True,
        drop_last=True,
        num_workers=_WORKERS,
        persistent_workers=True,
    )
    while True:
        for images_BCHW, _ in loader:
            yield images_BCHW
