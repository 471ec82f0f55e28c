"""Views of images: every operation against torchvision's on one image with the same parameters."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as reference
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.data import auto_augment
from torch import Tensor
from torchvision.transforms import InterpolationMode, RandomResizedCrop

from ssl_bench.errors import UserError
from ssl_bench.transforms import functional
from ssl_bench.transforms.augmentations import (
    Augmentation,
    augment,
    evaluation_view,
    mask_view,
    normalize,
    random_crop_boxes,
)
from ssl_bench.transforms.timm_augment import rand_augment, random_erase
from ssl_bench.utils.rng import SampleRng

BATCH = 3
# Float32 rounding; torchvision's arithmetic on uint8 may be one level of 255 away.
CLOSE = 2e-5
LEVEL = 1 / 255

MOCO = Augmentation(
    size=32,
    crop_scale=(0.08, 1.0),
    interpolation="bilinear",
    jitter=(0.4, 0.4, 0.2, 0.1),
    jitter_probability=0.8,
    grayscale=0.2,
    blur=0.1,
    solarize=0.2,
)

examples = settings(max_examples=25, deadline=None, derandomize=True)
seeds = st.integers(0, 2**31)
channel_counts = st.sampled_from([1, 3])
sizes = st.sampled_from([28, 32, 96])


def random_images(seed: int, channels: int, height: int, width: int, batch: int = BATCH) -> Tensor:
    """uint8 noise, with a flat and a saturated region where colour operations have corners."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (batch, channels, height, width), generator=generator)
    images[:, :, :4, :4] = 77
    images[:, 0, 4:8, :4] = 255
    images[:, -1, 4:8, :4] = 0
    return images.to(torch.uint8)


def random_floats(seed: int, channels: int, size: int) -> Tensor:
    return random_images(seed, channels, size, size) / 255


def draws_for(batch: int, seed: int = 0) -> SampleRng:
    return SampleRng(seed, 0, torch.arange(batch))


def largest_difference(left: Tensor, right: Tensor) -> float:
    assert left.shape == right.shape and left.dtype == right.dtype == torch.float32
    return (left - right).abs().max().item()


def recipes_of_one_step() -> list[Augmentation]:
    whole = Augmentation(size=32, crop_scale=None, flip=0.0)
    return [
        replace(whole, flip=1.0),
        replace(whole, jitter=(0.4, 0.4, 0.2, 0.1)),
        replace(whole, grayscale=1.0),
        replace(whole, blur=1.0, blur_sigma=(0.5, 2.0)),
        replace(whole, solarize=1.0),
    ]


@examples
@given(seeds, channel_counts, sizes, sizes, sizes, st.sampled_from(["bilinear", "bicubic"]))
def test_resized_crop(
    seed: int, channels: int, height: int, width: int, size: int, interpolation: str
) -> None:
    images = random_images(seed, channels, height, width)
    generator = torch.Generator().manual_seed(seed)
    unit = torch.rand(BATCH, 4, generator=generator)
    extent = torch.tensor([height, width])
    lengths = 1 + (unit[:, 2:] * extent).floor()
    corners = (unit[:, :2] * (extent - lengths + 1)).floor()
    boxes = torch.cat([corners, lengths], 1)
    flip = torch.rand(BATCH, generator=generator) < 0.5

    actual = functional.resized_crop(images, boxes, flip, size, interpolation)

    def torchvision_crop(image: Tensor, box: list[int], mirror: bool) -> Tensor:
        mode = InterpolationMode(interpolation)
        crop = reference.resized_crop(image, *box, [size, size], mode, antialias=True)
        return reference.horizontal_flip(crop) if mirror else crop

    rows = list(zip(images, boxes.int().tolist(), flip.tolist(), strict=True))
    floats = torch.stack([torchvision_crop(image / 255, *rest) for image, *rest in rows])
    bytes_ = torch.stack([torchvision_crop(image, *rest) for image, *rest in rows])
    assert largest_difference(actual, floats.clamp(0, 1)) < CLOSE
    # On bytes, torchvision rounds and clamps between the two directions too; the cubic's negative
    # lobes make more of that.
    error = (actual - bytes_ / 255).abs()
    if interpolation == "bilinear":
        assert error.max() <= 1.05 * LEVEL
    else:
        assert error.mean() <= LEVEL


