"""What is drawn for a view, in which order it is applied, and that methods take published views."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ssl_bench.transforms import functional
from ssl_bench.transforms.augmentations import Augmentation, augment
from ssl_bench.utils.rng import SampleRng


def images(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, 24, 24), generator=generator, dtype=torch.uint8)


def views(images_BCHW: Tensor, **recipe: Any) -> Tensor:
    plain = {"size": images_BCHW.shape[-1], "crop_scale": None, "flip": 0.0}
    draws = SampleRng(0, 0, torch.arange(len(images_BCHW)))
    return augment(images_BCHW, Augmentation(**(plain | recipe)), draws)


def test_grey_comes_before_the_blur_and_the_blur_before_solarisation() -> None:
    pixels = images(4)
    ours = views(pixels, grayscale=1.0, blur=1.0, blur_sigma=(1.0, 1.0), solarize=1.0)
    grey = functional.to_grayscale(pixels / 255)
    blurred = functional.gaussian_blur(grey, torch.ones(4), radius=3)
    torch.testing.assert_close(ours, functional.solarize(blurred, 128 / 255))
    assert not torch.allclose(ours, functional.gaussian_blur(
        functional.solarize(grey, 128 / 255), torch.ones(4), radius=3), atol=0.05)  # fmt: skip


def test_colours_are_jittered_before_they_are_taken_away() -> None:
    """So that a shift of the hue changes how bright a grey view is."""
    jittered = {"jitter": (0.4, 0.4, 0.4, 0.1), "jitter_probability": 1.0}
    pixels = images(4)
    ours = views(pixels, grayscale=1.0, **jittered)
    torch.testing.assert_close(ours, functional.to_grayscale(views(pixels, **jittered)))
    grey = (255 * functional.to_grayscale(pixels / 255)).round().byte()
    assert not torch.allclose(ours, views(grey, **jittered), atol=0.05)


def test_every_order_of_the_jitter_is_as_frequent(monkeypatch: pytest.MonkeyPatch) -> None:
    orders: list[tuple[int, ...]] = []

    def record(images_BCHW: Tensor, *parameters: Tensor) -> Tensor:
        orders.extend(map(tuple, parameters[-1].tolist()))
        return images_BCHW

    monkeypatch.setattr(functional, "color_jitter", record)
    views(images(2400), jitter=(0.4, 0.4, 0.4, 0.1))
    counts = {order: orders.count(order) for order in {*orders}}
    assert len(counts) == 24
    assert min(counts.values()) > 50 and max(counts.values()) < 160


@pytest.mark.parametrize("sigma", [1.0, 2.0])
def test_blurred_points_are_as_wide_as_the_deviation(sigma: float) -> None:
    point = torch.zeros(1, 1, 31, 31, dtype=torch.uint8)
    point[..., 15, 15] = 255
    blurred = views(point, blur=1.0, blur_sigma=(sigma, sigma))[0, 0].double()
    variance = (blurred.sum(0) * (torch.arange(31) - 15).square()).sum() / blurred.sum()
    assert variance.sqrt() == pytest.approx(sigma, rel=0.03)


def test_deviations_of_the_blur_fill_their_range(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def record(images_BCHW: Tensor, sigma_B: Tensor, radius: int) -> Tensor:
        seen.append(sigma_B)
        return images_BCHW

    monkeypatch.setattr(functional, "gaussian_blur", record)
    views(images(1000), blur=1.0)
    sigma_N = torch.cat(seen)
    assert 0.1 <= sigma_N.min() < 0.12 and 1.98 < sigma_N.max() <= 2.0
    assert sigma_N.mean() == pytest.approx(1.05, abs=0.06)
