"""What a source of images holds, before anything is decoded."""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

from PIL import Image

from ssl_bench.data.dataset import Dataset, Split
from ssl_bench.errors import UserError

HELD_OUT_CAVEAT = "no test split of its own: a fifth of the images is held out"
_FIFTH = 2**64 // 5
_SHOWN, _EXTENSIONS_SHOWN = 5, 12


@dataclass(frozen=True)
class Picture:
    """One image as it is stored, and its label.

    Attributes:
        name: how an error message names it.
        encoded: a file, the bytes of a file, or an image that is decoded already.
        label: index into the classes of its ``Listing``; 0 where that has none.
    """

    name: str
    encoded: Path | bytes | Image.Image
    label: int


@dataclass(frozen=True)
class Part:
    """The pictures of one split.

    Attributes:
        count: how many there are.
        pictures: yields them in a fixed order, from the start at each call, so that the
            encoded bytes of a large data set never lie in memory together.
        open: makes a function from a number to the picture at that place of the order, which
            several threads may call at once.
        known_labels: their labels, where they are known without reading the pictures.
    """

    count: int
    pictures: Callable[[], Iterator[Picture]]
    open: Callable[[], Callable[[int], Picture]]
    known_labels: Sequence[int] | None = None

    def __len__(self) -> int:
        return self.count

    @property
    def labels(self) -> Sequence[int]:
        """The label of each picture."""
        if self.known_labels is not None:
            return self.known_labels
        return [picture.label for picture in self.pictures()]

    def subset(self, places: Sequence[int]) -> Part:
        """The pictures at some places of the order, in ascending order."""
        chosen = frozenset(places)

        def pictures() -> Iterator[Picture]:
            return (each for place, each in enumerate(self.pictures()) if place in chosen)

        def open_() -> Callable[[int], Picture]:
            picture = self.open()
            return lambda index: picture(places[index])

        known = self.known_labels
        labels = None if known is None else [known[place] for place in places]
        return Part(len(places), pictures, open_, labels)


@dataclass(frozen=True)
class Listing:
    """The splits of a data set.

    Attributes:
        classes: class names, by label; none where there are no labels.
        channels: 1 where every image is grey, else 3.
        caveats: what is to be said beside every number.
        left_out: how many files were not taken for images, by their extension, see `search`.
        notes: how the source was understood, to be said once.
        unlabelled: why there are no labels; "" where there are.
    """

    name: str
    train: Part
    test: Part
    classes: tuple[str, ...]
    channels: int = 3
    caveats: tuple[str, ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    unlabelled: str = ""

    @property
    def count(self) -> int:
        """How many images there are."""
        return self.train.count + self.test.count

    def pictures(self) -> Iterator[Picture]:
        """All of them: the train split, then the test split."""
        return chain(self.train.pictures(), self.test.pictures())

    def as_dataset(
        self,
        train: Split,
        test: Split,
        fingerprint: str,
        caveats: Sequence[str],
        storage: str,
        broken: tuple[str, ...],
    ) -> Dataset:
        """The data set that was made of it, with what its images have shown besides."""
        note, left_out = "; ".join([*self.caveats, *caveats]), counted(self.left_out)
        return Dataset(
            *(self.name, train, test, self.classes, fingerprint, note, train.side, storage),
            *(broken, left_out, self.notes, self.unlabelled),
        )

    def without(self, places: Collection[int]) -> Listing:
        """The listing without the pictures at some places of the order of `pictures`."""
        left = [place for place in range(self.count) if place not in places]
        first_test = bisect_left(left, self.train.count)
        train, test = left[:first_test], [p - self.train.count for p in left[first_test:]]
        return replace(self, train=self.train.subset(train), test=self.test.subset(test))


def counted(left_out: Mapping[str, int]) -> str:
    """The files left out by extension, the most frequent first: "left out: 3 .txt, 1 .psd"."""
    kinds = sorted(left_out.items(), key=lambda item: (-item[1], item[0]))
    most = kinds[:_EXTENSIONS_SHOWN]
    parts = [f"{count:,} {kind or 'without extension'}" for kind, count in most]
    if rest := sum(count for _, count in kinds[len(most) :]):
        parts.append(f"{rest:,} others")
    return f"left out: {', '.join(parts)}" if parts else ""


def rank(key: bytes) -> int:
    """A number below 2**64 that stands for the image with this key; the smallest are held out.

    It depends on the key alone, so that adding images never moves another one.
    """
    digest = hashlib.sha256(b"ssl-bench test split\0" + key).digest()
    return int.from_bytes(digest[:8], "big")


def hold_out(ranks: Sequence[int], labels: Sequence[int]) -> list[bool]:
    """Which of all images belong to the test fifth.

    A class whose images would all be there keeps the one of the highest rank (and its copies) for
    training, so that an image moves only where it was its class's last one.

    Args:
        ranks, labels: of each image.
    """
    last: dict[int, int] = {}
    for place, label in zip(ranks, labels, strict=True):
        last[label] = max(place, last.get(label, place))
    kept = set(last.values())
    return [place < _FIFTH and place not in kept for place in ranks]


def check_labels(
    source: Path | str,
    train_labels: Collection[int],
    test_labels: Collection[int],
    classes: tuple[str, ...],
    is_held_out: bool = False,
) -> tuple[str, ...]:
    """Check that a classifier can be trained and tested on these labels.

    Args:
        classes: none where there are no labels.
        is_held_out: whether the test split is not the data set's own.

    Returns:
        Caveats: what the test split cannot tell of the classes.

    Raises:
        UserError: the test split is empty, or has a class that the train split lacks.
    """
    if not test_labels:
        raise UserError(
            f"{source}: the test split is empty ({len(train_labels)} train images); "
            "add images, or give it a test split of its own"
        )
    if not train_labels:
        raise UserError(f"{source}: the train split has no images; add some")
    if not classes:
        return ()
    present, tested = set(train_labels), set(test_labels)
    if absent := tested - present:
        raise UserError(
            f"{source}: the test split has images of class {classes[min(absent)]!r}, "
            "of which the train split has none; add some there, or remove the class"
        )
    if len(tested) == 1:
        return (f"all test images are of one class, {shown([classes[min(tested)]])}",)
    if is_held_out and (missing := sorted(present - tested)):
        names = shown([classes[label] for label in missing])
        return (f"no test images of {len(missing)} of {len(present)} classes: {names}",)
    return ()


def shown(names: Iterable[str]) -> str:
    """The first of some names from outside, in one line that a terminal shows as it is."""
    every = [name if name.isprintable() and name else ascii(name) for name in names]
    more = f", and {len(every) - _SHOWN:,} more" if len(every) > _SHOWN else ""
    return ", ".join(every[:_SHOWN]) + more


def understood(
    train: str, test: str, classes: tuple[str, ...], unlabelled: str, left_out: Sequence[str]
) -> tuple[str, ...]:
    """How a source was understood, in a line or two.

    Args:
        train, test: what the splits are, "" for a test split that is held out.
        unlabelled: why there are no labels.
        left_out: what no split was made of.
    """
    splits = f"training split: {train}, test split: {test or 'a fifth of them'}"
    labels = f"no labels ({unlabelled})" if unlabelled else f"classes {shown(classes)}"
    notes = (f"{splits}; {labels}",)
    return (*notes, f"left out: {'; '.join(left_out)}") if left_out else notes
