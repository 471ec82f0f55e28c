"""Pictures of a run, as PNG files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from torch import Tensor

from ssl_bench.encoders import EncoderSpec
from ssl_bench.files import atomic

matplotlib.use("Agg")
from matplotlib import pyplot as plt

_DOTS_PER_INCH = 150
_MASKED = 0.55


def loss_curve(metrics: Path, title: str, output: Path) -> None:
    """The training loss and the learning rate by epoch, from a run's ``metrics.jsonl``."""
    records = pd.read_json(metrics, lines=True)
    with sns.axes_style("whitegrid"):
        figure, (top, bottom) = plt.subplots(
            2, 1, figsize=(6, 4.5), sharex=True, height_ratios=(3, 1), layout="constrained"
        )
        sns.lineplot(records, x="epoch", y="loss", ax=top)
        sns.lineplot(records, x="epoch", y="learning_rate", ax=bottom, color="0.4")
    top.set(title=title, ylabel="training loss")
    bottom.set(xlabel="epoch", ylabel="learning rate")
    _save(figure, output)


def picture_rows(rows: Mapping[str, Tensor], spec: EncoderSpec, title: str, output: Path) -> None:
    """Rows of images under their titles.

    Args:
        rows: normalised float ``(B, C, H, W)`` by title; NaN pixels are drawn grey.
        spec: whose mean and standard deviation undo the normalisation.
    """
    count = len(next(iter(rows.values())))
    figure, axes = plt.subplots(
        len(rows),
        count,
        figsize=(count, len(rows) * 1.08 + 0.3),
        squeeze=False,
        layout="constrained",
    )
    for row_axes, (name, images) in zip(axes, rows.items(), strict=True):
        pixels = to_pixels(images, spec)
        for axis, image in zip(row_axes, pixels, strict=True):
            axis.imshow(image, interpolation="nearest")
            axis.set(xticks=[], yticks=[], frame_on=False)
        row_axes[0].set_ylabel(name)
    figure.suptitle(title, fontsize="medium")
    _save(figure, output)


def to_pixels(images_BCHW: Tensor, spec: EncoderSpec) -> np.ndarray:
    """Undo the normalisation: float ``(B, H, W, 3)`` in [0, 1], grey where a pixel is NaN."""
    images = images_BCHW.detach().float().cpu().permute(0, 2, 3, 1).numpy()
    images = images * np.array(spec.std, dtype=np.float32) + np.array(spec.mean, dtype=np.float32)
    images = np.where(np.isnan(images), _MASKED, images).clip(0, 1)
    return np.broadcast_to(images, (*images.shape[:3], 3)) if spec.channels == 1 else images


def _save(figure: plt.Figure, output: Path) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    with atomic(output) as path:
        figure.savefig(path, dpi=_DOTS_PER_INCH, format="png")
    plt.close(figure)
