"""Corruptions: bounds, growth and determinism of all, the meaning of some."""

from __future__ import annotations

import dataclasses
import io
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import CPU
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from ssl_bench.api import registry
from ssl_bench.data import Dataset, corrupted, load
from ssl_bench.errors import UserError
from ssl_bench.evaluation.features import Encoder
from ssl_bench.models import backbones
from ssl_bench.models.backbones import EncoderSpec
from ssl_bench.transforms import corruptions
from ssl_bench.transforms.corruptions import KINDS, SEVERITIES, corrupt

ROBUSTNESS = registry.find("eval", "robustness")


@pytest.fixture(scope="module")
def clothes() -> Tensor:
    return load("fashion-mnist").test.images_NCHW[:24].float() / 255


def photographs(side: int) -> Tensor:
    """A disk in front of what is as rough as photographs are: ``(12, 3, side, side)``."""
    generator = torch.Generator().manual_seed(0)
    images = torch.full((12, 3, side, side), 0.1)
    for cells in (2, 4, 8, 16, 32):
        coarse = torch.rand(12, 3, cells, cells, generator=generator)
        images += 0.6 / cells * F.interpolate(coarse, (side, side), mode="bilinear")
    middle = torch.arange(side) / side - 0.5
    radius = 0.15 + 0.3 * torch.rand(12, 1, 1, 1, generator=generator)
    disk = (middle[:, None] ** 2 + middle**2).sqrt() < radius
    return images + 0.3 * disk


UNEVEN = ("glass_blur", "snow", "fog")
"""Whose published severities do not each differ more from the clean image than the one before."""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", ["28 grey", 16, 45, 96])
def test_severity_grows_and_values_stay(kind: str, size: str | int, clothes: Tensor) -> None:
    images = clothes if isinstance(size, str) else photographs(size)
    before = images.clone()
    distances = []
    for severity in SEVERITIES:
        corrupted = corrupt(images, kind, severity, 0, torch.arange(len(images)))
        assert corrupted.shape == images.shape
        assert corrupted.dtype == torch.float32
        assert corrupted.isfinite().all()
        assert corrupted.min() >= 0
        assert corrupted.max() <= 1
        distances.append((corrupted - images).square().mean().sqrt().item())
    assert torch.equal(images, before), "arguments are not written to"
    if kind in UNEVEN:
        assert distances[-1] > distances[0]
    else:
        assert all(low < high for low, high in itertools.pairwise(distances)), distances
    assert distances[0] > 0.005


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_is_corrupted_alike_in_any_batch(kind: str) -> None:
    images, samples = photographs(20), torch.arange(12) * 7
    torch.manual_seed(0)
    whole = corrupt(images, kind, 3, 0, samples)
    torch.manual_seed(1)
    parts = [corrupt(images[rows], kind, 3, 0, samples[rows]) for rows in torch.arange(12).split(5)]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-6)


DRAWN = (
    "gaussian_noise", "shot_noise", "impulse_noise", "glass_blur", "motion_blur", "snow",
    "procedural_frost", "fog", "elastic_transform",
)  # fmt: skip


@pytest.mark.parametrize("kind", DRAWN)
def test_each_image_and_each_seed_draws_anew(kind: str) -> None:
    images = photographs(20)[:1].expand(2, -1, -1, -1)
    first, second = corrupt(images, kind, 3, 0, torch.tensor([4, 9]))
    assert not torch.allclose(first, second)
    assert not torch.allclose(first, corrupt(images, kind, 3, 1, torch.tensor([4, 9]))[0])


@pytest.mark.parametrize("shape", [(2, 1, 24, 24), (2, 3, 17, 40)])
@pytest.mark.parametrize("kind", KINDS)
def test_channels_and_sides_of_any_kind(kind: str, shape: tuple[int, ...]) -> None:
    for flat in (0.0, 1.0):
        corrupted = corrupt(torch.full(shape, flat), kind, 5, 0, torch.arange(2))
        assert corrupted.shape == shape
        assert corrupted.isfinite().all()


