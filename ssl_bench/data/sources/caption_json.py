"""JSON of images and captions, as COCO, Karpathy and ALBEF have it, in rows of a table.

COCO's ``captions_val2014.json`` has ``images`` with ``id`` and ``file_name``, and ``annotations``
with ``image_id`` and ``caption``. Karpathy's ``dataset_coco.json`` has ``images``, each with
``filename``, perhaps ``filepath``, ``split`` and ``sentences``, of which ``raw`` is the text; those
of its split ``restval`` are training images, as usual. ALBEF's is a list of objects with ``image``
and ``caption``, as lines of a ``.jsonl`` are.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from ssl_bench.data.sources.folder import image_files
from ssl_bench.errors import UserError, require
from ssl_bench.utils.files import Unreadable, load_bytes, parse_json, readable

ENDING = ".json"
_LARGEST = 2**32
_ANNOTATIONS = "annotations"
_COCO, _KARPATHY = re.compile(r"captions_.+\.json"), re.compile(r"dataset_.+\.json")
_HEAD = 2**16


def inside(folder: Path) -> list[Path]:
    """The files of captions in a folder, or in its ``annotations``, by their names."""
    for place in (folder, folder / _ANNOTATIONS):
        if place.is_dir():
            found = [path for path in sorted(place.iterdir()) if _has_captions(path)]
            if found:
                return found
    return []


def _has_captions(path: Path) -> bool:
    """Whether a file is called as COCO's captions are, or as Karpathy's and has sentences.

    Other files are called ``dataset_infos.json`` and the like.
    """
    if not path.is_file() or not _KARPATHY.fullmatch(path.name):
        return path.is_file() and bool(_COCO.fullmatch(path.name))
    with suppress(OSError), path.open("rb") as file:
        return b'"sentences"' in file.read(_HEAD)
    return False


def rows(path: Path, others: Counter[str]) -> Iterator[dict[str, Any]]:
    """A row for each image: ``image``, a list as ``caption``, and perhaps ``split``.

    Args:
        others: counts the captions of images that are not listed.

    Raises:
        UserError: it cannot be read, or is something else.
    """
    where = readable(path)
    try:
        content = parse_json(load_bytes(path, _LARGEST))
    except Unreadable as error:
        raise UserError(f"{where} cannot be read: {error}") from error
    try:
        if isinstance(content, list):
            found = [{**row} for row in content]
        elif "annotations" in content:
            found = _coco(content, others)
        else:
            found = [_karpathy(image) for image in content["images"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{where} has no captions that are known: images with sentences, images with "
            "annotations, or a list of objects with image and caption would work"
        ) from error
    yield from found


def _coco(content: Mapping[str, Any], others: Counter[str]) -> list[dict[str, Any]]:
    texts: dict[Any, list[Any]] = {image["id"]: [] for image in content["images"]}
    for each in content["annotations"]:
        if (number := each["image_id"]) in texts:
            texts[number].append(each["caption"])
        else:
            others["captions of images that are not listed"] += 1
    return [
        {"image": image["file_name"], "caption": texts[image["id"]]} for image in content["images"]
    ]


def _karpathy(image: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "image": str(PurePosixPath(image.get("filepath") or "", image["filename"])),
        "caption": [each["raw"] for each in image["sentences"]],
        "split": image.get("split"),
    }


class Images:
    """The image files that tables name: beside them, in folders below, or beside ``annotations``.

    Attributes:
        home: the folder of the tables, or of their folders.
        files: all image files in it.
    """

    def __init__(self, root: Path) -> None:
        self.home = root if root.is_dir() else root.parent
        if self.home.resolve().name == _ANNOTATIONS:
            self.home = self.home.resolve().parent
        self.files = image_files(self.home)[0]
        self._real = cache(os.path.realpath)
        self._by_place = {self._place(path): path for path in self.files}
        self._by_name: dict[str, list[Path]] = {}
        for path in self.files:
            self._by_name.setdefault(path.name, []).append(path)

    def find(self, name: str, folder: Path) -> Path | None:
        """The file at this path from the table's folder or from the home, or the only one of this
        name; or None.

        Raises:
            UserError: there are several of this name.
        """
        for path in (folder / name, self.home / name):
            if path.is_file():
                return self._by_place.get(self._place(path), path)
        found = self._by_name.get(PurePosixPath(name).name, [])
        require(
            len(found) < 2,
            f"{readable(self.home)} has {len(found)} images called "
            f"{readable(PurePosixPath(name).name)}; one, or paths instead of names, would work",
        )
        return found[0] if found else None

    def _place(self, path: Path) -> tuple[str, str]:
        """Of two paths that lead to one file the same."""
        return self._real(path.parent), path.name
