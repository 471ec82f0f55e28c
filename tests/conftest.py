"""Small data and small settings that tests share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
import timm.layers
import torch
from hypothesis import settings
from PIL import Image

from ssl_bench.data import Dataset, Split, listing
from ssl_bench.data.dataset import fingerprint
from ssl_bench.distributed.device import Hardware
from ssl_bench.models.encoders import EncoderSpec

os.environ.pop("COLUMNS", None)  # pytest-xdist sets it, and tables would be narrow
os.environ["HF_HUB_OFFLINE"] = "1"  # for processes that a test starts
huggingface_hub.constants.HF_HUB_OFFLINE = True
settings.register_profile("ssl-bench", deadline=None)  # a machine may be slow, or busy
settings.load_profile("ssl-bench")
torch.set_num_threads(1)
timm.layers.set_fused_attn(False)  # as on any CPU; a global of timm's that each run sets

CPU = Hardware(torch.device("cpu"), "fp32", "test")
SHAPE = {"depth": 2, "embed_dim": 32, "num_heads": 2}


def held_out(key: bytes) -> bool:
    """Whether the image with this key is of the test fifth, if its class can spare it."""
    return listing.rank(key) < 2**64 // 5


def make_images(count: int, classes: int, size: int, channels: int, seed: int) -> Split:
    """Noise on top of one pattern for each class: easy to learn."""
    generator = np.random.default_rng(seed)
    patterns = np.random.default_rng(0).integers(0, 256, (classes, channels, size, size))
    labels = np.arange(count) % classes
    noise = generator.normal(0, 40, (count, channels, size, size))
    images = (0.5 * patterns[labels] + 64 + noise).clip(0, 255).astype(np.uint8)
    return Split(torch.from_numpy(images), torch.from_numpy(labels))


@pytest.fixture(scope="session")
def tiny() -> Dataset:
    """120 + 40 images of 16 x 16 pixels in three classes."""
    train, test = make_images(120, 3, 16, 3, seed=1), make_images(40, 3, 16, 3, seed=2)
    classes = ("a", "b", "c")
    return Dataset("tiny", train, test, classes, fingerprint(train, test, classes), "", 16)


@pytest.fixture(scope="session")
def spec(tiny: Dataset) -> EncoderSpec:
    """A small encoder for the tiny data: 16 patches of 4 x 4 pixels."""
    return EncoderSpec("vit_micro", 16, 4, 3, tiny.mean, tiny.std)


def write_images(folder: Path) -> Path:
    """The tiny data's like as an ImageFolder of PNG files."""
    for part, count, seed in (("train", 48, 1), ("test", 12, 2)):
        split = make_images(count, 2, 16, 3, seed)
        for index, (image, label) in enumerate(
            zip(split.images_NCHW.permute(0, 2, 3, 1).numpy(), split.labels_N.tolist(), strict=True)
        ):
            path = folder / part / "ab"[label] / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    return folder


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """Such a folder, which a test may spoil."""
    return write_images(tmp_path / "images")


@pytest.fixture
def ssl_bench(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run a command in this process: exit code, standard output, standard error."""
    from ssl_bench.cli import main

    def call(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = main([str(word) for word in words])
        except SystemExit as stop:
            code = 0 if stop.code is None else int(stop.code)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call
