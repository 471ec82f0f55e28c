"""Texts alone: a plain text, or a table of texts, perhaps with labels.

A plain text (``.txt``) has a sentence on each line, and an empty line between documents, as BERT's
own pre-training reads it (``create_pretraining_data.py``, google-research/bert). A sentence is a
sample, without an image and without a label. The last fifth of the sentences is the test split; it
begins with a document, the nearest one, unless there is only one. In the same way
``FILE.txt@validation`` takes the last tenth of the others.

A table (``.csv``, ``.tsv``, ``.jsonl``) has a text in each row, as one of `captions` has, perhaps a
class (``label``, ``class``) and a ``split``, and no column of images. Rows without a text are left
out and counted, and so are those without a class where others have one. Without splits a fifth is
held out, by a hash of the text.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ssl_bench.config.settings import Storage
from ssl_bench.data import holdout
from ssl_bench.data.dataset import Dataset, Split, fingerprint
from ssl_bench.data.listing import HELD_OUT_CAVEAT, check_labels, counted, hold_out, rank, shown
from ssl_bench.data.names import WHOLE, Source
from ssl_bench.data.sources import captions
from ssl_bench.errors import UserError, require
from ssl_bench.utils.files import Unreadable, load_bytes, readable, reading
from ssl_bench.utils.formatting import many

_ENDING = ".txt"
_LABEL = ("label", "class")
_LARGEST = 2**32
_TESTED = 0.2
_CAVEAT = "no test split of its own: the last fifth of the sentences is held out"


def is_here(path: Path) -> bool:
    """Whether it is a text file, or a table of texts without images."""
    if path.suffix not in (_ENDING, *captions.ENDINGS) or not path.is_file():
        return False
    if path.suffix == _ENDING:
        return not captions.is_here(path)
    with reading(path):
        first = next(captions.rows_of(path), {})
    return bool(captions.column_of(first, captions.TEXT)) and not captions.column_of(
        first, captions.IMAGE
    )


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
    with reading(path):
        for number, row in enumerate(captions.rows_of(path), 1):
            name = captions.column_of(row, captions.TEXT)
            require(
                bool(name),
                f"row {number} of {where} has no text; {' or '.join(captions.TEXT)} is expected",
            )
            text, label = row[name], captions.value_of(row, _LABEL)
            if not isinstance(text, str) or not text.strip():
                others["rows without a text"] += 1
                continue
            split = (
                "" if asked.choice == WHOLE else str(captions.value_of(row, captions.SPLIT) or "")
            )
            is_label = type(label) in (str, int) and str(label).strip()
            own = str(label) if is_label else ""
            both = captions.encodable(text).strip(), captions.encodable(own).strip()
            by_split.setdefault(split, []).append(both)
    require(bool(by_split), f"{where} has no rows with a text")
    train_name, tests = captions.roles_of(path, asked.choice, by_split)
    taken = [by_split[train_name], by_split[tests[0]] if tests else []]
    labelled = any(label for _, label in taken[0])
    if labelled:
        with_label = [[row for row in rows if row[1]] for rows in taken]
        lost = sum(map(len, taken)) - sum(map(len, with_label))
        others["rows without a label"] += lost
        taken = with_label
    names = sorted({label for rows in taken for _, label in rows}, key=_as_number)
    classes = tuple(names) if labelled and len(names) > 1 else ()
    numbers = [[names.index(label) if classes else 0 for _, label in rows] for rows in taken]
    if not tests:
        ranks = [rank(text.encode()) for text, _ in taken[0]]
        is_out = hold_out(ranks, numbers[0])
        sides = [[n for n, out in enumerate(is_out) if out == wanted] for wanted in (False, True)]
        taken = [[taken[0][place] for place in side] for side in sides]
        numbers = [[numbers[0][place] for place in side] for side in sides]
    caveats = check_labels(path, numbers[0], numbers[1], classes, not tests)
    caveats = caveats if tests else (HELD_OUT_CAVEAT.replace("images", "texts"), *caveats)
    train, test = (
        _split([text for text, _ in rows], None, own)
        for rows, own in zip(taken, numbers, strict=True)
    )
    name = readable(path.stem)
    if asked.is_validation:
        name, caveats = holdout.name(name), (holdout.NOTE,)
        train, test = holdout.of_split(train)
    what = f"classes {shown(classes)}" if classes else "no labels"
    said = "a fifth of them" if not tests else shown(tests[:1])
    return Dataset(
        *(name, train, test, classes, fingerprint(train, test, classes), "; ".join(caveats), 1),
        left_out=counted(+others),
        notes=(
            f"training split: {shown([train_name or 'all texts'])}, test split: {said}; {what}",
        ),
        unlabelled="" if classes else "its rows have no two labels",
        uncaptioned="",
        imageless="it has texts alone",
    )


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
