"""Parquet files in the Hugging Face image layout.

Columns: ``image`` (or ``img``, ``jpg``, ...), a struct ``{bytes, path}`` or plain bytes, and an
integer ``label`` (or ``labels``, ``fine_label``). Class names come from the Hugging Face schema
metadata, else they are "0", "1", ... Files that `prepare` wrote also give the number of channels
and caveats. Without a label column, or if all labels are -1 or missing, there are no labels. A
column ``mask`` (or ``annotation``, ``segmentation_mask``) of images holds masks, see `masks`.

Files in a folder or one level below, or else in split folders two levels below, belong to the split
that their own or their folder's name indicates (see `splits`). The validation files are the test
split if there are no labelled test files; otherwise they are left out. From a single file, or a
folder without test files, a fifth of the images is held out by a hash of their bytes, so adding
rows never moves others between splits and copies of an image stay together. An ambiguous folder is
refused until ``@TRAIN+TEST``, ``@TRAIN`` or ``@whole`` after its name says how to read it. Where
names do not tell splits apart, a column ``split`` of texts, or of numbers whose names the Hugging
Face metadata have, does, as in Karpathy's splits of captions, whose ``restval`` is of the training
split; rows of other splits are not looked at.

The first column that is called as one of `captions.TEXT` holds captions, if no row is without, see
`captions.texts_of`; or columns ``caption_0``, ``caption_1``, ... do. Without labels and masks, rows
of a split whose images have the same bytes are one image with several captions.

Streaming needs random access to rows, so images must be stored neither compressed nor as a
dictionary; `prepare` writes such files.
"""

from __future__ import annotations

import json
import mmap
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain, compress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ssl_bench.data import masks
from ssl_bench.data.dataset import NO_CAPTIONS
from ssl_bench.data.listing import Listing, Part, Picture, assembled, shown
from ssl_bench.data.names import WHOLE
from ssl_bench.data.sources import captions, shards, splits
from ssl_bench.data.sources.captions import column_of
from ssl_bench.data.sources.folder import image_files
from ssl_bench.data.sources.shards import Layout
from ssl_bench.errors import UserError, require
from ssl_bench.utils.files import readable, reading
from ssl_bench.utils.formatting import many

_IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp")
_LABEL_COLUMNS = ("label", "labels", "fine_label")
_MASK_COLUMNS = ("mask", "annotation", "segmentation_mask")
_CAPTION_COLUMNS = (*captions.TEXT, "json")
_NUMBERED_CAPTION = re.compile(r"caption_?\d+", re.IGNORECASE)
_ROWS_AT_ONCE = 256
_ARE_TEXTS = pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view
T = TypeVar("T")
METADATA = b"ssl_bench"


@dataclass(frozen=True)
class _Table:
    """Rows of a file: where their images are, their labels, and what `prepare` noted.

    ``unlabelled`` says why no row has a label (all are 0 then), or is "" if all have one;
    ``unused`` are columns that might have captions, too, in words.
    """

    path: Path
    image_column: str
    rows_N: np.ndarray
    labels_N: np.ndarray
    class_names: tuple[str, ...]
    unlabelled: str
    is_grey: bool
    caveats: tuple[str, ...]
    mask_column: str = ""
    captions: tuple[tuple[str, ...], ...] = ()
    uncaptioned: str = NO_CAPTIONS
    empty_captions: int = 0
    unused: Sequence[str] = ()

    @property
    def columns(self) -> list[str]:
        return [self.image_column, self.mask_column][: 2 if self.mask_column else 1]

    def chosen(self, of_file: Iterator[T]) -> Iterator[T]:
        """What is there for each of these rows, given it for each row of the file."""
        is_chosen_N = np.zeros(self.rows_N.max(initial=-1) + 1, bool)
        is_chosen_N[self.rows_N] = True
        return compress(of_file, is_chosen_N)

    def picture(self, place: int, encoded: bytes, mask: bytes | None = None) -> Picture:
        name = f"{readable(self.path)} row {self.rows_N[place]}"
        texts = self.captions[place] if self.captions else ()
        return Picture(name, encoded, int(self.labels_N[place]), mask, texts)


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
            return bool(column_of(pq.read_schema(content).names, _IMAGE_COLUMNS))
    except Exception:  # reported once the file is read
        return True


def has_texts_alone(path: Path) -> bool:
    """Whether a file that can be read has a column of texts, and none of images."""
    with suppress(Exception), path.open("rb") as content:
        schema = pq.read_schema(content)
        names = schema.names
        has_images = column_of(names, _IMAGE_COLUMNS) or any(_holds_images(e.type) for e in schema)
        return bool(column_of(names, captions.TEXT)) and not has_images
    return False


