"""Images in folders, one folder per class.

Two layouts:

- ``train/CLASS/*`` and ``test/CLASS/*``. Without ``test``, ``val`` is the test split; beside
  ``test``, ``val`` is ignored, since choices are made on a part of the train split.
- ``CLASS/*``. A fifth of the images is held out as the test split, by a hash of the path
  relative to the folder, so that adding images never moves another one.

Folders inside a class folder are searched too; hidden files and folders are skipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ssl_bench.data.listing import (
    HELD_OUT_CAVEAT,
    Listing,
    Part,
    Picture,
    check_labels,
    held_out,
)
from ssl_bench.errors import UserError

EXTENSIONS = frozenset(
    (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
)
_SPLITS = ("train", "test", "val")


def find(root: Path) -> Listing:
    """The images below ``root``.

    Raises:
        UserError: no class folders, a class without images, a test class that train lacks,
            fewer than two classes, or an empty test split.
    """
    present = [name for name in _SPLITS if (root / name).is_dir()]
    if not present:
        files = _files_by_class(root)
        classes = tuple(files)
        train: list[Picture] = []
        test: list[Picture] = []
        for picture in _pictures(files, classes):
            relative = Path(picture.name).relative_to(root).as_posix()
            (test if held_out(relative.encode()) else train).append(picture)
        caveats: tuple[str, ...] = (HELD_OUT_CAVEAT,)
    elif present[0] != "train" or len(present) == 1:
        missing = "no train folder" if present[0] != "train" else "neither test nor val"
        raise UserError(
            f"{root} has {' and '.join(present)} but {missing}; "
            f"add it, or give {root / present[0]} alone, of which a fifth is then held out"
        )
    else:
        train_files = _files_by_class(root / "train")
        test_files = _files_by_class(root / present[1])
        classes = tuple(train_files)
        if extra := sorted(set(test_files) - set(classes)):
            raise UserError(f"{root / present[1]} has class {extra[0]!r}, which train lacks")
        train, test = _pictures(train_files, classes), _pictures(test_files, classes)
        caveats = ()
    check_labels(root, [p.label for p in train], [p.label for p in test], classes)
    return Listing(root.resolve().name, _part(train), _part(test), classes, caveats=caveats)


def _files_by_class(folder: Path) -> dict[str, list[Path]]:
    """The image files of every class, both sorted."""
    classes = sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name[0] != ".")
    if not classes:
        raise UserError(f"{folder} has no class folders; expected {folder}/CLASS/IMAGE")
    files = {name: sorted(_image_files(folder / name)) for name in classes}
    for name, found in files.items():
        if not found:
            extensions = " ".join(sorted(EXTENSIONS))
            raise UserError(
                f"empty class: no images in {folder / name} (looked for {extensions}); "
                "add some, or remove the folder"
            )
    return files


def _image_files(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        hidden = any(part[0] == "." for part in path.relative_to(folder).parts)
        if path.suffix.lower() in EXTENSIONS and not hidden and path.is_file():
            yield path


def _pictures(files: dict[str, list[Path]], classes: tuple[str, ...]) -> list[Picture]:
    labels = {name: label for label, name in enumerate(classes)}
    return [Picture(str(path), path, labels[name]) for name in files for path in files[name]]


def _part(pictures: list[Picture]) -> Part:
    return Part(len(pictures), lambda: iter(pictures), lambda: pictures.__getitem__)
