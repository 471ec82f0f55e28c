"""The words of a command line, before it is known which flags there are."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from ssl_bench.errors import require


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


def peek(words: Sequence[str], name: str) -> list[str]:
    """The values of a flag, separated by commas, before the rest is understood."""
    for word, following in itertools.pairwise([*words, "--"]):
        flag, equals, value = word.partition("=")
        if flag == f"--{name}":
            value = value if equals else following
            parts = [part for part in value.split(",") if part and not part.startswith("--")]
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
            moved += [flag, *(part for part in values.split(",") if part)]
        else:
            kept.append(word)
    return kept + moved
