"""What a source of images holds, before anything is decoded."""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

from PIL import Image

from ssl_bench.errors import UserError

HELD_OUT_CAVEAT = "no test split of its own: a fifth of the images is held out"


@dataclass(frozen=True)
class Picture:
    """One image as it is stored, and its label.

    Attributes:
        name: how an error message names it.
        encoded: a file, the bytes of a file, or an image that is decoded already.
        label: index into the classes of its ``Listing``.
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
    """

    count: int
    pictures: Callable[[], Iterator[Picture]]
    open: Callable[[], Callable[[int], Picture]]

    def subset(self, places: Sequence[int]) -> Part:
        """The pictures at some places of the order, in ascending order."""
        chosen = frozenset(places)

        def pictures() -> Iterator[Picture]:
            return (each for place, each in enumerate(self.pictures()) if place in chosen)

        def open_() -> Callable[[int], Picture]:
            picture = self.open()
            return lambda index: picture(places[index])

        return Part(len(places), pictures, open_)


@dataclass(frozen=True)
class Listing:
    """The splits of a data set.

    Attributes:
        channels: 1 where every image is grey, else 3.
        caveats: what is to be said beside every number.
        left_out: how many files were not taken for images, by their extension, see `search`.
    """

    name: str
    train: Part
    test: Part
    classes: tuple[str, ...]
    channels: int = 3
    caveats: tuple[str, ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """How many images there are."""
        return self.train.count + self.test.count

    def pictures(self) -> Iterator[Picture]:
        """All of them: the train split, then the test split."""
        return chain(self.train.pictures(), self.test.pictures())

    def without(self, places: Collection[int]) -> Listing:
        """The listing without the pictures at some places of the order of `pictures`."""
        left = [place for place in range(self.count) if place not in places]
        first_test = bisect_left(left, self.train.count)
        train, test = left[:first_test], [p - self.train.count for p in left[first_test:]]
        return replace(self, train=self.train.subset(train), test=self.test.subset(test))


def held_out(key: bytes) -> bool:
    """Whether the image with this key belongs to the test fifth.

    It depends on the key alone, so that adding images never moves another one.
    """
    digest = hashlib.sha256(b"ssl-bench test split\0" + key).digest()
    return int.from_bytes(digest[:8], "big") < 2**64 // 5


def check_labels(
    source: Path,
    train_labels: Collection[int],
    test_labels: Collection[int],
    classes: tuple[str, ...],
) -> None:
    """Raise ``UserError`` unless a classifier can be trained and tested on these labels."""
    if not test_labels:
        raise UserError(
            f"{source}: the test split is empty ({len(train_labels)} train images); "
            "add images, or give it a test split of its own"
        )
    present = set(train_labels)
    if len(present) < 2:
        found = f"only class {classes[min(present)]!r}" if present else "no images"
        raise UserError(f"{source}: the train split has {found}; two classes or more are needed")
    if absent := set(test_labels) - present:
        raise UserError(
            f"{source}: the test split has images of class {classes[min(absent)]!r}, "
            "of which the train split has none; add some there, or remove the class"
        )
