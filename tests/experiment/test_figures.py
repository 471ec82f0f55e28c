"""Pictures of a run: their pixels, and that no word of theirs is cut off."""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg

from ssl_bench.experiment import figures
from ssl_bench.models.backbones import EncoderSpec
from ssl_bench.transforms.augmentations import normalize


def test_pixels_are_what_they_were_before_images_were_normalised() -> None:
    spec = EncoderSpec("vit_micro", 16, 4, 3, (0.2, 0.4, 0.6), (0.1, 0.2, 0.3))
    images = torch.rand(2, 3, 16, 16)
    found = torch.from_numpy(figures.to_pixels(normalize(images, spec.mean, spec.std), spec))
    torch.testing.assert_close(found.permute(0, 3, 1, 2), images, rtol=0, atol=1e-6)


@pytest.mark.parametrize("count,frames", [(1, 1), (10, 1), (30, 1), (1, 8), (4, 8)])
def test_every_text_of_a_picture_is_inside_of_it(
    count: int, frames: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = EncoderSpec("vit_micro", 28, 7, 1, (0.5,), (0.25,), frames=frames)
    rows = {
        name: torch.zeros(count, 1, 28, 28 * frames)
        for name in ("original", "reconstructed\n(own mean, std)")
    }
    seen: list[matplotlib.figure.Figure] = []
    monkeypatch.setattr(figures, "_save", lambda figure, output: seen.append(figure))
    title = "mae_visualize_vit_large.pth, mask ratio 0.75, seed 0"
    figures.picture_rows(rows, spec, title, tmp_path / "picture.png")
    [figure] = seen
    FigureCanvasAgg(figure).draw()
    texts = [axis.yaxis.label for axis in figure.axes if axis.get_ylabel()]
    lines = count if frames > 1 else math.ceil(count / 12)
    assert len(texts) == 2 * lines and figure.bbox.width < 1500
    assert sum(len(axis.images) for axis in figure.axes) == 2 * count
    assert figure.get_suptitle().replace("\n", " ") == title
    for text in (*texts, figure._suptitle):  # type: ignore[attr-defined]
        box = text.get_window_extent()
        assert box.x0 >= 0 and box.y0 >= 0, text
        assert box.x1 <= figure.bbox.width and box.y1 <= figure.bbox.height, text
