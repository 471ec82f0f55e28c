"""Parquet files in the Hugging Face image layout.

Columns: ``image`` (or ``img``), a struct ``{bytes, path}`` or plain bytes, and an integer
``label`` (or ``labels``, ``fine_label``). Class names come from the Hugging Face schema
metadata, else they are "0", "1", ... Files that `prepare` wrote also give the number of channels
and caveats. Without a label column, or if all labels are -1 or missing, there are no labels. A
column ``mask`` (or ``annotation``, ``segmentation_mask``) of images holds masks, see `masks`.

Files in a folder or one level below, or else in split folders two levels below, belong to the split
that their own or their folder's name indicates (see `splits`). The validation files are the test
split if there are no labelled test files; otherwise they are left out. From a single file, or a
folder without test files, a fifth of the images is held out by a hash of their bytes, so adding
rows never moves others between splits and copies of an image stay together. An ambiguous folder is
refused until ``@TRAIN+TEST``, ``@TRAIN`` or ``@whole`` after its name says how to read it. Where
names do not tell splits apart, a column ``split`` of texts does, as in Karpathy's splits of
captions, whose ``restval`` is of the training split.

A column ``caption``, ``captions``, ``text``, ``sentence`` or ``sentences`` of texts, or of lists of
texts, or of what has a text in ``raw``, holds captions, if no row is without; or columns
``caption_0``, ``caption_1``, ... do. Without labels and masks, rows of a split whose images have
the same bytes are one image with several captions.

Streaming needs random access to rows, so images must be stored neither compressed nor as a
dictionary; `prepare` writes such files.
"""

from __future__ import annotations

import json
import mmap
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ssl_bench.data import masks
from ssl_bench.data.dataset import NO_CAPTIONS
from ssl_bench.data.listing import Listing, Part, Picture, assembled, shown
from ssl_bench.data.names import WHOLE
from ssl_bench.data.sources import captions, shards, splits
from ssl_bench.data.sources.folder import image_files
from ssl_bench.data.sources.shards import Layout
from ssl_bench.errors import UserError, require
from ssl_bench.utils.files import readable, reading
from ssl_bench.utils.formatting import many

_IMAGE_COLUMNS = ("image", "img")
_LABEL_COLUMNS = ("label", "labels", "fine_label")
_MASK_COLUMNS = ("mask", "annotation", "segmentation_mask")
_CAPTION_COLUMNS = ("caption", "captions", "text", "sentence", "sentences")
_NUMBERED_CAPTION = re.compile(r"caption_?\d+")
_ROWS_AT_ONCE = 256
METADATA = b"ssl_bench"


@dataclass(frozen=True)
class _Table:
    """One file: where its images are, the labels of its rows, and what `prepare` noted.

    ``unlabelled`` says why no row has a label (all are 0 then), or is "" if all have one.
    """

    path: Path
    image_column: str
    labels_N: np.ndarray
    class_names: tuple[str, ...]
    unlabelled: str
    is_grey: bool
    caveats: tuple[str, ...]
    mask_column: str = ""
    captions: tuple[tuple[str, ...], ...] = ()
    uncaptioned: str = NO_CAPTIONS

    @property
    def columns(self) -> list[str]:
        return [self.image_column, self.mask_column][: 2 if self.mask_column else 1]

    def picture(self, row: int, encoded: bytes, mask: bytes | None = None) -> Picture:
        name = f"{readable(self.path)} row {row}"
        texts = self.captions[row] if self.captions else ()
        return Picture(name, encoded, int(self.labels_N[row]), mask, texts)


def is_here(path: Path) -> bool:
    """Whether ``path`` is a Parquet file or a folder of them.

    Beside image files, Parquet files without an image column do not count: they may describe them.
    """
    if path.is_file():
        return path.suffix == ".parquet"
    files = shards.below(path, ".parquet")
    return any(map(_may_hold_images, files)) or (bool(files) and not image_files(path)[0])


def _may_hold_images(path: Path) -> bool:
    """Whether a file has an image column, or cannot be read."""
    try:
        with path.open("rb") as content:
            return bool(_column(pq.read_schema(content), _IMAGE_COLUMNS))
    except Exception:  # reported once the file is read
        return True


