"""Parquet files in the Hugging Face image layout.

Columns: ``image`` (or ``img``), a struct ``{bytes, path}`` or plain bytes, and an integer
``label`` (or ``labels``, ``fine_label``). Class names come from the Hugging Face schema
metadata, else they are "0", "1", ... Files that `prepare` wrote also give the number of channels
and caveats. Without a label column, or if all labels are -1 or missing, there are no labels.

Files in a folder or one level below, or else in split folders two levels below, belong to the split
that their own or their folder's name indicates (see `splits`). The validation files are the test
split if there are no labelled test files; otherwise they are left out. From a single file, or a
folder without test files, a fifth of the images is held out by a hash of their bytes, so adding
rows never moves others between splits and copies of an image stay together. An ambiguous folder is
refused until ``@TRAIN+TEST``, ``@TRAIN`` or ``@whole`` after its name says how to read it.

Streaming needs random access to rows, so images must be stored neither compressed nor as a
dictionary; `prepare` writes such files.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
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
    hold_out,
    rank,
    shown,
    understood,
)
from ssl_bench.data.names import WHOLE
from ssl_bench.data.sources import splits
from ssl_bench.data.sources.search import image_files
from ssl_bench.errors import UserError, first_line
from ssl_bench.utils.files import readable
from ssl_bench.utils.formatting import many

_IMAGE_COLUMNS = ("image", "img")
_LABEL_COLUMNS = ("label", "labels", "fine_label")
_ROWS_AT_ONCE = 256
_UNNAMED_CLASSES = 1000
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
    noted: Mapping[str, Any]
    unlabelled: str

    def picture(self, row: int, encoded: bytes) -> Picture:
        return Picture(f"{readable(self.path)} row {row}", encoded, int(self.labels_N[row]))


@dataclass(frozen=True)
class _Layout:
    """Groups of files by name, and which are train and candidate test splits, best first."""

    groups: Mapping[str, list[Path]]
    trains: Sequence[str]
    tests: Sequence[str] = ()

    def tables(self, names: Sequence[str]) -> list[_Table]:
        return [_table(file) for file in sorted(f for name in names for f in self.groups[name])]


def is_here(path: Path) -> bool:
    """Whether ``path`` is a Parquet file or a folder of them.

    Beside image files, Parquet files without an image column do not count: they may describe them.
    """
    if path.is_file():
        return path.suffix == ".parquet"
    files = _files(path)
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

    Args:
        choice: the files of the splits, if the user named them.

    Raises:
        UserError: the layout is ambiguous, a file is unreadable or has no image column, a label
            is not a class, only some images have labels, or a split is empty.
    """
    layout = _layout(path, choice)
    train_tables = layout.tables(layout.trains)
    unlabelled = _unlabelled(train_tables)
    test_name, test_tables, caveats = _tested_on(path, layout, train_tables[0], unlabelled)
    names = {table.class_names for table in (*train_tables, *test_tables)} - {()}
    if len(names) > 1:
        raise UserError(f"{path}: its files name different classes, or in a different order")
    tables = [*train_tables, *test_tables]
    classes = _classes(path, tables, next(iter(names), ()))
    if not unlabelled and len({n for t in tables for n in np.unique(t.labels_N).tolist()}) == 1:
        label = next(int(table.labels_N[0]) for table in tables if len(table.labels_N))
        unlabelled = f"only class {shown([classes[label]])}"
    if unlabelled:
        train_tables, test_tables = map(_without_labels, (train_tables, test_tables))
        classes = ()
    if test_name:
        train_rows = [np.ones(len(table.labels_N), bool) for table in train_tables]
        test_rows = [np.ones(len(table.labels_N), bool) for table in test_tables]
    else:
        test_tables, test_rows = train_tables, _held_out_rows(train_tables)
        train_rows = [~rows for rows in test_rows]
        caveats = (HELD_OUT_CAVEAT,)
    train, test = _part(train_tables, train_rows), _part(test_tables, test_rows)
    caveats += check_labels(path, train.labels, test.labels, classes, is_held_out=not test_name)
    noted = [caveat for table in tables for caveat in _caveats(table.noted)]
    used = {*layout.trains, test_name}
    left_out = [
        f"{shown([name])} ({many(len(files), 'file')})"
        for name, files in layout.groups.items()
        if name not in used
    ]
    if path.is_dir() and (beside := len(image_files(path)[0])):
        left_out.append(many(beside, "image file"))
    train_name = shown(layout.trains) if path.is_dir() else path.name
    return Listing(
        name=readable(path.stem if path.is_file() else path.resolve().name),
        train=train,
        test=test,
        classes=classes,
        channels=1 if all(table.noted.get("channels") == 1 for table in tables) else 3,
        caveats=(*dict.fromkeys(noted), *caveats),
        notes=understood(
            train_name, test_name and shown([test_name]), classes, unlabelled, left_out
        ),
        unlabelled=unlabelled,
    )


