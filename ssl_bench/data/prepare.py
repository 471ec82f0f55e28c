"""``ssl-bench data prepare``: rewrite a data set so that later runs read it fast.

The result is a few large, uncompressed Parquet files (see `parquet`) of small images, which can be
streamed. Images with a short side that is short enough are copied bit for bit; larger ones are
resized (bicubic, antialiased) and stored as JPEG, upright, without metadata. Grey images of more
than 8 bits become 8-bit PNG, all on one scale (see `depth`).
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import chain, islice
from math import ceil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from ssl_bench.data import depth
from ssl_bench.data.depth import Depths
from ssl_bench.data.images import in_memory, is_marked, opened, to_rgb
from ssl_bench.data.listing import Listing, Part, Picture, Progress, no_progress
from ssl_bench.data.sources.parquet import METADATA
from ssl_bench.data.survey import sound
from ssl_bench.errors import require
from ssl_bench.utils.files import new_folder, writing

_Row = tuple[dict[str, Any], bool]
"""A row of the files, and whether its image was made smaller."""
_ROWS_AT_ONCE = 256
_BYTES_IN_FILE = 2**29


def prepare(
    listing: Listing,
    output: Path,
    short_side: int,
    quality: int,
    progress: Progress = no_progress,
    skip_broken: bool = False,
) -> tuple[Listing, int, tuple[str, ...]]:
    """Write a listing's images as Parquet files that `parquet.find` reads.

    Labels, classes, captions, splits and caveats are kept, with a new caveat if images were made
    smaller. Nothing is written before all images have been checked.

    Args:
        output: a folder that does not exist; it appears once everything is written.
        short_side: images with a longer short side, in pixels, are made smaller.
        quality: JPEG quality of those, from 1 to 100.
        skip_broken: leave out images that cannot be read.

    Returns:
        What was written, how many of its images were made smaller, and one line for each broken
        image that was left out.

    Raises:
        UserError: an image cannot be read, or the folder exists, cannot be written, or is being
            written by another process.
    """
    require(not listing.mask_classes, f"{listing.name} has masks, which a copy would not have")
    require(
        not output.exists(), f"output {str(output)!r} exists already; another folder would work"
    )
    with writing(output), new_folder(output, alone=True) as folder:
        listing, depths, said, broken = sound(listing, skip_broken, progress)
        listing = replace(listing, caveats=(*listing.caveats, *said))
        make = partial(_row, short_side=short_side, quality=quality, depths=depths)
        change = f"larger images reduced to a short side of {short_side} px, JPEG quality {quality}"
        done, reduced = 0, 0
        for split, part in (("train", listing.train), ("test", listing.test)):
            for rows in _write(folder / split, _rows(part, make), listing, change):
                reduced += sum(is_reduced for _, is_reduced in rows)
                done += len(rows)
                progress(done, listing.count)
    return listing, reduced, broken


def _rows(part: Part, make: Callable[[Picture], _Row]) -> Iterator[list[_Row]]:
    """A split's images, a chunk at a time."""
    pictures = part.pictures()
    with ThreadPoolExecutor() as pool:
        while chunk := list(islice(pictures, _ROWS_AT_ONCE)):
            yield list(pool.map(make, chunk))


def _row(picture: Picture, short_side: int, quality: int, depths: Depths) -> _Row:
    picture = in_memory(picture)
    with opened(picture) as image:
        encoded = picture.encoded
        reduced = min(image.size) > short_side
        if reduced:
            encoded = _encoded(_shrunk(image, short_side, depths), "JPEG", quality=quality)
        elif depth.kind(image) in depth.GREY:
            encoded = _encoded(to_rgb(image, depths).getchannel(0), "PNG")
        elif isinstance(encoded, Image.Image):
            encoded = _encoded(image, "PNG")
        elif isinstance(encoded, Path) or not is_marked(image):
            encoded = _encoded(to_rgb(image), "PNG")
        stored = {"bytes": encoded, "path": Path(picture.name).name}
        row = {"image": stored, "label": picture.label, "captions": list(picture.captions)}
        return row, reduced


def _shrunk(image: Image.Image, short_side: int, depths: Depths) -> Image.Image:
    scale = short_side / min(image.size)
    image.draft(None, (ceil(image.width * scale), ceil(image.height * scale)))
    upright = to_rgb(image, depths)
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
    """Write all chunks into ``path-00000.parquet`` ...; yield each when it is written."""
    names = {"names": list(listing.classes), "_type": "ClassLabel"}
    features = {"image": {"_type": "Image"}, "label": names}
    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    columns = {"image": image, "label": pa.int64()}
    if not listing.uncaptioned:
        columns["captions"] = pa.list_(pa.string())
    schema = pa.schema(
        columns,
        {"huggingface": json.dumps({"info": {"features": features}})},
    )
    number = 0
    while first := next(chunks, None):
        file_path = path.with_name(f"{path.name}-{number:05}.parquet")
        caveats = list(listing.caveats)
        size = 0
        # Opened here, as pyarrow only accepts paths in UTF-8.
        with (
            file_path.open("wb") as content,
            pq.ParquetWriter(
                content, schema, compression="none", use_dictionary=False, write_statistics=False
            ) as file,
        ):
            for rows in chain([first], chunks):
                file.write_table(pa.Table.from_pylist([row for row, _ in rows], schema))
                if change not in caveats and any(is_reduced for _, is_reduced in rows):
                    caveats.append(change)
                yield rows
                size += sum(len(row["image"]["bytes"]) for row, _ in rows)
                if size > _BYTES_IN_FILE:
                    break
            noted = {"channels": listing.channels, "caveats": caveats}
            file.add_key_value_metadata({METADATA.decode(): json.dumps(noted)})
        number += 1
