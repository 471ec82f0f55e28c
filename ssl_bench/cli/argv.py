"""The arguments of a command line, before it is known which flags there are."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from ssl_bench.errors import require

_SHORT = ("-h", "-o")
_ALONE = {"--watch": "10"}
"""Flags that may go without their value, and what they mean then."""
HELP = frozenset({"-h", "--help", "--help-all"})


def by_flag(args: Iterable[str]) -> list[tuple[str, ...]]:
    """The arguments by flag, each flag first; those before any flag are a group of their own."""
    groups: list[tuple[str, ...]] = []
    for arg in args:
        if arg.startswith("--") or not groups:
            flag, equals, value = arg.partition("=")
            groups.append((flag, value) if equals else (flag,))
        else:
            groups[-1] += (arg,)
    return groups


def joined(groups: Iterable[Sequence[str]]) -> tuple[str, ...]:
    """Join flags and their values into one command line in which no value looks like a flag."""
    args: list[str] = []
    for group in groups:
        is_like_a_flag = len(group) == 2 and group[1].startswith("-")
        args += ["=".join(group)] if is_like_a_flag else group
    return tuple(args)


def peek(args: Sequence[str], name: str) -> list[str]:
    """The values of a flag, separated by commas, before the rest is understood."""
    for arg, following in itertools.pairwise([*args, "--"]):
        flag, equals, value = arg.partition("=")
        if flag == f"--{name}":
            value = value if equals else following
            parts = [part for each in value.split(",") if (part := each.strip())]
            parts = [part for part in parts if not part.startswith("--")]
            require(bool(parts), f"--{name} needs a value")
            return parts
    return []


def values_told_from_flags(args: Sequence[str], taking: set[str]) -> list[str]:
    """The arguments, with a value that starts with a hyphen bound to its flag.

    Args:
        taking: flags that take a value.
    """
    found: list[str] = []
    for arg, following in itertools.pairwise([*args, "--"]):
        if arg in _ALONE and (following.startswith("--") or following in _SHORT):
            found.append(f"{arg}={_ALONE[arg]}")
            continue
        is_value = arg.startswith("-") and not (arg.startswith("--") or arg in _SHORT)
        if found and found[-1] in taking and is_value:
            found[-1] += f"={arg}"
        else:
            found.append(arg)
    return found
