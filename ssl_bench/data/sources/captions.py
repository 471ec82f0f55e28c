"""A table of captions beside a folder of images: CSV, TSV, JSON lines, or the JSON of COCO.

One row for each caption, or, in JSON lines, for each image with a list of captions: the image
(``file_name``, ``filepath``, ``image``, ...) and a text (``caption``, ``text``, ``comment``, ...);
a column ``split`` may say which split it is of. An image is named by its path, or by its file's
name alone where only one file below is called so. Rows of one image are its captions. The table is
what ``--data`` names, or ``metadata`` or ``captions`` with one of these endings in a folder, or in
each of the folders of its splits, as Hugging Face has it. Columns are separated by what the first
line has most of, commas, tabs, ``|`` or semicolons; Flickr8k's ``captions.txt`` and Flickr30k's
``results.csv`` are such tables, and ``Flickr8k.token.txt``, whose lines are ``1.jpg#0``, a tab and
a text, is one, too. Without splits, a fifth of the images is held out, by a hash of the path.
Images that no row names are left out and counted; there are no labels.

JSON as COCO, Karpathy and ALBEF have it, see `caption_json`, is such a table, too: a file, or
``dataset_*.json`` or ``captions_*.json`` in a folder or its ``annotations``, each of which is a
split where there are several. As such files, and Flickr8k's tokens, often name more than there is,
their images that are not there, and those of JSON without a caption, are left out and counted.

What a cell has is understood alike in tables, Parquet files and tar files, see `texts_of`.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import chain, compress, zip_longest
from pathlib import Path
from typing import Any, TextIO

from ssl_bench.data.listing import Listing, Part, Picture, assembled, shown
from ssl_bench.data.names import WHOLE
from ssl_bench.data.sources import caption_json, splits
from ssl_bench.data.sources.folder import folders_in
from ssl_bench.errors import UserError, require
from ssl_bench.utils.files import readable, reading
from ssl_bench.utils.formatting import many

ENDINGS = (".csv", ".tsv", ".jsonl", ".txt", ".token")
_NAMES = ("metadata", "captions")
IMAGE = ("file_name", "filename", "filepath", "image", "image_path", "image_name", "file")
TEXT = (
    *("caption", "captions", "text", "sentence", "sentences"),
    *("txt", "raw", "comment", "title", "answer"),
)
"""Names, in any case, of what has captions: columns, keys of JSON, fields of structs."""
_AS_PYTHON = re.compile(r"\[\s*['\"].*\]", re.DOTALL)
_SEPARATORS = ",\t|;"
_NUMBER = re.compile(r"(?<=\w)#\d+$")
"""Of a caption, behind its image's name."""
_NUMBERED = re.compile(r"[^\t]+\.\w+#\d+\t")


SPLIT = ("split",)


def is_here(path: Path) -> bool:
    """Whether it is such a table, or a folder with one."""
    return bool(_tables(path))


def _tables(path: Path) -> list[Path]:
    if path.is_file():
        is_table = path.suffix in (*ENDINGS, caption_json.ENDING)
        return [path] if is_table and (path.suffix != ".txt" or _names_columns(path)) else []
    if found := _inside(path):
        return [found]
    of_splits = (_inside(each) for each in folders_in(path) if splits.meaning(each.name))
    return caption_json.inside(path) or [each for each in of_splits if each]


