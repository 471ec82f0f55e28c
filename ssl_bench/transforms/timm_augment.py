"""timm's RandAugment and random erasing, made functions of (seed, step, sample).

timm draws from the global generators of Python, NumPy and torch. Here these are seeded for each
image, and put back afterwards.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import auto_augment
from timm.data.auto_augment import rand_augment_transform
from timm.data.random_erasing import RandomErasing
from torch import Tensor

from ssl_bench.data.streaming import cores
from ssl_bench.transforms import functional
from ssl_bench.utils.rng import SampleRng, key

_PIXELS_FOR_THREADS = 96**2

_Change = Callable[[Image.Image], Image.Image]


def rand_augment(
    images_BCHW: Tensor, policy: str, fill: Sequence[float], draws: SampleRng
) -> Tensor:
    """RandAugment (Cubuk et al., arXiv:1909.13719) as timm does it, image by image on the CPU.

    All is drawn first, one image after the other; then threads change several images at a time.
    With timm's settings for training on ImageNet: bicubic, shifts of up to 0.45 of the size.

    Args:
        images_BCHW: float32 in [0, 1] of 1 or 3 channels; a grey image goes through as RGB.
        policy: what ``timm.data.auto_augment.rand_augment_transform`` takes, as
            ``rand-m9-mstd0.5-inc1``.
        fill: colour of what was outside the image, in [0, 1], for one channel or three.
        draws: one row per image.

    Returns:
        float32 in [0, 1], multiples of 1 / 255, on the images' device.
    """
    height, width = images_BCHW.shape[2:]
    colour = [min(255, round(255 * value)) for value in fill]
    settings = {
        "translate_const": int(min(height, width) * 0.45),
        "img_mean": tuple(colour * 3 if len(colour) == 1 else colour),
        "interpolation": Image.Resampling.BICUBIC,
    }
    transform = rand_augment_transform(policy, settings)
    for operation in transform.ops:
        is_posterize = operation.aug_fn is auto_augment.posterize
        operation.aug_fn = partial(_noted, _posterize if is_posterize else operation.aug_fn)
    changes: list[list[_Change]] = []
    with _seeded_apart() as seed:
        for number in _keys(draws, "rand augment"):
            seed(number)
            changes.append(transform([]))
    mode = "L" if images_BCHW.shape[1] == 1 else "RGB"
    pixels_BHWC = (images_BCHW * 255).round().byte().permute(0, 2, 3, 1).contiguous()
    bytes_BHWC = pixels_BHWC.cpu().numpy()

    def view(row: int) -> np.ndarray:
        image_HWC = bytes_BHWC[row]
        image = Image.fromarray(image_HWC[..., 0] if mode == "L" else image_HWC).convert("RGB")
        for change in changes[row]:
            image = change(image)
        return np.array(image.convert(mode)).reshape(height, width, -1)

    rows = range(len(bytes_BHWC))
    # Pillow lets go of Python's lock while it works, which pays for images that are not small.
    if height * width >= _PIXELS_FOR_THREADS:
        with ThreadPoolExecutor(cores()) as pool:
            views = list(pool.map(view, rows))
    else:
        views = list(map(view, rows))
    views_BCHW = torch.from_numpy(np.stack(views)).to(images_BCHW.device).permute(0, 3, 1, 2)
    return functional.to_float(views_BCHW.contiguous())


def _noted(
    operation: Callable[..., Image.Image], changes: list[_Change], *level: Any, **settings: Any
) -> list[_Change]:
    """The changes that were drawn for an image before, and this one: none is made yet."""
    return [*changes, lambda image: operation(image, *level, **settings)]


def _posterize(image: Image.Image, bits: int, **settings: Any) -> Image.Image:
    """Keep that many bits. None, at timm's full magnitude, is black: newer Pillows refuse it."""
    if bits == 0:
        return Image.new(image.mode, image.size)
    return auto_augment.posterize(image, bits, **settings)


def random_erase(images_BCHW: Tensor, probability: float, draws: SampleRng) -> Tensor:
    """Random erasing (Zhong et al., arXiv:1708.04896) as timm does it, drawn on the CPU.

    A rectangle of 2 to 33 % of a normalised image is filled with normal noise.

    Args:
        images_BCHW: normalised float32; not changed.
        probability: share of the images to erase in, in [0, 1].
        draws: one row per image.
    """
    erase = RandomErasing(probability, mode="pixel", max_count=1, device="cpu")
    erased_BCHW = images_BCHW.clone()
    with _seeded_apart() as seed:
        for image_CHW, number in zip(erased_BCHW, _keys(draws, "random erasing"), strict=True):
            seed(number)
            erase(_Erasable(image_CHW))
    return erased_BCHW


class _Erasable:
    """What `RandomErasing` sees of an image, to which it only assigns: it may be on a GPU."""

    def __init__(self, image_CHW: Tensor) -> None:
        self._image_CHW, self.size, self.dtype = image_CHW, image_CHW.size, image_CHW.dtype

    def __setitem__(self, place: Any, noise: Tensor) -> None:
        self._image_CHW[place] = noise.to(self._image_CHW.device, non_blocking=True)


def _keys(draws: SampleRng, purpose: str) -> list[int]:
    """A number for each sample, to seed a generator with."""
    coordinates = draws.seed, draws.scope + purpose, draws.step
    return [key(*coordinates, sample) for sample in draws.samples_B.tolist()]


@contextmanager
def _seeded_apart() -> Iterator[Callable[[int], None]]:
    """What seeds the global generators that timm draws from; they are put back at the end."""

    def seed(number: int) -> None:
        random.seed(number)
        np.random.seed(number % 2**32)
        torch.default_generator.manual_seed(number)

    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            yield seed
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
