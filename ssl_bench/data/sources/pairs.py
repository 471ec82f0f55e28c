"""Images with masks: a folder ``images`` and a folder ``masks`` with a mask for each image.

A mask has its image's path but for the extension. Splits are folders inside of both
(``images/train``, ``masks/train``), or hold both (``train/images``, ``train/masks``), under any of
the usual names, see `splits`; without them a fifth is held out, by a hash of each image's path.
``classes.txt`` beside them may name the classes, see `masks`.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from ssl_bench.data import masks
from ssl_bench.data.listing import Listing, Part, Picture, assembled, shown
from ssl_bench.data.sources import splits
from ssl_bench.data.sources.folder import image_files
from ssl_bench.errors import UserError, require
from ssl_bench.utils.files import readable
from ssl_bench.utils.formatting import many

_IMAGES, _MASKS = "images", "masks"
_Groups = Mapping[str, tuple[Path, Path]]
"""The folders of images and of masks of each split, by its name."""


def is_here(path: Path) -> bool:
    """Whether it is a folder of images and masks."""
    return path.is_dir() and bool(_groups(path))


def find(root: Path, choice: str = "") -> Listing:
    """The images and masks below ``root``.

    Raises:
        UserError: the layout is ambiguous, an image has no mask, or `masks.surveyed` refuses one.
    """
    groups = _groups(root)
    if choice:
        train, *tests = splits.chosen(root, choice, groups, "folder")
    elif len(groups) == 1:
        [train], tests = groups, []
    else:
        roles = splits.Roles({name: splits.meaning(name) for name in groups})
        if not roles.are_told_apart or roles.others:
            what = f"it has the folders {shown(groups)}"
            raise splits.asked(root, roles.trains, roles.tests, what, "every folder as a class")
        [train], tests = roles.trains, roles.tests
    others: Counter[str] = Counter()
    left_out = [f"folder {shown([name])}" for name in groups if name not in (train, *tests[:1])]
    listing = assembled(
        root,
        _part(groups[train], left_out, others),
        _part(groups[tests[0]], left_out, others) if tests else None,
        classes=(),
        unlabelled="it has masks instead of class folders",
        splits=(shown([train or "all images"]), shown(tests[:1])),
        left_out=left_out,
        key=lambda picture: os.fsencode(picture.encoded.relative_to(groups[train][0])),
        others=others,
    )
    return masks.surveyed(listing, root, masks.class_names(root / masks.CLASSES))


def _groups(root: Path) -> _Groups:
    """The folders of each split; those of "" where there are none; nothing without masks."""
    images, targets = root / _IMAGES, root / _MASKS
    if images.is_dir() and targets.is_dir():
        inner = sorted(each.name for each in images.iterdir() if each.is_dir())
        if inner and all(map(splits.meaning, inner)):
            return {name: (images / name, targets / name) for name in inner}
        return {"": (images, targets)}
    folders = sorted(each for each in root.iterdir() if each.is_dir())
    return {
        each.name: (each / _IMAGES, each / _MASKS)
        for each in folders
        if (each / _IMAGES).is_dir() and (each / _MASKS).is_dir()
    }


def _part(folders: tuple[Path, Path], left_out: list[str], others: Counter[str]) -> Part:
    """The pictures of a split; what is in none goes to the last two."""
    images, targets = folders
    require(targets.is_dir(), f"images of {images} have no masks: there is no folder {targets}")
    found, no_images = image_files(images)
    others.update(no_images)
    known = {each.relative_to(targets).with_suffix(""): each for each in image_files(targets)[0]}
    by_image = {each: known.get(each.relative_to(images).with_suffix("")) for each in found}
    if lacking := [each for each, mask in by_image.items() if mask is None]:
        expected = (targets / lacking[0].relative_to(images)).with_suffix(".png")
        more = f", and {len(lacking) - 1:,} more have none" if lacking[1:] else ""
        raise UserError(
            f"image {readable(lacking[0])} has no mask: {readable(expected)} is expected{more}"
        )
    if extra := len(known.keys() - {each.relative_to(images).with_suffix("") for each in found}):
        left_out.append(f"{many(extra, 'mask')} of no image in {readable(targets)}")
    return Part.of([Picture(readable(each), each, 0, mask) for each, mask in by_image.items()])
