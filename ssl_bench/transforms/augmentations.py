"""Views of a batch of images: declarative recipes, drawn per sample on the images' device.

The operations follow torchvision's, which the official codes of MAE and MoCo v3 call, with
these deviations: images stay float between operations, where Pillow rounds to 8 bits after each;
the blur is a true Gaussian, reflected at the border; and the flip, which commutes with all that
follows it, comes first, where it costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_bench.errors import UserError, within
from ssl_bench.transforms import functional
from ssl_bench.utils.rng import SampleRng

_CROP_ATTEMPTS = 10
COLOUR_STEPS = ("jitter", "grayscale", "blur", "solarize")
"""What is done to a view once it is cropped and mirrored, in this order."""


@dataclass(frozen=True)
class Augmentation:
    """The recipe of one view, in the order of its steps.

    Attributes:
        size: height and width of the view in pixels.
        crop_scale: range of the random crop's area as a fraction of the image's; ``None`` takes
            the view that evaluation takes.
        crop_ratio: range of the random crop's width / height, uniform in its logarithm.
        cut_crop: cut the first random box off at the image's border, instead of drawing up to ten
            until one fits (``util/crop.py``, facebookresearch/mae ``efb2a80``).
        interpolation: ``"bilinear"`` or ``"bicubic"``, for the random crop.
        flip: probability of mirroring left and right.
        jitter: strengths of brightness, contrast, saturation (factors within 1 +- strength, but
            not below 0) and hue (shifts within +- strength turns), applied in random order.
        jitter_probability: probability of the jitter.
        grayscale: probability of removing colour.
        blur: probability of a Gaussian blur.
        blur_sigma: range of its standard deviation in pixels of the view.
        solarize: probability of inverting the values that reach the threshold.
        solarize_threshold: in [0, 1]; the default is Pillow's 128 of 255.

    Raises:
        UserError: a value lies outside its range.
    """

    size: int
    crop_scale: tuple[float, float] | None = (0.2, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    cut_crop: bool = False
    interpolation: str = "bicubic"
    flip: float = 0.5
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    jitter_probability: float = 1.0
    grayscale: float = 0.0
    blur: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarize: float = 0.0
    solarize_threshold: float = 128 / 255

    def __post_init__(self) -> None:
        if self.size < 1:
            raise UserError(f"size must be at least 1 pixel, not {self.size}")
        for name in ("flip", "jitter_probability", "grayscale", "blur", "solarize"):
            within(name, getattr(self, name), "[0, 1]")
        for name in ("crop_scale", "crop_ratio", "blur_sigma"):
            low, high = getattr(self, name) or (1, 1)
            if not 0 < low <= high:
                raise UserError(f"{name} needs 0 < low <= high, not {low}, {high}")
        if self.crop_scale and self.crop_scale[1] > 1:
            raise UserError(f"crop_scale cannot exceed the image, 1.0, as {self.crop_scale} does")
        if min(self.jitter) < 0 or self.jitter[functional.HUE] > 0.5:
            raise UserError(f"jitter needs strengths >= 0 and hue <= 0.5, not {self.jitter}")
        if self.interpolation not in functional.INTERPOLATIONS:
            known = " or ".join(functional.INTERPOLATIONS)
            raise UserError(f"interpolation must be {known}, not {self.interpolation!r}")


def crop_and_flip(size: int, smallest: float, flip: float) -> Augmentation:
    """Bicubic crops of at least that share of the image's area, 1 cropping nothing, and flips."""
    scale = (smallest, 1.0) if smallest < 1 else None
    return Augmentation(size=size, crop_scale=scale, interpolation="bicubic", flip=flip)


def byol_views(
    size: int, smallest: float, interpolation: str = "bicubic"
) -> dict[str, Augmentation]:
    """BYOL's two views, which differ in blur and solarisation; others take them, too.

    (Grill et al., arXiv:2006.07733, table 6.)

    Args:
        size: of the views, in pixels.
        smallest: share of an image's area that a crop keeps at least.
    """
    first = Augmentation(
        size=size,
        crop_scale=(smallest, 1.0),
        interpolation=interpolation,
        flip=0.5,
        jitter=(0.4, 0.4, 0.2, 0.1),
        jitter_probability=0.8,
        grayscale=0.2,
        blur=1.0,
    )
    return {"first": first, "second": replace(first, blur=0.1, solarize=0.2)}


