"""Tar files of images and labels, as the package `webdataset` writes them.

Members that share a name up to the first dot of its last part are a sample: ``0017.jpg``, its class
in ``0017.cls`` or as ``label`` (or ``cls``) in ``0017.json``, its caption in ``0017.txt``, or one
or several in ``0017.json``, under a name of `captions.TEXT`. A class is a number or a name;
``classes.txt`` beside the tar files may name them, one a line. Other members are counted and not
read, so that nothing is unpickled or executed; nothing is extracted either. Where some samples have
a label, those without one that can be understood are left out and counted; where none has, but some
have a caption, so are those without, and samples of a split whose images have the same bytes are
one image with several captions. Labelled samples have captions if each has one.

Splits are found as those of Parquet files, see `shards`: by the names of files and folders. Without
test files a fifth is held out by a hash of each image's bytes. A pattern such as
``DIR/shard-{000..010}.tar`` names some of the files. Samples come in the order of the files' names,
then in that of the members; any of them is read from its place in its file, so that tar files can
be streamed, but not if they are compressed.
"""

from __future__ import annotations

import json
import mmap
import os
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from ssl_bench.data import masks
from ssl_bench.data.dataset import NO_CAPTIONS
from ssl_bench.data.images import extensions
from ssl_bench.data.listing import Listing, Part, Picture, assembled, counted, shown
from ssl_bench.data.names import expanded
from ssl_bench.data.sources import captions, shards, splits
from ssl_bench.data.sources.folder import image_files
from ssl_bench.errors import UserError, require
from ssl_bench.utils.files import readable, reading

_SUFFIX = ".tar"
_KEYS = ("label", "cls")
_TEXTS = ".txt"
_LONGEST = 2**20
"""Bytes of a label's member."""
_MOST_CLASSES = 2**31
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
_NO_LABELS = "neither .cls nor a label in .json"
_Label = int | str | None
_WITHOUT_TEXT = "samples without a caption"


class _Sample(NamedTuple):
    """Where an image is, its label (a number, a name, or None), and its captions."""

    path: Path
    name: str
    start: int
    stop: int
    label: _Label
    texts: tuple[str, ...] = ()
    has_txt: bool = False


def is_here(place: str) -> bool:
    """Whether it is a tar file, a pattern of them, or a folder of them without image files."""
    path = Path(place).expanduser()
    if path.is_dir():
        return bool(shards.below(path, _SUFFIX)) and not image_files(path)[0]
    return path.suffix == _SUFFIX and (path.is_file() or len(expanded(place)) > 1)


def find(path: Path, choice: str = "") -> Listing:
    """The images of a file, of a folder's files, or of those that a pattern names.

    Raises:
        UserError: the layout is ambiguous, a file is missing or damaged, a sample has two images,
            labels are of two kinds or have no name, or a split is empty.
    """
    root, files = _named(path)
    layout = shards.layout(path, root, files, choice)
    others, of_test = Counter[str](), Counter[str]()
    train, tested = _samples(layout.files(layout.trains), others), list[_Sample]()
    unlabelled = _unlabelled(train)
    what = counted(+others) or "nothing is there"
    require(bool(train), f"{path}: no images in {shown(layout.trains)} ({what})")

    def why_unlabelled(name: str) -> str:
        of_test.clear()
        tested[:] = _samples(layout.files([name]), of_test)
        return _unlabelled(tested)

    place = layout.files(layout.trains)[0]
    test_name, caveats = splits.tested_on(
        *(path, layout.trains[0], place, layout.tests, unlabelled, why_unlabelled),
        "add a validation split",
    )
    others += of_test
    classes: tuple[str, ...] = ()
    uncaptioned = ""
    if unlabelled and any(sample.texts for sample in train):
        train, tested = _with_text(train, others), _with_text(tested, others)
    else:
        every = [*train, *tested]
        lacking = sum(not sample.texts for sample in every)
        uncaptioned = NO_CAPTIONS if lacking == len(every) else ""
        if lacking and not uncaptioned:
            uncaptioned = f"{lacking:,} of {len(every):,} samples have none"
        if uncaptioned:
            others[_TEXTS] += sum(sample.has_txt for sample in every)
    if not unlabelled:
        train, tested = _with_label(train, others), _with_label(tested, others)
        classes, numbers = _classes(path, root, [*train, *tested])
        if len(found := {numbers[sample.label] for sample in (*train, *tested)}) == 1:
            unlabelled, classes = f"only class {shown([classes[found.pop()]])}", ()
    if unlabelled:
        numbers = dict.fromkeys((sample.label for sample in (*train, *tested)), 0)
    listing = assembled(
        path,
        _part(train, numbers),
        _part(tested, numbers) if test_name else None,
        classes=classes,
        unlabelled=unlabelled,
        splits=(shown(layout.trains), shown([test_name])),
        left_out=layout.left_out([*layout.trains, test_name]),
        key=lambda picture: picture.encoded,
        caveats=caveats,
        others=+others,  # without what there is none of
        merges=not (uncaptioned or classes),
    )
    listing = replace(listing, uncaptioned=uncaptioned)
    if path.exists():
        return listing
    stem = re.sub(r"[-_.]?\{\d+\.\.\d+\}", "", path.stem)
    return replace(listing, name=readable(stem or root.resolve().name))