def test_noise_has_the_moments_it_says() -> None:
    grey = torch.full((4, 3, 64, 64), 0.5)
    samples = torch.arange(4)
    normal = corrupt(grey, "gaussian_noise", 1, 0, samples) - grey
    assert normal.mean().abs() < 2e-3
    assert normal.std() == pytest.approx(0.08, rel=0.02)
    shot = corrupt(grey, "shot_noise", 1, 0, samples)
    assert shot.mean() == pytest.approx(0.5, abs=2e-3)
    assert shot.std() == pytest.approx(math.sqrt(0.5 / 60), rel=0.02)
    torch.testing.assert_close((shot * 60).round() / 60, shot)
    impulse = corrupt(grey, "impulse_noise", 5, 0, samples)
    assert (impulse == 0).double().mean().item() == pytest.approx(0.135, abs=5e-3)
    assert (impulse == 1).double().mean().item() == pytest.approx(0.135, abs=5e-3)


def test_strengths_are_the_published_ones() -> None:
    """Of ImageNet-C's code, for what does not depend on the side: five severities each."""
    samples, image = torch.arange(2), photographs(40)[:2].clamp(0, 1)
    grey = torch.full((2, 3, 60, 60), 0.5)

    def found(kind: str, images: Tensor) -> list[Tensor]:
        return [corrupt(images, kind, severity, 0, samples) for severity in SEVERITIES]

    for made, std in zip(found("gaussian_noise", grey), (8, 12, 18, 26, 38), strict=True):
        inside = torch.special.erf(torch.tensor(0.2 / (std / 100) / 2**0.5)).item()
        assert ((made - 0.5).abs() < 0.2).double().mean() == pytest.approx(inside, abs=0.01)
    for made, photons in zip(found("shot_noise", grey), (60, 25, 12, 5, 3), strict=True):
        torch.testing.assert_close((made * photons).round() / photons, made.clamp(0, 1))
    for made, share in zip(found("impulse_noise", grey), (3, 6, 9, 17, 27), strict=True):
        for value in (0, 1):
            hit = (made == value).double().mean().item()
            assert hit == pytest.approx(share / 200, abs=0.006)
    middle = image.mean((2, 3), keepdim=True)
    for made, kept in zip(found("contrast", image), (0.4, 0.3, 0.2, 0.1, 0.05), strict=True):
        torch.testing.assert_close(made, middle + kept * (image - middle))
    for made, more in zip(found("brightness", image), (0.1, 0.2, 0.3, 0.4, 0.5), strict=True):
        torch.testing.assert_close(made.amax(1), (image.amax(1) + more).clamp(max=1))
    rough = torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    for made, scale in zip(found("pixelate", rough), (0.6, 0.5, 0.4, 0.3, 0.25), strict=True):
        assert torch.linalg.matrix_rank(made[0, 0].double(), atol=1e-4) == round(40 * scale)
    for made, quality in zip(found("jpeg_compression", image), (25, 18, 15, 10, 7), strict=True):
        buffer, pixels = io.BytesIO(), (image[0] * 255).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
        expected = torch.from_numpy(np.array(Image.open(buffer))).permute(2, 0, 1) / 255
        torch.testing.assert_close(made[0], expected)


