"""Opening one image, converting it to 8-bit RGB, cropping and resizing it to a square.

Only pixels and orientation are read from a file; anything else, such as colour profiles, texts and
previews, may be damaged. Nothing in an image is executed: formats that Pillow passes to other
programs are not read.
"""

from __future__ import annotations

import importlib
import io
import struct
import warnings
import zlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cache, lru_cache
from math import ceil
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from ssl_bench.data import depth
from ssl_bench.data.depth import Depths, Extremes
from ssl_bench.data.listing import Picture
from ssl_bench.errors import UserError
from ssl_bench.utils.formatting import many

# Pillow warns of damaged metadata, which does not matter here, and of large images, whose limit is
# our own.
warnings.filterwarnings("ignore", module=r"PIL\.")

_NO_PICTURES = frozenset(
    (
        *("EPS", "PDF", "WMF"),  # run other programs, or need one
        *("BUFR", "GRIB", "HDF5"),  # measurements, which Pillow recognises but cannot read
        *("FLI", "MPEG"),  # films
        *("IPTC", "PSD"),  # more than one plain image
    )
)
_PLUGINS = ("pillow_heif.HeifImagePlugin", "pillow_jxl")
_LARGEST_FILE = 2**28
"""Bytes of a file that is read as a whole; Pillow reads only what it needs of a larger one."""
_MOST_PIXELS = 90_000_000
_LONGEST_TEXT = 2**20
"""Bytes of a text in a PNG; Pillow refuses the whole image for a longer one."""
_JPEG = b"\xff\xd8"
_PIXELS_START = b"\xd8\xd9\xda"
_IDLE = bytes([*range(0xE2, 0xEE), 0xEF, 0xFE])
"""Marks of a JPEG's segments: APP2 to APP13, APP15, comments."""
_PNG = b"\x89PNG\r\n\x1a\n"
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SHOWN = 10
_LONGEST_REASON = 80


class UnreadableImage(UserError):
    """One image cannot be read; ``is_refused`` if the system refused a file that may be intact."""

    kind = "image"

    def __init__(self, name: str, error: Exception, hint: str = "") -> None:
        known = not isinstance(error, UnidentifiedImageError)
        reason = " ".join(str(error).split()) or type(error).__name__
        self.reason = reason if known else "no format that Pillow knows"
        self.name = name
        self.is_refused = isinstance(error, OSError) and error.errno is not None
        super().__init__(f"cannot read {self.kind} {name}: {self.reason}{hint}")


class UnreadableVideo(UnreadableImage):
    """The same of a video."""

    kind = "video"


def refuse(broken: Sequence[UnreadableImage], skip: bool) -> None:
    """Raise ``UserError`` for images that cannot be read, unless they are to be skipped.

    Files that the system refused never are, as they may be readable the next time.
    """
    refused = [each for each in broken if each.is_refused] if skip else broken
    if not refused:
        return
    hint = "" if skip else f"; --skip-broken would leave {'them' if broken[1:] else 'it'} out"
    if len(refused) == 1:
        raise UserError(f"{refused[0]}{hint}")
    shown = [f"{each.name} ({each.reason[:_LONGEST_REASON]})" for each in refused[:_SHOWN]]
    rest = f" and {len(refused) - _SHOWN:,} more" if refused[_SHOWN:] else ""
    raise UserError(
        f"cannot read {many(len(refused), refused[0].kind)}: {', '.join(shown)}{rest}{hint}"
    )


@cache
def _formats() -> tuple[tuple[str, ...], dict[str, str]]:
    """The image formats recognised by content, and the format of each file extension."""
    for plugin in _PLUGINS:
        with suppress(ImportError):
            importlib.import_module(plugin)
    Image.init()
    pictures = [each for each in Image.OPEN if each not in _NO_PICTURES]
    by_content = [each for each in pictures if Image.OPEN[each][1] is not None]
    by_content.sort(key=("JPEG", "PNG").__contains__, reverse=True)
    kinds = {"MPO": "JPEG"}
    by_extension = {
        extension: kinds.get(each, each)
        for extension, each in Image.registered_extensions().items()
        if kinds.get(each, each) in pictures
    }
    return tuple(by_content), by_extension


def is_marked(image: Image.Image) -> bool:
    """Whether the format of an opened file can be recognised by its content."""
    return image.format in _formats()[0]


