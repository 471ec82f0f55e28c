"""The training images of a data set in two parts, to choose settings on one of them.

What is chosen must not be chosen by the test images. ``NAME@validation`` is a data set whose test
split is a tenth of the training images of ``NAME``, drawn at random, and whose training split is
the others. Which ones depends on their number alone, not on any seed, so that all trials of all
methods are compared on the same images. The test images of ``NAME`` are never read.
"""

from __future__ import annotations

from dataclasses import replace

from ssl_bench import draws
from ssl_bench.data.dataset import Split
from ssl_bench.data.listing import Listing

SHARE = 0.1
NOTE = "no test images: a tenth of the training images is held out to choose settings on"


def of_listing(listing: Listing) -> Listing:
    """A listing whose two splits are parts of the training split, each in its own order."""
    rest, held_out = _places(listing.train.count)
    return replace(
        listing,
        name=name(listing.name),
        train=listing.train.subset(rest),
        test=listing.train.subset(held_out),
        caveats=(*listing.caveats, NOTE),
    )


def of_split(train: Split) -> tuple[Split, Split]:
    """The same of a split in memory: what is left to train on, and what is held out."""
    rest, held_out = (
        Split(train.images_NCHW[places], train.labels_N[places]) for places in _places(len(train))
    )
    return rest, held_out


def name(of: str) -> str:
    """What people call the two parts of the data set of that name."""
    return f"{of}-validation"


def _places(count: int) -> tuple[list[int], list[int]]:
    """Sorted numbers below the count in two parts, neither of them empty."""
    held_out = min(max(1, round(SHARE * count)), count - 1)
    order_N = draws.permutation(count, "validation split")
    return order_N[held_out:].sort().values.tolist(), order_N[:held_out].sort().values.tolist()