def rows(path: Path, wanted: Sequence[Sequence[str]]) -> Iterator[dict[str, Any]]:
    """The rows of a file, with the name of each number that has one, and None for -1 of such.

    Args:
        wanted: names of each column that is read, see `captions.column_of`.
    """
    with path.open("rb") as content, pq.ParquetFile(content) as file:
        schema = file.schema_arrow
        columns = [name for each in wanted if (name := column_of(schema.names, each))]
        named = {name: dict(enumerate(_class_names(schema, name))) for name in columns}
        for batch in file.iter_batches(columns=columns):
            for row in batch.to_pylist():
                yield row | {name: of.get(row[name]) for name, of in named.items() if of}


def find(path: Path, choice: str = "") -> Listing:
    """The images of a file or of a folder's files.

    Raises:
        UserError: the layout is ambiguous, a file is unreadable or has no image column, a label
            is not a class, only some images have labels, or a split is empty.
    """
    files = [path] if path.is_file() else shards.below(path, ".parquet")
    rows, unread = ({}, "") if choice == WHOLE else _rows_by_split(path, files)
    if rows:
        first, others = captions.roles_of(path, choice, rows)
        layout = Layout({name: list(own) for name, own in rows.items()}, [first], others)
    else:
        layout = shards.layout(path, path, files, choice)

    def read(names: Sequence[str]) -> list[_Table]:
        own = rows.get(names[0], {})
        return [_table(file, own.get(file)) for file in layout.files(names)]

    train_tables, test_tables = read(layout.trains), list[_Table]()
    unlabelled = _unlabelled(train_tables)

    def why_unlabelled(name: str) -> str:
        test_tables[:] = read([name])
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
    used = [*layout.trains, test_name]
    names_shown = shown(layout.trains) if rows or path.is_dir() else path.name
    left_out = [f"split {shown([name])}" for name in rows if name not in used]
    left_out += [] if rows else [*filter(None, [unread]), *layout.left_out(used)]
    uncaptioned = next((f"{t.path.name}: {t.uncaptioned}" for t in tables if t.uncaptioned), "")
    if not uncaptioned:
        left_out += dict.fromkeys(each for table in tables for each in table.unused)
    if path.is_dir() and (beside := len(image_files(path)[0])):
        left_out.append(many(beside, "image file"))
    masked = [table for table in tables if table.mask_column]
    empty = 0 if uncaptioned else sum(table.empty_captions for table in tables)
    listing = assembled(
        path,
        _part(train_tables),
        _part(test_tables) if test_name else None,
        classes=classes,
        unlabelled=unlabelled,
        splits=(names_shown, shown([test_name])),
        left_out=left_out,
        key=lambda picture: picture.encoded,
        caveats=(*dict.fromkeys(note for table in tables for note in table.caveats), *caveats),
        channels=1 if all(table.is_grey for table in tables) else 3,
        others={"empty captions": empty} if empty else {},
        merges=not (uncaptioned or classes or masked),
    )
    listing = replace(listing, uncaptioned=uncaptioned)
    if not masked:
        return listing
    bare = next((table for table in tables if not table.mask_column), None)
    require(bare is None, f"{bare and bare.path} has no masks, and {masked[0].path.name} some")
    return masks.surveyed(listing, path)


def _rows_by_split(
    path: Path, files: Sequence[Path]
) -> tuple[dict[str, dict[Path, list[int]]], str]:
    """The rows of each file, by what their column ``split`` says, and why it is not read, or "".

    Returns:
        No rows where it does not say, or where the files' names tell several splits apart.
    """
    rows: dict[str, dict[Path, list[int]]] = {}
    if shards.tell_splits(path, files):
        return {}, ""
    for file in files:
        with reading(file), file.open("rb") as content, pq.ParquetFile(content) as table:
            schema = table.schema_arrow
            column = column_of(schema.names, captions.SPLIT)
            kind = _value_type(schema, column)
            names = _class_names(schema, column)
            is_text = any(each(kind) for each in _ARE_TEXTS)
            if not (is_text or (names and pa.types.is_integer(kind))):
                is_there = bool(column) and not pa.types.is_null(kind)
                return {}, f"column {shown([column])}, which holds {kind}" if is_there else ""
            for row, split in enumerate(table.read(columns=[column]).column(0).to_pylist()):
                name = split if is_text else dict(enumerate(names)).get(split)
                rows.setdefault(splits.of_row(name), {}).setdefault(file, []).append(row)
    return (rows if len(rows) > 1 else {}), ""


def _value_type(schema: pa.Schema, column: str) -> pa.DataType:
    """The type of a column's values; null where there is no such column."""
    kind = schema.field(column).type if column in schema.names else pa.null()
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _table(path: Path, rows: Sequence[int] | None) -> _Table:
    """Some rows of a file, or all."""
    with reading(path), path.open("rb") as content, pq.ParquetFile(content) as file:
        schema = file.schema_arrow
        image_column, label_column = (
            column_of(schema.names, names) for names in (_IMAGE_COLUMNS, _LABEL_COLUMNS)
        )
        if not image_column:
            raise UserError(f"{path} has no image column; {_expected(schema, _IMAGE_COLUMNS)}")
        rows_N = np.array(range(file.metadata.num_rows) if rows is None else rows, np.int64)
        labels_N, names = np.zeros_like(rows_N), tuple[str, ...]()
        unlabelled = f"no label column; {_expected(schema, _LABEL_COLUMNS)}"
        if label_column:
            labels = file.read(columns=[label_column]).column(label_column).take(rows_N)
            labels_N, unlabelled = _numbers(path, label_column, labels, rows_N)
            names = _class_names(schema, label_column)
        noted = file.metadata.metadata
        is_grey = _entry(noted, METADATA, "channels") == 1
        caveats = _texts(noted, METADATA, "caveats")
        mask_column = column_of(schema.names, _MASK_COLUMNS)
        if mask_column and not _holds_images(schema.field(mask_column).type):
            mask_column = ""
        told = names, unlabelled, is_grey, caveats, mask_column, *_captions(file, rows_N)
        return _Table(path, image_column, rows_N, labels_N, *told)


