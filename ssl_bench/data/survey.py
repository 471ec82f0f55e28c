"""Decoding all images of a data set once, to find broken ones and the values of deep ones."""

from __future__ import annotations

import time
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path

import PIL

from ssl_bench.data import depth, images
from ssl_bench.data.depth import Extremes
from ssl_bench.data.images import UnreadableImage
from ssl_bench.data.listing import HELD_OUT_CAVEAT, Listing, Picture, Progress, check_labels
from ssl_bench.errors import require
from ssl_bench.utils.files import load_json, write_json
from ssl_bench.utils.formatting import many

_AT_ONCE = 256
_WORTH_KEEPING = 2.0
"""Seconds."""
_VERSION = 1
"""Of stored surveys; raise it when other images than before count as broken."""


Survey = tuple[dict[int, UnreadableImage], list[Extremes]]
"""The errors of broken images, by their place, and the images of more than 8 bits."""


def survey(listing: Listing, progress: Progress) -> Survey:
    """Decode every image of a listing, in threads, and keep none."""
    broken: dict[int, UnreadableImage] = {}
    deep: list[Extremes] = []
    pictures, done = listing.pictures(), 0
    with ThreadPoolExecutor() as pool:
        while batch := list(islice(pictures, _AT_ONCE)):
            for place, found in enumerate(pool.map(_checked, batch), done):
                if isinstance(found, UnreadableImage):
                    broken[place] = found
                elif found:
                    deep.append(found)
            done += len(batch)
            progress(done, listing.count)
    return broken, deep


def _checked(picture: Picture) -> Extremes | UnreadableImage | None:
    try:
        return images.check(picture)
    except UnreadableImage as error:
        return error


def remembered(path: Path, listing: Listing, progress: Progress) -> Survey:
    """The survey stored in a file, or else a new one, which is stored there if it took long.

    A file that cannot be read or written is ignored; its name is a hash of the images.
    """
    known = {"version": _VERSION, "pillow": PIL.__version__}
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        noted = load_json(path)
        if {name: noted[name] for name in known} == known:
            broken = {
                int(place): UnreadableImage(str(name), ValueError(reason))
                for place, (name, reason) in noted["broken"].items()
            }
            return broken, [Extremes(**each) for each in noted["deep"]]
    started = time.monotonic()
    broken, deep = survey(listing, progress)
    is_quick = time.monotonic() - started < _WORTH_KEEPING
    if not is_quick and not any(each.is_refused for each in broken.values()):
        noted = {
            **known,
            "broken": {str(k): (each.name, each.reason) for k, each in broken.items()},
            "deep": [asdict(each) for each in deep],
        }
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, noted)
    return broken, deep


def sound(
    listing: Listing, skip: bool, progress: Progress, path: Path | None = None
) -> tuple[Listing, dict[str, int], tuple[str, ...], tuple[str, ...]]:
    """A listing without its broken images, all of which have been decoded at some time.

    Args:
        path: where the survey is `remembered`, if anywhere.

    Returns:
        The listing, how its images of more than 8 bits are read, caveats about these, and one line
        for each broken image.

    Raises:
        UserError: there are broken images and ``skip`` is false, too little is left, or images are
            of two ranges.
    """
    broken, deep = remembered(path, listing, progress) if path else survey(listing, progress)
    errors = [broken[place] for place in sorted(broken)]
    images.refuse(errors, skip)
    if errors:
        listing = without(listing, broken)
    depths = depth.decide(deep)
    said = tuple(depth.in_words(deep, depths, listing.count))
    return listing, depths, said, tuple(f"{error.name}: {error.reason}" for error in errors)


def without(listing: Listing, broken: Collection[int], kind: str = "image") -> Listing:
    """A listing without the pictures at some places, which is a caveat.

    Raises:
        UserError: too little is left.
    """
    left = listing.without(broken)
    in_train, in_test = left.train.labels, left.test.labels
    count = many(len(broken), f"broken {kind}")
    source = f"{listing.name} without {count}"
    is_held_out = HELD_OUT_CAVEAT in listing.caveats
    said = check_labels(source, in_train, in_test, listing.classes, is_held_out)
    require(
        not listing.classes or len(set(in_train)) > 1,
        f"{source}: the train split has one class left; two or more are needed",
    )
    caveats = tuple(dict.fromkeys((*listing.caveats, *said, f"{count} left out")))
    return replace(left, caveats=caveats)
