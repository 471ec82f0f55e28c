"""Small data and small settings that tests share."""

from __future__ import annotations

import dataclasses
import functools
import gc
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import timm.layers
import torch
from helpers import make_images, with_masks, write_images
from hypothesis import settings

from ssl_bench.data import Dataset
from ssl_bench.data.dataset import fingerprint
from ssl_bench.models.backbones import EncoderSpec

os.environ.pop("COLUMNS", None)  # pytest-xdist sets it, and tables would be narrow
os.fsync = lambda fd: None  # a disk takes milliseconds; no test is of a power failure
os.environ["HF_HUB_OFFLINE"] = "1"  # for processes that a test starts
huggingface_hub.constants.HF_HUB_OFFLINE = True
settings.register_profile("ssl-bench", deadline=None)  # a machine may be slow, or busy
settings.load_profile("ssl-bench")
torch.set_num_threads(1)
timm.layers.set_fused_attn(False)  # as on any CPU; a global of timm's that each run sets


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests marked ``gpu`` are of a CUDA device."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


def pytest_collection_finish() -> None:
    """What is imported stays; a look through all of it takes a third of a second."""
    gc.freeze()


@pytest.fixture(scope="session")
def tiny() -> Dataset:
    """120 + 40 images of 16 x 16 pixels in three classes; masks have them right of the middle."""
    train, test = make_images(120, 3, 16, 3, seed=1), make_images(40, 3, 16, 3, seed=2)
    classes = ("a", "b", "c")
    first, second = (dataclasses.replace(split, captions=None) for split in (train, test))
    digest = fingerprint(first, second, classes)  # which decides what evaluations draw
    train, test = with_masks(train), with_masks(test)
    named = ("background", *classes)
    return Dataset("tiny", train, test, classes, digest, "", 16, mask_classes=named)


@pytest.fixture(scope="session")
def spec(tiny: Dataset) -> EncoderSpec:
    """A small encoder for the tiny data: 16 patches of 4 x 4 pixels."""
    return EncoderSpec("vit_micro", 16, 4, 3, tiny.mean, tiny.std)


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """Such a folder, which a test may spoil."""
    return write_images(tmp_path / "images")


_drawn: dict[object, bytes] = {}


def draw_once(save: Callable[[Any, Path], None], figure: Any, output: Path) -> None:
    """As `figures._save`, which lays out a figure of the same words and parts but once here."""
    from matplotlib.text import Text

    from ssl_bench.utils.files import atomic

    parts = [
        (type(each), re.sub(r"\d+", "0", each.get_text()) if isinstance(each, Text) else "")
        for each in figure.findobj()
    ]
    key = tuple(figure.get_size_inches()), tuple(parts)
    if key not in _drawn:
        save(figure, output)
        _drawn[key] = output.read_bytes()
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    with atomic(output) as path:
        path.write_bytes(_drawn[key])


@pytest.fixture
def ssl_bench(
    image_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., tuple[int, str, str]]:
    """Run a command in this process: exit code, standard output, standard error."""
    from ssl_bench.cli import main
    from ssl_bench.experiment import figures

    drawn, quickly = figures._save, functools.partial(draw_once, figures._save)

    def call(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        is_picture = words[:1] == ("reconstruct",)  # whose pixels are what it is for
        monkeypatch.setattr(figures, "_save", drawn if is_picture else quickly)
        try:
            code = main([str(word) for word in words])
        except SystemExit as stop:
            code = 0 if stop.code is None else int(stop.code)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def run(
    ssl_bench: Callable[..., tuple[int, str, str]], image_folder: Path, tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    """A training of six steps an epoch in this process, without evaluations."""

    def call(*words: object) -> tuple[int, str, str]:
        return ssl_bench(
            *("run", "--data", image_folder, "--runs-dir", tmp_path / "runs", "--batch-size", 8),
            *("--backbone", "vit_nano", "--evals", "none", "--precision", "fp32", *words),
        )

    return call
