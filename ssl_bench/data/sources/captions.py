"""A table of captions beside a folder of images: CSV, TSV, JSON lines, or the JSON of COCO.

One row for each caption, or, in JSON lines, for each image with a list of captions: the image
(``file_name``, ``filepath``, ``image``, ...) and a text (``caption``, ``text``, ``comment``, ...);
a column ``split`` may say which split it is of. An image is named by its path from the table's
folder, or by its file's name alone where only one file below is called so. Rows of one image are
its captions. The table is what ``--data`` names, or ``metadata`` or ``captions`` with one of these
endings in a folder. Columns are separated by what the first line has most of, commas, tabs, ``|``
or semicolons; Flickr8k's ``captions.txt`` and Flickr30k's ``results.csv`` are such tables. Without
splits, a fifth of the images is held out, by a hash of the path. Images that no row names are left
out and counted; there are no labels.

JSON as COCO, Karpathy and ALBEF have it, see `caption_json`, is such a table, too: a file, or
``dataset_*.json`` or ``captions_*.json`` in a folder or its ``annotations``, each of which is a
split where there are several. As such files often name more than there is, its images that are not
there, and those without a caption, are left out and counted.
"""

from __future__ import annotations

import csv
import json
import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ssl_bench.data.listing import Listing, Part, Picture, assembled, shown
from ssl_bench.data.names import WHOLE
from ssl_bench.data.sources import caption_json, splits
from ssl_bench.data.sources.folder import image_files
from ssl_bench.errors import UserError, require
from ssl_bench.utils.files import readable, reading
from ssl_bench.utils.formatting import many

ENDINGS = (".csv", ".tsv", ".jsonl", ".txt")
_NAMES = ("metadata", "captions")
IMAGE = ("file_name", "filename", "filepath", "image", "image_path", "image_name", "file")
TEXT = ("caption", "captions", "text", "sentence", "comment", "title")
_SEPARATORS = ",\t|;"


class _Bars(csv.excel):
    """Columns between bars, where a quotation mark is one of the text."""

    quoting = csv.QUOTE_NONE


SPLIT = "split"


def is_here(path: Path) -> bool:
    """Whether it is such a table, or a folder with one."""
    return bool(_tables(path))


def _tables(path: Path) -> list[Path]:
    if path.is_file():
        is_table = path.suffix in (*ENDINGS, caption_json.ENDING)
        return [path] if is_table and (path.suffix != ".txt" or _names_columns(path)) else []
    known = (path / f"{name}{ending}" for name in _NAMES for ending in ENDINGS)
    found = next((each for each in known if each.is_file()), None)
    if found is None:
        return caption_json.inside(path)
    return [found] if _names_columns(found) else []


def _names_columns(table: Path) -> bool:
    """Whether a table has columns of images and of captions; a plain text has none.

    Raises:
        UserError: what can only be a table cannot be read.
    """
    try:
        with reading(table):
            first = next(rows_of(table), {})
    except UserError:
        if table.suffix != ".txt":
            raise
        return False
    return bool(column_of(first, IMAGE) and column_of(first, TEXT))


def find(root: Path, choice: str = "") -> Listing:
    """The images that the table names, with their captions.

    Raises:
        UserError: the table cannot be read or names images that are not there, or its splits are
            ambiguous.
    """
    tables, others = _tables(root), Counter[str]()
    is_json = tables[0].suffix == caption_json.ENDING
    known = caption_json.Images(tables[0])
    home = known.home
    texts: dict[str, dict[Path, list[Any]]] = {}
    for table in tables:
        of_table = table.stem.partition("_")[2] if len(tables) > 1 else ""
        with reading(table):
            for number, row in enumerate(rows_of(table, others), 1):
                name, text = column_of(row, IMAGE), column_of(row, TEXT)
                require(
                    bool(name and text) and isinstance(row[name], str),
                    f"row {number} of {readable(table)} has no image and caption; "
                    f"{' or '.join(IMAGE)} and {' or '.join(TEXT)} are expected",
                )
                path = known.find(row[name].strip())
                if path is None and not is_json:
                    path = home / row[name]  # which is missing
                if path is None:
                    others["images that are not there"] += 1
                    continue
                split = "" if choice == WHOLE else splits.of_row(row.get(SPLIT)) or of_table
                own = texts.setdefault(split, {}).setdefault(path, [])
                own += row[text] if isinstance(row[text], list) else [row[text]]
    where = readable(tables[0] if len(tables) == 1 else root)
    missing = others["images that are not there"]
    require(
        bool(texts),
        f"none of the {missing:,} images that {where} names is below {readable(home)}"
        if missing
        else f"{where} has no rows",
    )
    if is_json:
        texts = {split: _with_text(own, others) for split, own in texts.items()}
    train, tests = roles_of(root, choice, texts)
    wanted = [train, *tests[:1]]
    left_out = [f"split {shown([name])}" for name in texts if name not in wanted]
    parts, reasons = [], []
    for name in wanted:
        captions, why = cleaned(list(texts[name].values()), "captions", list(texts[name]))
        parts.append(_part(list(texts[name]), captions))
        reasons.append(why)
    named = {path for own in texts.values() for path in own}
    unnamed = len(set(image_files(home)[0]) - named)
    if unnamed := unnamed - others["images without a caption"]:
        left_out.append(f"{many(unnamed, 'image')} that {where} does not name")
    listing = assembled(
        root,
        *(parts[0], parts[1] if tests else None),
        classes=(),
        unlabelled="it has captions instead of class folders",
        splits=(shown([train or "all images"]), shown(tests[:1])),
        left_out=left_out,
        key=lambda picture: os.fsencode(picture.encoded.relative_to(home)),
        others=+others,  # without what there is none of
    )
    return replace(listing, uncaptioned=next(filter(None, reasons), ""))


