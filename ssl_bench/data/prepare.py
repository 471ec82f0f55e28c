"""``ssl-bench data prepare``: a data set written once, so that later runs read it fast.

Out come a few large Parquet files (see `parquet`) whose images are small and lie uncompressed, so
that they can be streamed. Those whose short side is short enough are copied, bit for bit; larger
ones are resized (bicubic, antialiased) and stored as JPEG, upright, without their metadata.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from math import ceil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from ssl_bench.data.images import in_memory, opened, to_rgb
from ssl_bench.data.listing import Listing, Part, Picture
from ssl_bench.data.parquet import METADATA
from ssl_bench.errors import require
from ssl_bench.files import writing

_ROWS_AT_ONCE = 256
_BYTES_IN_FILE = 2**29


@dataclass(frozen=True)
class _Row:
    """An image as it is to be stored, and whether it was made smaller."""

    encoded: bytes
    name: str
    label: int
    reduced: bool


def prepare(
    listing: Listing,
    output: Path,
    short_side: int,
    quality: int,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Write a listing's images as Parquet files that `parquet.find` reads.

    Labels, classes, splits and caveats stay; a caveat says where images were made smaller.

    Args:
        listing: what to write.
        output: a folder that does not exist; it appears once everything is written.
        short_side: longest short side in pixels that an image keeps.
        quality: of the JPEG files that larger images become, from 1 to 100.
        progress: called with (images written, images in all) now and then.

    Returns:
        How many images were made smaller.

    Raises:
        UserError: an image cannot be read, or the folder exists or cannot be written.
    """
    require(
        not output.exists(), f"output {str(output)!r} exists already; another folder would work"
    )
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    total, done, reduced = listing.train.count + listing.test.count, 0, 0
    change = f"larger images reduced to a short side of {short_side} px, JPEG quality {quality}"
    with writing(output):
        temporary.mkdir(parents=True)
        try:
            for split, part in (("train", listing.train), ("test", listing.test)):
                chunks = _rows(part, short_side, quality)
                for rows in _write(temporary / split, chunks, listing, change):
                    reduced += sum(row.reduced for row in rows)
                    done += len(rows)
                    if progress:
                        progress(done, total)
            temporary.rename(output)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return reduced


def _rows(part: Part, short_side: int, quality: int) -> Iterator[list[_Row]]:
    """A split's images, some at a time."""
    pictures = part.pictures()
    make = partial(_row, short_side=short_side, quality=quality)
    with ThreadPoolExecutor() as pool:
        while chunk := list(islice(pictures, _ROWS_AT_ONCE)):
            yield list(pool.map(make, chunk))


def _row(picture: Picture, short_side: int, quality: int) -> _Row:
    picture = in_memory(picture)
    with opened(picture) as image:
        reduced = min(image.size) > short_side
        encoded = picture.encoded
        if reduced:
            encoded = _encoded(_shrunk(image, short_side), "JPEG", quality=quality)
        elif isinstance(encoded, bytes):
            image.load()  # what is broken shall show now
        else:
            encoded = _encoded(image, "PNG")
        return _Row(encoded, Path(picture.name).name, picture.label, reduced)


def _shrunk(image: Image.Image, short_side: int) -> Image.Image:
    scale = short_side / min(image.size)
    image.draft(None, (ceil(image.width * scale), ceil(image.height * scale)))
    upright = to_rgb(image)
    scale = short_side / min(upright.size)
    size = round(upright.width * scale), round(upright.height * scale)
    return upright.resize(size, Image.Resampling.BICUBIC)


def _encoded(image: Image.Image, file_format: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def _write(
    path: Path, chunks: Iterator[list[_Row]], listing: Listing, change: str
) -> Iterator[list[_Row]]:
    """Write all chunks into ``path-00000.parquet`` and so on; yield each when it is written.

    Args:
        change: what to note in a file with images that were made smaller.
    """
    names = {"names": list(listing.classes), "_type": "ClassLabel"}
    features = {"image": {"_type": "Image"}, "label": names}
    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    schema = pa.schema(
        {"image": image, "label": pa.int64()},
        {"huggingface": json.dumps({"info": {"features": features}})},
    )
    number = 0
    while first := next(chunks, None):
        file_path = path.with_name(f"{path.name}-{number:05}.parquet")
        caveats = list(listing.caveats)
        size = 0
        with pq.ParquetWriter(
            file_path, schema, compression="none", use_dictionary=False, write_statistics=False
        ) as file:
            for rows in chain([first], chunks):
                images = [{"bytes": row.encoded, "path": row.name} for row in rows]
                labels = [row.label for row in rows]
                file.write_table(pa.table({"image": images, "label": labels}, schema))
                if change not in caveats and any(row.reduced for row in rows):
                    caveats.append(change)
                yield rows
                size += sum(len(row.encoded) for row in rows)
                if size > _BYTES_IN_FILE:
                    break
            noted = {"channels": listing.channels, "caveats": caveats}
            file.add_key_value_metadata({METADATA.decode(): json.dumps(noted)})
        number += 1