def _inside(folder: Path) -> Path | None:
    known = (folder / f"{name}{ending}" for name in _NAMES for ending in ENDINGS)
    return next((each for each in known if each.is_file() and _names_columns(each)), None)


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
    tables, others, left_out = _tables(root), Counter[str](), list[str]()
    is_json = tables[0].suffix == caption_json.ENDING
    images = caption_json.Images(root)
    texts: dict[str, dict[Path, list[Any]]] = {}
    for table in tables:
        of_table = table.stem.partition("_")[2] or table.parent.name if len(tables) > 1 else ""
        with reading(table):
            for number, row in enumerate(rows_of(table, others), 1):
                name, text = column_of(row, IMAGE), column_of(row, TEXT)
                require(
                    bool(name and text) and isinstance(row[name], str),
                    f"row {number} of {readable(table)} has no image and caption; "
                    f"{' or '.join(IMAGE)} and {' or '.join(TEXT)} are expected",
                )
                left_out += unused(row, [text]) if number == 1 else []
                image = _NUMBER.sub("", row[name].strip())
                path = images.find(image, table.parent)
                if path is None and (is_json or image != row[name].strip()):
                    others["images that are not there"] += 1
                    continue
                path = path or table.parent / row[name]  # which is missing
                split = "" if choice == WHOLE else splits.of_row(value_of(row, SPLIT)) or of_table
                texts.setdefault(split, {}).setdefault(path, []).append(row[text])
    where = readable(tables[0] if len(tables) == 1 else root)
    missing = others["images that are not there"]
    require(
        bool(texts),
        f"none of the {missing:,} images that {where} names is below {readable(images.home)}"
        if missing
        else f"{where} has no rows",
    )
    count = sum(map(len, texts.values()))
    if is_json:
        of_splits = ((split, _with_text(own, others)) for split, own in texts.items())
        texts = {split: own for split, own in of_splits if own}
        require(bool(texts), f"none of the {many(count, 'image')} that {where} names has a caption")
    train, tests = roles_of(root, choice, texts)
    wanted = [train, *tests[:1]]
    left_out += [f"split {shown([name])}" for name in texts if name not in wanted]
    parts, reasons = [], []
    for name in wanted:
        captions, why, empty = cleaned([*texts[name].values()], "captions", texts[name])
        parts.append(_part(list(texts[name]), captions))
        reasons.append(why)
        others["empty captions"] += empty
    named = {path for own in texts.values() for path in own}
    unnamed = len(set(images.files) - named)
    if unnamed := unnamed - others["images without a caption"]:
        left_out.append(f"{many(unnamed, 'image')} that {where} does not name")
    listing = assembled(
        root,
        *(parts[0], parts[1] if tests else None),
        classes=(),
        unlabelled="it has captions instead of class folders",
        splits=(shown([train or "all images"]), shown(tests[:1])),
        left_out=left_out,
        key=lambda picture: os.fsencode(os.path.relpath(picture.encoded, images.home)),
        others=+others,  # without what there is none of
    )
    return replace(listing, uncaptioned=next(filter(None, reasons), ""))


def _with_text(texts: Mapping[Path, list[Any]], others: Counter[str]) -> dict[Path, list[Any]]:
    """The images with a caption that has a text; the others are counted."""
    kept = {path: own for path, own in texts.items() if texts_of(own)[0]}
    others["images without a caption"] += len(texts) - len(kept)
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
            yield from _separated(file, readable(table))
            return
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            row = json.loads(line)
            require(isinstance(row, dict), f"line {number} of {readable(table)} is no object")
            yield row


def _separated(file: TextIO, where: str) -> Iterator[dict[str, Any]]:
    """The rows of a table whose first line names its columns, or is as in ``Flickr8k.token.txt``.

    A last column of texts has what follows, commas and the like included.

    Raises:
        UserError: a row has more columns, or its quotation marks do not match.
    """
    head = file.readline()
    separator = max(_SEPARATORS, key=head.count)
    if is_numbered := bool(_NUMBERED.match(head)):
        separator = "\t"
    is_bare = is_numbered or separator == "|" or (separator == "\t" and _has_bare_marks(file))
    quoting: Any = csv.QUOTE_NONE if is_bare else csv.QUOTE_MINIMAL
    read = partial(csv.reader, delimiter=separator, quoting=quoting, strict=True)
    columns = [name.strip() for name in next(read([head]), [])]
    columns = ["image", "caption"] if is_numbered else columns
    is_last = bool(columns) and column_of(columns, TEXT) == columns[-1]
    rows, last = read(chain([head], file) if is_numbered else file), len(columns) - 1
    try:
        for cells in filter(None, rows):
            while len(cells) > len(columns) and not cells[-1]:
                cells.pop()
            if is_last and len(cells) > len(columns):
                cells[last:] = [separator.join(cells[last:])]
            require(
                len(cells) <= len(columns),
                f"line {rows.line_num + 1} of {where} has {len(cells)} columns, and its first line "
                f"{len(columns)}; texts with {separator!r} between quotation marks would work",
            )
            yield dict(zip_longest(columns, cells))
    except csv.Error as error:
        raise UserError(
            f"line {rows.line_num + 1} of {where} cannot be read: {error}; quotation marks around "
            "a text, and two for each one inside, would work"
        ) from error