def test_resized_crop_of_the_whole_image_is_exact() -> None:
    images = random_images(0, 3, 32, 32)
    box = torch.tensor([[0, 0, 32, 32]]).expand(BATCH, 4)
    still = torch.zeros(BATCH, dtype=torch.bool)
    for interpolation in functional.INTERPOLATIONS:
        actual = functional.resized_crop(images, box, still, 32, interpolation)
        assert torch.equal(actual, images / 255)


def test_resized_crop_rejects_unknown_interpolation() -> None:
    with pytest.raises(ValueError, match="lanczos"):
        functional.resized_crop(
            random_images(0, 1, 8, 8), torch.zeros(3, 4), torch.zeros(3).bool(), 8, "lanczos"
        )


@examples
@given(seeds, channel_counts, sizes)
def test_color_jitter(seed: int, channels: int, size: int) -> None:
    images = random_floats(seed, channels, size)
    generator = torch.Generator().manual_seed(seed)
    factors = 2 * torch.rand(BATCH, 3, generator=generator)
    brightness, contrast, saturation = factors.unbind(1)
    hue = torch.rand(BATCH, generator=generator) - 0.5
    orders = torch.rand(BATCH, 4, generator=generator).argsort(1)

    actual = functional.color_jitter(images, brightness, contrast, saturation, hue, orders)

    names = ("brightness", "contrast", "saturation", "hue")
    for row, order in enumerate(orders.tolist()):
        values = [*factors[row].tolist(), hue[row].item()]
        expected = images[row]
        for kind in order:
            expected = getattr(reference, f"adjust_{names[kind]}")(expected, values[kind])
        assert largest_difference(actual[row], expected) < CLOSE


@pytest.mark.parametrize("kind", ["brightness", "contrast", "saturation", "hue"])
@pytest.mark.parametrize("channels", [1, 3])
def test_color_jitter_of_one_kind_in_every_order(kind: str, channels: int) -> None:
    orders = torch.tensor(list(itertools.permutations(range(4))))
    images = random_images(1, channels, 28, 28, len(orders)) / 255
    values = torch.linspace(-0.5, 0.5, len(orders)) + (kind != "hue")
    brightness, contrast, saturation, hue = (
        values if kind == name else torch.full_like(values, float(name != "hue"))
        for name in ("brightness", "contrast", "saturation", "hue")
    )

    actual = functional.color_jitter(images, brightness, contrast, saturation, hue, orders)

    operation = getattr(reference, f"adjust_{kind}")
    rows = zip(images, values.tolist(), strict=True)
    expected = torch.stack([operation(image, value) for image, value in rows])
    assert largest_difference(actual, expected) < CLOSE


@examples
@given(seeds, sizes)
def test_grayscale_and_solarize(seed: int, size: int) -> None:
    images = random_floats(seed, 3, size)
    grey = reference.rgb_to_grayscale(images, num_output_channels=3)
    assert largest_difference(functional.to_grayscale(images), grey) < CLOSE
    bytes_ = random_images(seed, 3, size, size)
    solarized = functional.solarize(bytes_ / 255, 128 / 255)
    assert largest_difference(solarized, reference.solarize(bytes_, 128) / 255) < 1e-6


def test_one_channel_has_no_colour() -> None:
    images = random_floats(0, 1, 28)
    assert torch.equal(functional.to_grayscale(images), images)
    assert torch.equal(functional.adjust_hue(images, torch.full((BATCH,), 0.3)), images)


def test_colour_of_two_channels_is_an_error() -> None:
    with pytest.raises(ValueError, match="1 or 3 channels, not 2"):
        functional.to_grayscale(torch.rand(1, 2, 8, 8))


@examples
@given(seeds, channel_counts, sizes, sizes, st.integers(1, 9))
def test_gaussian_blur(seed: int, channels: int, height: int, width: int, radius: int) -> None:
    images = random_images(seed, channels, height, width) / 255
    sigma = 0.1 + 3 * torch.rand(BATCH, generator=torch.Generator().manual_seed(seed))
    actual = functional.gaussian_blur(images, sigma, radius)
    for row in range(BATCH):
        expected = reference.gaussian_blur(images[row], [2 * radius + 1] * 2, [sigma[row].item()])
        assert largest_difference(actual[row], expected) < CLOSE


