"""One image: opened, converted to 8-bit RGB, cropped and resized to squares."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from math import ceil
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from ssl_bench.data.listing import Picture
from ssl_bench.errors import UserError

_ORIENTATION = 0x0112
# The luminance table of the JPEG standard (Annex K), which libjpeg scales by quality.
_LUMINANCE_64 = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ]
).ravel()


@contextmanager
def opened(picture: Picture) -> Iterator[Image.Image]:
    """The picture with its header read; pixels follow on first use.

    Raises:
        UserError: the picture cannot be read, then or inside the ``with`` block.
    """
    with naming(picture):
        if isinstance(picture.encoded, Image.Image):
            yield picture.encoded
            return
        with header(picture) as image:
            yield image


def header(picture: Picture) -> Image.Image:
    """The picture with its header read, to be closed where it is a file."""
    encoded = picture.encoded
    if isinstance(encoded, Image.Image):
        return encoded
    return Image.open(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded)


@contextmanager
def naming(picture: Picture) -> Iterator[None]:
    """Turn whatever is wrong with a picture into the user's error that names it."""
    try:
        yield
    except UnidentifiedImageError as error:
        raise UserError(f"cannot read image {picture.name}: no format that Pillow knows") from error
    except Exception as error:  # Pillow's decoders raise whatever the broken bytes lead them to
        reason = str(error) or type(error).__name__
        raise UserError(f"cannot read image {picture.name}: {reason}") from error


def in_memory(picture: Picture) -> Picture:
    """The picture with its file, if it is one, read."""
    if not isinstance(picture.encoded, Path):
        return picture
    with naming(picture):
        return Picture(picture.name, picture.encoded.read_bytes(), picture.label)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of an opened image once it is upright, as far as its header tells.

    Other formats than JPEG may tell after the pixels that the image is to be turned.
    """
    width, height = image.size
    turned = isinstance(image, JpegImageFile) and image.getexif().get(_ORIENTATION, 1) >= 5
    return (height, width) if turned else (width, height)


def to_rgb(image: Image.Image) -> Image.Image:
    """The image as 8-bit RGB, upright (EXIF orientation applied; the argument is turned, too).

    Transparent pixels are composited over white. 16-bit grey keeps its 8 high bits. Mode "I"
    is taken as 16-bit grey, mode "F" as 16-bit grey or, where no value exceeds 1, as [0, 1].

    Raises:
        ValueError: the values of mode "I" or "F" lie outside [0, 65535].
    """
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        # Pillow's own conversion clips at 255, which turns such images white.
        return Image.fromarray(_high_byte(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image if image.mode == "RGB" else image.convert("RGB")


def _high_byte(grey_HW: np.ndarray) -> np.ndarray:
    low, high = grey_HW.min(), grey_HW.max()
    if not (low >= 0 and high <= 65535):
        raise ValueError(f"grey values from {low} to {high}; they must lie in [0, 65535]")
    if grey_HW.dtype.kind == "f" and high <= 1:
        return (grey_HW * 255).round().astype(np.uint8)
    return (grey_HW.astype(np.uint16) >> 8).astype(np.uint8)


def square_CSS(image: Image.Image, side: int, channels: int) -> np.ndarray:
    """The image as uint8 ``(channels, side, side)``.

    Its short side is resized to ``side`` (bicubic, antialiased) and the centre is kept; an
    image of that size is left as it is. With one channel the image must be grey.
    """
    scale = side / min(image.size)
    # A JPEG decodes at 1/2, 1/4 or 1/8 of its size where that is still large enough.
    image.draft(None, (ceil(image.width * scale), ceil(image.height * scale)))
    image = to_rgb(image)
    if image.size != (side, side):
        short = min(image.size)
        left, top = (image.width - short) / 2, (image.height - short) / 2
        box = (left, top, left + short, top + short)
        image = image.resize((side, side), Image.Resampling.BICUBIC, box=box)
    return np.asarray(image).transpose(2, 0, 1)[:channels]


def jpeg_quality(image: Image.Image) -> int | None:
    """The libjpeg quality, 1 to 100, nearest to the image's luminance table; None if no JPEG."""
    tables = getattr(image, "quantization", None)
    return _nearest_quality(tuple(tables[0])) if tables else None


@lru_cache
def _nearest_quality(table: tuple[int, ...]) -> int:
    def distance(quality: int) -> int:
        scale = 5000 // quality if quality < 50 else 200 - 2 * quality
        scaled = np.clip((_LUMINANCE_64 * scale + 50) // 100, 1, 255)
        return int(np.abs(scaled - table).sum())

    return min(range(1, 101), key=distance)
