"""The pictures, labels and splits of a source, before anything is decoded."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

from PIL import Image

from ssl_bench.data.dataset import NO_CAPTIONS, Dataset, Split
from ssl_bench.errors import UserError
from ssl_bench.utils.files import readable
from ssl_bench.utils.formatting import many

HELD_OUT_CAVEAT = "no test split of its own: a fifth of the images is held out"
Progress = Callable[[int, int], None]
"""Called from time to time with how many images are done, and their total."""
_FIFTH = 2**64 // 5
_SHOWN, _EXTENSIONS_SHOWN = 5, 12


@dataclass(frozen=True)
class Picture:
    """One image as it is stored: a file, the bytes of a file, or a decoded image; and its label.

    The name is for messages; the label is 0 if the ``Listing`` has no classes. The mask, stored in
    one of the same ways, is an image of the class of each pixel, see `masks`. The captions are
    there where the ``Listing`` has some.
    """

    name: str
    encoded: Path | bytes | Image.Image
    label: int
    mask: Path | bytes | Image.Image | None = None
    captions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Part:
    """The pictures of one split.

    ``pictures`` iterates over them in a fixed order, and never has the encoded bytes of a large
    data set in memory all at once. ``open`` returns a thread-safe function from a place in this
    order to the picture there. ``known_labels`` are those known without reading the pictures.
    """

    count: int
    pictures: Callable[[], Iterator[Picture]]
    open: Callable[[], Callable[[int], Picture]]
    known_labels: Sequence[int] | None = None

    @classmethod
    def of(cls, pictures: Sequence[Picture]) -> Part:
        """A part of pictures that are in memory, or in files of their own."""
        labels = [picture.label for picture in pictures]
        return cls(len(pictures), lambda: iter(pictures), lambda: pictures.__getitem__, labels)

    def __len__(self) -> int:
        return self.count

    @property
    def labels(self) -> Sequence[int]:
        """The label of each picture."""
        if self.known_labels is not None:
            return self.known_labels
        return [picture.label for picture in self.pictures()]

    def subset(self, places: Sequence[int]) -> Part:
        """The pictures at some places, given in ascending order."""
        chosen = frozenset(places)

        def pictures() -> Iterator[Picture]:
            return (each for place, each in enumerate(self.pictures()) if place in chosen)

        def open_() -> Callable[[int], Picture]:
            picture = self.open()
            return lambda index: picture(places[index])

        known = self.known_labels
        labels = None if known is None else [known[place] for place in places]
        return Part(len(places), pictures, open_, labels)

    def captioned(self, captions: Sequence[tuple[str, ...]]) -> Part:
        """The same pictures with these captions, a tuple for each."""

        def pictures() -> Iterator[Picture]:
            pairs = zip(self.pictures(), captions, strict=True)
            return (replace(picture, captions=own) for picture, own in pairs)

        def open_() -> Callable[[int], Picture]:
            picture = self.open()
            return lambda index: replace(picture(index), captions=captions[index])

        return replace(self, pictures=pictures, open=open_)


@dataclass(frozen=True)
class Listing:
    """The splits of a data set.

    Attributes:
        classes: class names, by label; empty without labels.
        channels: 1 if every image is grey, else 3.
        caveats: to be shown beside every number.
        left_out: how many files are not images, by extension.
        notes: how the source was understood, to be shown once.
        unlabelled: why there are no labels, or "".
        mask_classes: names of the classes in the pictures' masks; empty without masks.
        uncaptioned: why not every picture has captions, or "".
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
    mask_classes: tuple[str, ...] = ()
    uncaptioned: str = NO_CAPTIONS

    @property
    def count(self) -> int:
        """How many images there are."""
        return self.train.count + self.test.count

    def pictures(self) -> Iterator[Picture]:
        """The pictures of the train split, then of the test split."""
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
        """The data set made from this listing, with further caveats about its images."""
        note, left_out = "; ".join([*self.caveats, *caveats]), counted(self.left_out)
        return Dataset(
            *(self.name, train, test, self.classes, fingerprint, note, train.side, storage),
            *(broken, left_out, self.notes, self.unlabelled),
            mask_classes=self.mask_classes,
            uncaptioned=self.uncaptioned,
        )

    def without(self, places: Collection[int]) -> Listing:
        """The listing without the pictures at some places in the order of `pictures`."""
        begin = self.train.count
        train = [place for place in range(begin) if place not in places]
        test = [place for place in range(self.test.count) if begin + place not in places]
        return replace(self, train=self.train.subset(train), test=self.test.subset(test))


