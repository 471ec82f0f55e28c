"""Large files that hold many images each: which there are, what splits they make, what classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ssl_bench.data.listing import shown
from ssl_bench.data.names import WHOLE
from ssl_bench.data.sources import splits
from ssl_bench.errors import UserError
from ssl_bench.utils.formatting import many

_UNNAMED_CLASSES = 1000


@dataclass(frozen=True)
class Layout:
    """Groups of files by name, and which are train and candidate test splits, best first."""

    groups: Mapping[str, list[Path]]
    trains: Sequence[str]
    tests: Sequence[str] = ()

    def files(self, names: Sequence[str]) -> list[Path]:
        """The files of some groups, sorted."""
        return sorted(file for name in names for file in self.groups[name])

    def left_out(self, used: Sequence[str]) -> list[str]:
        """The groups that are in no split, in words."""
        others = {name: files for name, files in self.groups.items() if name not in used}
        return [f"{shown([name])} ({many(len(files), 'file')})" for name, files in others.items()]


def below(folder: Path, suffix: str) -> list[Path]:
    """The files in a folder or one level below, or else in split folders two levels below."""
    found = [*folder.glob(f"*{suffix}"), *folder.glob(f"*/*{suffix}")]
    if not found:
        # Searching every folder there would list all images of other kinds of data sets.
        inner = [path for path in folder.glob("*/*/") if splits.meaning(path.name)]
        found = [path for each in inner for path in each.glob(f"*{suffix}")]
    return sorted(p for p in found if not any(n[0] == "." for n in p.relative_to(folder).parts))


def layout(path: Path, root: Path, files: Sequence[Path], choice: str) -> Layout:
    """The splits of files below ``root``, by their names or by what a user chose.

    Args:
        path: what the user named: the folder, the one file, or a pattern.

    Raises:
        UserError: the layout is ambiguous, or has not what was chosen.
    """
    if list(files) == [path]:
        if choice not in ("", WHOLE):
            raise UserError(f"{path} is one file, which has no splits {choice!r} to choose from")
        return Layout({path.name: [path]}, [path.name])
    groups: dict[str, list[Path]] = {}
    meanings: dict[str, splits.Meaning | None] = {}
    for file in files:
        name, meanings[name] = group_of(file.relative_to(root))
        groups.setdefault(name, []).append(file)
    if choice == WHOLE:
        return Layout(groups, list(groups))
    if choice:
        train, *test = splits.chosen(path, choice, groups, "files")
        return Layout(groups, [train], test)
    roles = splits.Roles(meanings)
    trains, tests, others = roles.trains, roles.tests, roles.others
    if not roles.rests:
        return Layout(groups, others)
    if roles.are_told_apart or (len(roles.rests) == len(trains) == 1):
        return Layout(groups, trains, tests)
    if not trains and roles.are_plain:
        if not others:
            found = ", ".join(file.name for file in files)
            which = [splits.choosing(path, name) for name in (*reversed(tests), WHOLE)]
            raise UserError(
                f"{path} has no train*{files[0].suffix} (it has {found}); "
                f"{' or '.join(which)} would work, and holds a fifth out"
            )
        if roles.is_one_test:
            return Layout(groups, others, tests)
    raise splits.asked(
        path,
        trains or others or tests,
        tests,
        f"it has the files {shown(groups)}",
        "all files together, of which a fifth is held out",
    )


def tell_splits(root: Path, files: Sequence[Path]) -> bool:
    """Whether the names of files below ``root`` tell several splits apart."""
    groups = (group_of(file.relative_to(root)) for file in files if file != root)
    return len({name for name, said in groups if said}) > 1


def class_names(path: Path, names: tuple[str, ...], largest: int, count: int) -> tuple[str, ...]:
    """The class name of each possible label.

    Args:
        names: of the classes, if they have any.
        largest: label; -1 where there is none.
        count: of the images.

    Raises:
        UserError: a label has no name, or unnamed labels have large gaps.
    """
    if names:
        if largest >= len(names):
            raise UserError(f"{path}: label {largest}, but only {len(names)} class names")
        return names
    if largest >= max(_UNNAMED_CLASSES, count):
        raise UserError(
            f"{path}: label {largest:,} among {count:,} images, whose classes have no names; "
            "labels must be 0, 1, 2, ... without large gaps"
        )
    return tuple(str(label) for label in range(largest + 1))


def group_of(file: Path) -> tuple[str, splits.Meaning | None]:
    """The name of a file's group, and what its (relative) path says about a split."""
    stem = splits.without_shard(file.stem)
    if said := splits.meaning(stem):
        return str(file.with_name(stem)), said
    for folder in file.parents[:-1]:
        if said := splits.meaning(folder.name):
            return str(folder), said
    return str(file.with_name(stem) if stem else file.parent), None
