"""Data sets, by name or by path, decoded into memory.

Importing this package does not import torch: loading a data set does.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ssl_bench.data.dataset import Dataset, Split, fingerprint
from ssl_bench.data.names import EMBEDDED, TORCHVISION, names
from ssl_bench.errors import UserError, unknown

if TYPE_CHECKING:
    from ssl_bench.data.listing import Listing

__all__ = ["DEFAULT_IMAGE_SIZE", "Dataset", "Split", "load", "names"]

DEFAULT_IMAGE_SIZE = 64
_DEFAULT_DATA_DIR = "~/.cache/ssl-bench"


def load(
    source: str,
    image_size: int | None = None,
    data_dir: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Dataset:
    """The data set that ``source`` names.

    A source is a known name (see ``names``), or else a path: a folder of images, a folder of
    Parquet files, or one ``.parquet`` file. The modules ``folder`` and ``parquet`` say what
    they look for. Write ``./mnist`` for a folder called like a known name.

    Images that all share one square size of at most 96 pixels are kept as they are. Others are
    resized and centre-cropped to a square of ``image_size * 8 / 7`` pixels.

    Args:
        source: the name or the path.
        image_size: side in pixels of the images that a model will see. Default: their own size
            where they are kept as they are, else 64.
        data_dir: where downloads are kept, ``~/.cache/ssl-bench`` by default.
        progress: called with (images decoded, images in all) now and then.

    Raises:
        UserError: the source is unknown or cannot be read or used, or does not fit in memory.
    """
    if image_size is not None and image_size < 1:
        raise UserError(f"image size {image_size}; it must be 1 or more pixels")
    if source == EMBEDDED:
        from ssl_bench.data import embedded

        train, test = Split(*embedded.read("train")), Split(*embedded.read("test"))
        name, classes, note = source, embedded.CLASSES, ""
    else:
        from ssl_bench.data.decode import decode

        listing = _list_images(source, Path(data_dir or _DEFAULT_DATA_DIR).expanduser())
        train, test, caveats = decode(listing, image_size or DEFAULT_IMAGE_SIZE, progress)
        name, classes = listing.name, listing.classes
        note = "; ".join((*listing.caveats, *caveats))
    stored = train.images_NCHW.shape[2]
    is_native = stored != round((image_size or DEFAULT_IMAGE_SIZE) * 8 / 7)
    view_size = image_size or (stored if is_native else DEFAULT_IMAGE_SIZE)
    return Dataset(name, train, test, classes, fingerprint(train, test, classes), note, view_size)


def _list_images(source: str, data_dir: Path) -> Listing:
    if source in TORCHVISION:
        from ssl_bench.data import torchvision_sets

        return torchvision_sets.find(source, data_dir)
    path = Path(source).expanduser()
    if not path.exists():
        if os.sep in source or "/" in source or path.suffix:
            raise UserError(f"no such folder or file: {source}")
        raise unknown("data set", source, names())
    from ssl_bench.data import folder, parquet

    if parquet.is_here(path):
        return parquet.find(path)
    if path.is_dir():
        return folder.find(path)
    raise UserError(f"{source} is neither a folder nor a .parquet file")
