"""Images a second from JPEG files to normalised crops: ``python -m benchmarks.loading``.

RandomResizedCrop to 224 pixels (scale 0.08 to 1, bilinear), mirrored or not, normalised, in batches
of 64, with two workers. Everyone reads the same files, which lie in the system's cache after the
first pass. The peers are given their better batch size: 256 slows their workers' shared memory.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
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
SIZES = ((500, 375), (1600, 1200))
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
            return measure(name, seconds, photographs(Path(temporary), *SIZES[0]))
    batches = _ours(folder) if name == "ours" else _theirs(folder, own=name == "torchvision-own")
    for _ in range(8):
        next(batches)
    images, started = 0, time.perf_counter()
    while (passed := time.perf_counter() - started) < seconds:
        images += len(next(batches))
    return {"images_per_second": images / passed}


def photographs(folder: Path, width: int, height: int, count: int = 0) -> Path:
    """A folder of JPEG files of smooth noise with some grain, which compress as photographs do."""
    import numpy as np
    from PIL import Image

    count = count or max(64, min(512, 10**8 // (width * height)))
    generator = np.random.default_rng(0)
    for number in range(count + 4):
        part = "train" if number < count else "test"
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


def run(name: str, seconds: float, folder: Path) -> dict[str, float]:
    """`measure`, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.loading", "--measure", name]
    done = subprocess.run(
        [*command, "--seconds", str(seconds), "--folder", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{name} on {folder} failed: {done.stderr.strip()[-500:]}")
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def main() -> None:
    """All contestants in turn, over several rounds; medians and ratios."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loading", description=__doc__)
    parser.add_argument("--folder", type=Path, help="train/CLASS/*.jpg; default: synthetic ones")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="of measuring, in each round")
    parser.add_argument("--measure", choices=NAMES, help="one contestant alone, as JSON")
    words = parser.parse_args()
    if words.measure:
        # As the command line has it: threads that wait by spinning take the workers' cores.
        os.environ.setdefault("GOMP_SPINCOUNT", "5000")
        print(json.dumps(measure(words.measure, words.seconds, words.folder)))
        sys.stdout.flush()
        os._exit(0)  # a DataLoader's workers need no farewell
    if words.folder:
        _compare(words.folder.name, words.folder, words.rounds, words.seconds)
        return
    for width, height in SIZES:
        with tempfile.TemporaryDirectory() as temporary:
            folder = photographs(Path(temporary), width, height)
            _compare(f"{width} x {height}", folder, words.rounds, words.seconds)


def _compare(title: str, folder: Path, rounds: int, seconds: float) -> None:
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in NAMES}
    for _ in range(rounds):
        for name, results in measured.items():
            results.append(run(name, seconds, folder))
    print(title)
    ours = [result["images_per_second"] for result in measured["ours"]]
    for name, results in measured.items():
        speeds = [result["images_per_second"] for result in results]
        ratios = [mine / theirs for mine, theirs in zip(ours, speeds, strict=True)]
        print(
            f"  {NAMES[name]:<60} {statistics.median(speeds):8,.0f} img/s "
            f"({min(speeds):,.0f} to {max(speeds):,.0f}); "
            f"ours / this {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        )


if __name__ == "__main__":
    main()
