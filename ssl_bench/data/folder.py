"""Images in folders, one folder per class.

Two layouts:

- ``train/CLASS/*`` and ``test/CLASS/*``. Without ``test``, ``val`` is the test split; beside
  ``test``, ``val`` is ignored, since choices are made on a part of the train split.
- ``CLASS/*``. A fifth of the images is held out as the test split, by a hash of the path
  relative to the folder, so that adding images never moves another one.

Folders inside a class folder are searched too, linked ones as well; see `search`.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from ssl_bench.data.listing import (
    HELD_OUT_CAVEAT,
    Listing,
    Part,
    Picture,
    check_labels,
    held_out,
)
from ssl_bench.data.search import image_files, in_words
from ssl_bench.errors import UserError
from ssl_bench.files import readable

_SPLITS = ("train", "test", "val")


def find(root: Path) -> Listing:
    """The images below ``root``.

    Raises:
        UserError: no class folders, a class without images, a test class that train lacks,
            fewer than two classes, or an empty test split.
    """
    left_out: Counter[str] = Counter()
    present = [name for name in _SPLITS if (root / name).is_dir()]
    if not present:
        files = _files_by_class(root, left_out)
        classes = tuple(files)
        train: list[Picture] = []
        test: list[Picture] = []
        for picture in _pictures(files, classes):
            assert isinstance(picture.encoded, Path)
            relative = os.fsencode(picture.encoded.relative_to(root))
            (test if held_out(relative) else train).append(picture)
        caveats: tuple[str, ...] = (HELD_OUT_CAVEAT,)
    elif present[0] != "train" or len(present) == 1:
        missing = "no train folder" if present[0] != "train" else "neither test nor val"
        raise UserError(
            f"{root} has {' and '.join(present)} but {missing}; "
            f"add it, or give {root / present[0]} alone, of which a fifth is then held out"
        )
    else:
        train_files = _files_by_class(root / "train", left_out)
        test_files = _files_by_class(root / present[1], left_out)
        classes = tuple(train_files)
        if extra := sorted(set(test_files) - set(classes)):
            raise UserError(f"{root / present[1]} has class {extra[0]!r}, which train lacks")
        train, test = _pictures(train_files, classes), _pictures(test_files, classes)
        caveats = ()
    check_labels(root, [p.label for p in train], [p.label for p in test], classes)
    return Listing(
        readable(root.resolve().name),
        _part(train),
        _part(test),
        tuple(map(readable, classes)),
        caveats=caveats,
        left_out=left_out,
    )


def _files_by_class(folder: Path, left_out: Counter[str]) -> dict[str, list[Path]]:
    """The image files of every class, both sorted; other files are counted."""
    classes = sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name[0] != ".")
    if not classes:
        raise UserError(f"{folder} has no class folders; expected {folder}/CLASS/IMAGE")
    files = {}
    for name in classes:
        files[name], others = image_files(folder / name)
        left_out.update(others)
        if not files[name]:
            what = "; ".join(in_words(others)) or "nothing is there"
            raise UserError(
                f"empty class: no images in {folder / name} ({what}); add some, or remove the "
                "folder"
            )
    return files


def _pictures(files: dict[str, list[Path]], classes: tuple[str, ...]) -> list[Picture]:
    labels = {name: label for label, name in enumerate(classes)}
    return [Picture(readable(path), path, labels[name]) for name in files for path in files[name]]


def _part(pictures: list[Picture]) -> Part:
    return Part(len(pictures), lambda: iter(pictures), lambda: pictures.__getitem__)