def test_gaussian_blur_of_an_image_smaller_than_its_radius() -> None:
    images = torch.full((1, 1, 4, 4), 0.25)
    blurred = functional.gaussian_blur(images, torch.tensor([2.0]), radius=6)
    assert largest_difference(blurred, images) < CLOSE
    rough = random_images(0, 3, 6, 5)[:1] / 255
    most = functional.gaussian_blur(rough, torch.tensor([2.0]), radius=4)
    assert largest_difference(most, reference.gaussian_blur(rough, [9, 9], [2.0])) < CLOSE
    assert torch.equal(functional.gaussian_blur(rough, torch.tensor([2.0]), radius=9), most)


def test_operations_leave_their_arguments_alone() -> None:
    images = random_floats(0, 3, 28)
    before = images.clone()
    ones = torch.ones(BATCH)
    order = torch.arange(4).expand(BATCH, 4)
    box = torch.tensor([[0, 0, 28, 28]]).expand(BATCH, 4)
    functional.color_jitter(images, 2 * ones, 2 * ones, 2 * ones, 0.2 * ones, order)
    functional.to_grayscale(images).mul_(0)
    functional.gaussian_blur(images, ones, 3)
    functional.solarize(images, 0.5)
    functional.resized_crop(images, box, ones.bool(), 28, "bicubic")
    normalize(images, (0.5,) * 3, (0.5,) * 3)
    assert torch.equal(images, before)


def kolmogorov_smirnov(left: Tensor, right: Tensor) -> float:
    """Largest distance of two samples' distribution functions."""
    points = torch.cat([left, right]).unique()
    left_share, right_share = (
        torch.searchsorted(sample.sort().values, points, right=True) / len(sample)
        for sample in (left, right)
    )
    return (left_share - right_share).abs().max().item()


