"""Views of a split's images for training, however the images are stored.

Of a split in memory a view is made of the stored square. Of a streamed one a random crop is taken
of the whole photograph, by box and mirror drawn as in `augmentations`, with these differences: the
crop is rounded to 8 bits before colours change, as Pillow's is in the official codes of MAE and
MoCo v3; and a JPEG is decoded at a half, a quarter or an eighth of its size where the crop still
has at least the view's pixels, when the box is rounded to whole pixels of that.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from math import ceil
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ssl_bench.data import Split
from ssl_bench.data.images import header, square_CSS, to_rgb, upright_size
from ssl_bench.data.streaming import Job, StreamedSplit, ahead, reading
from ssl_bench.transforms import functional
from ssl_bench.transforms.augmentations import Augmentation, augment, crop_of, recolour
from ssl_bench.utils.rng import SampleRng


def views(
    split: Split, recipes: Sequence[Augmentation], steps: Iterable[SampleRng]
) -> Generator[tuple[SampleRng, tuple[Tensor, ...]]]:
    """One view by each recipe of the samples of each step, beside its draws.

    A function of the images and the draws alone. What is yielded is where the split's labels are.

    Args:
        steps: see `stored`.

    Yields:
        The draws, and for each recipe float32 ``(B, C, size, size)`` in [0, 1], not normalised.

    Raises:
        UserError: an image cannot be read.
    """
    with closing(stored(split, recipes, steps)) as ready:
        for draws, pixels in ready:
            yield draws, finished(split, recipes, draws, pixels)


def stored(
    split: Split, recipes: Sequence[Augmentation], steps: Iterable[SampleRng]
) -> Generator[tuple[SampleRng, tuple[Tensor, ...]]]:
    """What `finished` makes the views of each step of.

    A streamed split's next two steps are got ready in threads meanwhile; an image is decoded once
    for all of its views. What was yielded is overwritten once the next one is asked for.

    Args:
        steps: with one row per sample, on the CPU.

    Yields:
        The draws, and for each recipe uint8 ``(B, C, H, W)``, where the split's labels are.

    Raises:
        UserError: an image cannot be read.
    """
    device = split.labels_N.device
    spare: list[list[Tensor]] = []
    prepared: Iterator[tuple[SampleRng, list[Tensor]]]
    if not recipes:  # no image is looked at
        prepared = ((draws, []) for draws in steps)
    elif isinstance(split, StreamedSplit):
        pinned = device.type == "cuda"
        jobs = (_job(split, recipes, draws, spare, pinned) for draws in steps)
        prepared = ahead(jobs, split.workers)
    else:
        prepared = ((draws, [split.drawn(draws)] * len(recipes)) for draws in steps)
    with closing(prepared) as ready:
        for draws, pixels in ready:
            yield draws.to(device), tuple(view.to(device, non_blocking=True) for view in pixels)
            if isinstance(split, StreamedSplit) and device.type == "cpu":
                spare.append(pixels)


def finished(
    split: Split, recipes: Sequence[Augmentation], draws: SampleRng, pixels: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """The views, float32 in [0, 1], of what is `stored`; nothing here waits for a device."""
    finish: Callable[..., Tensor] = _finished if isinstance(split, StreamedSplit) else augment
    scopes = zip(pixels, _scopes(recipes, draws), strict=True)
    return tuple(finish(view, *scope) for view, scope in scopes)


def _scopes(
    recipes: Sequence[Augmentation], draws: SampleRng
) -> Iterator[tuple[Augmentation, SampleRng]]:
    """Each recipe, and the draws of its view."""
    for number, recipe in enumerate(recipes):
        yield recipe, draws.within(f"view{number}")


def _finished(pixels_BCHW: Tensor, recipe: Augmentation, draws: SampleRng) -> Tensor:
    """A view of what the threads left: mirrored crops, or stored squares."""
    if recipe.crop_scale is None:
        return augment(pixels_BCHW, recipe, draws)
    return recolour(functional.to_float(pixels_BCHW), recipe, draws)


def _job(
    split: StreamedSplit,
    recipes: Sequence[Augmentation],
    draws: SampleRng,
    spare: list[list[Tensor]],
    pinned: bool,
) -> Job[tuple[SampleRng, list[Tensor]]]:
    """What `_finished` takes for each view, uint8, and the functions that fill it in.

    Spare tensors of earlier steps are used again: memory that is new to a process is slow. Pinned
    ones are in page-locked memory, which a GPU copies from while the host works.
    """
    pixels: list[Tensor] = []
    while spare and not pixels:
        pixels = [view for view in spare.pop() if len(view) == len(draws.samples_B)]
    for recipe in recipes if not pixels else ():
        side = split.side if recipe.crop_scale is None else recipe.size
        shape_BCSS = (len(draws.samples_B), split.channels, side, side)
        pixels.append(torch.empty(shape_BCSS, dtype=torch.uint8, pin_memory=pinned))
    parts = []
    part = split.part_of(len(draws.samples_B))
    for start in range(0, len(draws.samples_B), part):
        rows = slice(start, start + part)
        own = draws.rows(rows)
        parts.append(partial(_fill, split, recipes, own, [view[rows] for view in pixels]))
    return (draws, pixels), parts


class _Crop(NamedTuple):
    """One sample's crop, in pixels of the upright image."""

    top: float
    left: float
    height: float
    width: float
    mirrored: bool


