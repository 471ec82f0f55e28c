"""From a listing of pictures to tensors in memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from math import sqrt
from pathlib import Path

import numpy as np
import torch

from ssl_bench.data.dataset import Split
from ssl_bench.data.images import jpeg_quality, opened, square_CSS
from ssl_bench.data.listing import Listing, Part, Picture
from ssl_bench.errors import UserError

_LARGEST_NATIVE = 96
_LARGEST_JPEG_CAVEAT = 64
_BATCH = 256


def decode(
    listing: Listing, image_size: int, progress: Callable[[int, int], None] | None = None
) -> tuple[Split, Split, tuple[str, ...]]:
    """The train split, the test split, and caveats about how the images were stored.

    Raises:
        UserError: an image cannot be read, or they would not fit in half of the free memory.
    """
    native, caveats = _native_size(listing)
    side = native or round(image_size * 8 / 7)
    total = listing.train.count + listing.test.count
    _check_memory(total, listing.channels, side, native is not None)
    splits, done = [], 0
    with ThreadPoolExecutor() as pool:
        # Handing a small image to a thread takes longer than decoding it.
        each = map if native else pool.map
        for part in (listing.train, listing.test):
            images_NCHW = np.empty((part.count, listing.channels, side, side), np.uint8)
            labels_N = np.empty(part.count, np.int64)
            start = 0
            for batch in _batches(part):
                stop = start + len(batch)
                squares = each(lambda p: _decode_one(p, side, listing.channels), batch)
                for index, image_CHW in enumerate(squares, start):
                    images_NCHW[index] = image_CHW
                labels_N[start:stop] = [picture.label for picture in batch]
                start = stop
                if progress:
                    progress(done + stop, total)
            splits.append(Split(torch.from_numpy(images_NCHW), torch.from_numpy(labels_N)))
            done += part.count
    return splits[0], splits[1], caveats


def _decode_one(picture: Picture, side: int, channels: int) -> np.ndarray:
    with opened(picture) as image:
        return square_CSS(image, side, channels)


def _batches(part: Part) -> Iterator[list[Picture]]:
    pictures = part.pictures()
    while batch := list(islice(pictures, _BATCH)):
        yield batch


def _native_size(listing: Listing) -> tuple[int | None, tuple[str, ...]]:
    """The small square size that every image has, else None, and caveats about them."""
    sizes: set[tuple[int, int]] = set()
    qualities: set[int | None] = set()
    for picture in chain(listing.train.pictures(), listing.test.pictures()):
        with opened(picture) as image:
            sizes.add(image.size)
            qualities.add(jpeg_quality(image))
            width, height = image.size
        if len(sizes) > 1 or width != height or width > _LARGEST_NATIVE:
            return None, ()
    known = sorted(quality for quality in qualities if quality)
    if not known or width > _LARGEST_JPEG_CAVEAT:
        return width, ()
    which = "some images" if None in qualities else "images"
    span = f"{known[0]}" if len(known) == 1 else f"{known[0]} to {known[-1]}"
    return width, (f"{which} stored as JPEG, quality about {span}",)


def _check_memory(count: int, channels: int, side: int, native: bool) -> None:
    needed, allowed = count * channels * side**2, _available_memory() // 2
    if needed <= allowed:
        return
    fitting = int(sqrt(allowed / (count * channels)) * 7 / 8)
    advice = "use fewer images" if native else f"an image size of {fitting} or less would fit"
    raise UserError(
        f"{count:,} images of {side} x {side} pixels need {needed / 2**30:.1f} GiB, more than "
        f"half of the {allowed * 2 / 2**30:.1f} GiB of free memory; {advice}"
    )


def _available_memory() -> int:
    """Free memory in bytes: what Linux says is available, else all of it."""
    try:
        fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