GOLDEN = {
    "gaussian_noise": (0.4887, (0.0799, 0.1192, 0.1746, 0.2375, 0.3068)),
    "shot_noise": (0.4842, (0.0900, 0.1367, 0.1910, 0.2752, 0.3329)),
    "impulse_noise": (0.4891, (0.0904, 0.1298, 0.1585, 0.2175, 0.2732)),
    "defocus_blur": (0.4886, (0.0128, 0.0165, 0.0234, 0.0293, 0.0334)),
    "glass_blur": (0.4886, (0.0157, 0.0168, 0.0316, 0.0324, 0.0357)),
    "motion_blur": (0.4886, (0.0177, 0.0270, 0.0388, 0.0498, 0.0563)),
    "zoom_blur": (0.5080, (0.0391, 0.0492, 0.0567, 0.0639, 0.0711)),
    "snow": (0.8558, (0.2745, 0.3780, 0.3966, 0.4382, 0.4716)),
    "procedural_frost": (0.6817, (0.2073, 0.2207, 0.2323, 0.2454, 0.2595)),
    "fog": (0.4209, (0.1570, 0.1725, 0.1838, 0.1810, 0.1872)),
    "brightness": (0.7327, (0.0880, 0.1748, 0.2494, 0.3121, 0.3706)),
    "contrast": (0.4886, (0.0878, 0.1025, 0.1171, 0.1318, 0.1391)),
    "elastic_transform": (0.4888, (0.0127, 0.0163, 0.0209, 0.0242, 0.0284)),
    "pixelate": (0.4886, (0.0330, 0.0396, 0.0422, 0.0504, 0.0608)),
    "jpeg_compression": (0.4897, (0.0402, 0.0449, 0.0476, 0.0562, 0.0649)),
}
"""Mean of the photographs corrupted with severity 3, and how far each severity is from the clean
ones."""


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_what_scores_were_made_with(kind: str) -> None:
    """Snow, frost, fog and the like are our own: no paper says what another strength would be."""
    images, (mean, distances) = photographs(32), GOLDEN[kind]
    made = [corrupt(images, kind, severity, 0, torch.arange(12)) for severity in SEVERITIES]
    assert made[2].mean().item() == pytest.approx(mean, abs=2e-4)
    found = [(each - images).square().mean().sqrt().item() for each in made]
    assert found == pytest.approx(distances, abs=2e-4)


BLURS = ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "elastic_transform", "pixelate")


@pytest.mark.parametrize("kind", BLURS)
def test_a_blur_leaves_a_flat_image(kind: str) -> None:
    flat = torch.full((2, 1, 33, 33), 0.3)
    torch.testing.assert_close(corrupt(flat, kind, 5, 0, torch.arange(2)), flat)


