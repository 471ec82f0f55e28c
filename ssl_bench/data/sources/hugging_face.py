"""Data sets of the Hugging Face Hub, by the package `datasets`: ``hf:NAME`` or ``hf:NAME:CONFIG``.

That package downloads and caches them, and reads its cache where it is offline. They are written
once as Parquet files, which `parquet` reads, and `texts` those without images: columns, labels and
splits are found as there. No code of a data set is run, which `datasets` does not do any more since
its version 4.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from ssl_bench.data.names import HUGGING_FACE
from ssl_bench.errors import UserError, first_line, require
from ssl_bench.utils.files import new_folder, writing

_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?(:[\w.+-]+)?")
_WITHOUT_CODE = 4
_ROWS = 500


def fetched(place: str, data_dir: Path) -> Path:
    """The folder of the data set of that name, which lies in ``data_dir`` afterwards.

    Raises:
        UserError: `datasets` is not installed or too old, or it cannot get or write the data set.
    """
    name = place.removeprefix(HUGGING_FACE)
    require(
        bool(_NAME.fullmatch(name)),
        f"data {place!r} is no hf:NAME or hf:NAME:CONFIG, such as hf:ylecun/mnist",
    )
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            f"data {place!r} needs the package {error.name}; run: pip install 'ssl-bench[hf]'"
        ) from error
    version = datasets.__version__
    require(
        int(version.split(".")[0]) >= _WITHOUT_CODE,
        f"data {place!r}: datasets {version} runs code of data sets; "
        "run: pip install 'ssl-bench[hf]'",
    )
    path, _, config = name.partition(":")
    try:
        found = datasets.load_dataset(path, config or None)
    except Exception as error:  # of several libraries, without a common class
        raise UserError(f"data {place!r} cannot be loaded: {first_line(error)}") from error
    made_of = sorted((split, found[split]._fingerprint) for split in found)
    digest = hashlib.sha256(repr(made_of).encode()).hexdigest()[:16]
    folder = data_dir / "hf" / digest / re.sub("[/:]", "-", name)
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with writing(folder), new_folder(folder, alone=True) as output:
            for split, images in found.items():
                _write(images, output / f"{split}-00000.parquet", datasets.table)
    return folder


def _write(images: Any, path: Path, tables: Any) -> None:
    """Neither compressed nor as a dictionary, so that it can be streamed; with all files inside."""
    schema = images.features.arrow_schema
    with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
        for rows in images.with_format("arrow").iter(_ROWS):
            writer.write_table(tables.embed_table_storage(rows).cast(schema))