def _named(path: Path) -> tuple[Path, list[Path]]:
    """The tar files that a user named, and the folder that they are in."""
    if path.is_dir():
        return path, shards.below(path, _SUFFIX)
    if path.exists():
        return path.parent, [path]
    files = [Path(each) for each in expanded(str(path))]
    missing = [each for each in files if not each.is_file()]
    require(
        not missing,
        f"{path} names {len(files)} files, of which {len(missing)} are not there, such as "
        f"{missing and missing[0]}",
    )
    return Path(os.path.commonpath([each.parent for each in files])), sorted(files)


def _samples(files: Iterable[Path], others: Counter[str]) -> list[_Sample]:
    """The samples with an image; members that are not read are counted, by their ending."""
    return [sample for file in files for sample in _read(file, others)]


def _read(path: Path, others: Counter[str]) -> Iterator[_Sample]:
    samples: dict[str, dict[str, tarfile.TarInfo]] = {}
    with reading(path), path.open("rb") as file:
        compressed = file.read(6).startswith(_COMPRESSED)
        require(not compressed, f"{path} is compressed; unpacked, such as by gunzip, it would work")
        file.seek(0)
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                folder, _, last = member.name.rpartition("/")
                stem, dot, ending = last.partition(".")
                if not stem or "__MACOSX" in folder or member.isdir():
                    continue  # hidden, as files of a folder that begin with a dot are
                if not member.isreg() or member.issparse():
                    others["link or special file"] += 1
                    continue
                fields = samples.setdefault(f"{folder}/{stem}".lstrip("/"), {})
                others["replaced member"] += dot + ending.lower() in fields
                fields[dot + ending.lower()] = member
            file.seek(tar.offset)  # where tarfile stops without a word, whatever it has met
            end = file.read(tarfile.BLOCKSIZE)
        require(
            len(end) == tarfile.BLOCKSIZE and not any(end),
            f"{path} is damaged or cut short after {sum(map(len, samples.values())):,} members; "
            "another copy of it would work",
        )
        known = extensions()
        for name, fields in samples.items():
            images = [ending for ending in fields if f".{ending.rpartition('.')[2]}" in known]
            require(
                len(images) < 2,
                f"{path}: sample {readable(name)} has {len(images)} images, {shown(images)}; one "
                "in each sample would work",
            )
            used = next((each for each in (".cls", ".json") if each in fields), "")
            others.update(each for each in fields if each not in (used, _TEXTS, *images))
            if not images:
                others["samples without an image"] += 1
                others[_TEXTS] += _TEXTS in fields
                continue
            image = fields[images[0]]
            start, shown_as = image.offset_data, f"{readable(path)} {readable(image.name)}"
            label = _label(file, used, fields[used]) if used else None
            texts, empty = _texts(file, fields)
            others["empty captions"] += empty
            place = start, start + image.size
            yield _Sample(path, shown_as, *place, label, texts, _TEXTS in fields)


