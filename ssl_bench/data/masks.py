"""Masks: images whose pixels are class indices, 255 where no class counts.

Grey or palette images without loss, such as PNG, of their image's own size. A file `classes.txt`
may name the classes of a folder, one a line; else they are "0", "1", ...
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from ssl_bench.data.images import opened, upright_size
from ssl_bench.data.listing import Listing, Part, Picture, shown
from ssl_bench.errors import UserError, require
from ssl_bench.utils.files import readable, reading

IGNORED = 255
"""The class of pixels that do not count."""
CLASSES = "classes.txt"
_MODES = ("1", "L", "P", "I;16", "I")
_AT_ONCE = 256
_FEW = 32


def square_SS(picture: Picture, side: int) -> np.ndarray:
    """The part of a mask that `images.square_CSS` keeps of its image: uint8 ``(side, side)``.

    Raises:
        UserError: the mask cannot be read, or does not belong to its image.
    """
    mask = Image.fromarray(_read(picture))
    short = min(mask.size)
    left, top = (mask.width - short) / 2, (mask.height - short) / 2
    box = (left, top, left + short, top + short)
    return np.asarray(mask.resize((side, side), Image.Resampling.NEAREST, box=box))


def surveyed(listing: Listing, source: Path | str, names: tuple[str, ...] = ()) -> Listing:
    """A listing of pictures with masks, all of which were read once, with its classes.

    Args:
        names: of the classes, where they have any.

    Raises:
        UserError: a mask cannot be used, or the classes are too many or too few.
    """
    found = [_classes(part) for part in (listing.train, listing.test)]
    every = sorted(set().union(*found) - {IGNORED})
    ignored = f" beside {IGNORED}, which is ignored" if IGNORED in set().union(*found) else ""
    require(
        len(every) > 1,
        f"{source}: its masks hold {'only class ' if every else 'no class'}"
        f"{'' if not every else every[0]}{ignored}; "
        "two classes or more are needed, such as 0 for the background and 1 for things",
    )
    count = every[-1] + 1
    if names:
        require(
            count <= len(names),
            f"{source}: its masks hold class {every[-1]}, too many for {CLASSES}, which names "
            f"only {len(names)}",
        )
    else:
        require(
            count <= max(_FEW, 2 * len(every)),
            f"{source}: its masks hold {len(every)} classes, the largest {every[-1]}; classes must "
            f"be 0, 1, 2, ... without large gaps, unless a {CLASSES} names them, one a line",
        )
        names = tuple(map(str, range(count)))
    caveats = listing.caveats
    if alone := sorted(found[1] - found[0] - {IGNORED}):
        of = shown(names[label] for label in alone)
        caveats = (*caveats, f"in test masks alone: class {of}")
    return replace(listing, mask_classes=names, caveats=caveats)


def class_names(path: Path) -> tuple[str, ...]:
    """The names of the classes in a file, one a line; none if there is no such file."""
    if not path.exists():
        return ()
    with reading(path):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return tuple(readable(line.strip()) for line in lines if line.strip())


def _classes(part: Part) -> set[int]:
    """The classes in the masks of a part."""
    found: set[int] = set()
    pictures: Iterator[Picture] = part.pictures()
    with ThreadPoolExecutor() as pool:
        while batch := list(islice(pictures, _AT_ONCE)):
            found.update(*pool.map(_classes_of, batch))
    return found


def _classes_of(picture: Picture) -> set[int]:
    return set(np.unique(_read(picture)).tolist())


def _read(picture: Picture) -> np.ndarray:
    """The mask of a picture, checked: uint8, rows and columns."""
    mask = picture.mask
    whose = readable(mask) if isinstance(mask, Path) else f"of {picture.name}"
    require(mask is not None, f"{picture.name} has no mask")
    try:
        if not isinstance(mask, Image.Image):
            assert mask is not None
            mask = Image.open(io.BytesIO(mask) if isinstance(mask, bytes) else mask)
        kind = mask.mode if mask.format != "JPEG" else "JPEG"
        values = np.asarray(mask) if kind in _MODES else np.empty(0)
    except Exception as error:  # Pillow's decoders may raise anything on broken bytes
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"cannot read mask {whose}: {reason}") from error
    require(
        kind in _MODES,
        f"mask {whose} is {kind}; class indices in a grey or palette PNG would work",
    )
    with opened(picture) as image:
        size = upright_size(image)
    require(
        mask.size == size,
        f"mask {whose} is of {mask.width} x {mask.height} pixels and its image of {size[0]} x "
        f"{size[1]}; the same size would work",
    )
    largest = int(values.max(initial=0))
    require(
        largest <= IGNORED and int(values.min(initial=0)) >= 0,
        f"mask {whose} holds class {largest if largest > IGNORED else values.min()}, and classes "
        f"go from 0 to {IGNORED - 1}: too many",
    )
    return values.astype(np.uint8)
