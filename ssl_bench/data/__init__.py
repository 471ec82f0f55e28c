"""Data sets, by name or by path, decoded into memory or streamed.

Importing this package does not import torch; loading a data set does.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ssl_bench.config.settings import Storage
from ssl_bench.data.dataset import NO_CAPTIONS, Dataset, Split, fingerprint
from ssl_bench.data.names import (
    CANVASES,
    CAPTIONS,
    EMBEDDED,
    HUGGING_FACE,
    INSIDE,
    MOTIONS,
    TORCHVISION,
    VALIDATION,
    WHOLE,
    Source,
    names,
    parse,
    resolved,
)
from ssl_bench.errors import UserError, require, unknown

if TYPE_CHECKING:
    from ssl_bench.data.listing import Listing

__all__ = ["DEFAULT_IMAGE_SIZE", "Dataset", "Split", "list_images", "load", "names"]

DEFAULT_IMAGE_SIZE = 64
_DEFAULT_DATA_DIR = "~/.cache/ssl-bench"


def load(
    source: str,
    image_size: int | None = None,
    data_dir: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    storage: Storage = "auto",
    skip_broken: bool = False,
    check: Callable[[int, str], None] | None = None,
    frames: int | None = None,
    stride: int | None = None,
    views: tuple[int, int] = (1, 1),
) -> Dataset:
    """Load the data set that ``source`` names.

    A source is a known name (see ``names``) or a path: a folder of images, Parquet or tar files,
    one or a folder of them, a table of captions or a text, as described in the modules ``folder``,
    ``parquet``, ``tars``, ``captions`` and ``texts``. Write ``./mnist`` for a folder with a known
    name.

    ``@validation`` at the end takes only the training images, a part of them as the test split (see
    ``holdout``). ``@whole``, ``@TRAIN`` or ``@TRAIN+TEST`` after a path, before ``@validation``,
    says how to read a folder with several possible layouts.

    Images that all share one square size of at most 96 pixels are kept as they are. Others are
    resized and centre-cropped to a square of ``image_size * 8 / 7`` pixels.

    Args:
        image_size: side in pixels of the images that a model will see. Default: their own size
            if they are kept as they are, else 64.
        data_dir: where downloads are kept, ``~/.cache/ssl-bench`` by default.
        progress: called with (images read, total) from time to time.
        storage: "memory" decodes all images first, "stream" decodes them when needed, "auto"
            streams data sets that would take more than half of the memory.
        skip_broken: leave out images that cannot be decoded; by default they are an error. The
            images of a streamed data set are decoded once to find them, and the result is kept in
            ``data_dir``.
        check: called with the number of training images, and why they have no captions or "",
            before any of them is decoded; it raises where they are of no use.
        frames: of each clip, where the source has video; 1 makes images of its clips, the middle
            frame of each. Default: the source's own. Of no effect on images.
        stride: from one frame of a clip to the next, in frames of the video. Default: likewise.
        views: clips of a test video, and crops of each, that a test averages over; only a folder of
            videos has several.

    Raises:
        UserError: the source is unknown or unusable, or not suited to this ``storage``.
    """
    if image_size is not None and image_size < 1:
        raise UserError(f"--image-size {image_size}; it must be 1 or more pixels")
    from ssl_bench.data.sources import texts

    asked, read_size = _fetched(parse(source), data_dir), image_size or DEFAULT_IMAGE_SIZE
    if asked.place in INSIDE:
        require(
            storage != "stream",
            f"data set {asked.place!r} cannot be streamed, as it lies in one file; "
            "--storage memory would work",
        )
        found = _embedded(asked, frames, stride)
    elif _is_video(asked.place, frames):
        from ssl_bench.data import clips, sampling
        from ssl_bench.data.listing import no_progress

        listing = _videos(asked)
        if check:
            check(listing.train.count, listing.uncaptioned)
        chosen = sampling.chosen(clips.USUAL, frames, stride)
        how = read_size, chosen, storage, skip_broken, progress or no_progress
        found = clips.load(listing, *how, views)
    elif texts.is_here(Path(asked.place).expanduser()):
        found = texts.load(asked, storage)
        if check:
            check(len(found.train), found.uncaptioned)
    else:
        from ssl_bench.data import in_memory
        from ssl_bench.data.listing import no_progress

        listing, checked = _images(asked, data_dir), _folder(data_dir) / "checked"
        if check:
            check(listing.train.count, listing.uncaptioned)
        told = progress or no_progress
        found = in_memory.load(listing, read_size, storage, skip_broken, checked, told)
    require(
        views == (1, 1) or (found.test.several_views != ""),
        f"--test-clips {views[0]} --test-crops {views[1]}: only a folder of videos has several "
        f"clips and crops to average over, and data {found.name!r} has "
        + ("one clip of each" if found.frames > 1 else "single images")
        + "; 1 and 1 would work",
    )
    is_native = found.size != round(read_size * 8 / 7)
    view_size = image_size or (found.size if is_native else DEFAULT_IMAGE_SIZE)
    return replace(found, view_size=view_size, source=resolved(source))


def _embedded(asked: Source, frames: int | None, stride: int | None) -> Dataset:
    from ssl_bench.data import embedded, holdout, sampling
    from ssl_bench.data.embedded import canvases, motions, scenes

    _refuse_choice(asked)
    has_masks, has_captions = asked.place == CANVASES, asked.place == CAPTIONS
    clips = sampling.chosen(motions.USUAL, frames, stride)
    sources: Mapping[str, Callable[[str], Split]] = {
        EMBEDDED: lambda split: Split(*embedded.read(split)),
        CANVASES: canvases.read,
        MOTIONS: lambda split: motions.read(split, clips),
        CAPTIONS: scenes.read,
    }
    read = sources[asked.place]
    name, note, train = asked.place, "", read("train")
    if asked.is_validation:
        name, note = holdout.name(name), holdout.NOTE
        train, test = holdout.of_split(train)
    else:
        test = read("test")
    classes = {
        EMBEDDED: embedded.CLASSES,
        CANVASES: (),
        MOTIONS: motions.CLASSES,
        CAPTIONS: scenes.CLASSES,
    }[asked.place]
    mask_classes = canvases.CLASSES if has_masks else ()
    digest = fingerprint(train, test, (*classes, *mask_classes))
    found = Dataset(name, train, test, classes, digest, note, train.side)
    unlabelled = "several garments in each image" if has_masks else ""
    uncaptioned = "" if has_captions else NO_CAPTIONS
    return replace(found, mask_classes=mask_classes, unlabelled=unlabelled, uncaptioned=uncaptioned)


def list_images(source: str, data_dir: Path | None = None) -> Listing:
    """List the images of a source other than the embedded data set, as `load` does.

    Raises:
        UserError: the source is unknown or unusable.
    """
    return _images(_fetched(parse(source), data_dir), data_dir)


def _images(asked: Source, data_dir: Path | None) -> Listing:
    """The images of a source, of its training split alone where it is asked for."""
    from ssl_bench.data import holdout

    listing = _listed(asked, data_dir)
    return holdout.of_listing(listing) if asked.is_validation else listing


def _is_video(place: str, frames: int | None) -> bool:
    from ssl_bench.data.sources import videos

    path = Path(place).expanduser()
    return path.is_dir() and videos.is_here(path, frames)


def _videos(asked: Source) -> Listing:
    """Likewise, the videos of a folder."""
    from ssl_bench.data import holdout
    from ssl_bench.data.sources import videos

    listing = videos.find(Path(asked.place).expanduser(), asked.choice)
    return holdout.of_listing(listing) if asked.is_validation else listing


def _fetched(asked: Source, data_dir: Path | None) -> Source:
    """The same, where what the Hub has lies in a folder."""
    if not asked.place.startswith(HUGGING_FACE) or Path(asked.place).expanduser().exists():
        return asked
    from ssl_bench.data.sources import hugging_face

    return replace(asked, place=str(hugging_face.fetched(asked.place, _folder(data_dir))))


def _listed(asked: Source, data_dir: Path | None) -> Listing:
    place = asked.place
    if place in TORCHVISION:
        from ssl_bench.data.sources import torchvision_sets

        _refuse_choice(asked)
        return torchvision_sets.find(place, _folder(data_dir))
    path = Path(place).expanduser()
    from ssl_bench.data.sources import captions, folder, pairs, parquet, tars, texts

    require(not texts.is_here(path), f"{place} has texts alone, and images are wanted")
    if path.exists() and parquet.is_here(path):
        return parquet.find(path, asked.choice)
    if tars.is_here(place):
        return tars.find(path, asked.choice)
    if not path.exists():
        if os.sep in place or "/" in place or path.suffix:
            raise UserError(f"no such folder or file: {place}")
        raise unknown("data set", place, names())
    if captions.is_here(path):
        return captions.find(path, asked.choice)
    if asked.choice != WHOLE and pairs.is_here(path):
        return pairs.find(path, asked.choice)
    if path.is_dir():
        return folder.find(path, asked.choice)
    raise UserError(
        f"{place} is neither a folder nor a .parquet, .tar, .csv, .jsonl, .json or .txt file"
    )


def _refuse_choice(asked: Source) -> None:
    require(
        not asked.choice,
        f"data set {asked.place!r} has splits of its own, and none {asked.choice!r} to choose; "
        f"{asked.place} or {asked.place}{VALIDATION} would work",
    )


def _folder(data_dir: Path | None) -> Path:
    return Path(data_dir or _DEFAULT_DATA_DIR).expanduser()