def find(path: Path, choice: str = "") -> Listing:
    """The images of a file or of a folder's files.

    Raises:
        UserError: the layout is ambiguous, a file is unreadable or has no image column, a label
            is not a class, only some images have labels, or a split is empty.
    """
    files = [path] if path.is_file() else shards.below(path, ".parquet")
    rows = {} if choice == WHOLE else _rows_by_split(path, files)
    layout = shards.layout(path, path, files, WHOLE if rows else choice)
    train_tables, test_tables = _tables(layout, layout.trains), list[_Table]()
    unlabelled = _unlabelled(train_tables)

    def why_unlabelled(name: str) -> str:
        test_tables[:] = _tables(layout, [name])
        return _unlabelled(test_tables)

    train, place = layout.trains[0], train_tables[0].path
    test_name, caveats = splits.tested_on(
        *(path, train, place, layout.tests, unlabelled, why_unlabelled), "add a validation split"
    )
    tables = [*train_tables, *test_tables]
    names = {table.class_names for table in tables} - {()}
    if len(names) > 1:
        raise UserError(f"{path}: its files name different classes, or in a different order")
    every = [table.labels_N for table in tables]
    largest = max((int(each_N.max(initial=-1)) for each_N in every), default=-1)
    classes = shards.class_names(path, next(iter(names), ()), largest, sum(map(len, every)))
    labels = np.unique(np.concatenate(every))
    if not unlabelled and len(labels) == 1:
        unlabelled = f"only class {shown([classes[labels[0]]])}"
    if unlabelled:
        classes = ()
        for table in tables:
            table.labels_N[:] = 0
    left_out = layout.left_out([*layout.trains, test_name])
    parts = [_part(train_tables), *([_part(test_tables)] if test_name else [])]
    names_shown = shown(layout.trains) if path.is_dir() else path.name, shown([test_name])
    if rows:
        train, tests = captions.roles_of(path, choice, rows)
        wanted = [train, *tests[:1]]
        parts = [parts[0].subset(rows[name]) for name in wanted]
        names_shown = shown([train]), shown(tests[:1])
        left_out = [f"split {shown([name])}" for name in rows if name not in wanted]
    if path.is_dir() and (beside := len(image_files(path)[0])):
        left_out.append(many(beside, "image file"))
    uncaptioned = next((f"{t.path.name}: {t.uncaptioned}" for t in tables if t.uncaptioned), "")
    masked = [table for table in tables if table.mask_column]
    listing = assembled(
        path,
        parts[0],
        parts[1] if len(parts) > 1 else None,
        classes=classes,
        unlabelled=unlabelled,
        splits=names_shown,
        left_out=left_out,
        key=lambda picture: picture.encoded,
        caveats=(*dict.fromkeys(note for table in tables for note in table.caveats), *caveats),
        channels=1 if all(table.is_grey for table in tables) else 3,
        merges=not (uncaptioned or classes or masked),
    )
    listing = replace(listing, uncaptioned=uncaptioned)
    if not masked:
        return listing
    bare = next((table for table in tables if not table.mask_column), None)
    require(bare is None, f"{bare and bare.path} has no masks, and {masked[0].path.name} some")
    return masks.surveyed(listing, path)


def _rows_by_split(path: Path, files: Sequence[Path]) -> dict[str, list[int]]:
    """The rows of all files, one file after the other, by what their column ``split`` says.

    Returns:
        Nothing where it does not say, or where the files' names tell several splits apart.
    """
    rows: dict[str, list[int]] = {}
    count = 0
    for file in files:
        with reading(file), file.open("rb") as content, pq.ParquetFile(content) as table:
            kind = _value_type(table.schema_arrow, captions.SPLIT)
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
                return {}
            for split in table.read(columns=[captions.SPLIT]).column(0).to_pylist():
                rows.setdefault(splits.of_row(split), []).append(count)
                count += 1
    return rows if len(rows) > 1 and not shards.tell_splits(path, files) else {}


def _value_type(schema: pa.Schema, column: str) -> pa.DataType:
    """The type of a column's values; null where there is no such column."""
    kind = schema.field(column).type if column in schema.names else pa.null()
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _tables(layout: Layout, names: Sequence[str]) -> list[_Table]:
    return [_table(file) for file in layout.files(names)]


def _table(path: Path) -> _Table:
    with reading(path), path.open("rb") as content, pq.ParquetFile(content) as file:
        schema = file.schema_arrow
        image_column, label_column = (
            _column(schema, names) for names in (_IMAGE_COLUMNS, _LABEL_COLUMNS)
        )
        if not image_column:
            raise UserError(f"{path} has no image column; {_expected(schema, _IMAGE_COLUMNS)}")
        labels_N, names = np.zeros(file.metadata.num_rows, np.int64), tuple[str, ...]()
        unlabelled = f"no label column; {_expected(schema, _LABEL_COLUMNS)}"
        if label_column:
            labels = file.read(columns=[label_column]).column(label_column)
            labels_N, unlabelled = _numbers(path, label_column, labels)
            keys = ("info", "features", label_column, "names")
            names = _texts(schema.metadata, b"huggingface", *keys)
        noted = file.metadata.metadata
        is_grey = _entry(noted, METADATA, "channels") == 1
        caveats = _texts(noted, METADATA, "caveats")
        mask_column = _column(schema, _MASK_COLUMNS)
        if mask_column and not _holds_images(schema.field(mask_column).type):
            mask_column = ""
        told = names, unlabelled, is_grey, caveats, mask_column, *_captions(file)
        return _Table(path, image_column, labels_N, *told)


def _captions(file: pq.ParquetFile) -> tuple[tuple[tuple[str, ...], ...], str]:
    """The captions of each row, and why not every row has any, or ""."""
    schema = file.schema_arrow
    column = _column(schema, _CAPTION_COLUMNS)
    columns = [column] if column else [*filter(_NUMBERED_CAPTION.fullmatch, schema.names)]
    if not columns:
        return (), f"no caption column; {_expected(schema, _CAPTION_COLUMNS)}"
    table = file.read(columns=columns)
    cells = zip(*(table.column(name).to_pylist() for name in columns), strict=True)
    values = [[text for cell in row for text in _told(cell)] for row in cells]
    return captions.cleaned(values, columns[0])