def _class_names(schema: pa.Schema, column: str) -> tuple[str, ...]:
    """The names of a column's numbers, as `datasets` notes them."""
    return _texts(schema.metadata, b"huggingface", "info", "features", column, "names")


def _captions(
    file: pq.ParquetFile, rows_N: np.ndarray
) -> tuple[tuple[tuple[str, ...], ...], str, int, Sequence[str]]:
    """The captions of some rows, why not every row has any, or "", how many are empty, and the
    columns that might have captions, too."""
    schema = file.schema_arrow
    column = column_of(schema.names, _CAPTION_COLUMNS)
    columns = [column] if column else [*filter(_NUMBERED_CAPTION.fullmatch, schema.names)]
    if not columns:
        return (), f"no caption column; {_expected(schema, _CAPTION_COLUMNS)}", 0, ()
    table = file.read(columns=columns).take(rows_N)
    cells = zip(*(table.column(name).to_pylist() for name in columns), strict=True)
    names = (f"row {row}" for row in rows_N)
    texts, why, empty = captions.cleaned([*map(list, cells)], columns[0], names)
    kind = schema.field(columns[0]).type
    why = why and f"{why} (the column holds {kind})"
    return texts, why, empty, captions.unused(schema.names, columns)


def _holds_images(kind: pa.DataType) -> bool:
    is_struct = pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    return is_struct or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _expected(schema: pa.Schema, choices: Sequence[str]) -> str:
    return f"expected {' or '.join(choices)}, found {shown(schema.names) or 'no columns'}"


def _numbers(
    path: Path, column: str, labels: pa.ChunkedArray, rows_N: np.ndarray
) -> tuple[np.ndarray, str]:
    """Labels as int64 ``(N,)`` and ""; or zeros, and why there are no labels."""
    kind = labels.type.value_type if pa.types.is_dictionary(labels.type) else labels.type
    if not (pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind)):
        raise UserError(f"{path}: column {column!r} holds {kind}; labels must be integers")
    labels_N = labels.cast(kind).cast(pa.int64()).fill_null(-1).to_numpy().copy()
    if len(labels_N) and (labels_N == -1).all():
        return np.zeros_like(labels_N), f"no label in {column!r}, where every row is -1 or empty"
    if missing := int((labels_N < 0).sum()):
        place = int((labels_N < 0).argmax())
        raise UserError(
            f"{path}: label {labels[place].as_py()} in row {rows_N[place]}; labels must be "
            f"0, 1, 2, ..., and {missing:,} of {len(labels_N):,} are not"
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
                    raise UserError(f"{path}: {_no_image(image, row, column)}")
                yield encoded
                row += 1


def _no_image(cell: Any, row: int, column: str) -> str:
    where = f"no image bytes in row {row} of {column!r}"
    found = cell.get("path") if isinstance(cell, dict) else cell
    if not isinstance(found, str):
        return where
    return f"{where}, but a text, {found[:80]!r}; images inside of the file would work"


def _part(tables: list[_Table]) -> Part:
    def pictures() -> Iterator[Picture]:
        for table in tables:
            cells = zip(*(_images(table, column) for column in table.columns), strict=True)
            for place, encoded in enumerate(table.chosen(cells)):
                yield table.picture(place, *encoded)

    labels = [label for table in tables for label in table.labels_N.tolist()]
    return Part(len(labels), pictures, lambda: _at_any_place(tables), labels)


def _at_any_place(tables: list[_Table]) -> Callable[[int], Picture]:
    """A function from an index to the picture, read from its place in the file."""
    files = []
    for table in tables:
        with table.path.open("rb") as file:
            files.append(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    where = []
    for number, table in enumerate(tables):
        found = zip(*(_located(table, files[number], each) for each in table.columns), strict=True)
        where += [
            (number, place, *chain.from_iterable(spans))
            for place, spans in enumerate(table.chosen(found))
        ]
    where_NP = np.array(where, np.int64).reshape(len(where), -1)

    def picture(index: int) -> Picture:
        number, place, *ends = where_NP[index].tolist()
        cells = [
            files[number][start:stop] for start, stop in zip(ends[::2], ends[1::2], strict=True)
        ]
        return tables[number].picture(place, *cells)

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
