"""The words of a command line, before it is known which flags there are."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from ssl_bench.errors import require

_SHORT = ("-h", "-o")


def by_flag(words: Iterable[str]) -> list[tuple[str, ...]]:
    """The words by flag, each flag first; words that no flag goes before are one of their own."""
    groups: list[tuple[str, ...]] = []
    for word in words:
        if word.startswith("--") or not groups:
            flag, equals, value = word.partition("=")
            groups.append((flag, value) if equals else (flag,))
        else:
            groups[-1] += (word,)
    return groups


def joined(groups: Iterable[Sequence[str]]) -> tuple[str, ...]:
    """Join flags and their values into one command line in which no value looks like a flag."""
    words: list[str] = []
    for group in groups:
        is_like_a_flag = len(group) == 2 and group[1].startswith("-")
        words += ["=".join(group)] if is_like_a_flag else group
    return tuple(words)


def peek(words: Sequence[str], name: str) -> list[str]:
    """The values of a flag, separated by commas, before the rest is understood."""
    for word, following in itertools.pairwise([*words, "--"]):
        flag, equals, value = word.partition("=")
        if flag == f"--{name}":
            value = value if equals else following
            parts = [part for each in value.split(",") if (part := each.strip())]
            parts = [part for part in parts if not part.startswith("--")]
            require(bool(parts), f"--{name} needs a value")
            return parts
    return []


def split_commas(words: Sequence[str], sequences: set[str]) -> list[str]:
    """Let the flags that take several values take them in one word, separated by commas.

    They move to the end, where no positional argument can be taken for one of their values.
    """
    kept: list[str] = []
    moved: list[str] = []
    remaining = iter(words)
    for word in remaining:
        flag, equals, value = word.partition("=")
        if flag.startswith("--") and flag[2:].replace("-", "_") in sequences:
            values = value if equals else next(remaining, "")
            parts = [part for each in values.split(",") if (part := each.strip())]
            require(not any(map(_is_flag, parts)), f"{flag} needs a value")
            moved += [flag, *parts]
        else:
            kept.append(word)
    return kept + moved


def values_told_from_flags(words: Sequence[str], taking: set[str]) -> list[str]:
    """The words, with a value that starts with a hyphen bound to its flag.

    Args:
        taking: flags that take a value.
    """
    found: list[str] = []
    for word in words:
        is_value = word.startswith("-") and not (_is_flag(word) or word in _SHORT)
        if found and found[-1] in taking and is_value:
            found[-1] += f"={word}"
        else:
            found.append(word)
    return found


def _is_flag(word: str) -> bool:
    return word.startswith("--")
