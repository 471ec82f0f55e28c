"""Recognising splits by the names of folders and files, and asking if these are ambiguous."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from ssl_bench.data.names import WHOLE
from ssl_bench.errors import UserError

_KINDS = {
    **dict.fromkeys(("train", "training", "trainval"), "train"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
}
_WORDS = "|".join(sorted(_KINDS, key=len, reverse=True))
# Words beside the split that add no meaning.
_PLAIN = "sets?|splits?|data|datasets?|images?|imgs?|pictures?|photos?|files?|folder|dir|part|shard"
_TOKEN = re.compile(rf"({_WORDS})?((?:{_PLAIN}|of)*)")
_GLUED = re.compile(r"(.+)(train|training|test|testing|validation)")
_SHARD = re.compile(r"(?:^|[-_.])?\d+(?:[-_]of[-_]\d+)?(?:-[0-9a-f]{8,})?$")
_EXAMPLES = 3


@dataclass(frozen=True)
class Meaning:
    """The split that a name indicates.

    Attributes:
        kind: "train", "test" or "val"; "unclear" if the name mentions several.
        rest: other words in the name, or "": "mnist" in ``mnist_train``.
    """

    kind: str
    rest: str


def meaning(name: str) -> Meaning | None:
    """The split that a name indicates, in upper or lower case and among other words, or None."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", without_shard(name))
    kinds, rest = set(), []
    for token in re.findall(r"[^\W\d_]+", spaced):
        word = token.casefold()
        if plain := _TOKEN.fullmatch(word):
            kinds |= {_KINDS[plain[1]]} if plain[1] else set()
        elif glued := _GLUED.fullmatch(word):
            kinds.add(_KINDS[glued[2]])
            rest.append(glued[1])
        else:
            rest.append(word)
    if not kinds:
        return None
    # "trainval" and the like are training splits.
    kind = kinds.pop() if len(kinds) == 1 else "train" if kinds == {"train", "val"} else "unclear"
    return Meaning(kind, " ".join(rest))


def of_row(value: Any) -> str:
    """The split that a row of a table names, "" for none; Karpathy's ``restval`` is for training,
    as every paper has it."""
    return {"restval": "train"}.get(str(value), str(value)) if value else ""


def without_shard(stem: str) -> str:
    """A file's name without its shard number, as in train-00000-of-00002."""
    return _SHARD.sub("", stem)


class Roles:
    """The names in a source, sorted by what `meaning` has found in them.

    Attributes:
        trains, tests, others: names of training splits, of test and then validation splits, and of
            neither.
        rests: the other words of each name that indicates a split.
        is_one_test, are_told_apart: whether it is clear which is the test split, and which both.
        are_plain: whether the names of splits say nothing else.
    """

    def __init__(self, meanings: Mapping[str, Meaning | None]) -> None:
        kinds: dict[str, list[str]] = {"train": [], "test": [], "val": [], "unclear": [], "": []}
        for name, said in meanings.items():
            kinds[said.kind if said else ""].append(name)
        self.trains, self.others = kinds["train"], kinds[""]
        self.tests = kinds["test"] + kinds["val"]
        self.rests = {name: said.rest for name, said in meanings.items() if said}
        self.is_one_test = len(kinds["test"] or kinds["val"]) == 1 and not kinds["unclear"]
        self.are_told_apart = self.is_one_test and len(self.trains) == 1
        self.are_plain = not any(self.rests.values())


def tested_on(
    root: Path,
    train: str,
    place: Path,
    tests: Sequence[str],
    unlabelled: str,
    why_unlabelled: Callable[[str], str],
    add: str,
) -> tuple[str, tuple[str, ...]]:
    """The best candidate for the test split that has labels, if the train split has them.

    Args:
        place: the folder, or the first file, of the train split.
        unlabelled, why_unlabelled: why the train split, or a candidate, has no labels; or "".
        add: what to add where no candidate has labels.

    Returns:
        Its name, or "" without candidates, and a caveat if it is not the first of them.
    """
    problems = []
    for name in tests:
        problems.append(why_unlabelled(name))
        if unlabelled and not problems[-1]:
            raise UserError(
                f"{place} has {unlabelled}, though {name!r} has labels; "
                f"{choosing(root, train)} takes it alone, without labels"
            )
        if unlabelled or not problems[-1]:
            caveat = f"{tests[0]!r} has no labels: tested on {name!r}"
            return name, () if name == tests[0] else (caveat,)
    if problems:
        raise UserError(
            f"{root}: {tests[0]!r} has {problems[0]}, so that there is nothing to test on; {add}, "
            f"or hold a fifth of the train split out: {choosing(root, train)}"
        )
    return "", ()


def asked(
    root: Path, trains: Sequence[str], tests: Sequence[str], what: str, whole: str
) -> UserError:
    """The error for an ambiguous layout: what it is, and how to choose."""
    pairs = [(train, test) for train in trains for test in tests if train != test][:_EXAMPLES]
    ways = [f"{choosing(root, f'{a}+{b}')} trains on {a!r} and tests on {b!r}" for a, b in pairs]
    if not pairs:
        ways = [f"{choosing(root, a)} holds a fifth of {a!r} out" for a in trains[:_EXAMPLES]]
    ways.append(f"{choosing(root, WHOLE)} takes {whole}")
    return UserError(f"{root} can be read in several ways, as {what}: {'; '.join(ways)}")


def choosing(root: Path, choice: str) -> str:
    """The flag by which a user chooses how a source is read."""
    return f"--data {shlex.quote(f'{root}@{choice}')}"


def chosen(root: Path, choice: str, known: Collection[str], kind: str) -> list[str]:
    """The one or two names in a choice such as ``TRAIN`` or ``TRAIN+TEST``; they must exist.

    The last part of a path stands for it where only one ends so: ``val`` for ``data/val``.
    """
    ends = Counter(PurePath(name).name for name in known)
    names = {end: name for name in known if ends[end := PurePath(name).name] == 1}
    names |= {name: name for name in known}
    ways = [[choice]]
    ways += [[choice[: m.start()], choice[m.end() :]] for m in re.finditer(r"\+", choice)]
    for way in ways:
        found = [names[each] for each in way if each in names]
        if len(set(found)) == len(way):
            return found
    shown = ", ".join(sorted(known)) or "nothing"
    raise UserError(
        f"{root} has no {kind} {choice!r} to take as TRAIN or as TRAIN+TEST; it has {shown}, "
        f"and {choosing(root, WHOLE)} takes it without splits"
    )
