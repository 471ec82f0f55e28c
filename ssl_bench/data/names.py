"""Data sets known by name. Imports nothing heavy, as `--help` and `list` need it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ssl_bench.errors import require

EMBEDDED = "fashion-mnist"
CANVASES = "fashion-canvases"
CAPTIONS = "fashion-captions"
MOTIONS = "fashion-motions"
INSIDE = (EMBEDDED, CANVASES, MOTIONS, CAPTIONS)
"""The data sets inside the package."""
VALIDATION = "@validation"
"""After a name or path: only the training images, in two parts (see `holdout`)."""
HUGGING_FACE = "hf:"
"""Before the name of a data set of the Hugging Face Hub."""
WHOLE = "whole"
"""After a path and an @: all images as one, without splits."""

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_MOST_FILES = 100_000


@dataclass(frozen=True)
class TorchvisionSet:
    """A data set of torchvision, and the constructor's arguments for its two labelled splits.

    ``unnamed_classes`` is the number of classes, if torchvision does not name them. Of a data set
    of masks ``mask_classes`` names the classes, and ``mask_values`` the class of each value that is
    not its own class. ``unlabelled`` says why labels are not read, if so.
    """

    class_name: str
    about: str
    train: Mapping[str, Any] = field(default_factory=lambda: {"train": True})
    test: Mapping[str, Any] = field(default_factory=lambda: {"train": False})
    channels: int = 3
    unnamed_classes: int = 0
    mask_classes: tuple[str, ...] = ()
    mask_values: Mapping[int, int] = field(default_factory=dict)
    unlabelled: str = ""


def _by_split(
    class_name: str,
    about: str,
    train: str = "train",
    test: str = "test",
    unnamed_classes: int = 0,
    mask_classes: tuple[str, ...] = (),
    mask_values: Mapping[int, int] | None = None,
    **more: str,
) -> TorchvisionSet:
    arguments = {"split": train, **more}, {"split": test, **more}
    masks = mask_classes, mask_values or {}
    return TorchvisionSet(class_name, about, *arguments, 3, unnamed_classes, *masks)


_VOC = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair"),
    *(
        "cow",
        "dining table",
        "dog",
        "horse",
        "motorbike",
        "person",
        "potted plant",
        "sheep",
        "sofa",
    ),
    *("train", "tv/monitor"),
)
TORCHVISION = {
    "mnist": TorchvisionSet("MNIST", "digits, 28 px grey, 60,000 + 10,000", channels=1),
    "kmnist": TorchvisionSet("KMNIST", "Japanese letters, 28 px grey, 60,000 + 10,000", channels=1),
    "usps": TorchvisionSet(
        "USPS", "digits, 16 px grey, 7,291 + 2,007", channels=1, unnamed_classes=10
    ),
    "cifar10": TorchvisionSet("CIFAR10", "10 kinds of things, 32 px, 50,000 + 10,000"),
    "cifar100": TorchvisionSet("CIFAR100", "100 kinds of things, 32 px, 50,000 + 10,000"),
    "svhn": _by_split(
        "SVHN", "house numbers, 32 px, 73,257 + 26,032 (needs scipy)", unnamed_classes=10
    ),
    "stl10": _by_split("STL10", "10 kinds of things, 96 px, the labelled 5,000 + 8,000"),
    "stl10-unlabelled": TorchvisionSet(
        "STL10",
        "without labels, 96 px, 100,000 + 8,000; --eval-data stl10 evaluates on labels",
        {"split": "unlabeled"},
        {"split": "test"},
        unlabelled="it is for pre-training; stl10 has them",
    ),
    "imagenette": _by_split(
        "Imagenette", "10 ImageNet classes, photos, 9,469 + 3,925", test="val", size="320px"
    ),
    "flowers102": _by_split("Flowers102", "102 flowers, photos, 1,020 + 6,149 (needs scipy)"),
    "food101": _by_split("Food101", "101 dishes, photos, 75,750 + 25,250"),
    "oxford-iiit-pet": _by_split(
        "OxfordIIITPet", "37 cat and dog breeds, photos, 3,680 + 3,669", train="trainval"
    ),
    "fgvc-aircraft": _by_split(
        "FGVCAircraft", "100 aircraft variants, photos, 6,667 + 3,333", train="trainval"
    ),
    "dtd": _by_split("DTD", "47 textures, photos, first partition, 1,880 + 1,880"),
    "gtsrb": _by_split("GTSRB", "43 German traffic signs, 26,640 + 12,630", unnamed_classes=43),
    "country211": _by_split("Country211", "211 countries, photos, 31,650 + 21,100"),
    "voc-masks": TorchvisionSet(
        "VOCSegmentation",
        "with masks: 20 kinds of things, photos, 1,464 + 1,449",
        {"image_set": "train", "year": "2012"},
        {"image_set": "val", "year": "2012"},
        mask_classes=_VOC,
    ),
    "oxford-iiit-pet-masks": _by_split(
        "OxfordIIITPet",
        "with masks: pet or background, photos, 3,680 + 3,669",
        train="trainval",
        target_types="segmentation",
        mask_classes=("background", "pet"),
        mask_values={1: 1, 2: 0, 3: 255},  # pet, background, border
    ),
}


@dataclass(frozen=True)
class Source:
    """The parts of ``--data``: a name or path, and what follows it after an @ (see `data.load`)."""

    place: str
    choice: str = ""
    is_validation: bool = False


def parse(text: str) -> Source:
    """Split a source at its @ signs, unless all of it is the name of an existing path."""
    if _exists(text):
        return Source(text)
    place, is_validation = text.removesuffix(VALIDATION), text.endswith(VALIDATION)
    if not _exists(place):
        ends = [at for at, letter in enumerate(place) if letter == "@" and at]
        for at in reversed(ends):
            is_name = place[:at] in (*INSIDE, *TORCHVISION)
            if is_name or place.startswith(HUGGING_FACE) or _exists(place[:at]):
                return Source(place[:at], place[at + 1 :], is_validation)
    return Source(place, "", is_validation)


def base(text: str) -> str:
    """The name or path of a data set, without anything after an @."""
    return parse(text).place


def expanded(place: str) -> list[str]:
    """The paths that ``shard-{000..010}.tar`` stands for; any other path stands for itself.

    Raises:
        UserError: a range is empty, or there are too many.
    """
    found = _RANGE.search(place)
    if not found or os.path.exists(os.path.expanduser(place)):
        return [place]
    first, last = int(found[1]), int(found[2])
    require(
        0 <= last - first < _MOST_FILES,
        f"{place}: {found[0]} is a range of {max(0, last - first + 1):,} files; 1 to "
        f"{_MOST_FILES:,} would work",
    )
    width = len(found[1])
    begin, end = place[: found.start()], place[found.end() :]
    return [
        each
        for number in range(first, last + 1)
        for each in expanded(f"{begin}{number:0{width}}{end}")
    ]


def several(text: str) -> tuple[str, ...]:
    """The sources in a list separated by commas, each once; a path that exists is a single one.

    There is none in an empty text.
    """
    if "," not in text or _exists(base(text)):
        return (text,) if text else ()
    return tuple(dict.fromkeys(filter(None, map(str.strip, text.split(",")))))


def resolved(text: str) -> str:
    """The source with its path made absolute."""
    place = base(text)
    return f"{Path(place).expanduser().resolve()}{text[len(place) :]}" if _exists(place) else text


def _exists(place: str) -> bool:
    # False of what is too long to be a path.
    return any(os.path.exists(os.path.expanduser(each)) for each in expanded(place))


def names() -> dict[str, str]:
    """Every data set that `--data` takes by name, with one line about it."""
    embedded = {
        EMBEDDED: "clothing, 28 px grey, 60,000 + 10,000; inside the package, no download",
        CANVASES: f"with masks: garments of {EMBEDDED} on canvases, 56 px grey, 2,000 + 1,000",
        MOTIONS: f"clips: garments of {EMBEDDED} in 10 kinds of motion, 32 px grey, 6,000 + 2,000",
        CAPTIONS: f"with captions: garments of {EMBEDDED} in scenes, 56 px grey, 10,000 + 1,000",
    }
    return embedded | {name: known.about for name, known in TORCHVISION.items()}