def _texts(file: BinaryIO, fields: Mapping[str, tarfile.TarInfo]) -> tuple[tuple[str, ...], int]:
    """The captions of a sample, of its .txt or else of its .json, and how many there are empty."""
    for ending in (_TEXTS, ".json"):
        if ending not in fields or fields[ending].size > _LONGEST:
            continue
        file.seek(fields[ending].offset_data)
        with suppress(ValueError, RecursionError):
            found: Any = file.read(fields[ending].size).decode()
            if ending == ".json":
                content = json.loads(found)
                found = content if isinstance(content, dict) else None
            texts, empty = captions.texts_of(found)
            if texts:
                return texts, empty
    return (), 0


def _with_text(samples: list[_Sample], others: Counter[str]) -> list[_Sample]:
    kept = [sample for sample in samples if sample.texts]
    others[_WITHOUT_TEXT] += len(samples) - len(kept)
    return kept


def _label(file: BinaryIO, ending: str, member: tarfile.TarInfo) -> _Label:
    """What a member tells of the class, or None; texts of digits are numbers."""
    if member.size > _LONGEST:
        return None
    file.seek(member.offset_data)
    content: Any = file.read(member.size)
    with suppress(ValueError, RecursionError):
        content = content.decode()
        if ending == ".json":
            found = json.loads(content)
            found = found if isinstance(found, dict) else {}
            content = next((found[key] for key in _KEYS if key in found), None)
        if isinstance(content, str) and re.fullmatch(r"\s*\d{1,9}\s*", content):
            return int(content)
        if type(content) is int and 0 <= content < _MOST_CLASSES:
            return content
        if isinstance(content, str) and not re.fullmatch(r"\s*-\d+\s*", content):
            return content.strip() or None
    return None


def _unlabelled(samples: Sequence[_Sample]) -> str:
    return "" if any(sample.label is not None for sample in samples) else _NO_LABELS


def _with_label(samples: list[_Sample], others: Counter[str]) -> list[_Sample]:
    kept = [sample for sample in samples if sample.label is not None]
    others["samples without a label"] += len(samples) - len(kept)
    return kept


def _classes(
    path: Path, root: Path, samples: Sequence[_Sample]
) -> tuple[tuple[str, ...], dict[_Label, int]]:
    """The names of the classes, and the number of each label."""
    labels = {sample.label: sample for sample in samples}
    by_name = {each: sample for each, sample in labels.items() if isinstance(each, str)}
    if by_name and len(by_name) < len(labels):
        number = next(each for each in labels if isinstance(each, int))
        name = next(iter(by_name))
        raise UserError(
            f"{path}: labels are numbers and names: {number} of {labels[number].name}, "
            f"{name!r} of {by_name[name].name}; one kind would work"
        )
    names = masks.class_names(root / masks.CLASSES)
    if not by_name:
        numbers = {each: int(each or 0) for each in labels}
        classes = shards.class_names(path, names, max(numbers.values()), len(samples))
        return classes, numbers
    names = names or tuple(sorted(by_name))
    unknown = sorted(by_name.keys() - set(names))
    require(
        not unknown,
        f"{path}: class {unknown and unknown[0]!r} of "
        f"{unknown and by_name[unknown[0]].name} is not in {root / masks.CLASSES}",
    )
    return tuple(map(readable, names)), {each: names.index(each) for each in by_name}


def _part(samples: Sequence[_Sample], numbers: Mapping[_Label, int]) -> Part:
    labels = [numbers[sample.label] for sample in samples]

    def opened() -> Callable[[int], Picture]:
        content: dict[Path, mmap.mmap] = {}
        for path in dict.fromkeys(sample.path for sample in samples):
            with path.open("rb") as file:
                content[path] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

        def picture(index: int) -> Picture:
            path, name, start, stop, _, texts, _ = samples[index]
            return Picture(name, content[path][start:stop], labels[index], captions=texts)

        return picture

    return Part(len(samples), lambda: map(opened(), range(len(samples))), opened, labels)
