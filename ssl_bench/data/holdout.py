"""The training images of a data set in two parts, to choose settings on one of them.

What is chosen must not be chosen by the test images. ``NAME@validation`` is a data set whose test
split is a tenth of the training images of ``NAME``, drawn at random, and whose training split is
the others. Which ones depends on their number alone, not on any seed, so that all trials of all
methods are compared on the same images; but a class's last image in the order of the draw is always
trained on. The test images of ``NAME`` are never read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ssl_bench.data.dataset import Split
from ssl_bench.data.listing import Listing, check_labels
from ssl_bench.utils import rng

SHARE = 0.1
NOTE = "no test images: a tenth of the training images is held out to choose settings on"


def of_listing(listing: Listing) -> Listing:
    """A listing whose two splits are parts of the training split, each in its own order.

    Raises:
        UserError: there are too few images to hold any out.
    """
    labels, new_name = listing.train.labels, name(listing.name)
    rest, held_out = _places(labels)
    return replace(
        listing,
        name=new_name,
        train=listing.train.subset(rest),
        test=listing.train.subset(held_out),
        caveats=(*listing.caveats, NOTE, *_caveats(new_name, labels, held_out, listing.classes)),
    )


def of_split(train: Split, classes: tuple[str, ...]) -> tuple[Split, Split]:
    """The same of a split in memory: what is left to train on, and what is held out.

    Raises:
        UserError: there are too few images to hold any out.
    """
    labels = train.labels_N.tolist()
    rest, held_out = _places(labels)
    _caveats("the data set", labels, held_out, classes)
    return (
        Split(train.images_NCHW[rest], train.labels_N[rest]),
        Split(train.images_NCHW[held_out], train.labels_N[held_out]),
    )


def name(of: str) -> str:
    """What people call the two parts of the data set of that name."""
    return f"{of}-validation"


def _caveats(
    name: str, labels: Sequence[int], held_out: Sequence[int], classes: tuple[str, ...]
) -> tuple[str, ...]:
    tested = [labels[place] for place in held_out]
    return check_labels(name, labels, tested, classes, is_held_out=True)


def _places(labels: Sequence[int]) -> tuple[list[int], list[int]]:
    """Sorted numbers of all images in two parts, the first with an image of every class."""
    count = len(labels)
    order = rng.permutation(count, "validation split").tolist()
    last = set({labels[place]: place for place in order}.values())
    spare = [place for place in order if place not in last]
    held_out = set(spare[: max(1, round(SHARE * count))])
    return [place for place in range(count) if place not in held_out], sorted(held_out)
