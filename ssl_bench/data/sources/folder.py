"""Images in folders, one folder per class.

Two layouts:

- ``train/CLASS/*`` and ``test/CLASS/*``, under any of the usual names (see `splits`); the whole
  layout, or the classes of each split, may lie one folder deeper. ``val`` is the test split if
  there is no ``test``, or if that has no class folders; otherwise it is left out, since settings
  are chosen on a part of the train split.
- ``CLASS/*``. A fifth of the images is held out as the test split, by a hash of the path
  relative to the folder, so adding images never moves others between splits.

An ambiguous folder is refused until the user says how to read it: ``@TRAIN+TEST`` after its name
gives the folders of the splits, ``@TRAIN`` one from which a fifth is held out, and ``@whole`` means
the second layout. Images without class folders, or all in one, have no labels.

Class folders are searched recursively, through links as well; see `image_files`.
"""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from ssl_bench.data.images import extensions
from ssl_bench.data.listing import Listing, Part, Picture, assembled, counted, shown
from ssl_bench.data.names import WHOLE
from ssl_bench.data.sources import splits
from ssl_bench.errors import UserError, of_system
from ssl_bench.utils.files import readable
from ssl_bench.utils.formatting import many

_FOREIGN = "__MACOSX"


_Layout = Sequence[Path]
"""The folder of the train split, then candidates for the test split, best first."""


def find(root: Path, choice: str = "") -> Listing:
    """The images below ``root``.

    Raises:
        UserError: the layout is ambiguous, there are no images, a class has none, the train split
            lacks a class of the test split, or a split is empty.
    """
    outer = _chosen(root, choice) if choice else _by_name(root)
    train, *candidates = _unwrapped(outer)
    others: Counter[str] = Counter()
    files, unlabelled = _by_class(train, others)
    is_flat = "" in files
    tests = {str(test.relative_to(root)): test for test in candidates}

    def why_unlabelled(name: str) -> str:
        inside = {folder.name for folder in folders_in(tests[name])}
        if is_flat:
            return "" if inside else "no class folders"
        if unlabelled or inside & files.keys() or len(inside) > 1:
            return unlabelled
        return f"only {min(inside)!r}, which train lacks" if inside else "no class folders"

    add = f"add {[*candidates, root][0]}/CLASS/IMAGE or a folder val"
    name, caveats = splits.tested_on(
        root, outer[0].name, train, list(tests), unlabelled, why_unlabelled, add
    )
    test = tests.get(name)
    if test and not is_flat and (extra := {each.name for each in folders_in(test)} - files.keys()):
        raise UserError(f"{test} has class {min(extra)!r}, which train lacks")
    if is_flat and tests and not choice:
        unlabelled += f"; {splits.choosing(root, WHOLE)} takes each folder as a class"
    # Images without labels belong to one class without a name.
    classes = () if unlabelled else tuple(files)
    tested = None
    if test:
        tested_files = (_all_files if unlabelled else _files_by_class)(test, others)
        tested = part_of(tested_files, classes)
    return assembled(
        root,
        part_of(files, classes),
        tested,
        classes=tuple(map(readable, classes)),
        unlabelled=unlabelled,
        splits=(_named(root, train), _named(root, test) if test else ""),
        left_out=list(_left_out(root, outer[0], train, test)),
        key=lambda picture: os.fsencode(picture.encoded.relative_to(train)),
        caveats=caveats,
        others=others,
    )


def _chosen(root: Path, choice: str) -> _Layout:
    if choice == WHOLE:
        return [root]
    known = [folder.name for folder in folders_in(root)]
    return [root / name for name in splits.chosen(root, choice, known, "folder")]


