"""Videos in folders, one folder per class.

``train/CLASS/*`` and ``test/CLASS/*``, or ``val`` in place of ``test``, under any of the usual
names (see `splits`), or ``CLASS/*``, of which a fifth is held out as of images (see `folder`).
``@TRAIN``, ``@TRAIN+TEST`` and ``@whole`` after the folder's name choose likewise. Images beside
them are left out and counted.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from ssl_bench.data.images import extensions
from ssl_bench.data.listing import Listing, assembled, counted, shown
from ssl_bench.data.names import WHOLE
from ssl_bench.data.sources import splits
from ssl_bench.data.sources.folder import folders_in, image_files, part_of
from ssl_bench.errors import UserError, require
from ssl_bench.utils.files import readable

GIF = ".gif"
EXTENSIONS = frozenset(
    (GIF, ".mp4", ".m4v", ".avi", ".webm", ".mov", ".mkv", ".mpg", ".mpeg", ".wmv", ".flv")
)


def is_here(path: Path, frames: int | None) -> bool:
    """Whether a folder holds videos, at least as many as images.

    Animated GIFs are both: they are videos beside others, or where several frames are asked for and
    there are no other images.
    """
    pictures = set(extensions()) - EXTENSIONS
    kinds = Counter(each.lower() for each in _extensions(path))  # fast, and follows no links
    if any(map(kinds.get, pictures)) and not any(map(kinds.get, EXTENSIONS)):
        return False
    found, others = image_files(path, EXTENSIONS)
    count = sum(others[extension] for extension in pictures)
    if all(each.suffix.lower() == GIF for each in found):
        return bool(found) and not count and (frames or 1) > 1
    return len(found) >= count


def _extensions(path: Path) -> Iterator[str]:
    for _, folders, names in os.walk(path):
        folders[:] = [name for name in folders if name[0] != "."]
        yield from (os.path.splitext(name)[1] for name in names if name[0] != ".")


def find(root: Path, choice: str = "") -> Listing:
    """The videos below ``root``.

    Raises:
        UserError: the layout is ambiguous, a class has no video, the train split lacks a class of
            the test split, or a split is empty.
    """
    train, test = _layout(root, choice)
    others: Counter[str] = Counter()
    files = _by_class(train, others)
    unlabelled = ""
    if len(files) == 1:
        unlabelled = f"only class {shown(files)}" if [*files] != [""] else "no class folders"
    classes = () if unlabelled else tuple(files)
    tested = None
    if test:
        of_test = _by_class(test, others)
        extra = of_test.keys() - files.keys()
        require(
            bool(unlabelled) or not extra,
            f"{test} has class {min(extra, default='')!r}, which {readable(train.name)} lacks",
        )
        tested = part_of(of_test, classes)
    used = {train, test}
    left_out = [
        f"folder {shown([folder.name])}"
        for folder in (folders_in(root) if train != root else [])
        if folder not in used
    ]
    return assembled(
        root,
        part_of(files, classes),
        tested,
        classes=tuple(map(readable, classes)),
        unlabelled=unlabelled,
        splits=(_named(root, train), _named(root, test) if test else ""),
        left_out=left_out,
        key=lambda picture: os.fsencode(picture.encoded.relative_to(train)),
        others=others,
    )


def _layout(root: Path, choice: str) -> tuple[Path, Path | None]:
    """The folders of the train and of the test split; None holds a part of the first out."""
    names = [folder.name for folder in folders_in(root)]
    if choice == WHOLE:
        return root, None
    if choice:
        train, *test = splits.chosen(root, choice, names, "folder")
        return root / train, root / test[0] if test else None
    roles = splits.Roles({name: splits.meaning(name) for name in names})
    if not roles.rests:
        return root, None
    if roles.are_told_apart and roles.are_plain and not roles.others:
        return root / roles.trains[0], root / roles.tests[0]
    which = roles.trains or names, roles.tests or names
    raise splits.asked(root, *which, f"it has the folders {shown(names)}", "each folder as a class")


def _by_class(folder: Path, others: Counter[str]) -> dict[str, list[Path]]:
    """Video files by class, all under "" without class folders; other files are counted."""
    folders = folders_in(folder)
    if not folders:
        files, left_out = image_files(folder, EXTENSIONS)
        others.update(left_out)
        return {"": files}
    found = {}
    for inner in folders:
        found[inner.name], left_out = image_files(inner, EXTENSIONS)
        others.update(left_out)
        if not found[inner.name]:
            what = counted(left_out) or "nothing is there"
            raise UserError(
                f"empty class: no videos in {inner} ({what}); add some, or remove the folder"
            )
    either = EXTENSIONS.union(extensions())
    direct = sum(each.suffix.lower() in either for each in folder.iterdir() if each.name[0] != ".")
    others.update({"in no class folder": direct} if direct else {})
    return found


def _named(root: Path, split: Path) -> str:
    return "all videos" if split == root else f"folder {shown([split.name])}"