def extensions() -> Collection[str]:
    """The extensions of files that are read as images, in lower case and with dots."""
    return _formats()[1].keys()


@contextmanager
def opened(picture: Picture) -> Iterator[Image.Image]:
    """Open a picture and read its header; pixels are read on first use, all errors are named."""
    with naming(picture):
        if isinstance(picture.encoded, Image.Image):
            yield picture.encoded
            return
        with header(picture) as image:
            yield image


def header(picture: Picture) -> Image.Image:
    """The picture with its header read; the caller closes it."""
    encoded = in_memory(picture).encoded
    if isinstance(encoded, Image.Image):
        return encoded
    formats, by_extension = _formats()
    own = by_extension.get(f".{picture.name.rpartition('.')[2].lower()}")
    if own and own not in formats:  # not recognisable by content, so only tried by extension
        formats = (*formats, own)
    if isinstance(encoded, Path):
        return Image.open(encoded, formats=formats)
    if encoded[:2] == _JPEG:
        encoded = _without(encoded, _idle_in_jpeg(encoded))
    elif encoded[:8] == _PNG:
        encoded = _without(encoded, _idle_in_png(encoded))
    return Image.open(io.BytesIO(encoded), formats=formats)


def _without(content: bytes, spans: Iterator[tuple[int, int]]) -> bytes:
    """The content without these spans (start, stop), which are in ascending order."""
    kept, since = [], 0
    for start, stop in spans:
        kept.append(content[since:start])
        since = stop
    return b"".join([*kept, content[since:]]) if kept else content


def _idle_in_jpeg(content: bytes) -> Iterator[tuple[int, int]]:
    """The segments of a JPEG that pixels do not need and that might make Pillow fail.

    JFIF, EXIF and XMP (orientation) and Adobe (colours) stay.
    """
    here = 2
    while content[here : here + 1] == b"\xff" and content[here + 1 : here + 2] not in _PIXELS_START:
        stop = here + 2 + int.from_bytes(content[here + 2 : here + 4])
        if content[here + 1 : here + 2] in _IDLE:
            yield here, stop
        here = stop


def _idle_in_png(content: bytes) -> Iterator[tuple[int, int]]:
    """The chunks of a PNG that pixels do not need and that might make Pillow fail.

    It refuses the image for a wrong checksum of a text, or a text that unpacks to too much. All
    frames of an animation but the first go, too.
    """
    here = 8
    while here + 12 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, here)
        stop = here + 12 + length
        is_pixels = kind[0] < 0x60 or kind == b"tRNS"  # critical chunks begin with "A" to "Z"
        if not (is_pixels or _tells_orientation(kind, content[here:stop])):
            yield here, stop
        here = stop


def _tells_orientation(kind: bytes, chunk: bytes) -> bool:
    """Whether Pillow could read the image's orientation from this chunk of a PNG."""
    text = chunk[8:-4]
    if kind in (b"tEXt", b"zTXt", b"iTXt"):
        keyword, _, rest = text.partition(b"\0")
        if keyword not in (b"Raw profile type exif", b"XML:com.adobe.xmp"):
            return False
        packed = rest[1:]
        if kind == b"iTXt":
            packed = rest[2:].split(b"\0", 2)[-1] if rest[:1] == b"\1" else b""
        if kind != b"tEXt" and packed and not _is_small(packed):
            return False
    elif kind != b"eXIf":
        return False
    return zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:]) and len(text) < _LONGEST_TEXT


def _is_small(packed: bytes) -> bool:
    with suppress(zlib.error):
        return len(zlib.decompressobj().decompress(packed, _LONGEST_TEXT)) < _LONGEST_TEXT
    return False


@contextmanager
def naming(
    picture: Picture, hint: str = "", error_class: type[UnreadableImage] = UnreadableImage
) -> Iterator[None]:
    """Turn any error about a picture into one of that class that names it, with a hint."""
    try:
        yield
    except (MemoryError, UserError):
        raise
    except Exception as error:  # Pillow's decoders may raise anything on broken bytes
        raise error_class(picture.name, error, hint) from error