@pytest.mark.parametrize(
    ("height", "width", "scale", "ratio"),
    [
        (32, 32, (0.2, 1.0), (3 / 4, 4 / 3)),
        (96, 96, (0.08, 1.0), (3 / 4, 4 / 3)),
        (28, 28, (0.9, 1.0), (1 / 3, 3.0)),  # candidates that seldom fit
        (24, 90, (0.6, 1.0), (3 / 4, 4 / 3)),  # none fits: too wide an image
        (90, 24, (0.6, 1.0), (3 / 4, 4 / 3)),
    ],
)
def test_crop_boxes_are_distributed_as_torchvision(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> None:
    count = 3000
    boxes = random_crop_boxes(draws_for(count), height, width, scale, ratio)
    top, left, box_height, box_width = boxes.unbind(1)
    assert torch.equal(boxes, boxes.round())
    assert (boxes >= 0).all() and (boxes[:, 2:] >= 1).all()
    assert (top + box_height <= height).all() and (left + box_width <= width).all()

    image = torch.empty(1, height, width)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        expected = torch.tensor(
            [RandomResizedCrop.get_params(image, list(scale), list(ratio)) for _ in range(count)],
            dtype=torch.float32,
        )
    critical = 2.2 * (2 / count) ** 0.5  # exceeded by one in ten thousand pairs of equal samples

    def describe(boxes: Tensor) -> list[Tensor]:
        top, left, box_height, box_width = boxes.unbind(1)
        shapes = [box_height, box_width, box_height * box_width, box_height / box_width]
        return [top, left, *shapes, top + box_height, left + box_width]

    for ours, theirs in zip(describe(boxes), describe(expected), strict=True):
        assert kolmogorov_smirnov(ours, theirs) < critical


@pytest.mark.parametrize(("height", "width"), [(20, 95), (95, 20)])
def test_crop_falls_back_to_the_box_of_torchvision(height: int, width: int) -> None:
    box = RandomResizedCrop.get_params(torch.empty(1, height, width), [1.0, 1.0], [0.9, 1.1])
    boxes = random_crop_boxes(draws_for(4), height, width, (1.0, 1.0), (0.9, 1.1))
    assert boxes.tolist() == [list(box)] * 4


@pytest.mark.parametrize(("height", "width"), [(32, 32), (24, 90)])
def test_cut_crop_boxes_are_one_draw_cut_off_at_the_border(height: int, width: int) -> None:
    """Against a loop over single draws: area and log ratio uniform, no second try."""
    count, scale, ratio = 3000, (0.5, 1.0), (3 / 4, 4 / 3)
    boxes = random_crop_boxes(draws_for(count), height, width, scale, ratio, cut=True)
    generator = np.random.default_rng(0)
    expected = []
    for _ in range(count):
        area = generator.uniform(*scale) * height * width
        aspect = math.exp(generator.uniform(math.log(ratio[0]), math.log(ratio[1])))
        box_width = min(round(math.sqrt(area * aspect)), width)
        box_height = min(round(math.sqrt(area / aspect)), height)
        corner = [
            int(generator.integers(0, length + 1))
            for length in (height - box_height, width - box_width)
        ]
        expected.append([*corner, box_height, box_width])
    critical = 2.2 * (2 / count) ** 0.5
    for ours, theirs in zip(boxes.unbind(1), torch.tensor(expected).float().unbind(1), strict=True):
        assert kolmogorov_smirnov(ours, theirs) < critical
    retried = random_crop_boxes(draws_for(count), height, width, scale, ratio)
    assert not torch.equal(boxes, retried)


def test_identity_recipe_is_exact() -> None:
    images = random_images(0, 3, 32, 32)
    recipe = Augmentation(size=32, crop_scale=None, flip=0.0)
    assert torch.equal(augment(images, recipe, draws_for(BATCH)), images / 255)


@examples
@example(8278, 1, 1)  # white, blurred
@given(seeds, channel_counts, st.integers(1, 11))
def test_views_do_not_depend_on_the_batch(seed: int, channels: int, cut: int) -> None:
    images = random_images(seed, channels, 32, 32, batch=12)
    samples = torch.randperm(1000, generator=torch.Generator().manual_seed(seed))[:12]

    def views(rows: Tensor) -> Tensor:
        return augment(images[rows], MOCO, SampleRng(seed, 7, samples[rows]))

    together = views(torch.arange(12))
    assert together.shape == (12, channels, 32, 32) and together.dtype == torch.float32
    assert together.min() >= 0 and together.max() <= 1
    apart = torch.cat([views(torch.arange(cut)), views(torch.arange(cut, 12))])
    assert largest_difference(apart, together) < 1e-6
    backwards = views(torch.arange(11, -1, -1)).flip(0)
    assert largest_difference(backwards, together) < 1e-6


@pytest.mark.parametrize("recipe", recipes_of_one_step())
@pytest.mark.parametrize("channels", [1, 3])
def test_probability_one_reaches_every_sample(recipe: Augmentation, channels: int) -> None:
    images = random_images(0, channels, 32, 32, batch=16)
    changed = (augment(images, recipe, draws_for(16)) - images / 255).flatten(1).abs().amax(1)
    assert (changed > 0).all() or (channels == 1 and recipe.grayscale)


@pytest.mark.parametrize("name", ["flip", "jitter_probability", "grayscale", "blur", "solarize"])
def test_probability_selects_whole_samples(name: str) -> None:
    images = random_images(0, 3, 28, 28, batch=600)
    plain = Augmentation(size=28, crop_scale=None, flip=0.0)
    if name == "jitter_probability":
        plain = replace(plain, jitter=(0.4, 0.4, 0.2, 0.1))
    if name == "blur":
        plain = replace(plain, blur_sigma=(0.5, 2.0))

    def views(probability: float) -> Tensor:
        changes: dict[str, Any] = {name: probability}
        return augment(images, replace(plain, **changes), draws_for(600))

    never, sometimes, always = views(0.0), views(0.3), views(1.0)
    assert torch.equal(never, images / 255)
    untouched = (sometimes == never).flatten(1).all(1)
    transformed = ((sometimes - always).abs() < 1e-6).flatten(1).all(1)
    assert (untouched ^ transformed).all()
    assert 0.23 < transformed.float().mean() < 0.37


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize(("height", "width", "low"), [(24, 30, 0.3), (5, 4, 0.08), (42, 17, 0.6)])
def test_crop_boxes_are_those_of_a_loop_over_the_same_draws(
    height: int, width: int, low: float, cut: bool
) -> None:
    """Of torchvision: the first of ten candidates that fits; of MAE's ``crop.py``: the first."""
    draws, ratio = draws_for(400), (3 / 4, 4 / 3)
    drawn = draws.uniforms({"crop area": 10, "crop ratio": 10, "crop position": 2})
    expected = []
    for areas, ratios, position in zip(*(each.tolist() for each in drawn.values()), strict=True):
        found = None
        for area, aspect in zip(areas, ratios, strict=True):
            area = (low + (1 - low) * area) * height * width
            aspect = math.exp(math.log(ratio[0]) + aspect * math.log(ratio[1] / ratio[0]))
            sides = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
            if cut:
                sides = min(max(1, sides[0]), height), min(max(1, sides[1]), width)
            if 0 < sides[0] <= height and 0 < sides[1] <= width:
                found = sides
                break
        free = [height - (found or (0, 0))[0], width - (found or (0, 0))[1]]
        if found:
            corner = [int(each * (side + 1)) for each, side in zip(position, free, strict=True)]
            expected.append([*corner, *found])
        else:
            sides = min(height, round(width / ratio[0])), min(width, round(height * ratio[1]))
            expected.append([(height - sides[0]) // 2, (width - sides[1]) // 2, *sides])
    ours = random_crop_boxes(draws, height, width, (low, 1.0), ratio, cut)
    same = (ours == torch.tensor(expected).float()).all(dim=1).double().mean()
    assert same > 0.99, "but for what lies on the edge of a pixel in float32"


@pytest.mark.parametrize(("height", "width"), [(32, 32), (40, 24), (26, 24), (16, 16)])
def test_a_mask_is_taken_from_the_nearest_pixel(height: int, width: int) -> None:
    masks = torch.randint(0, 200, (2, height, width), generator=torch.Generator().manual_seed(0))
    short = min(height, width)
    target = 16 if short <= 16 else round(16 * 8 / 7)
    rows, columns = height * target // short, width * target // short
    top, left = round((rows - 16) / 2), round((columns - 16) / 2)
    row = [int((top + i + 0.5) * height / rows) for i in range(16)]
    column = [int((left + i + 0.5) * width / columns) for i in range(16)]
    assert torch.equal(mask_view(masks, 16), masks[:, row][:, :, column])


def test_jitter_covers_its_range() -> None:
    grey = torch.full((2000, 1, 4, 4), 100, dtype=torch.uint8)
    recipe = Augmentation(size=4, crop_scale=None, jitter=(0.4, 0.0, 0.0, 0.0))
    factors = augment(grey, recipe, draws_for(2000))[:, 0, 0, 0] * 255 / 100
    uniform = 0.6 + 0.8 * torch.arange(2000) / 2000
    assert kolmogorov_smirnov(factors, uniform) < 0.05


def test_each_of_the_jitters_factors_covers_its_own_range(monkeypatch: pytest.MonkeyPatch) -> None:
    """As torchvision's: within 1 +- strength, but not below 0; the hue's shift within +- its."""
    seen: list[tuple[Tensor, ...]] = []

    def record(images: Tensor, *values: Tensor) -> Tensor:
        seen.append(values)
        return images

    monkeypatch.setattr(functional, "color_jitter", record)
    recipe = Augmentation(size=4, crop_scale=None, jitter=(0.4, 0.2, 1.5, 0.1))
    augment(torch.zeros(2000, 3, 4, 4, dtype=torch.uint8), recipe, draws_for(2000))
    [(*factors, _)] = seen
    ranges = ((0.6, 1.4), (0.8, 1.2), (0.0, 2.5), (-0.1, 0.1))
    for found, (low, high) in zip(factors, ranges, strict=True):
        uniform = low + (high - low) * torch.arange(2000) / 2000
        assert low <= found.min() and found.max() <= high
        assert kolmogorov_smirnov(found, uniform) < 0.05
    together = torch.stack(factors).corrcoef().fill_diagonal_(0)
    assert together.abs().max() < 0.1, "each is drawn by itself"


def test_a_jitter_of_hue_alone_changes_colours() -> None:
    images = random_images(0, 3, 8, 8, batch=20)
    recipe = Augmentation(size=8, crop_scale=None, flip=0.0, jitter=(0.0, 0.0, 0.0, 0.3))
    hue = augment(images, recipe, draws_for(20))
    assert ((hue - images / 255).flatten(1).abs().amax(1) > 0.01).all()
    torch.testing.assert_close(hue.amax(1), images.amax(1) / 255)


def test_empty_batch() -> None:
    images = random_images(0, 3, 32, 32)[:0]
    assert augment(images, MOCO, draws_for(0)).shape == (0, 3, 32, 32)


def test_two_views_differ() -> None:
    images = random_images(0, 3, 32, 32)
    draws = draws_for(BATCH)
    first, second = (augment(images, MOCO, draws.within(name)) for name in ("view 0", "view 1"))
    assert (first != second).flatten(1).any(1).all()


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(32, 32, 28), (96, 96, 64), (33, 33, 32), (28, 28, 32), (96, 64, 32), (48, 64, 96)],
)
def test_evaluation_view(height: int, width: int, size: int) -> None:
    images = random_images(0, 3, height, width)
    target = round(size * 8 / 7) if min(height, width) > size else size
    expected = reference.resize(
        images / 255, [target], InterpolationMode.BICUBIC, antialias=True
    ).clamp(0, 1)
    expected = reference.center_crop(expected, [size, size])
    assert largest_difference(evaluation_view(images, size), expected) < CLOSE


def test_evaluation_view_of_the_right_size_only_rescales() -> None:
    images = random_images(0, 1, 28, 28)
    assert torch.equal(evaluation_view(images, 28), images / 255)


@pytest.mark.parametrize("channels", [1, 3])
def test_normalize(channels: int) -> None:
    images = random_floats(0, channels, 28)
    mean, std = (0.48, 0.45, 0.40)[:channels], (0.22, 0.23, 0.24)[:channels]
    expected = reference.normalize(images, list(mean), list(std))
    assert largest_difference(normalize(images, mean, std), expected) < CLOSE


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("size", 0),
        ("flip", 1.5),
        ("blur", -0.1),
        ("solarize", 1.1),
        ("grayscale", -1.0),
        ("jitter_probability", 1.1),
        ("crop_scale", (0.0, 1.0)),
        ("crop_scale", (0.5, 1.5)),
        ("crop_ratio", (2.0, 1.0)),
        ("blur_sigma", (0.0, 2.0)),
        ("jitter", (0.4, 0.4, 0.4, 0.6)),
        ("jitter", (-0.4, 0.4, 0.4, 0.1)),
        ("interpolation", "nearest"),
    ],
)
def test_recipe_rejects_values_out_of_range(field: str, value: Any) -> None:
    changes: dict[str, Any] = {field: value}
    with pytest.raises(UserError, match=field):
        replace(MOCO, **changes)