def _by_name(root: Path) -> _Layout:
    """The layout that the names and contents of folders show."""
    folders = {folder.name: folder for folder in folders_in(root)}
    roles = splits.Roles({name: splits.meaning(name) for name in folders})
    trains, tests, others = roles.trains, roles.tests, roles.others
    if roles.rests:
        others = [name for name in others if image_files(folders[name])[0]]
    if roles.are_told_apart:
        train, candidates = folders[trains[0]], [folders[name] for name in tests]
        has_classes = bool(folders_in(train))
        alone = not others and (roles.are_plain or _share_names([train, *candidates]))
        if (has_classes and (alone or roles.are_plain)) or (alone and roles.are_plain):
            return [train, *candidates]
    elif roles.are_plain and not others and (len(trains), bool(tests)) in ((1, False), (0, True)):
        present = " and ".join([*trains, *tests])
        missing = "neither test nor val" if trains else "no train folder"
        raise UserError(
            f"{root} has {present} but {missing}; add it, or give "
            f"{root / [*trains, *tests][0]} alone, of which a fifth is then held out"
        )
    are_classes = all(roles.rests.values()) and not (trains and tests)
    if are_classes and all(_has_images(folders[name]) for name in roles.rests):
        if len(folders) == 1 and not _has_images(root):
            return _inside(root, next(iter(folders.values())))
        if not _share_names(list(folders.values())):
            return [root]
    raise splits.asked(
        root,
        trains or others,
        tests or ([] if trains else others),
        f"it has the folders {shown(folders)}",
        "each folder as a class",
    )


def _inside(root: Path, only: Path) -> _Layout:
    """The layout of a folder that contains only one folder."""
    inner = folders_in(only)
    if _has_images(only) or not inner:
        return [root]
    if len(inner) == 1:
        return _inside(root, inner[0])
    layout = _by_name(only)
    if len(layout) > 1:
        return layout
    raise UserError(
        f"{root} has one folder, {only}, which has more; --data {shlex.quote(str(only))} takes "
        f"{shown(folder.name for folder in inner)} as classes, and "
        f"{splits.choosing(root, WHOLE)} all images without labels"
    )


def _unwrapped(layout: _Layout) -> _Layout:
    """The layout with its splits moved one folder deeper, if that is where their classes are."""
    inner = [_wrapped(folder) for folder in layout]
    return inner if inner[0] != layout[0] and _share_names(layout) else layout


def _wrapped(folder: Path) -> Path:
    """The only folder in this one, if it contains several itself; else this one."""
    inner = folders_in(folder)
    if len(inner) != 1 or _has_images(folder) or _has_images(inner[0]):
        return folder
    return inner[0] if len(folders_in(inner[0])) > 1 else folder


def _share_names(folders: Sequence[Path]) -> bool:
    """Whether folders look like splits: they contain only folders, mostly of the same names."""
    if len(folders) < 2 or any(_has_images(folder) for folder in folders):
        return False
    names = [{inner.name for inner in folders_in(_wrapped(folder))} for folder in folders]
    most = max(names, key=len)
    return len(most) > 1 and all(each and 2 * len(each & most) >= len(each) for each in names)


def _by_class(folder: Path, others: Counter[str]) -> tuple[dict[str, list[Path]], str]:
    """Image files by class, or all under "" and why they have no labels."""
    folders = folders_in(folder)
    if len(folders) > 1:
        return _files_by_class(folder, others), ""
    if folders and not _has_images(folder):
        return _files_by_class(folder, others), f"only class {shown([folders[0].name])}"
    files = _all_files(folder, others)
    if not files[""]:
        raise UserError(
            f"{folder} has no class folders and no images; expected {folder}/CLASS/IMAGE"
        )
    return files, f"no class folders in {readable(folder.name)}"


def _all_files(folder: Path, others: Counter[str]) -> dict[str, list[Path]]:
    """All image files under "", sorted; other files are counted."""
    found, left_out = image_files(folder)
    others.update(left_out)
    return {"": found}


def _named(root: Path, split: Path) -> str:
    return "all images" if split == root else f"folder {shown([str(split.relative_to(root))])}"