def in_memory(picture: Picture) -> Picture:
    """The picture with its file read into memory, unless that is huge."""
    path = picture.encoded
    with naming(picture):
        if isinstance(path, Path) and path.stat().st_size <= _LARGEST_FILE:
            return replace(picture, encoded=path.read_bytes())
    return picture


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of an opened image once it is upright, according to its header.

    Only a JPEG is certain to give its orientation before the pixels; others count as upright.
    """
    width, height = image.size
    turned = isinstance(image, JpegImageFile) and orientation(image) >= 5
    return (height, width) if turned else (width, height)


def orientation(image: Image.Image) -> int:
    """EXIF's orientation, 1 to 8; 1 (upright) if there is none or it cannot be read."""
    try:
        number = image.getexif().get(_ORIENTATION)
    except Exception:  # other entries may make Pillow fail
        return 1
    return number if isinstance(number, int) and 1 <= number <= 8 else 1


def load(image: Image.Image) -> None:
    """Decode an opened image; ValueError if it has too many pixels."""
    width, height = image.size
    if width * height > _MOST_PIXELS:
        raise ValueError(
            f"it has {width:,} x {height:,} pixels; at most {_MOST_PIXELS / 1e6:.0f} million in "
            "all are read"
        )
    image.load()


def to_rgb(image: Image.Image, depths: Depths | None = None) -> Image.Image:
    """The image as 8-bit RGB, upright (EXIF orientation applied).

    Transparent pixels are composited over white.

    Args:
        depths: of the data set's images of more than 8 bits, see `depth`; by default this image's
            own.

    Raises:
        ValueError: the image is too large, or a value in it is NaN or outside [0, 65535].
    """
    which = depth.kind(image)
    load(image)
    turn = _UPRIGHT.get(orientation(image))
    if which in depth.GREY:
        # Pillow's own conversion clips at 255, which turns such images white.
        found = depth.extremes(image, which)
        bits = max(depth.decide([found])[which], (depths or {}).get(which, 0))
        image = Image.fromarray(depth.eight_bits(np.asarray(image), bits))
    elif image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    image = image if image.mode == "RGB" else image.convert("RGB")
    return image if turn is None else image.transpose(turn)


def check(picture: Picture) -> Extremes | None:
    """Check that a picture can be decoded (a JPEG at an eighth of its size).

    Returns:
        The largest value of an image of more than 8 bits, else None.
    """
    with opened(picture) as image:
        kind = depth.kind(image)
        image.draft(None, (1, 1))
        load(image)
        if kind:
            return depth.extremes(image, kind, picture.name)
        if image.mode != "RGB":
            to_rgb(image)
    return None


def square_CSS(
    image: Image.Image,
    side: int,
    channels: int,
    depths: Depths | None = None,
    place: float = 0.5,
) -> np.ndarray:
    """The image as uint8 ``(channels, side, side)``; for one channel it must be grey.

    Its short side is resized to ``side`` (bicubic, antialiased) and the centre is kept; an
    image of that size is left as it is. `to_rgb` explains ``depths``. Another ``place`` than the
    centre is kept between 0, the left or upper end, and 1.
    """
    scale = side / min(image.size)
    # A JPEG decodes at 1/2, 1/4 or 1/8 of its size where that is still large enough.
    image.draft(None, (ceil(image.width * scale), ceil(image.height * scale)))
    image = to_rgb(image, depths)
    if image.size != (side, side):
        short = min(image.size)
        left, top = (image.width - short) * place, (image.height - short) * place
        box = (left, top, left + short, top + short)
        image = image.resize((side, side), Image.Resampling.BICUBIC, box=box)
    return np.asarray(image).transpose(2, 0, 1)[:channels]


def jpeg_quality(image: Image.Image) -> int | None:
    """Pillow's quality, 1 to 100, whose luminance table is nearest; None if it is no JPEG."""
    tables = getattr(image, "quantization", None)
    return _nearest_quality(tuple(tables[0])) if tables else None


@lru_cache
def _nearest_quality(table: tuple[int, ...]) -> int:
    return 1 + int(np.abs(_tables() - table).sum(axis=1).argmin())


@cache
def _tables() -> np.ndarray:
    """The luminance tables of the qualities from 1 to 100: int ``(100, 64)``."""
    files = [io.BytesIO() for _ in range(100)]
    for quality, file in enumerate(files, 1):
        Image.new("L", (1, 1)).save(file, "JPEG", quality=quality)
    jpegs = [JpegImageFile(io.BytesIO(file.getvalue())) for file in files]
    return np.array([each.quantization[0] for each in jpegs])