def dino_views(
    size: int, local_size: int, border: float, local_crops: int
) -> dict[str, Augmentation]:
    """DINO's two large crops, which differ in blur and solarisation, and its small ones.

    (Caron et al., arXiv:2104.14294; ``main_dino.py``, facebookresearch/dino ``7c446df``.)

    Args:
        size: of large crops, in pixels.
        local_size: of small ones.
        border: share of an image's area that a large crop keeps at least and a small one at most.
        local_crops: how many small ones.
    """
    pair = byol_views(size, border)
    small = replace(pair["first"], size=local_size, crop_scale=(0.05, border), blur=0.5)
    return {
        "global_0": pair["first"],
        "global_1": pair["second"],
        **{f"local_{number}": small for number in range(local_crops)},
    }


def mocov2_views(size: int, smallest: float) -> dict[str, Augmentation]:
    """MoCo v2's two views, made alike (Chen et al., arXiv:2003.04297; SimSiam's, too).

    Args:
        size: of the views, in pixels.
        smallest: share of an image's area that a crop keeps at least.
    """
    view = Augmentation(
        size=size,
        crop_scale=(smallest, 1.0),
        interpolation="bilinear",
        flip=0.5,
        jitter=(0.4, 0.4, 0.4, 0.1),
        jitter_probability=0.8,
        grayscale=0.2,
        blur=0.5,
    )
    return {"first": view, "second": view}


def augment(images_BCHW: Tensor, recipe: Augmentation, draws: SampleRng) -> Tensor:
    """One random view of each image: a function of the image, the recipe and its draws alone.

    Images are uint8 in [0, 255], the views float32 ``(B, C, size, size)`` in [0, 1], not
    normalised; draws have one row per image, on its device.
    """
    size = recipe.size
    if recipe.crop_scale is None:
        views = evaluation_view(images_BCHW, size)
        flip_B = draws.uniform("flip", 1)[:, 0] < recipe.flip
        views = torch.where(flip_B[:, None, None, None], views.flip(-1), views)
    else:
        boxes_B4, flip_B = crop_of(recipe, draws, *images_BCHW.shape[2:])
        views = functional.resized_crop(images_BCHW, boxes_B4, flip_B, size, recipe.interpolation)
    return recolour(views, recipe, draws)


def crop_of(
    recipe: Augmentation, draws: SampleRng, height: int | Tensor, width: int | Tensor
) -> tuple[Tensor, Tensor]:
    """The random crop taken of images of that size, as `functional.resized_crop` has it.

    The recipe has a ``crop_scale``; heights and widths in pixels are one for all, or ``(B,)``.

    Returns:
        Boxes: top, left, height and width, ``(B, 4)``. Whether to mirror: bool ``(B,)``.
    """
    assert recipe.crop_scale is not None
    scale, ratio = recipe.crop_scale, recipe.crop_ratio
    boxes_B4 = random_crop_boxes(draws, height, width, scale, ratio, recipe.cut_crop)
    return boxes_B4, draws.uniform("flip", 1)[:, 0] < recipe.flip