def _left_out(root: Path, outer: Path, train: Path, test: Path | None) -> Iterator[str]:
    """The parts of the folder in no split; ``outer`` is the split's folder before `_unwrapped`."""
    used = [folder for folder in (train, test) if folder]
    if outer != root:
        for folder in folders_in(outer.parent):
            is_used = any(split.is_relative_to(folder) for split in used)
            if not is_used and (count := len(image_files(folder)[0])):
                yield f"folder {shown([str(folder.relative_to(root))])} ({many(count, 'image')})"
    for folder in used:
        if len(folders_in(folder)) > 1 and (count := sum(1 for _ in _images_in(folder))):
            yield f"{many(count, 'image')} in no class folder of {folder.name}"


def folders_in(folder: Path) -> list[Path]:
    """The folders in a folder, sorted by name, without hidden ones and links that lead back up."""
    inside = [p for p in folder.iterdir() if p.name[0] != "." and p.name != _FOREIGN]
    return sorted((p for p in inside if p.is_dir() and not _loops(p)), key=lambda p: p.name)


def _loops(path: Path) -> bool:
    return path.is_symlink() and path.parent.resolve().is_relative_to(path.resolve())


def _images_in(folder: Path) -> Iterator[Path]:
    """The images directly in a folder."""
    for path in folder.iterdir():
        if path.suffix.lower() in extensions() and path.name[0] != "." and path.is_file():
            yield path


def _has_images(folder: Path) -> bool:
    return next(_images_in(folder), None) is not None


def _files_by_class(folder: Path, others: Counter[str]) -> dict[str, list[Path]]:
    """Image files by class, both sorted; other files are counted."""
    files = {}
    if loops := sum(map(_loops, folder.iterdir())):
        others["looping link"] += loops
    for inner in folders_in(folder):
        files[inner.name], left_out = image_files(inner)
        others.update(left_out)
        if not files[inner.name]:
            what = counted(left_out) or "nothing is there"
            raise UserError(
                f"empty class: no images in {inner} ({what}); add some, or remove the folder"
            )
    return files


def part_of(files: Mapping[str, list[Path]], classes: tuple[str, ...]) -> Part:
    """The part of a listing that files of some classes are."""
    labels = {name: label for label, name in enumerate(classes)}
    return Part.of(
        [
            Picture(readable(path), path, labels.get(name, 0))
            for name in files
            for path in files[name]
        ]
    )


def image_files(
    folder: Path, wanted: Collection[str] | None = None
) -> tuple[list[Path], Counter[str]]:
    """Find the image files below a folder, and count the other files.

    Images are recognised by extension, see `images.extensions`. Links to files and folders are
    followed, but each folder is entered only once, preferably not through a link. Links that lead
    back up, and special files, are left out.

    Args:
        wanted: extensions of what is looked for instead, in lower case and with dots.

    Returns:
        The images, sorted, and the number of files left out by extension, including "broken link",
        "looping link" and "special file". Hidden files and folders, whose names begin with a dot,
        are not counted.

    Raises:
        UserError: a folder cannot be read.
    """
    wanted = wanted or extensions()
    found: list[Path] = []
    left_out: Counter[str] = Counter()
    entered: set[tuple[int, int]] = set()
    folders, linked = [folder], list[Path]()
    while folders or linked:
        here = folders.pop() if folders else linked.pop(0)
        try:
            status = here.stat()
            if (status.st_dev, status.st_ino) in entered:
                continue
            entered.add((status.st_dev, status.st_ino))
            with os.scandir(here) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
        except OSError as error:
            raise UserError(f"cannot read folder {readable(here)}: {of_system(error)}") from error
        for entry in entries:
            path = here / entry.name
            if entry.name[0] == ".":
                continue
            is_link = entry.is_symlink()
            if is_link and not path.exists():
                left_out["broken link"] += 1
            elif entry.is_dir():
                if not is_link:
                    folders.append(path)
                elif here.resolve().is_relative_to(path.resolve()):
                    left_out["looping link"] += 1
                else:
                    linked.append(path)
            elif not entry.is_file():
                left_out["special file"] += 1
            elif path.suffix.lower() in wanted:
                found.append(path)
            else:
                left_out[readable(path.suffix.lower())] += 1
    return sorted(found), left_out
