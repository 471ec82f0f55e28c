"""Parquet files in the Hugging Face image layout.

Columns: ``image`` (or ``img``), a struct ``{bytes, path}`` or plain bytes, and an integer
``label`` (or ``labels``, ``fine_label``). Class names come from the Hugging Face schema
metadata, else they are "0", "1", ... What `prepare` wrote says besides how many channels there are
and what is to be known about the images.

A folder's files, or those one level below it, belong to the split that their own or their
folder's name begins with: ``train``, ``test`` or ``val``. Without test files, those of ``val``
are the test split; beside test files they are ignored. One file alone, or a folder without
test files, has a fifth of its images held out by a hash of their bytes, so that adding rows
never moves another one and copies of an image stay together.

Rows can be read at any place, for streaming, where the images lie in the file as they are: written
neither compressed nor as a dictionary, as `prepare` does.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ssl_bench.data.listing import (
    HELD_OUT_CAVEAT,
    Listing,
    Part,
    Picture,
    check_labels,
    held_out,
)
from ssl_bench.errors import UserError, first_line
from ssl_bench.files import readable

_IMAGE_COLUMNS = ("image", "img")
_LABEL_COLUMNS = ("label", "labels", "fine_label")
_ROWS_AT_ONCE = 256
METADATA = b"ssl_bench"


@dataclass(frozen=True)
class _Table:
    """One file: where its images are, the labels of its rows, and what `prepare` noted."""

    path: Path
    image_column: str
    labels_N: np.ndarray
    class_names: tuple[str, ...]
    noted: dict[str, Any]


def is_here(path: Path) -> bool:
    """Whether ``path`` is a Parquet file or a folder that holds some."""
    return path.suffix == ".parquet" if path.is_file() else bool(_files(path))


def find(path: Path) -> Listing:
    """The images of a file or of a folder's files.

    Raises:
        UserError: a file that cannot be read, no image or label column, a label that is not a
            class, fewer than two classes, or an empty test split.
    """
    files_by_split = {"": [path]} if path.is_file() else _by_split(path)
    test_files = files_by_split.get("test") or files_by_split.get("val")
    train_files = files_by_split.get("train") or files_by_split.get("")
    if not train_files:
        found = ", ".join(file.name for file in _files(path))
        raise UserError(f"{path} has no train*.parquet (it has {found})")
    train_tables = [_table(file) for file in train_files]
    if test_files:
        test_tables = [_table(file) for file in test_files]
        train_rows = [np.ones(len(table.labels_N), bool) for table in train_tables]
        test_rows = [np.ones(len(table.labels_N), bool) for table in test_tables]
        caveats: tuple[str, ...] = ()
    else:
        test_tables = train_tables
        test_rows = [_held_out_rows(table) for table in train_tables]
        train_rows = [~rows for rows in test_rows]
        caveats = (HELD_OUT_CAVEAT,)
    if len({table.class_names for table in (*train_tables, *test_tables)}) > 1:
        raise UserError(f"{path}: its files name different classes, or in a different order")
    train_labels = _labels(train_tables, train_rows)
    test_labels = _labels(test_tables, test_rows)
    largest = max(train_labels + test_labels, default=-1)
    classes = train_tables[0].class_names or tuple(str(label) for label in range(largest + 1))
    if largest >= len(classes):
        raise UserError(f"{path}: label {largest}, but only {len(classes)} class names")
    check_labels(path, train_labels, test_labels, classes)
    tables = [*train_tables, *test_tables]
    noted = [caveat for table in tables for caveat in table.noted.get("caveats", ())]
    return Listing(
        name=readable(path.stem if path.is_file() else path.resolve().name),
        train=_part(train_tables, train_rows),
        test=_part(test_tables, test_rows),
        classes=classes,
        channels=max(table.noted.get("channels", 3) for table in tables),
        caveats=(*dict.fromkeys(noted), *caveats),
    )


def _files(folder: Path) -> list[Path]:
    found = [*folder.glob("*.parquet"), *folder.glob("*/*.parquet")]
    return sorted(path for path in found if path.relative_to(folder).parts[0][0] != ".")


def _by_split(folder: Path) -> dict[str, list[Path]]:
    """Files by "train", "test" or "val"; those of no split under ""."""
    groups: dict[str, list[Path]] = {}
    for file in _files(folder):
        names = (file.name, file.parent.name if file.parent != folder else "")
        splits = (s for name in names for s in ("train", "test", "val") if name.startswith(s))
        groups.setdefault(next(splits, ""), []).append(file)
    return groups


def _table(path: Path) -> _Table:
    try:
        # Opened here, as pyarrow takes no path that is not UTF-8.
        with path.open("rb") as content, pq.ParquetFile(content) as file:
            schema = file.schema_arrow
            image_column = _column(path, schema, "image", _IMAGE_COLUMNS)
            label_column = _column(path, schema, "label", _LABEL_COLUMNS)
            labels = file.read(columns=[label_column]).column(label_column)
            noted = json.loads((file.metadata.metadata or {}).get(METADATA, b"{}"))
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    if not pa.types.is_integer(labels.type):
        raise UserError(
            f"{path}: column {label_column!r} holds {labels.type}; labels must be integers"
        )
    labels_N = labels.cast(pa.int64()).fill_null(-1).to_numpy()
    if (labels_N < 0).any():
        row = int((labels_N < 0).argmax())
        raise UserError(
            f"{path}: label {labels[row].as_py()} in row {row}; labels must be 0, 1, 2, ..."
        )
    return _Table(path, image_column, labels_N, _class_names(schema, label_column), noted)


def _column(path: Path, schema: pa.Schema, kind: str, choices: Sequence[str]) -> str:
    for name in choices:
        if name in schema.names:
            return name
    raise UserError(
        f"{path} has no {kind} column; expected {' or '.join(choices)}, "
        f"found {', '.join(schema.names)}"
    )


def _class_names(schema: pa.Schema, label_column: str) -> tuple[str, ...]:
    """The names in the Hugging Face metadata, () where there are none."""
    metadata = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    feature = metadata.get("info", {}).get("features", {}).get(label_column, {})
    return tuple(feature.get("names", ()))


def _images(table: _Table) -> Iterator[tuple[int, bytes]]:
    """Row numbers and encoded images."""
    for row, image in enumerate(_cells(table.path, table.image_column)):
        encoded = image["bytes"] if isinstance(image, dict) else image
        if not isinstance(encoded, bytes):
            raise UserError(f"{table.path}: no image bytes in row {row} of {table.image_column!r}")
        yield row, encoded


def _cells(path: Path, column: str) -> Iterator[Any]:
    try:
        with path.open("rb") as content, pq.ParquetFile(content) as file:
            for batch in file.iter_batches(_ROWS_AT_ONCE, columns=[column]):
                cells = batch.column(0).to_pylist()
                yield from cells
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"cannot read {path}: {first_line(error)}") from error


def _held_out_rows(table: _Table) -> np.ndarray:
    return np.array([held_out(encoded) for _, encoded in _images(table)], bool)


def _labels(tables: list[_Table], rows: list[np.ndarray]) -> list[int]:
    return [
        label
        for table, chosen in zip(tables, rows, strict=True)
        for label in table.labels_N[chosen].tolist()
    ]


def _pictures(tables: list[_Table], rows: list[np.ndarray]) -> Iterator[Picture]:
    for table, chosen in zip(tables, rows, strict=True):
        for row, encoded in _images(table):
            if chosen[row]:
                yield Picture(
                    f"{readable(table.path)} row {row}", encoded, int(table.labels_N[row])
                )


def _part(tables: list[_Table], rows: list[np.ndarray]) -> Part:
    count = sum(int(chosen.sum()) for chosen in rows)
    return Part(count, lambda: _pictures(tables, rows), lambda: _at_any_place(tables, rows))


def _at_any_place(tables: list[_Table], rows: list[np.ndarray]) -> Callable[[int], Picture]:
    """From a number to a picture, read where it lies in its file."""
    files = [_mapped(table.path) for table in tables]
    where_N4 = np.concatenate(
        [
            np.stack([np.full(chosen.sum(), number), chosen.nonzero()[0], *located[:, chosen]], 1)
            for number, (table, chosen) in enumerate(zip(tables, rows, strict=True))
            for located in [_located(table, files[number])]
        ]
    )

    def picture(index: int) -> Picture:
        number, row, start, stop = where_N4[index].tolist()
        table = tables[number]
        name = f"{readable(table.path)} row {row}"
        return Picture(name, files[number][start:stop], int(table.labels_N[row]))

    return picture


def _mapped(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _located(table: _Table, file: mmap.mmap) -> np.ndarray:
    """Where each image starts and stops in the file: int64 ``(2, N)``.

    Raises:
        UserError: one does not lie there as it is.
    """
    spans, stop = [], 0
    for row, encoded in _images(table):
        # Within a page, an image follows on the four bytes of its length.
        start = stop + 4
        if file[start : start + len(encoded)] != encoded:
            start = file.find(encoded, stop)
        if start < 0:
            raise UserError(
                f"{table.path} cannot be streamed: it is compressed (row {row}); "
                "`ssl-bench data prepare` writes a copy that can be, or --storage memory would work"
            )
        stop = start + len(encoded)
        spans.append((start, stop))
    return np.array(spans, np.int64).reshape(-1, 2).T