def _told(cell: Any) -> list[Any]:
    """The texts in a cell: one, or a list; or what COCO's sentences have as ``raw``."""
    found = cell if isinstance(cell, list) else [cell]
    return [each.get("raw") if isinstance(each, dict) else each for each in found]


def _holds_images(kind: pa.DataType) -> bool:
    is_struct = pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    return is_struct or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _column(schema: pa.Schema, choices: Sequence[str]) -> str:
    return next((name for name in choices if name in schema.names), "")


def _expected(schema: pa.Schema, choices: Sequence[str]) -> str:
    return f"expected {' or '.join(choices)}, found {shown(schema.names) or 'no columns'}"


def _numbers(path: Path, column: str, labels: pa.ChunkedArray) -> tuple[np.ndarray, str]:
    """Labels as int64 ``(N,)`` and ""; or zeros, and why there are no labels."""
    kind = labels.type.value_type if pa.types.is_dictionary(labels.type) else labels.type
    if not (pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind)):
        raise UserError(f"{path}: column {column!r} holds {kind}; labels must be integers")
    labels_N = labels.cast(kind).cast(pa.int64()).fill_null(-1).to_numpy().copy()
    if len(labels_N) and (labels_N == -1).all():
        return np.zeros_like(labels_N), f"no label in {column!r}, where every row is -1 or empty"
    if missing := int((labels_N < 0).sum()):
        row = int((labels_N < 0).argmax())
        raise UserError(
            f"{path}: label {labels[row].as_py()} in row {row}; labels must be 0, 1, 2, ..., and "
            f"{missing:,} of {len(labels_N):,} are not"
        )
    return labels_N, ""


def _unlabelled(tables: Sequence[_Table]) -> str:
    """Why the files of a split have no labels, or ""; it is an error if only some have."""
    filled = [table for table in tables if len(table.labels_N)]
    without = [table for table in filled if table.unlabelled]
    if without and len(without) < len(filled):
        other = next(table for table in filled if not table.unlabelled)
        raise UserError(
            f"{without[0].path} has {without[0].unlabelled}, and {other.path.name} some"
        )
    return without[0].unlabelled if without else ""


def _entry(metadata: Mapping[bytes, bytes] | None, name: bytes, *keys: str) -> Any:
    """A value inside the JSON of a file's metadata, unchecked; None if it is not there."""
    try:
        found = json.loads((metadata or {}).get(name, b"null"))
    except (ValueError, RecursionError):
        return None
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    return found


def _texts(metadata: Mapping[bytes, bytes] | None, name: bytes, *keys: str) -> tuple[str, ...]:
    """`_entry`, if it is a list of texts; else nothing."""
    found = _entry(metadata, name, *keys)
    is_of_texts = isinstance(found, list) and all(isinstance(text, str) for text in found)
    return tuple(found) if is_of_texts else ()


def _images(table: _Table, column: str) -> Iterator[bytes]:
    path, row = table.path, 0
    with reading(path), path.open("rb") as content, pq.ParquetFile(content) as file:
        for batch in file.iter_batches(_ROWS_AT_ONCE, columns=[column]):
            for image in batch.column(0).to_pylist():
                encoded = image.get("bytes") if isinstance(image, dict) else image
                if not isinstance(encoded, bytes):
                    raise UserError(f"{path}: no image bytes in row {row} of {column!r}")
                yield encoded
                row += 1


def _part(tables: list[_Table]) -> Part:
    def pictures() -> Iterator[Picture]:
        for table in tables:
            cells = zip(*(_images(table, column) for column in table.columns), strict=True)
            for row, encoded in enumerate(cells):
                yield table.picture(row, *encoded)

    labels = [label for table in tables for label in table.labels_N.tolist()]
    return Part(len(labels), pictures, lambda: _at_any_place(tables), labels)


def _at_any_place(tables: list[_Table]) -> Callable[[int], Picture]:
    """A function from an index to the picture, read from its place in the file."""
    files = []
    for table in tables:
        with table.path.open("rb") as file:
            files.append(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    where = [
        (number, row, *chain.from_iterable(spans))
        for number, table in enumerate(tables)
        for row, spans in enumerate(
            zip(*(_located(table, files[number], each) for each in table.columns), strict=True)
        )
    ]
    where_NP = np.array(where, np.int64).reshape(len(where), -1)

    def picture(index: int) -> Picture:
        number, row, *ends = where_NP[index].tolist()
        cells = [
            files[number][start:stop] for start, stop in zip(ends[::2], ends[1::2], strict=True)
        ]
        return tables[number].picture(row, *cells)

    return picture


def _located(table: _Table, file: mmap.mmap, column: str) -> Iterator[tuple[int, int]]:
    """Where each image starts and stops in the file, unless they are stored compressed."""
    stop = 0
    for row, encoded in enumerate(_images(table, column)):
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
        yield start, stop