def recolour(views: Tensor, recipe: Augmentation, draws: SampleRng) -> Tensor:
    """What `augment` does once images are cropped and mirrored, float32 in [0, 1], overwritten."""
    probabilities = {
        "jitter": recipe.jitter_probability if any(recipe.jitter) else 0.0,
        "grayscale": recipe.grayscale,
        "blur": recipe.blur,
        "solarize": recipe.solarize,
    }
    if not any(probabilities.values()):
        return views
    parameters = {"jitter strength": 4, "jitter order": 4, "blur sigma": 1}
    drawn = draws.uniforms({**dict.fromkeys(probabilities, 1), **parameters})
    sigma_B = _between(drawn["blur sigma"], *recipe.blur_sigma)[:, 0]
    radius = math.ceil(3 * recipe.blur_sigma[1])

    def blur(images_BCHW: Tensor, sigma_B: Tensor) -> Tensor:
        # The sum of a blur's weights is 1 but for its rounding.
        return functional.gaussian_blur(images_BCHW, sigma_B, radius).clamp_(max=1)

    solarize = partial(functional.solarize, threshold=recipe.solarize_threshold)
    steps: dict[str, tuple[Callable[..., Tensor], list[Tensor]]] = {
        "jitter": (functional.color_jitter, _jitter(drawn, recipe.jitter)),
        "grayscale": (functional.to_grayscale, []),
        "blur": (blur, [sigma_B]),
        "solarize": (solarize, []),
    }
    for name in COLOUR_STEPS:
        operation, values = steps[name]
        if probabilities[name]:
            drawn_B = drawn[name][:, 0] < probabilities[name]
            views = _where(drawn_B, operation, views, values)
    return views


def evaluation_view(images_BCHW: Tensor, size: int) -> Tensor:
    """The deterministic view: resize and centre crop, bicubic with antialiasing.

    A larger image is resized to 8/7 of the size on its short side before the crop, as 256 pixels
    are to 224 on ImageNet; any other is resized to the size itself, so that an image of the
    right size is only rescaled to [0, 1].

    From uint8 in [0, 255] to float32 ``(B, C, size, size)`` in [0, 1].
    """
    views = functional.to_float(images_BCHW)
    height, width = _resized(views.shape[2:], size)
    if (height, width) != views.shape[2:]:
        views = F.interpolate(views, (height, width), mode="bicubic", antialias=True).clamp_(0, 1)
    top, left = round((height - size) / 2), round((width - size) / 2)
    return views[:, :, top : top + size, left : left + size]


def mask_view(masks_BHW: Tensor, size: int) -> Tensor:
    """The part of masks that `evaluation_view` shows, each pixel's class that of the nearest.

    Whole numbers below 2^24 of any type; int64 ``(B, size, size)``.
    """
    height, width = _resized(masks_BHW.shape[1:], size)
    views_B1HW = masks_BHW[:, None].float()
    views_B1HW = F.interpolate(views_B1HW, (height, width), mode="nearest-exact")
    top, left = round((height - size) / 2), round((width - size) / 2)
    return views_B1HW[:, 0, top : top + size, left : left + size].long()


def _resized(sides: Sequence[int], size: int) -> tuple[int, int]:
    """Height and width of images of these sides before the centre of that size is cut out."""
    height, width = sides
    short = min(height, width)
    target = size if short <= size else round(size * 8 / 7)
    return height * target // short, width * target // short


