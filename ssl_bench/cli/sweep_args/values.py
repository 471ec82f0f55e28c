"""The values that a sweep is given for a flag, on the command line or in TOML."""

from __future__ import annotations

import datetime
import os
import re
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ssl_bench.cli import parser
from ssl_bench.cli.parser import Flag
from ssl_bench.data.names import base
from ssl_bench.errors import UserError, require
from ssl_bench.sweep.grid import MOST_CELLS
from ssl_bench.utils import typed_json
from ssl_bench.utils.files import Unreadable

_WORDS = dict.fromkeys(("yes", "true", "on"), True) | dict.fromkeys(("no", "false", "off"), False)
_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)")


@dataclass(frozen=True)
class Given:
    """What was given for a flag.

    Attributes:
        value: a text of the command line, True for ``--flag`` alone and False for ``--no-flag``; or
            anything of TOML.
        where: the file and the key, for error messages; "" on the command line.
    """

    value: Any
    where: str = ""


def choices(flag: Flag, given: Given) -> list[Any]:
    """The values given for a flag, one or several, each once."""
    value, is_nested = given.value, not _is_sequence(flag)
    if isinstance(value, list):
        is_nested |= any(isinstance(each, list) for each in value)
    try:
        several = value if isinstance(value, list) and is_nested else [value]
        found = [each for one in several for each in _values(flag, one, bool(given.where))]
        require(bool(found), "it needs a value")
    except UserError as error:
        told = str(error).removeprefix(f"{flag.option} ")
        between = ": " if given.where or told == str(error) else " "
        raise UserError(f"{given.where or flag.option}{between}{told}") from error
    return list(dict.fromkeys(found))


def only_value(flag: Flag, given: Given) -> Any:
    """The one value that a flag of the sweep itself takes: no comma of it separates two."""
    if isinstance(given.value, str) and not given.where and flag.type is not bool:
        return parser.read(flag, given.value)
    several = choices(flag, given)
    require(len(several) == 1, f"{given.where or flag.option}: it takes one value")
    return several[0]


def shown(value: Any) -> str:
    """A value of TOML in a message."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, list):
        return f"[{', '.join(map(shown, value))}]"
    return repr(value)


def _is_sequence(flag: Flag) -> bool:
    """Whether a flag's value is several values, so that commas do not make it several cells."""
    return typing.get_origin(flag.type) is tuple


def _values(flag: Flag, value: Any, is_toml: bool) -> Iterator[Any]:
    """The values of a text, or the one that something else in TOML is."""
    kinds = _kinds(flag.type)
    if _is_sequence(flag) and isinstance(value, list):
        value = ",".join(each if isinstance(each, str) else shown(each) for each in value)
    elif type(value) in (int, float) and kinds == {str}:
        value = str(value)  # such as eval-every = 0.5, which is a text as it may be 20% too
    if isinstance(value, str) and not (is_toml and kinds & {bool, float}):
        is_name = is_toml or ("," in base(value) and os.path.exists(base(value)))
        is_whole = _is_sequence(flag) or (is_name and bool({str, Path} & kinds))
        for part in [value] if is_whole else value.split(","):
            if part.strip(", "):
                yield from _read(flag, part.strip(), kinds)
        return
    if not is_toml and flag.type is not bool:
        require(value is not True, "it needs a value")
        raise UserError(f"unknown flag '--no-{flag.option[2:]}'")
    if float in kinds and type(value) is int:
        value = float(str(value))  # a whole number may be larger than any float
    try:
        yield typed_json.of(flag.type, value)
    except Unreadable:
        wanted = "yes or no (true or false)" if bool in kinds else "a text"
        if {int, float} & kinds:
            wanted = "a number" if float in kinds else 'a whole number or a range such as "0..4"'
        raise UserError(f"{shown(value)} is not {wanted}{_no_range(kinds, value)}") from None


def _read(flag: Flag, text: str, kinds: set[type]) -> Iterator[Any]:
    """The value of a text, or those of a range."""
    if flag.type is bool:
        require(text.lower() in _WORDS, f"{text!r} is neither yes nor no")
        yield _WORDS[text.lower()]
    elif int in kinds and ".." in text:
        yield from _range(text)
    else:
        hint = _no_range(kinds, text)
        require(not hint, f"{text!r} is not a number{hint}")
        yield parser.read(flag, text)


def _range(text: str) -> range:
    """``0..4``, both ends included."""
    found = _RANGE.fullmatch(text)
    if not found:
        raise UserError(f"{text!r} is not a whole number or a range of whole numbers such as 0..4")
    first, last = int(found[1]), int(found[2])
    require(first <= last, f"range {text!r} is empty; {last}..{first} would work")
    require(
        last - first < MOST_CELLS,
        f"range {text!r} has {last - first + 1:,} values; a sweep has {MOST_CELLS:,} cells at most",
    )
    return range(first, last + 1)


def _no_range(kinds: set[type], value: Any) -> str:
    """What would work instead of a range of fractions; "" for anything else."""
    if not (float in kinds and isinstance(value, str) and ".." in value):
        return ""
    try:
        first, last = map(float, value.split(".."))
        instead = f"{first:g},{(first + last) / 2:g},{last:g}"
    except ValueError:
        instead = "numbers separated by commas"
    return f"; ranges are for whole numbers, {instead} would work"


def _kinds(type_: Any) -> set[type]:
    """The Python types that a flag's value may have."""
    origin = typing.get_origin(type_)
    if origin in (typing.Union, types.UnionType):
        return set().union(*(_kinds(each) for each in typing.get_args(type_)))
    if origin is Literal:
        return {type(each) for each in typing.get_args(type_)}
    return set() if type_ is type(None) or origin else {type_}