def _has_bare_marks(file: TextIO) -> bool:
    """Whether the quotation marks in what follows, between tabs, are a part of the texts."""
    place, content = file.tell(), file.read()
    file.seek(place)
    try:
        deque(csv.reader(io.StringIO(content, newline=""), delimiter="\t", strict=True), 0)
    except csv.Error:
        return '""' not in content
    return False


def column_of(columns: Collection[str], choices: Sequence[str]) -> str:
    """The first of some names, written in lower case, that is there in any case, or ""."""
    known = {name.lower(): name for name in columns} | {name: name for name in columns}
    return next((known[name] for name in choices if name in known), "")


def value_of(row: Mapping[str, Any], choices: Sequence[str]) -> Any:
    """What a row has in the first of some columns, or None."""
    name = column_of(row, choices)
    return row[name] if name else None


def unused(columns: Collection[str], used: Collection[str]) -> list[str]:
    """The columns that might have captions, too, and are not used, in words."""
    return [f"column {shown([n])}" for n in columns if n.lower() in TEXT and n not in used]


def texts_of(cell: Any) -> tuple[tuple[str, ...], int]:
    """The texts in a cell of any source, and how many in it are empty or none.

    Args:
        cell: a text, JSON of a list of texts, a mapping with one of `TEXT` (of COCO's sentences
            ``raw``), or a list of any of these; None is nothing.
    """
    texts, empty, inside = list[str](), 0, [cell]
    while inside:
        each = _from_json(inside.pop())
        if isinstance(each, dict):
            inside.append(value_of(each, ("raw", *TEXT)))
        elif isinstance(each, list):
            inside += reversed(each)
        elif isinstance(each, str) and (text := encodable(each).strip()):
            texts.append(text)
        else:
            empty += each is not None
    return tuple(texts), empty


def _from_json(cell: Any) -> Any:
    """The texts of a JSON list of texts; anything else as it is."""
    if isinstance(cell, str) and cell.lstrip().startswith("["):
        with suppress(ValueError, RecursionError):
            found = json.loads(cell)
            if all(isinstance(each, str) for each in found):
                return found
    return cell


def encodable(text: str) -> str:
    """A text with question marks for halves of surrogate pairs, which no encoding has."""
    return text.encode("utf-8", "replace").decode()


def cleaned(
    cells: Sequence[Any], column: str, names: Iterable[str | Path]
) -> tuple[tuple[tuple[str, ...], ...], str, int]:
    """The texts of each image, why not every image has one, or "", and how many are empty.

    Args:
        cells: of each image, see `texts_of`.
        column: where they come from.
        names: of the images, for the message.
    """
    found = [texts_of(cell) for cell in cells]
    texts = tuple(own for own, _ in found)
    as_python = [bool(own) and bool(_AS_PYTHON.fullmatch(own[0])) for own in texts]
    lacking, what = [not own for own in texts], "no text"
    if 2 * sum(as_python) > len(texts):
        lacking, what = as_python, "a list as Python writes it; as JSON it would be read"
    if not any(lacking):
        return texts, "", sum(empty for _, empty in found)
    more = f" and {sum(lacking) - 1:,} more" if sum(lacking) > 1 else ""
    return (), f"{column} of {readable(next(compress(names, lacking)))}{more}: {what}", 0


def _part(paths: Sequence[Path], captions: Sequence[tuple[str, ...]]) -> Part:
    missing = [path for path in paths if not path.is_file()]
    if missing:
        more = f", and {len(missing) - 1:,} more are not there" if missing[1:] else ""
        raise UserError(f"image {readable(missing[0])} is not there{more}")
    own = captions or [()] * len(paths)
    return Part.of(
        [
            Picture(readable(path), path, 0, None, texts)
            for path, texts in zip(paths, own, strict=True)
        ]
    )