def _files(folder: Path) -> list[Path]:
    """The files in a folder or one level below, or else in split folders two levels below."""
    found = [*folder.glob("*.parquet"), *folder.glob("*/*.parquet")]
    if not found:
        # Searching every folder there would list all images of other kinds of data sets.
        inner = [path for path in folder.glob("*/*/") if splits.meaning(path.name)]
        found = [path for each in inner for path in each.glob("*.parquet")]
    return sorted(p for p in found if not any(n[0] == "." for n in p.relative_to(folder).parts))


def _layout(path: Path, choice: str) -> _Layout:
    """Which files belong to which split.

    Raises:
        UserError: their names are ambiguous.
    """
    if path.is_file():
        if choice not in ("", WHOLE):
            raise UserError(f"{path} is one file, which has no splits {choice!r} to choose from")
        return _Layout({path.name: [path]}, [path.name])
    groups: dict[str, list[Path]] = {}
    meanings: dict[str, splits.Meaning] = {}
    for file in _files(path):
        name, said = _group(file.relative_to(path))
        groups.setdefault(name, []).append(file)
        if said:
            meanings[name] = said
    if choice == WHOLE:
        return _Layout(groups, list(groups))
    if choice:
        train, *test = splits.chosen(path, choice, groups, "files")
        return _Layout(groups, [train], test)
    kinds = splits.by_kind(meanings)
    trains, tests = kinds["train"], [*kinds["test"], *kinds["val"]]
    others = [name for name in groups if name not in meanings]
    if not meanings:
        return _Layout(groups, others)
    if splits.are_told_apart(kinds) or (len(meanings) == len(trains) == 1):
        return _Layout(groups, trains, tests)
    are_plain = not any(said.rest for said in meanings.values())
    if not trains and are_plain:
        if not others:
            found = ", ".join(file.name for file in _files(path))
            raise UserError(f"{path} has no train*.parquet (it has {found})")
        if splits.are_told_apart({**kinds, "train": [""]}):
            return _Layout(groups, others, tests)
    raise splits.asked(
        path,
        trains or others or tests,
        tests,
        f"it has the files {shown(groups)}",
        "all files together, of which a fifth is held out",
    )


def _group(file: Path) -> tuple[str, splits.Meaning | None]:
    """The name of a file's group, and what its name says about a split.

    Args:
        file: relative to the data set's folder.
    """
    stem = splits.without_shard(file.stem)
    if said := splits.meaning(stem):
        return str(file.with_name(stem)), said
    for folder in file.parents[:-1]:
        if said := splits.meaning(folder.name):
            return str(folder), said
    return str(file.with_name(stem) if stem else file.parent), None


def _tested_on(
    path: Path, layout: _Layout, train: _Table, unlabelled: str
) -> tuple[str, list[_Table], tuple[str, ...]]:
    """The best candidate for the test split that has labels, if the train split has them.

    Returns:
        Its name and tables, empty without candidates, and a caveat if it is not the first of them.
    """
    for name in layout.tests:
        tables = layout.tables([name])
        why = _unlabelled(tables)
        if unlabelled and not why:
            raise UserError(
                f"{train.path} has {unlabelled}, though {name!r} has labels; "
                f"{splits.choosing(path, layout.trains[0])} takes it alone, without labels"
            )
        if unlabelled or not why:
            first = layout.tests[0]
            caveat = f"{first!r} has no labels: tested on {name!r}"
            return name, tables, () if name == first else (caveat,)
    if layout.tests:
        raise UserError(
            f"{path}: {layout.tests[0]!r} has {why}, so that there is nothing to test on; add a "
            "validation split, or hold a fifth of the train split out: "
            f"{splits.choosing(path, layout.trains[0])}"
        )
    return "", [], ()


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn any error about a file into a `UserError` that names it."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # pyarrow may raise anything on broken or odd columns
        raise UserError(f"cannot read {path}: {first_line(error)}") from error


def _table(path: Path) -> _Table:
    with _reading(path), path.open("rb") as content, pq.ParquetFile(content) as file:
        schema = file.schema_arrow
        image_column = _column(schema, _IMAGE_COLUMNS)
        if not image_column:
            raise UserError(f"{path} has no image column; {_expected(schema, _IMAGE_COLUMNS)}")
        label_column = _column(schema, _LABEL_COLUMNS)
        noted = _json((file.metadata.metadata or {}).get(METADATA))
        noted = noted if isinstance(noted, dict) else {}
        if not label_column:
            labels_N = np.zeros(file.metadata.num_rows, np.int64)
            why = f"no label column; {_expected(schema, _LABEL_COLUMNS)}"
            return _Table(path, image_column, labels_N, (), noted, why)
        labels = file.read(columns=[label_column]).column(label_column)
        labels_N, why = _numbers(path, label_column, labels)
        names = _class_names(schema, label_column)
        return _Table(path, image_column, labels_N, names, noted, why)


def _column(schema: pa.Schema, choices: Sequence[str]) -> str:
    return next((name for name in choices if name in schema.names), "")


def _expected(schema: pa.Schema, choices: Sequence[str]) -> str:
    return f"expected {' or '.join(choices)}, found {shown(schema.names) or 'no columns'}"


