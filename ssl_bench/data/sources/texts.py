"""Texts alone: a plain text, or a table of texts, perhaps with labels.

A plain text (``.txt``) has a sentence on each line, and an empty line between documents, as BERT's
own pre-training reads it (``create_pretraining_data.py``, google-research/bert). A sentence is a
sample, without an image and without a label. The last fifth of the sentences is the test split; it
begins with a document, the nearest one, unless there is only one. In the same way
``FILE.txt@validation`` takes the last tenth of the others.

A table (``.csv``, ``.tsv``, ``.jsonl``, or Parquet files) has a text in each row, as one of
`captions` has, perhaps a class (``label``, ``class``) and a ``split``, and no column of images.
Rows without a text are left out and counted, and so are those without a class where others have
one; a test split without any gives way to the next one. Names of Parquet files in a folder, or in
its ``data``, may tell splits apart, see `shards`; numbers that the Hugging Face metadata name are
read by their names, and -1 is none. Without splits a fifth is held out, by a hash of the text.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ssl_bench.config.settings import Storage
from ssl_bench.data import holdout
from ssl_bench.data.dataset import Dataset, Split, fingerprint
from ssl_bench.data.listing import HELD_OUT_CAVEAT, Part, Picture, assembled, shown
from ssl_bench.data.names import WHOLE, Source
from ssl_bench.data.sources import captions, shards, splits
from ssl_bench.data.sources.folder import image_files
from ssl_bench.errors import UserError, require
from ssl_bench.utils.files import Unreadable, load_bytes, readable, reading
from ssl_bench.utils.formatting import many

_ENDING, _PARQUET = ".txt", ".parquet"
_LABEL = ("label", "class")
_LARGEST = 2**32
_TESTED = 0.2
_CAVEAT = "no test split of its own: the last fifth of the sentences is held out"


def is_here(path: Path) -> bool:
    """Whether it is a text file, or a table or Parquet files of texts without images."""
    if path.suffix == _ENDING and path.is_file():
        return not captions.is_here(path)
    if files := _stored(path):
        from ssl_bench.data.sources import parquet

        return parquet.has_texts_alone(files[0]) and not (path.is_dir() and image_files(path)[0])
    if path.suffix not in captions.ENDINGS or not path.is_file():
        return False
    with reading(path):
        first = next(captions.rows_of(path), {})
    return bool(captions.column_of(first, captions.TEXT)) and not captions.column_of(
        first, captions.IMAGE
    )


def _stored(path: Path) -> list[Path]:
    """The Parquet files that it is, or has in itself or in ``data``, as the Hub's data sets."""
    if path.is_dir():
        return sorted(each for place in ("", "data/") for each in path.glob(f"{place}*{_PARQUET}"))
    return [path] if path.suffix == _PARQUET and path.is_file() else []


def load(asked: Source, storage: Storage) -> Dataset:
    """The sentences of a file.

    Raises:
        UserError: it cannot be read, is no text in UTF-8, has too few sentences, or ambiguous
            splits.
    """
    path = Path(asked.place).expanduser()
    where = readable(path)
    require(
        storage != "stream", f"{where} is read into memory; without --storage stream it would work"
    )
    return (_plain if path.suffix == _ENDING else _table)(path, asked, where)


def _plain(path: Path, asked: Source, where: str) -> Dataset:
    require(not asked.choice, f"{where} has no splits to choose; {where} alone would work")
    try:
        content = load_bytes(path, _LARGEST).decode("utf-8-sig")
    except (Unreadable, UnicodeDecodeError) as error:
        raise UserError(f"{where} cannot be read as text in UTF-8: {error}") from error
    sentences, documents, ended = list[str](), list[int](), False
    for line in map(str.strip, io.StringIO(content, newline=None)):
        if line:
            number = documents[-1] + ended if documents else 0
            sentences.append(line)
            documents.append(number)
        ended = not line
    require(
        len(sentences) > 1,
        f"{where} has {many(len(sentences), 'sentence')}; two or more, one a line, would work",
    )
    name, note = readable(path.stem), _CAVEAT
    train, test = _parted(sentences, documents, _TESTED)
    if asked.is_validation:
        name, note = holdout.name(name), holdout.NOTE
        require(len(train) > 1, f"{where} has one training sentence, too few to hold some out")
        train, test = _parted(sentences[: len(train)], documents[: len(train)], holdout.SHARE)
    count = documents[-1] + 1
    notes = (f"{many(len(sentences), 'sentence')} of {many(count, 'document')}, no labels",)
    return Dataset(
        *(name, train, test, (), fingerprint(train, test, ()), note, 1),
        notes=notes,
        unlabelled="it is a plain text",
        uncaptioned="",
        imageless="it is a plain text",
    )


