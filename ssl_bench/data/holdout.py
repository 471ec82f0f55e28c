"""``NAME@validation``: the training images split in two, to choose settings without test images.

The test split of ``NAME@validation`` is a random tenth of the training images of ``NAME``, and its
training split is the rest. The draw depends only on the number of images, not on a seed, so all
trials of all methods are compared on the same images. Every class keeps at least one image for
training. The test images of ``NAME`` are never read.
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
    """Divide the training split of a listing in two; both keep its order."""
    labels, new_name = listing.train.labels, name(listing.name)
    rest, held_out = _places(labels)
    tested = [labels[place] for place in held_out]
    caveats = check_labels(new_name, labels, tested, listing.classes, is_held_out=True)
    return replace(
        listing,
        name=new_name,
        train=listing.train.subset(rest),
        test=listing.train.subset(held_out),
        caveats=(*listing.caveats, NOTE, *caveats),
    )


def of_split(train: Split) -> tuple[Split, Split]:
    """Divide a split in memory into the part to train on and the part held out."""
    first, second = _places(train.labels_N.tolist())
    return train.subset(first), train.subset(second)


def name(of: str) -> str:
    """The name of the data set that the two parts of another one make."""
    return f"{of}-validation"


def _places(labels: Sequence[int]) -> tuple[list[int], list[int]]:
    """Sorted indices of the images to train on and of those held out."""
    count = len(labels)
    order = rng.permutation(count, "validation split").tolist()
    last = set({labels[place]: place for place in order}.values())
    spare = [place for place in order if place not in last]
    held_out = set(spare[: max(1, round(SHARE * count))])
    return [place for place in range(count) if place not in held_out], sorted(held_out)