def no_progress(done: int, total: int) -> None:
    """Where nobody watches."""


def counted(left_out: Mapping[str, int]) -> str:
    """The files left out by extension, the most frequent first: "left out: 3 .txt, 1 .psd"."""
    kinds = sorted(left_out.items(), key=lambda item: (-item[1], item[0]))
    most = kinds[:_EXTENSIONS_SHOWN]
    parts = [f"{count:,} {kind or 'without extension'}" for kind, count in most]
    if rest := sum(count for _, count in kinds[len(most) :]):
        parts.append(f"{rest:,} others")
    return f"left out: {', '.join(parts)}" if parts else ""


def rank(key: bytes) -> int:
    """A hash below 2**64 of an image's key; images with the smallest hashes are held out.

    It depends only on the key, so adding images never moves others between splits.
    """
    digest = hashlib.sha256(b"ssl-bench test split\0" + key).digest()
    return int.from_bytes(digest[:8], "big")


def hold_out(ranks: Sequence[int], labels: Sequence[int]) -> list[bool]:
    """Which images are held out as the test fifth, given the rank and the label of each.

    A class always keeps its image of the highest rank (and copies of it) for training, so adding
    images moves another one only if that was its class's last.
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

    Returns:
        Caveats about classes that are missing in the test split.

    Raises:
        UserError: a split is empty, or the test split has a class that the train split lacks.
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
    """The first few of some untrusted names, safe to print in one line."""
    every = [name if name.isprintable() and name else ascii(name) for name in names]
    more = f", and {len(every) - _SHOWN:,} more" if len(every) > _SHOWN else ""
    return ", ".join(every[:_SHOWN]) + more


def assembled(
    source: Path,
    train: Part,
    test: Part | None,
    *,
    classes: tuple[str, ...],
    unlabelled: str,
    splits: tuple[str, str],
    left_out: Sequence[str],
    key: Callable[[Any], bytes],
    caveats: tuple[str, ...] = (),
    channels: int = 3,
    others: Mapping[str, int] | None = None,
    merges: bool = False,
) -> Listing:
    """The listing of a source, once it is known what its splits are.

    Args:
        test: None to hold out a fifth of ``train``, by `rank` of each picture's ``key``.
        splits: the training and the test split in words.
        left_out: parts of the source that are in no split, in words.
        others: how many files are not images, by extension.
        merges: pictures of one ``key`` in a split are one, with the captions of all.
    """
    is_held_out = test is None
    rows = len(train) + len(test or ())
    if merges:
        train, test = _merged(train, key), test and _merged(test, key)
    count = len(train) + len(test or ())
    if test is None:
        ranks = [rank(key(picture)) for picture in train.pictures()]
        held_out = hold_out(ranks, train.labels)
        test = train.subset([place for place, is_out in enumerate(held_out) if is_out])
        train = train.subset([place for place, is_out in enumerate(held_out) if not is_out])
        splits = (splits[0], "a fifth of them")
        caveats = (*caveats, HELD_OUT_CAVEAT)
    caveats += check_labels(source, train.labels, test.labels, classes, is_held_out)
    labels = f"no labels ({unlabelled})" if unlabelled else f"classes {shown(classes)}"
    notes = [f"training split: {splits[0]}, test split: {splits[1]}; {labels}"]
    if rows > count:
        notes.append(f"{many(rows, 'row')} of {many(count, 'image')}, each with all its captions")
    notes += [f"left out: {'; '.join(left_out)}"] if left_out else []
    return Listing(
        readable(source.stem if source.is_file() else source.resolve().name),
        *(train, test, classes, channels, caveats),
        *(others or {}, tuple(notes), unlabelled),
    )


def _merged(part: Part, key: Callable[[Any], bytes]) -> Part:
    """One picture of each key, the first, with every caption of those of that key once."""
    captions: dict[int, dict[str, None]] = {}
    firsts = list[int]()
    for place, picture in enumerate(part.pictures()):
        if (identity := rank(key(picture))) not in captions:
            firsts.append(place)
        captions.setdefault(identity, {}).update(dict.fromkeys(picture.captions))
    if len(firsts) == part.count:
        return part
    return part.subset(firsts).captioned([tuple(own) for own in captions.values()])