def _numbers(path: Path, column: str, labels: pa.ChunkedArray) -> tuple[np.ndarray, str]:
    """Labels as int64 ``(N,)`` and ""; or zeros, and why there are no labels."""
    kind = labels.type.value_type if pa.types.is_dictionary(labels.type) else labels.type
    if not (pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind)):
        raise UserError(f"{path}: column {column!r} holds {kind}; labels must be integers")
    labels_N = labels.cast(kind).cast(pa.int64()).fill_null(-1).to_numpy()
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
    """Why the files of a split have no labels, or "".

    Raises:
        UserError: only some have labels.
    """
    filled = [table for table in tables if len(table.labels_N)]
    without = [table for table in filled if table.unlabelled]
    if without and len(without) < len(filled):
        other = next(table for table in filled if not table.unlabelled)
        raise UserError(
            f"{without[0].path} has {without[0].unlabelled}, and {other.path.name} some"
        )
    return without[0].unlabelled if without else ""


def _without_labels(tables: Sequence[_Table]) -> list[_Table]:
    return [replace(table, labels_N=np.zeros_like(table.labels_N)) for table in tables]


def _classes(path: Path, tables: Sequence[_Table], names: tuple[str, ...]) -> tuple[str, ...]:
    """The class name of each possible label.

    Raises:
        UserError: a label has no name, or is implausibly large for so few images.
    """
    largest = max((int(table.labels_N.max(initial=-1)) for table in tables), default=-1)
    if names:
        if largest >= len(names):
            raise UserError(f"{path}: label {largest}, but only {len(names)} class names")
        return names
    count = sum(len(table.labels_N) for table in tables)
    if largest >= max(_UNNAMED_CLASSES, count):
        raise UserError(
            f"{path}: label {largest:,} among {count:,} images, whose classes have no names; "
            "labels must be 0, 1, 2, ... without large gaps"
        )
    return tuple(str(label) for label in range(largest + 1))


def _json(text: bytes | None) -> Any:
    """A file's metadata, unchecked; None if it is not JSON."""
    try:
        return json.loads(text or b"null")
    except (ValueError, RecursionError):
        return None


def _class_names(schema: pa.Schema, label_column: str) -> tuple[str, ...]:
    """The names that Hugging Face's metadata give the labels, none where they give none."""
    found = _json((schema.metadata or {}).get(b"huggingface"))
    for key in ("info", "features", label_column, "names"):
        found = found.get(key) if isinstance(found, dict) else None
    if isinstance(found, list) and all(isinstance(name, str) for name in found):
        return tuple(found)
    return ()


def _caveats(noted: Mapping[str, Any]) -> list[str]:
    found = noted.get("caveats")
    return [c for c in found if isinstance(c, str)] if isinstance(found, list) else []


def _images(table: _Table) -> Iterator[tuple[int, bytes]]:
    """Row numbers and encoded images."""
    for row, image in enumerate(_cells(table.path, table.image_column)):
        encoded = image.get("bytes") if isinstance(image, dict) else image
        if not isinstance(encoded, bytes):
            raise UserError(f"{table.path}: no image bytes in row {row} of {table.image_column!r}")
        yield row, encoded


def _cells(path: Path, column: str) -> Iterator[Any]:
    with _reading(path), path.open("rb") as content, pq.ParquetFile(content) as file:
        for batch in file.iter_batches(_ROWS_AT_ONCE, columns=[column]):
            cells = batch.column(0).to_pylist()
            yield from cells


def _held_out_rows(tables: Sequence[_Table]) -> list[np.ndarray]:
    """Which rows of each file belong to the test fifth."""
    ranks = [rank(encoded) for table in tables for _, encoded in _images(table)]
    labels = [label for table in tables for label in table.labels_N.tolist()]
    ends = np.cumsum([len(table.labels_N) for table in tables])[:-1]
    return np.split(np.array(hold_out(ranks, labels), bool), ends)


def _pictures(tables: list[_Table], rows: list[np.ndarray]) -> Iterator[Picture]:
    for table, chosen in zip(tables, rows, strict=True):
        for row, encoded in _images(table):
            if chosen[row]:
                yield table.picture(row, encoded)


def _part(tables: list[_Table], rows: list[np.ndarray]) -> Part:
    chosen = zip(tables, rows, strict=True)
    labels = [label for table, of in chosen for label in table.labels_N[of].tolist()]
    return Part(
        len(labels), lambda: _pictures(tables, rows), lambda: _at_any_place(tables, rows), labels
    )


def _at_any_place(tables: list[_Table], rows: list[np.ndarray]) -> Callable[[int], Picture]:
    """A function from an index to the picture, read from its place in the file."""
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
        return tables[number].picture(row, files[number][start:stop])

    return picture


def _mapped(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _located(table: _Table, file: mmap.mmap) -> np.ndarray:
    """Where each image starts and stops in the file: int64 ``(2, N)``.

    Raises:
        UserError: an image is stored compressed.
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