def _fill(
    split: StreamedSplit,
    recipes: Sequence[Augmentation],
    draws: SampleRng,
    pixels: Sequence[Tensor],
) -> None:
    """Write the crops, or the squares, of some samples."""
    pictures, images = [split.picture(index) for index in draws.samples_B.tolist()], []
    for picture in pictures:
        with reading(picture):
            images.append(header(picture))
    sizes_P2 = torch.tensor([upright_size(image) for image in images])
    crops = _crops(recipes, draws, sizes_P2)
    for row, (picture, image) in enumerate(zip(pictures, images, strict=True)):
        size, own = tuple(sizes_P2[row].tolist()), crops[row]
        with reading(picture):
            is_reduced = _reduce(image, size, own, recipes, split.side)
            upright = to_rgb(image, split.depths)
            if not is_reduced and upright.size != size:
                size = upright.size
                [own] = _crops(recipes, draws.rows(slice(row, row + 1)), torch.tensor([size]))
            for view_PCSS, recipe, crop in zip(pixels, recipes, own, strict=True):
                # Copied by numpy: torch would start threads for it.
                view_PCSS[row].numpy()[:] = (
                    square_CSS(upright, split.side, split.channels)
                    if crop is None
                    else _cropped(upright, size, crop, recipe, split.channels)
                )


def _crops(
    recipes: Sequence[Augmentation], draws: SampleRng, sizes_P2: Tensor
) -> list[tuple[_Crop | None, ...]]:
    """For each sample the crop of each view, None where it takes the square."""
    by_view: list[list[_Crop | None]] = []
    for recipe, scope in _scopes(recipes, draws):
        crops: list[_Crop | None] = [None] * len(sizes_P2)
        if recipe.crop_scale is not None:
            found = crop_of(recipe, scope, sizes_P2[:, 1], sizes_P2[:, 0])
            rows = torch.column_stack(found).tolist()
            crops = [_Crop(y, x, high, wide, flip > 0) for y, x, high, wide, flip in rows]
        by_view.append(crops)
    return list(zip(*by_view, strict=True))


def _reduce(
    image: Image.Image,
    size: Sequence[int],
    crops: Sequence[_Crop | None],
    recipes: Sequence[Augmentation],
    side: int,
) -> bool:
    """Let a JPEG be decoded at the smallest size that has the pixels of every view, if it is."""
    needed = max(
        side / min(size) if crop is None else recipe.size / min(crop.height, crop.width)
        for crop, recipe in zip(crops, recipes, strict=True)
    )
    whole = image.size
    image.draft(None, (ceil(whole[0] * needed), ceil(whole[1] * needed)))
    return image.size != whole


def _cropped(
    upright: Image.Image, size: Sequence[int], crop: _Crop, recipe: Augmentation, channels: int
) -> np.ndarray:
    """The crop, resized and mirrored: uint8 ``(C, S, S)``.

    torch's resizing of 8-bit images gives what Pillow's does to 1 in 255, three times as fast, and
    starts no threads of its own.
    """
    x_scale, y_scale = upright.width / size[0], upright.height / size[1]
    left, top = round(crop.left * x_scale), round(crop.top * y_scale)
    right = max(left + 1, round((crop.left + crop.width) * x_scale))
    bottom = max(top + 1, round((crop.top + crop.height) * y_scale))
    part = upright.crop((left, top, right, bottom))
    if crop.mirrored:
        part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pixels_HWC = np.array(part)[..., :channels]
    pixels_1CHW = torch.from_numpy(pixels_HWC).permute(2, 0, 1)[None]
    side = (recipe.size, recipe.size)
    return F.interpolate(pixels_1CHW, side, mode=recipe.interpolation, antialias=True)[0].numpy()
