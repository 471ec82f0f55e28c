"""From a listing of pictures to tensors in memory, or to what streams them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from math import sqrt
from pathlib import Path

import numpy as np
import torch

from ssl_bench.data.dataset import Split, fingerprint
from ssl_bench.data.images import jpeg_quality, opened, square_CSS
from ssl_bench.data.listing import Listing, Part, Picture
from ssl_bench.data.stream import open_stream
from ssl_bench.errors import UserError
from ssl_bench.settings import Storage

Progress = Callable[[int, int], None]

_LARGEST_NATIVE = 96
_LARGEST_JPEG_CAVEAT = 64
_BATCH = 256


def load(
    listing: Listing, image_size: int, storage: Storage, progress: Progress | None = None
) -> tuple[Split, Split, str, tuple[str, ...], str]:
    """Two splits of a listing.

    Returns:
        The train split, the test split, the fingerprint, caveats about how the images are stored,
        and in words where they are now, and why.

    Raises:
        UserError: an image cannot be read, or they would not fit in half of the free memory but
            are to be there.
    """
    native, caveats = _native_size(listing)
    side = native or round(image_size * 8 / 7)
    count = listing.train.count + listing.test.count
    # By all memory, not by what is free now: the same command is to find the same run again.
    too_large = _too_much(count, listing.channels, side, _total_memory(), "memory")
    if storage == "stream" or (too_large and storage == "auto"):
        train, test, digest = open_stream(listing, side, progress)
        why = "as asked" if storage == "stream" else f"as {too_large}"
        return train, test, digest, caveats, f"streamed from their files, {why}"
    free = _available_memory()
    if too_much := _too_much(count, listing.channels, side, free, "free memory"):
        fitting = int(sqrt(free / 2 / (count * listing.channels)) * 7 / 8)
        smaller = "" if native else f", and so would an image size of {fitting} or less"
        raise UserError(f"{too_much}; --storage stream would work{smaller}")
    train, test = _decode(listing, side, native is not None, progress)
    return train, test, fingerprint(train, test, listing.classes), caveats, "in memory"


def _decode(
    listing: Listing, side: int, native: bool, progress: Progress | None
) -> tuple[Split, Split]:
    total = listing.train.count + listing.test.count
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
    return splits[0], splits[1]


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


def _too_much(count: int, channels: int, side: int, room: int, what: str) -> str:
    """What speaks against decoding that many squares into that memory; "" if nothing does."""
    needed = count * channels * side**2
    if needed <= room // 2:
        return ""
    return (
        f"{count:,} images of {side} x {side} pixels need {needed / 2**30:.1f} GiB, more than "
        f"half of the {room / 2**30:.1f} GiB of {what}"
    )


def _total_memory() -> int:
    """The machine's memory in bytes, or the control group's, where that is less."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdigit() else total


def _available_memory() -> int:
    """Free memory in bytes: what Linux says is available, else all of it."""
    try:
        fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