def test_lengths_are_shares_of_the_side() -> None:
    """A point's blur is as wide in a large image as in a small one, for its size."""
    widths = []
    for side in (63, 189):
        point = torch.zeros(1, 1, side, side)
        point[..., side // 2, side // 2] = 1
        blurred = corrupt(point, "defocus_blur", 5, 0, torch.arange(1))[0, 0]
        place = torch.arange(side) - side // 2
        widths.append(((blurred.sum(1) * place**2).sum() / blurred.sum()).sqrt().item() / side)
    disk = 10 / 224 / 2  # the deviation of a disk along an axis is half of its radius
    assert widths[1] == pytest.approx(disk, rel=0.05)
    assert widths[0] == pytest.approx(disk, rel=0.2), "bilinear samples widen it by a pixel's"


@settings(max_examples=20, deadline=None)
@given(st.floats(-3, 3), st.floats(-3, 3), st.integers(0, 99))
def test_an_average_is_of_bilinear_samples(down: float, right: float, seed: int) -> None:
    images = torch.rand(2, 3, 20, 20, generator=torch.Generator().manual_seed(seed))
    offsets = torch.tensor([[[down, right], [-right, down]]]).expand(2, -1, -1)
    ours = corruptions.average(images, offsets)
    shifted = [
        corruptions.displace(images, offset.flip(0).view(1, 1, 1, 2))
        for offset in offsets[0].unbind(0)
    ]
    naive = (shifted[0] + shifted[1]) / 2
    inner = slice(4, -4)
    torch.testing.assert_close(ours[..., inner, inner], naive[..., inner, inner], rtol=0, atol=1e-5)


def test_brightness_keeps_hue_and_saturation() -> None:
    red = torch.tensor([0.4, 0.2, 0.1]).view(1, 3, 1, 1).expand(1, 3, 16, 16)
    brighter = corrupt(red, "brightness", 2, 0, torch.arange(1))
    torch.testing.assert_close(brighter, red * 0.6 / 0.4)
    black = torch.zeros(1, 3, 16, 16)
    torch.testing.assert_close(corrupt(black, "brightness", 2, 0, torch.arange(1)), black + 0.2)


def test_pixels_are_means_of_squares() -> None:
    images = photographs(32)
    half = F.interpolate(F.avg_pool2d(images, 2), scale_factor=2, mode="nearest")
    torch.testing.assert_close(corrupt(images, "pixelate", 2, 0, torch.arange(12)), half)


def test_there_are_fifteen_in_the_papers_order() -> None:
    assert len(KINDS) == 15
    assert next(iter(KINDS)) == "gaussian_noise"
    assert [*KINDS][-1] == "jpeg_compression"


@pytest.mark.parametrize(
    ("kind", "severity", "side"), [("rain", 1, 20), ("fog", 0, 20), ("fog", 6, 20), ("fog", 1, 15)]
)
def test_what_cannot_be_is_refused(kind: str, severity: int, side: int) -> None:
    with pytest.raises(ValueError, match="must"):
        corrupt(torch.zeros(1, 1, side, side), kind, severity, 0, torch.arange(1))


@pytest.fixture(scope="module")
def encoder(spec: EncoderSpec) -> Encoder:
    return Encoder(backbones.build(spec, seed=0), spec, CPU, seed=0)


class TestRobustness:
    """The evaluation."""

    def test_scores_are_means_of_the_table(self, encoder: Encoder, tiny: Dataset) -> None:
        config = ROBUSTNESS.config(batch_size=24, epochs=5, images=0)
        result = ROBUSTNESS.load_class()(config).evaluate(encoder, tiny)
        table = result.arrays["accuracy"]
        assert table.shape == (15, 5)
        names = [*result.scores]
        assert names[:2] == ["top1_corrupted", "top1_clean"]
        assert names[2:17] == [f"top1_{kind}" for kind in KINDS]
        assert result.scores["top1_corrupted"] == pytest.approx(table.mean().item())
        assert result.scores["top1_fog"] == pytest.approx(
            table[[*KINDS].index("fog")].mean().item()
        )
        assert result.scores["top1_severity_5"] == pytest.approx(table[:, 4].mean().item())

    def test_clean_score_is_that_of_linear(self, encoder: Encoder, tiny: Dataset) -> None:
        sizes = {"batch_size": 24, "epochs": 2}
        linear = registry.find("eval", "linear")
        expected = linear.load_class()(linear.config(**sizes)).evaluate(encoder, tiny)
        result = ROBUSTNESS.load_class()(ROBUSTNESS.config(**sizes, images=0)).evaluate(
            encoder, tiny
        )
        assert result.scores["top1_clean"] == expected.scores["top1"]
        assert result.chosen == expected.chosen

    def test_every_method_gets_the_same_corrupted_images(
        self, tiny: Dataset, spec: EncoderSpec, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whatever its weights and its seed, and however many go through at once."""
        code = ROBUSTNESS.load()
        seen: list[dict[tuple[str, int], list[Tensor]]] = []

        def record(images: Tensor, kind: str, severity: int, *rest: int | Tensor) -> Tensor:
            corrupted = corruptions.corrupt(images, kind, severity, *rest)  # type: ignore[arg-type]
            seen[-1].setdefault((kind, severity), []).append(corrupted)
            return corrupted

        monkeypatch.setattr(code, "corrupt", record)
        for seed, at_once in ((0, 64), (1, 7)):
            seen.append({})
            monkeypatch.setattr(code, "_IMAGES_AT_ONCE", at_once)
            encoder = Encoder(backbones.build(spec, seed=seed), spec, CPU, seed=seed)
            ROBUSTNESS.load_class()(ROBUSTNESS.config(batch_size=24, epochs=1, images=10)).evaluate(
                encoder, tiny
            )
        assert len(seen[0]) == 75
        for key, parts in seen[0].items():
            assert sum(map(len, parts)) == 10
            torch.testing.assert_close(torch.cat(parts), torch.cat(seen[1][key]), rtol=0, atol=1e-6)

    def test_other_data_are_drawn_by_themselves(self, tiny: Dataset) -> None:
        evaluation = ROBUSTNESS.load_class()(ROBUSTNESS.config(images=10))
        other = dataclasses.replace(tiny, fingerprint="another")
        chosen = [evaluation._chosen(tiny.test, data).tolist() for data in (tiny, other, tiny)]
        assert chosen[0] == chosen[2] != chosen[1]
        assert chosen[0] == sorted(chosen[0]) and len(chosen[0]) == 10

    def test_grey_images_are_seen_by_an_encoder_of_colours(
        self, encoder: Encoder, tiny: Dataset, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """They are corrupted while they have one channel, and get the others afterwards."""
        seen: list[int] = []

        def record(images: Tensor, *how: Any) -> Tensor:
            seen.append(images.shape[1])
            return corruptions.corrupt(images, *how)

        monkeypatch.setattr(ROBUSTNESS.load(), "corrupt", record)
        train, test = (
            dataclasses.replace(split, images_NCHW=split.images_NCHW[:, :1])
            for split in (tiny.train, tiny.test)
        )
        grey = dataclasses.replace(tiny, train=train, test=test)
        config = ROBUSTNESS.config(batch_size=24, epochs=1, images=6)
        found = ROBUSTNESS.load_class()(config).evaluate(encoder, grey)
        assert {*seen} == {1} and found.scores["top1_clean"] > 50

    def test_small_images_are_refused_in_one_line(self, tiny: Dataset) -> None:
        spec = EncoderSpec("vit_micro", 8, 4, 3, tiny.mean, tiny.std)
        encoder = Encoder(backbones.build(spec, seed=0), spec, CPU, seed=0)
        robustness = ROBUSTNESS.load_class()(ROBUSTNESS.config())
        assert "16 pixels or more, not 8" in robustness.supports(encoder, tiny)

    def test_images_of_the_smallest_size_will_do_and_clips_will_not(
        self, encoder: Encoder, tiny: Dataset
    ) -> None:
        robustness = ROBUSTNESS.load_class()(ROBUSTNESS.config())
        assert encoder.spec.image_size == corruptions.SMALLEST_SIDE
        assert robustness.supports(encoder, tiny) is None
        spec = dataclasses.replace(encoder.spec, frames=4)
        clips = Encoder(backbones.build(encoder.spec, seed=0), spec, CPU, seed=0)
        assert "--frames 1 would work" in robustness.supports(clips, tiny)

    def test_a_number_of_images_below_none_is_refused(self) -> None:
        with pytest.raises(UserError, match="robustness-images -1"):
            ROBUSTNESS.config(images=-1)


def naive_glass(images: Tensor, reach: int, steps: Tensor) -> Tensor:
    """One pass over one image, pixel by pixel."""
    moved = images.clone()
    height, width = images.shape[1:]
    for h in range(height - reach, reach, -1):
        for w in range(width - reach, reach, -1):
            dx, dy = steps[h, w].tolist()
            moved[:, h, w] = moved[:, h + dy, w + dx]
    return moved


@pytest.mark.parametrize(("reach", "times"), [(1, 1), (2, 3), (4, 2)])
def test_glass_moves_one_pixel_after_the_other(reach: int, times: int) -> None:
    images = torch.rand(2, 3, 20, 24, generator=torch.Generator().manual_seed(0))
    noise = corruptions.Noise(0, "glass_blur", [3, 8], torch.device("cpu"))
    shifts = corruptions.scattered(images, reach, times, noise)
    ours = corruptions.displace(images, shifts)
    naive = images
    for number in range(times):
        draws = noise.uniform(f"glass {number}", 20, 24, 2)
        steps = (2 * reach * draws).floor().long() - reach
        naive = torch.stack([naive_glass(*each) for each in
                             zip(naive, [reach] * 2, steps, strict=True)])  # fmt: skip
    torch.testing.assert_close(ours, naive, rtol=0, atol=1e-4)


def test_clouds_are_of_the_diamond_square_algorithm() -> None:
    """Each point against its four neighbours, by loops, from the coarsest to the finest."""
    noise = corruptions.Noise(0, "fog", [5], torch.device("cpu"))
    ours = corruptions.diamond_square(torch.zeros(1, 1, 16, 16), noise, 2.5)[0, 0]
    size, step, strength = 16, 16, 1.0
    heights = torch.zeros(size, size)

    def mean(places: list[tuple[int, int]]) -> float:
        return sum(float(heights[y % size, x % size]) for y, x in places) / 4

    while step >= 2:
        half = step // 2
        draws = strength * (2 * noise.uniform(f"clouds {step}", 3, size // step, size // step) - 1)
        grid = [(y, x) for y in range(0, size, step) for x in range(0, size, step)]
        for y, x in grid:
            around = [(y, x), (y + step, x), (y, x + step), (y + step, x + step)]
            heights[y + half, x + half] = mean(around) + draws[0, 0, y // step, x // step]
        for y, x in grid:
            up = [(y, x), (y, x + step), (y - half, x + half), (y + half, x + half)]
            left = [(y, x), (y + step, x), (y + half, x - half), (y + half, x + half)]
            row, column = mean(up), mean(left)
            heights[y, x + half] = row + draws[0, 1, y // step, x // step]
            heights[y + half, x] = column + draws[0, 2, y // step, x // step]
        step, strength = half, strength / 2.5
    expected = (heights - heights.min()) / (heights.max() - heights.min())
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


def test_a_moving_camera_leaves_half_a_gaussian_on_one_side() -> None:
    point = torch.zeros(1, 1, 9, 61)
    point[..., 4, 40] = 1
    ours = corruptions.streak(point, torch.zeros(1), 20.0, 8.0)[0, 0, 4]
    weights = torch.tensor([math.exp(-0.5 * (along / 8) ** 2) for along in range(21)])
    expected = torch.zeros(61)
    expected[20:41] = (weights / weights.sum()).flip(0)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)


def test_a_zoom_is_the_mean_of_the_image_and_its_magnifications() -> None:
    images = photographs(64)[:1]
    mean = images.clone()
    for zoom in (1.0, 1.03, 1.06, 1.09, 1.12, 1.15, 1.18, 1.21, 1.24, 1.27, 1.3):
        mean = mean + corruptions.sample(images, corruptions.grid(images) / zoom)
    ours = corrupt(images, "zoom_blur", 5, 0, torch.arange(1))
    torch.testing.assert_close(ours, mean / 12, rtol=0, atol=1e-5)


class TestPublishedFiles:
    """ImageNet-C's folders and CIFAR-10-C's arrays as data of the evaluation."""

    @pytest.fixture
    def arrays(self, tiny: Dataset, tmp_path: Path) -> Path:
        """The test images themselves as one kind, and grey ones as another."""
        images = tiny.test.images_NCHW.movedim(1, -1).numpy()
        np.save(tmp_path / "labels.npy", np.tile(tiny.test.labels_N.numpy(), 5))
        np.save(tmp_path / "fog.npy", np.tile(images, (5, 1, 1, 1)))
        np.save(tmp_path / "rain.npy", np.full((5 * len(images), 16, 16, 3), 128, np.uint8))
        return tmp_path

    @pytest.fixture
    def folders(self, tiny: Dataset, tmp_path: Path) -> Path:
        for severity in range(1, 6):
            for place, label in enumerate(tiny.test.labels_N.tolist()):
                home = tmp_path / "fog" / str(severity) / tiny.classes[label]
                home.mkdir(parents=True, exist_ok=True)
                pixels = tiny.test.images_NCHW[place].movedim(0, -1).numpy()
                Image.fromarray(pixels).save(home / f"{place}.png")
        return tmp_path

    @pytest.mark.parametrize("kind", ["arrays", "folders"])
    def test_what_is_not_corrupted_scores_as_clean_images(
        self, kind: str, encoder: Encoder, tiny: Dataset, request: pytest.FixtureRequest
    ) -> None:
        folder = request.getfixturevalue(kind)
        config = ROBUSTNESS.config(batch_size=24, epochs=2, images=0, corrupted=str(folder))
        found = ROBUSTNESS.load_class()(config).evaluate(encoder, tiny)
        assert found.scores["top1_fog"] == pytest.approx(found.scores["top1_clean"])
        kinds = 2 if kind == "arrays" else 1
        assert found.arrays["accuracy"].shape == (kinds, 5)
        if kind == "arrays":
            shares = (100 * (tiny.test.labels_N == label).double().mean() for label in range(3))
            assert any(found.scores["top1_rain"] == pytest.approx(float(each)) for each in shares)
        few = dataclasses.replace(config, images=5)
        found = ROBUSTNESS.load_class()(few).evaluate(encoder, tiny)
        if kind == "arrays":
            assert round(found.scores["top1_rain"] / 20, 6).is_integer(), "a share of five images"

    def test_each_severity_has_a_score_of_its_own(
        self, arrays: Path, encoder: Encoder, tiny: Dataset
    ) -> None:
        """The first leaves images as they are here, and the others leave nothing of them."""
        images = np.load(arrays / "fog.npy")
        images[len(tiny.test) :] = 128
        np.save(arrays / "fog.npy", images)
        config = ROBUSTNESS.config(batch_size=24, epochs=2, images=0, corrupted=str(arrays))
        found = ROBUSTNESS.load_class()(config).evaluate(encoder, tiny)
        first, *others = found.arrays["accuracy"][0].tolist()
        assert first == found.scores["top1_clean"] > max(others)
        assert found.scores["top1_severity_1"] > found.scores["top1_severity_2"]

    @pytest.mark.parametrize("kind", ["arrays", "folders"])
    def test_the_slightest_severity_comes_first(self, kind: str, tmp_path: Path) -> None:
        shades = np.arange(10, 60, 10, dtype=np.uint8)
        if kind == "arrays":
            np.save(tmp_path / "labels.npy", np.zeros(10, np.int64))
            each_N111 = np.repeat(shades, 2)[:, None, None, None]
            np.save(tmp_path / "fog.npy", np.tile(each_N111, (1, 16, 16, 3)))
        else:
            for severity, shade in enumerate(shades.tolist(), 1):
                home = tmp_path / "fog" / str(severity) / "a"
                home.mkdir(parents=True)
                Image.new("RGB", (16, 16), (shade,) * 3).save(home / "0.png")
        splits = corrupted.find(tmp_path, ("a",), 16, 3)["fog"]
        found = [int(split.images(torch.tensor([0])).max()) for split in splits]
        assert found == shades.tolist()

    def test_nothing_in_an_array_is_executed(self, arrays: Path) -> None:
        np.save(arrays / "fog.npy", np.array([print], dtype=object), allow_pickle=True)
        with pytest.raises(UserError, match=r"fog.npy.* cannot be read"):
            corrupted.find(arrays, ("a", "b", "c"), 16, 3)

    def test_other_classes_are_refused(self, arrays: Path, folders: Path) -> None:
        with pytest.raises(UserError, match="none of the 2 classes"):
            corrupted.find(arrays, ("a", "b"), 16, 3)
        (arrays / "labels.npy").unlink()
        with pytest.raises(UserError, match="none of the 1 classes"):
            corrupted.find(folders, ("elsewhere",), 16, 3)

    @pytest.mark.parametrize("what", ["nowhere", "empty"])
    def test_what_is_neither_is_refused(self, what: str, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        with pytest.raises(UserError, match="corrupted images"):
            corrupted.find(tmp_path / what, ("a",), 16, 3)
        np.save(tmp_path / "empty" / "labels.npy", np.zeros(10, np.int64))
        np.save(tmp_path / "empty" / "fog.npy", np.zeros((9, 4, 4, 3), np.uint8))
        if what == "empty":
            with pytest.raises(UserError, match="holds no uint8 images"):
                corrupted.find(tmp_path / what, ("a",), 16, 3)
