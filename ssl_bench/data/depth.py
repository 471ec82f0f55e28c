"""Converting images of more than 8 bits per value to 8 bits.

Pillow returns 16-bit, 32-bit and float grey values as they are in the file, but no file says which
value is white: a camera's 12 bits are stored in 16, and floats may go to 1 or to 255. Scaling every
image by its own maximum would make dark images as bright as bright ones from the same sensor. So
the range is chosen once for a whole data set, from the largest value of each `kind` of image, and
reported if it is not the kind's full range. It is the smallest of 8, 10, 12, 14 and 16 bits that
holds this value, or [0, 1] for floats of at most 1.

Of 16-bit colours Pillow itself keeps only the 8 high bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ssl_bench.errors import UserError

GREY = {"I;16": "16-bit", "I": "32-bit", "F": "float"}
"""The kinds that Pillow returns as they are in the file, with their names in messages."""
_LARGEST = 65535
_UNIT = 0
"""Instead of a number of bits: floats from 0 to 1."""

Depths = Mapping[str, int]
"""The number of bits (or `_UNIT`) of each kind of deep image."""


@dataclass(frozen=True)
class Extremes:
    """The name, the `kind` and the largest value of an image of more than 8 bits."""

    name: str
    kind: str
    high: float


def kind(image: Image.Image) -> str | None:
    """The kind of deep image by its header ("RGB;16" is colours), None for 8 bits or fewer."""
    if image.mode in ("I", "F"):
        return image.mode
    if image.mode.startswith("I;16"):
        return "I;16"
    tiles = getattr(image, "tile", None)
    return "RGB;16" if tiles and ";16" in str(tiles[0][3]) else None


def extremes(image: Image.Image, which: str, name: str = "") -> Extremes:
    """The largest value of an image; ValueError if a grey one is NaN or outside [0, 65535]."""
    pixels = np.asarray(image)
    low, high = pixels.min(), pixels.max()
    if which not in GREY:
        return Extremes(name, which, float(high) * 256 + 255)
    if not (low >= 0 and high <= _LARGEST):
        raise ValueError(f"grey values from {low} to {high}; they must lie in [0, {_LARGEST}]")
    return Extremes(name, which, float(high))


def decide(found: Sequence[Extremes]) -> dict[str, int]:
    """Choose the depth of each kind among a data set's deep images.

    Raises:
        UserError: some float images go from 0 to 1, others beyond.
    """
    depths: dict[str, int] = {}
    for which in sorted({each.kind for each in found}):
        own = [each for each in found if each.kind == which]
        brightest = max(own, key=lambda each: each.high)
        depths[which] = _bits(which, brightest.high)
        small = [each for each in own if 0 < each.high <= 1]
        if which == "F" and depths[which] != _UNIT and small:
            raise UserError(
                f"float images of two ranges: {len(small):,} have values up to 1 (such as "
                f"{small[0].name}), others up to {brightest.high:g} ({brightest.name}); "
                "bring them to one range"
            )
    return depths


def in_words(found: Sequence[Extremes], depths: Depths, total: int) -> Iterator[str]:
    """Caveats about the deep images among a data set's ``total`` images, one line each."""
    for which, bits in depths.items():
        own = [each for each in found if each.kind == which]
        high = max(each.high for each in own)
        which_images = f"{len(own):,} of {total:,} images"
        if which == "RGB;16":
            if bits < 16:
                yield (
                    f"{which_images} have 16-bit colours of at most {high:g}, of which the 8 high "
                    "bits are read: they are dark; 8-bit copies would not be"
                )
            continue
        if bits != 16:
            scale = "from 0 to 1" if bits == _UNIT else f"as {bits} bits"
            yield f"{which_images} have {GREY[which]} values of at most {high:g}, read {scale}"
        dark = [each for each in own if 0 < each.high < 2 ** (bits - 4)] if bits else []
        if dark:
            yield (
                f"{len(dark):,} of {total:,} images have {GREY[which]} values below "
                f"{2 ** (bits - 4)}, others up to {high:g}: dark, or of another depth (such as "
                f"{dark[0].name})"
            )


def eight_bits(grey_HW: np.ndarray, bits: int) -> np.ndarray:
    """Grey values of that many bits as uint8; floats are rounded if they have 8 bits or less."""
    if bits == _UNIT:
        return (grey_HW * 255).round().astype(np.uint8)
    if bits == 8:
        return np.round(grey_HW).astype(np.uint8)
    return (grey_HW.astype(np.uint16) >> (bits - 8)).astype(np.uint8)


def _bits(which: str, high: float) -> int:
    if which == "F" and high <= 1:
        return _UNIT
    return next(bits for bits in (8, 10, 12, 14, 16) if high < 2**bits)
