"""A plain text: a sentence on each line, and an empty line between documents.

It is what BERT's own pre-training reads (``create_pretraining_data.py``, google-research/bert). A
sentence is a sample, without an image and without a label. The last fifth of the sentences is the
test split; it begins with a document, the nearest one, unless there is only one. In the same way
``FILE.txt@validation`` takes the last tenth of the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ssl_bench.config.settings import Storage
from ssl_bench.data import holdout
from ssl_bench.data.dataset import Dataset, Split, fingerprint
from ssl_bench.data.names import Source
from ssl_bench.data.sources import captions
from ssl_bench.errors import UserError, require
from ssl_bench.utils.files import Unreadable, load_bytes, readable
from ssl_bench.utils.formatting import many

_ENDING = ".txt"
_LARGEST = 2**32
_TESTED = 0.2
CAVEAT = "no test split of its own: the last fifth of the sentences is held out"


def is_here(path: Path) -> bool:
    """Whether it is a text file, and no table of captions."""
    return path.suffix == _ENDING and path.is_file() and not captions.is_here(path)


def load(asked: Source, storage: Storage) -> Dataset:
    """The sentences of a file.

    Raises:
        UserError: it cannot be read, is no text in UTF-8, or has too few sentences.
    """
    path = Path(asked.place).expanduser()
    where = readable(path)
    require(not asked.choice, f"{where} has no splits to choose; {where} alone would work")
    require(
        storage != "stream", f"{where} is read into memory; without --storage stream it would work"
    )
    try:
        lines = load_bytes(path, _LARGEST).decode("utf-8-sig").splitlines()
    except (Unreadable, UnicodeDecodeError) as error:
        raise UserError(f"{where} cannot be read as text in UTF-8: {error}") from error
    sentences, documents, ended = list[str](), list[int](), False
    for line in map(str.strip, lines):
        if line:
            number = documents[-1] + ended if documents else 0
            sentences.append(line)
            documents.append(number)
        ended = not line
    require(
        len(sentences) > 1,
        f"{where} has {many(len(sentences), 'sentence')}; two or more, one a line, would work",
    )
    name, note = readable(path.stem), CAVEAT
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


def _split(sentences: Sequence[str], documents: Sequence[int]) -> Split:
    import torch

    count = len(sentences)
    return Split(
        torch.zeros(count, 1, 1, 1, dtype=torch.uint8),
        torch.zeros(count, dtype=torch.int64),
        captions=tuple((each,) for each in sentences),
        documents=tuple(documents),
    )