def normalize(
    images_BCHW: Tensor, mean: Sequence[float], std: Sequence[float], in_place: bool = False
) -> Tensor:
    """Subtract each channel's mean and divide by its standard deviation, in units of [0, 1].

    Those of a clip are repeated for each frame. Images are float32 in [0, 1]; to overwrite them
    spares the memory for others.
    """
    frames = images_BCHW.shape[1] // len(mean)
    moments = tuple(mean) * frames, tuple(std) * frames
    shift_C11, scale_C11 = _shift_and_scale(*moments, images_BCHW.device)
    out = images_BCHW if in_place else torch.empty(images_BCHW.shape, device=images_BCHW.device)
    return torch.addcmul(shift_C11, images_BCHW, scale_C11, out=out)


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def _shift_and_scale(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> Tensor:
    """What to add and to multiply with in order to `normalize`: ``(2, C, 1, 1)``."""
    shift = [-m / s for m, s in zip(mean, std, strict=True)]
    moments = torch.tensor([shift, [1 / s for s in std]])[..., None, None]
    return moments.to(device, non_blocking=True)


def random_crop_boxes(
    draws: SampleRng,
    height: int | Tensor,
    width: int | Tensor,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    cut: bool = False,
) -> Tensor:
    """Boxes distributed as those of torchvision's ``RandomResizedCrop.get_params``.

    The first of ten candidates that fits into the image, else the largest centred box whose
    width / height is allowed.

    Args:
        height, width: the image's, in pixels; one number for all, or ``(B,)``.
        scale, ratio: ranges of the area as a fraction of the image's, and of width / height.
        cut: take the first candidate, cut off at the image's border.

    Returns:
        float32 whole numbers ``(B, 4)``: top, left, height and width in pixels.
    """
    height_B1, width_B1 = _column(height, draws), _column(width, draws)
    drawn = draws.uniforms(
        {"crop area": _CROP_ATTEMPTS, "crop ratio": _CROP_ATTEMPTS, "crop position": 2}
    )
    area_BN = height_B1 * width_B1 * _between(drawn["crop area"], *scale)
    ratio_BN = _between(drawn["crop ratio"], *map(math.log, ratio)).exp()
    heights_BN = (area_BN / ratio_BN).sqrt().round()
    widths_BN = (area_BN * ratio_BN).sqrt().round()
    if cut:
        heights_BN = heights_BN.clamp(min=1).minimum(height_B1)
        widths_BN = widths_BN.clamp(min=1).minimum(width_B1)
    fits_BN = (heights_BN > 0) & (heights_BN <= height_B1)
    fits_BN &= (widths_BN > 0) & (widths_BN <= width_B1)
    first_B1 = fits_BN.int().argmax(1, keepdim=True)
    fits_B1 = fits_BN.gather(1, first_B1)

    sides_B2 = torch.cat([heights_BN.gather(1, first_B1), widths_BN.gather(1, first_B1)], 1)
    image_B2 = torch.cat([height_B1, width_B1], 1).expand_as(sides_B2)
    allowed_B2 = torch.cat([width_B1 / ratio[0], height_B1 * ratio[1]], 1).round()
    sides_B2 = torch.where(fits_B1, sides_B2, image_B2.minimum(allowed_B2))

    free_B2 = image_B2 - sides_B2
    random_B2 = (drawn["crop position"] * (free_B2 + 1)).floor()
    corner_B2 = torch.where(fits_B1, random_B2, (free_B2 / 2).floor())
    return torch.cat([corner_B2, sides_B2], 1)


def _column(side: int | Tensor, draws: SampleRng) -> Tensor:
    """A length in pixels for every sample, float32 ``(B, 1)``, or for all, ``(1, 1)``."""
    device = draws.samples_B.device
    if isinstance(side, Tensor):
        return side.to(device, torch.float32)[:, None]
    return torch.full((1, 1), float(side), device=device)


def _jitter(
    drawn: Mapping[str, Tensor], strengths: tuple[float, float, float, float]
) -> list[Tensor]:
    """Factors of brightness, contrast and saturation, shifts of hue, and their order."""
    ranges = [
        *((max(0.0, 1 - each), 1 + each) for each in strengths[:3]),
        (-strengths[3], strengths[3]),
    ]
    uniform_4B = drawn["jitter strength"].unbind(1)
    factors = [_between(each, *span) for each, span in zip(uniform_4B, ranges, strict=True)]
    return [*factors, drawn["jitter order"].argsort(1)]


def _between(uniform: Tensor, low: float, high: float) -> Tensor:
    return low + (high - low) * uniform


def _where(
    drawn_B: Tensor, operation: Callable[..., Tensor], views: Tensor, parameters: Sequence[Tensor]
) -> Tensor:
    """The operation on the samples that drew it; ``views`` may be overwritten."""
    # To select samples, a host would have to wait for its accelerator: compute them all there.
    if views.device.type != "cpu":
        return torch.where(drawn_B[:, None, None, None], operation(views, *parameters), views)
    if drawn_B.all():
        return operation(views, *parameters)
    index_A = drawn_B.nonzero()[:, 0]
    views[index_A] = operation(views[index_A], *(values[index_A] for values in parameters))
    return views