@pytest.mark.gpu
def test_cuda_makes_the_same_views_without_waiting() -> None:
    images = random_images(0, 3, 40, 40, batch=64)
    expected = normalize(augment(images, MOCO, draws_for(64)), (0.5,) * 3, (0.5,) * 3)
    on_device, draws = images.cuda(), SampleRng(0, 0, torch.arange(64).cuda())
    torch.cuda.set_sync_debug_mode("error")
    try:
        views = normalize(augment(on_device, MOCO, draws), (0.5,) * 3, (0.5,) * 3)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    # A rounding that differs may tip a pixel over the solarisation threshold.
    assert ((views.cpu() - expected).abs() < 1e-2).float().mean() > 0.999


RAND_AUGMENT = "rand-m9-mstd0.5-inc1"


class TestTimmAugment:
    """timm's RandAugment and random erasing, made functions of their draws."""

    @pytest.mark.parametrize("channels", [1, 3])
    def test_an_image_gets_the_same_whatever_the_batch_and_the_global_generators(
        self, channels: int
    ) -> None:
        images = random_floats(0, channels, 32).repeat(4, 1, 1, 1)
        samples = torch.arange(100, 112)

        def views(rows: Tensor) -> Tensor:
            draws = SampleRng(3, 5, samples[rows])
            view = rand_augment(images[rows], RAND_AUGMENT, (0.5,) * channels, draws)
            return random_erase(view, 0.5, draws)

        together = views(torch.arange(12))
        assert together.shape == images.shape and together.dtype == torch.float32
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        assert torch.equal(views(torch.arange(4, 9)), together[4:9])
        assert not torch.equal(together[0], together[3]), "samples 100 and 103 are one image"
        later = rand_augment(images, RAND_AUGMENT, (0.5,) * channels, SampleRng(3, 6, samples))
        assert not torch.equal(later, together)

    def test_pixels_are_rounded_to_the_nearest_level(self) -> None:
        levels = torch.arange(256).view(1, 1, 16, 16).float()
        for off in (-0.4, 0.4):
            images = ((levels + off) / 255).clamp(0, 1)
            found = rand_augment(images, "rand-m9-n0", (0.5,), draws_for(1))
            assert torch.equal(found, levels / 255)

    def test_global_generators_are_left_alone(self) -> None:
        states = random.getstate(), str(np.random.get_state()), torch.get_rng_state()
        images = random_floats(0, 3, 32)
        random_erase(
            rand_augment(images, RAND_AUGMENT, (0.5,) * 3, draws_for(3)), 1.0, draws_for(3)
        )
        assert random.getstate() == states[0]
        assert str(np.random.get_state()) == states[1]
        assert torch.equal(torch.get_rng_state(), states[2])

    @pytest.mark.parametrize("size", [32, 112])
    def test_it_is_timms_with_the_settings_of_its_factory(self, size: int) -> None:
        """Each image against timm's own training transform, seeded alike."""
        from timm.data import create_transform

        mean = (0.4, 0.5, 0.6)
        factory = create_transform(
            size, is_training=True, auto_augment=RAND_AUGMENT, interpolation="bicubic",
            color_jitter=None, mean=mean, std=(1.0, 1.0, 1.0),
        )  # fmt: skip
        [transform] = [t for t in factory.transforms if isinstance(t, auto_augment.RandAugment)]
        images = random_images(0, 3, size, size, batch=8)
        ours = rand_augment(images / 255, RAND_AUGMENT, mean, SampleRng(3, 5, torch.arange(8)))
        from ssl_bench.utils.rng import key

        for index in range(8):
            number = key(3, "rand augment", 5, index)
            random.seed(number)
            np.random.seed(number % 2**32)
            image = Image.fromarray(images[index].permute(1, 2, 0).numpy())
            expected = torch.from_numpy(np.array(transform(image))).permute(2, 0, 1)
            assert torch.equal((ours[index] * 255).round().byte(), expected)

    @pytest.mark.parametrize("level", [10, 9])
    def test_no_magnitude_is_refused(self, level: int) -> None:
        """At its full magnitude timm posterises to 0 bits, which newer Pillows refuse."""
        images = random_floats(0, 3, 16).repeat(80, 1, 1, 1)
        views = rand_augment(images, f"rand-m{level}-p1-n4-inc1", (0.5,) * 3, draws_for(240))
        assert views.min() >= 0 and views.max() <= 1

    def test_grey_stays_grey_and_the_outside_has_the_fill_colour(self) -> None:
        grey = torch.full((64, 1, 16, 16), 0.25)
        views = rand_augment(grey, "rand-m9-p1-inc1", (1.0,), draws_for(64))
        assert views.shape == grey.shape
        assert (views == 1).flatten(1).any(1).float().mean() > 0.3, "shears, shifts, rotations"

    def test_erasing_fills_a_rectangle_of_a_share_of_the_images(self) -> None:
        images = torch.zeros(400, 3, 20, 20)
        erased = random_erase(images, 0.25, draws_for(400))
        assert (images == 0).all()
        changed = (erased != 0).any(1)
        hit = changed.flatten(1).any(1)
        assert 0.18 < hit.float().mean() < 0.32
        for mask in changed[hit]:
            rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
            height, width = int(rows[-1] - rows[0]) + 1, int(columns[-1] - columns[0]) + 1
            assert mask.sum() == height * width, "a full rectangle"
            assert 0.01 < height * width / 400 < 0.4
        values = erased[erased != 0]
        assert abs(values.mean()) < 0.05
        assert abs(values.std() - 1) < 0.05
