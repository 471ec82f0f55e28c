"""Loading a listing of pictures into memory, or handing it to the streaming loader."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from math import sqrt
from pathlib import Path

import numpy as np
import torch

from ssl_bench.config.settings import Storage
from ssl_bench.data import depth, masks
from ssl_bench.data.dataset import Dataset, Split, fingerprint
from ssl_bench.data.depth import Depths
from ssl_bench.data.images import UnreadableImage, jpeg_quality, opened, square_CSS
from ssl_bench.data.listing import Listing, Picture, Progress
from ssl_bench.data.streaming import open_stream
from ssl_bench.data.survey import sound
from ssl_bench.errors import UserError

_LARGEST_NATIVE = 96
_LARGEST_JPEG_CAVEAT = 64
_BATCH = 256


def load(
    listing: Listing,
    image_size: int,
    storage: Storage,
    skip_broken: bool,
    remembered: Path,
    progress: Progress,
) -> Dataset:
    """Load the data set of a listing, in memory or streamed.

    ``remembered`` is the folder for the results of checking streamed data sets.

    Raises:
        UserError: images cannot be read, or need more than half of the free memory.
    """
    native, caveats = _native_size(listing)
    side = native or round(image_size * 8 / 7)
    # By total, not by free memory: the same command must find the same run again.
    too_large = _too_much(listing.count, listing.channels, side, total_memory(), "memory")
    if storage == "stream" or (too_large and storage == "auto"):
        why = "as asked" if storage == "stream" else f"as {too_large}"

        def look(left: Listing) -> tuple[int, tuple[str, ...]]:
            size, said = (native, caveats) if left is listing else _native_size(left)
            return size or round(image_size * 8 / 7), said

        streamed = open_stream(listing, look, skip_broken, remembered, progress)
        return replace(streamed, storage=f"{streamed.storage}, {why}")
    free = _available_memory()
    if too_much := _too_much(listing.count, listing.channels, side, free, "free memory"):
        fitting = int(sqrt(free / 2 / (listing.count * listing.channels)) * 7 / 8)
        smaller = "" if native else f", and so would an image size of {fitting} or less"
        raise UserError(f"{too_much}; --storage stream would work{smaller}")
    said: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()
    try:
        train, test = _decode(listing, side, native is not None, None, progress)
    except UnreadableImage:
        listing, depths, said, broken = sound(listing, skip_broken, progress)
        native, caveats = _native_size(listing)  # perhaps only a broken image differed in size
        side = native or round(image_size * 8 / 7)
        train, test = _decode(listing, side, native is not None, depths, progress)
    digest = fingerprint(train, test, (*listing.classes, *listing.mask_classes))
    return listing.as_dataset(train, test, digest, (*said, *caveats), "in memory", broken)


def _decode(
    listing: Listing, side: int, native: bool, depths: Depths | None, progress: Progress
) -> tuple[Split, Split]:
    """Decode both splits.

    Raises:
        UnreadableImage: an image is broken, or has more than 8 bits and there are no ``depths``.
    """
    splits, done = [], 0

    def squares(picture: Picture) -> tuple[np.ndarray, np.ndarray | None]:
        with opened(picture) as image:
            if depths is None and depth.kind(image):
                raise ValueError("its range must first be chosen over all images")
            mask_SS = masks.square_SS(picture, side) if listing.mask_classes else None
            return square_CSS(image, side, listing.channels, depths), mask_SS

    with ThreadPoolExecutor() as pool:
        # Handing a small image to a thread takes longer than decoding it.
        each = map if native else pool.map
        for part in (listing.train, listing.test):
            images_NCHW = np.empty((part.count, listing.channels, side, side), np.uint8)
            labels_N = np.empty(part.count, np.int64)
            masks_NSS = np.empty((part.count if listing.mask_classes else 0, side, side), np.uint8)
            pictures, place, texts = part.pictures(), 0, list[tuple[str, ...]]()
            while batch := list(islice(pictures, _BATCH)):
                for picture, (image_CSS, mask_SS) in zip(batch, each(squares, batch), strict=True):
                    images_NCHW[place], labels_N[place] = image_CSS, picture.label
                    texts.append(picture.captions)
                    if mask_SS is not None:
                        masks_NSS[place] = mask_SS
                    place += 1
                progress(done + place, listing.count)
            done += part.count
            captions = None if listing.uncaptioned else tuple(texts)
            split = Split(
                torch.from_numpy(images_NCHW), torch.from_numpy(labels_N), captions=captions
            )
            if listing.mask_classes:
                split = replace(split, masks_NSS=torch.from_numpy(masks_NSS))
            splits.append(split)
    return splits[0], splits[1]


def _native_size(listing: Listing) -> tuple[int | None, tuple[str, ...]]:
    """The small square size that all images share, or None, and caveats about the images."""
    sizes: set[tuple[int, int]] = set()
    qualities: set[int | None] = set()
    for picture in listing.pictures():
        with suppress(UnreadableImage), opened(picture) as image:
            sizes.add(image.size)
            qualities.add(jpeg_quality(image))
        if len(sizes) > 1 or any(w != h or w > _LARGEST_NATIVE for w, h in sizes):
            return None, ()
    if not sizes:
        return None, ()
    [(width, _)] = sizes
    known = sorted(quality for quality in qualities if quality)
    if not known or width > _LARGEST_JPEG_CAVEAT:
        return width, ()
    which = "some images" if None in qualities else "images"
    span = f"{known[0]}" if len(known) == 1 else f"{known[0]} to {known[-1]}"
    return width, (f"{which} stored as JPEG, quality about {span}",)


def _too_much(count: int, channels: int, side: int, room: int, what: str) -> str:
    """Why that many squares should not be decoded into that much memory; "" if they may be."""
    needed = count * channels * side**2
    if needed <= room // 2:
        return ""
    return (
        f"{count:,} images of {side} x {side} pixels need {needed / 2**30:.1f} GiB, more than "
        f"half of the {room / 2**30:.1f} GiB of {what}"
    )


def total_memory() -> int:
    """Total memory in bytes, of the machine or the control group, whichever is less."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdigit() else total


def _available_memory() -> int:
    """Available memory in bytes; total memory if the system does not tell."""
    try:
        fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