def _with_text(texts: Mapping[Path, list[Any]], others: Counter[str]) -> dict[Path, list[Any]]:
    """The images with a caption that has a text; the others, and empty captions, are counted."""
    kept = {}
    for path, own in texts.items():
        full = [each for each in own if isinstance(each, str) and each.strip()]
        if full:
            others["empty captions"] += len(own) - len(full)
            kept[path] = full
        else:
            others["images without a caption"] += 1
    return kept


def roles_of(root: Path, choice: str, known: Collection[str]) -> tuple[str, list[str]]:
    """The training split and the test splits, the first of which counts; none to hold some out."""
    if choice and choice != WHOLE:
        train, *tests = splits.chosen(root, choice, list(known), "split")
        return train, tests
    if len(known) == 1:
        return next(iter(known)), []
    roles = splits.Roles({name: splits.meaning(name) for name in known})
    if not roles.are_told_apart or roles.others:
        what = f"its rows have the splits {shown(known)}"
        raise splits.asked(root, roles.trains, roles.tests, what, "all of its rows")
    return roles.trains[0], roles.tests


def rows_of(table: Path, others: Counter[str] | None = None) -> Iterator[dict[str, Any]]:
    """The rows of a table, by the names of its columns; any error may come of a damaged one.

    Args:
        others: counts what JSON has beside them.
    """
    if table.suffix == caption_json.ENDING:
        yield from caption_json.rows(table, Counter() if others is None else others)
        return
    with table.open(encoding="utf-8-sig", newline="") as file:
        if table.suffix != ".jsonl":
            head = file.readline()
            separator = max(_SEPARATORS, key=head.count)
            dialect = _Bars if separator == "|" else csv.excel
            names = next(csv.reader([head], dialect, delimiter=separator), [])
            columns = [name.strip() for name in names]
            yield from csv.DictReader(file, columns, dialect=dialect, delimiter=separator)
            return
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            row = json.loads(line)
            require(isinstance(row, dict), f"line {number} of {readable(table)} is no object")
            yield row


def column_of(row: Mapping[str, Any], choices: Sequence[str]) -> str:
    """The first of some names that a row has, or ""."""
    return next((name for name in choices if name in row), "")


def cleaned(
    values: Sequence[Any], column: str, names: Sequence[Any] = ()
) -> tuple[tuple[tuple[str, ...], ...], str]:
    """The texts of each image without the empty ones, and why not every image has one, or "".

    Args:
        values: a text or a list of texts for each image; anything else is none.
        column: where they come from.
        names: of the images, for the message; their rows without.
    """
    found = [
        tuple(
            text.strip()
            for text in (value if isinstance(value, list) else [value])
            if isinstance(text, str) and text.strip()
        )
        for value in values
    ]
    empty = [place for place, own in enumerate(found) if not own]
    if not empty:
        return tuple(found), ""
    where = readable(names[empty[0]]) if names else f"row {empty[0]}"
    more = f", and {len(empty) - 1:,} more have none" if empty[1:] else ""
    return (), f"{column} of {where}: no text{more}"


def _part(paths: Sequence[Path], captions: Sequence[tuple[str, ...]]) -> Part:
    missing = [path for path in paths if not path.is_file()]
    if missing:
        more = f", and {len(missing) - 1:,} more are not there" if missing[1:] else ""
        raise UserError(f"image {readable(missing[0])} is not there{more}")
    own = captions or [()] * len(paths)
    pictures = [
        Picture(readable(path), path, 0, None, texts)
        for path, texts in zip(paths, own, strict=True)
    ]
    return Part(
        len(pictures), lambda: iter(pictures), lambda: pictures.__getitem__, [0] * len(pictures)
    )