def _table(path: Path, asked: Source, where: str) -> Dataset:
    others, by_split = Counter[str](), dict[str, list[tuple[str, str]]]()
    files = _stored(path) or [path]
    told_apart = shards.tell_splits(path, files)
    for file in files:
        of_file = shards.group_of(file.relative_to(path))[0] if told_apart else ""
        with reading(file):
            for number, row in enumerate(_rows(file), 1):
                name = captions.column_of(row, captions.TEXT)
                require(
                    bool(name),
                    f"row {number} of {readable(file)} has no text; "
                    f"{' or '.join(captions.TEXT)} is expected",
                )
                text, label = row[name], captions.value_of(row, _LABEL)
                if not isinstance(text, str) or not text.strip():
                    others["rows without a text"] += 1
                    continue
                split = of_file or splits.of_row(captions.value_of(row, captions.SPLIT))
                own = str(label) if type(label) in (str, int) else ""
                by_split.setdefault("" if asked.choice == WHOLE else split, []).append(
                    (captions.encodable(text).strip(), captions.encodable(own).strip())
                )
    require(bool(by_split), f"{where} has no rows with a text")
    train_name, tests = captions.roles_of(path, asked.choice, by_split)
    labelled, caveats = any(label for _, label in by_split[train_name]), tuple[str, ...]()
    if labelled:
        labels = {name: [row for row in rows if row[1]] for name, rows in by_split.items()}
        best = [name for name in tests if labels[name]] or tests
        if best[:1] != tests[:1]:
            caveats = (f"{tests[0]!r} has no labels: tested on {best[0]!r}",)
        tests = best
        wanted = [train_name, *tests[:1]]
        others["rows without a label"] += sum(len(by_split[n]) - len(labels[n]) for n in wanted)
        by_split = labels
    wanted = [train_name, *tests[:1]]
    names = sorted({label for name in wanted for _, label in by_split[name]}, key=_as_number)
    classes = tuple(names) if labelled and len(names) > 1 else ()
    parts = [
        Part.of(
            [
                Picture("", b"", names.index(label) if classes else 0, captions=(text,))
                for text, label in by_split[name]
            ]
        )
        for name in wanted
    ]
    listing = assembled(
        path,
        parts[0],
        parts[1] if tests else None,
        classes=classes,
        unlabelled="" if classes else "its rows have no two labels",
        splits=(shown([train_name or "all texts"]), shown(tests[:1])),
        left_out=[f"split {shown([name])}" for name in by_split if name not in wanted],
        key=lambda picture: picture.captions[0].encode(),
        caveats=caveats,
        others=+others,
    )
    if asked.is_validation:
        listing = holdout.of_listing(listing)
    train, test = (
        _split([own for picture in part.pictures() for own in picture.captions], None, part.labels)
        for part in (listing.train, listing.test)
    )
    digest = fingerprint(train, test, classes)
    found = listing.as_dataset(train, test, digest, (), "in memory", ())
    note = found.note.replace(HELD_OUT_CAVEAT, HELD_OUT_CAVEAT.replace("images", "texts"))
    return replace(found, note=note, uncaptioned="", imageless="it has texts alone")


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    """The rows of a table or of a Parquet file, in which a number that has a name is its name."""
    if file.suffix != _PARQUET:
        yield from captions.rows_of(file)
        return
    from ssl_bench.data.sources import parquet

    yield from parquet.rows(file, (captions.TEXT, _LABEL, captions.SPLIT))


def _as_number(label: str) -> tuple[bool, int, str]:
    """Numbers come first, in their order."""
    is_number = label.isdecimal() and len(label) < 10
    return not is_number, int(label) if is_number else 0, label


def _parted(
    sentences: Sequence[str], documents: Sequence[int], share: float
) -> tuple[Split, Split]:
    """The sentences before the place nearest to that share from the end, and those after it."""
    count = len(sentences)
    begins = [n for n in range(1, count) if documents[n] != documents[n - 1]] or range(1, count)
    place = min(begins, key=lambda begin: abs(begin - (1 - share) * count))
    ways = slice(None, place), slice(place, None)
    first, second = (_split(sentences[way], documents[way]) for way in ways)
    return first, second


def _split(
    sentences: Sequence[str], documents: Sequence[int] | None, labels: Sequence[int] = ()
) -> Split:
    import torch

    count = len(sentences)
    return Split(
        torch.zeros(count, 1, 1, 1, dtype=torch.uint8),
        torch.tensor(labels or [0] * count, dtype=torch.int64),
        captions=tuple((each,) for each in sentences),
        documents=None if documents is None else tuple(documents),
    )
