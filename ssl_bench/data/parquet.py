"""Parquet files in the Hugging Face image layout.

Columns: ``image`` (or ``img``), a struct ``{bytes, path}`` or plain bytes, and an integer
``label`` (or ``labels``, ``fine_label``). Class names come from the Hugging Face schema
metadata, else they are "0", "1", ...

A folder's files, or those one level below it, belong to the split that their own or their
folder's name begins with: ``train``, ``test`` or ``val``. Without test files, those of ``val``
are the test split; beside test files they are ignored. One file alone, or a folder without
test files, has a fifth of its images held out by a hash of their bytes, so that adding rows
never moves another one and copies of an image stay together.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

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
from ssl_bench.errors import UserError

_IMAGE_COLUMNS = ("image", "img")
_LABEL_COLUMNS = ("label", "labels", "fine_label")
_ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class _Table:
    """One file: where its images are, and the labels of its rows."""

    path: Path
    image_column: str
    labels_N: np.ndarray
    class_names: tuple[str, ...]


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
    return Listing(
        name=path.stem if path.is_file() else path.resolve().name,
        train=Part(len(train_labels), lambda: _pictures(train_tables, train_rows)),
        test=Part(len(test_labels), lambda: _pictures(test_tables, test_rows)),
        classes=classes,
        caveats=caveats,
    )


def _files(folder: Path) -> list[Path]:
    return sorted([*folder.glob("*.parquet"), *folder.glob("*/*.parquet")])


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
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            image_column = _column(path, schema, "image", _IMAGE_COLUMNS)
            label_column = _column(path, schema, "label", _LABEL_COLUMNS)
            labels = file.read(columns=[label_column]).column(label_column)
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
    return _Table(path, image_column, labels_N, _class_names(schema, label_column))


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
    row = 0
    with pq.ParquetFile(table.path) as file:
        for batch in file.iter_batches(_ROWS_AT_ONCE, columns=[table.image_column]):
            for image in batch.column(0).to_pylist():
                encoded = image["bytes"] if isinstance(image, dict) else image
                if not isinstance(encoded, bytes):
                    raise UserError(
                        f"{table.path}: no image bytes in row {row} of {table.image_column!r}"
                    )
                yield row, encoded
                row += 1


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
                yield Picture(f"{table.path} row {row}", encoded, int(table.labels_N[row]))
