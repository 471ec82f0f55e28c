"""The values that a sweep is given for a flag, on the command line or in TOML."""

from __future__ import annotations

import datetime
import os
import re
import types
import typing
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ssl_bench.cli import parser
from ssl_bench.cli.parser import Flag
from ssl_bench.data.names import base
from ssl_bench.errors import UserError, require
from ssl_bench.experiment.run_config import text_of
from ssl_bench.sweep.grid import MOST_CELLS

_YES, _NO = {"yes", "true", "on"}, {"no", "false", "off"}
_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)")


@dataclass(frozen=True)
class Given:
    """What was given for a flag.

    Attributes:
        value: text of the command line (None after a flag without a value), or anything of TOML.
        where: the file and the key, for error messages; "" on the command line.
    """

    value: Any
    where: str = ""


def choices(flag: Flag, given: Given) -> list[Any]:
    """The values given for a flag, one or several, each once."""
    try:
        found = [each for each in _found(flag.type, given) if not _is_empty(each)]
        require(bool(found), "it needs a value")
    except UserError as error:
        raise UserError(f"{given.where or flag.option}: {error}") from error
    try:
        read = [parser.read(flag, each) if isinstance(each, str) else each for each in found]
    except UserError as error:
        raise UserError(f"{given.where}: {error}" if given.where else str(error)) from error
    return list(dict.fromkeys(read))


def shown(value: Any) -> str:
    """A value of TOML in a message."""
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, list):
        return f"[{', '.join(map(shown, value))}]"
    return repr(value)


def _is_empty(value: Any) -> bool:
    return value == () or (isinstance(value, str) and not value.strip(", "))


def _is_sequence(type_: Any) -> bool:
    """Whether a flag's value is several values, so that commas do not make it several cells."""
    return typing.get_origin(type_) is tuple


def _found(type_: Any, given: Given) -> Iterable[Any]:
    """The values; a text is still to be read."""
    if not given.where:
        return _from_command_line(type_, given.value)
    value = given.value
    if isinstance(value, list):
        is_nested = any(isinstance(each, list) for each in value)
        several = value if is_nested or not _is_sequence(type_) else [value]
        return [found for each in several for found in _from_toml(type_, each)]
    return _from_toml(type_, value)


def _from_command_line(type_: Any, value: str | None) -> Iterable[Any]:
    if value is None:
        require(type_ is bool, "it needs a value")
        return [True]
    is_path = {str, Path} & _kinds(type_) and "," in base(value) and os.path.exists(base(value))
    if _is_sequence(type_) or is_path:
        return [value]
    return _expanded(type_, value)


def _expanded(type_: Any, text: str) -> Iterator[Any]:
    """The values that commas separate, with those between the ends of ranges."""
    kinds = _kinds(type_)
    for part in (part.strip() for part in text.split(",") if part.strip()):
        if type_ is bool:
            require(part.lower() in _YES | _NO, f"{part!r} is neither yes nor no")
            yield part.lower() in _YES
        elif int in kinds and ".." in part:
            yield from _range(part)
        else:
            require(not (float in kinds and ".." in part), _wrong(kinds, part))
            yield part


def _range(text: str) -> range:
    """``0..4``, both ends included."""
    found = _RANGE.fullmatch(text)
    if not found:
        raise UserError(f"{text!r} is no range of whole numbers such as 0..4")
    first, last = int(found[1]), int(found[2])
    require(first <= last, f"range {text!r} is empty; {last}..{first} would work")
    require(
        last - first < MOST_CELLS,
        f"range {text!r} has {last - first + 1:,} values; a sweep has {MOST_CELLS:,} cells at most",
    )
    return range(first, last + 1)


def _from_toml(type_: Any, value: Any) -> Iterable[Any]:
    kinds = _kinds(type_)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if _is_sequence(type_) and isinstance(value, list):
        [item, *_] = typing.get_args(type_)
        return [tuple(_items(item, value))]
    if isinstance(value, str) and int in kinds:
        parts = [part.strip() for part in value.split(",")]
        fit = all(re.fullmatch(r"-?\d+(\.\.-?\d+)?", part) for part in parts)
        require(fit, _wrong(kinds, value))
        return _expanded(type_, value)
    if is_number and float in kinds:
        return [float(str(value))]  # a whole number may be larger than any float
    if is_number and kinds == {str}:
        return [text_of(value)]  # such as eval-every = 0.5, which is a text as it may be 20% too
    fits = (
        (isinstance(value, bool) and bool in kinds)
        or (type(value) is int and int in kinds)
        or (isinstance(value, str) and (bool({str, Path} & kinds) or _is_sequence(type_)))
    )
    require(fits, _wrong(kinds, value))
    return [value]


def _items(type_: Any, values: Iterable[Any]) -> Iterator[Any]:
    """The values of an array; a text may hold several, separated by commas."""
    for found in (each for value in values for each in _from_toml(type_, value)):
        if not isinstance(found, str):
            yield found
            continue
        for part in filter(None, (part.strip() for part in found.split(","))):
            yield int(part) if int in _kinds(type_) else part


def _wrong(kinds: set[type], value: Any) -> str:
    wanted = "yes or no (true or false)" if bool in kinds else "a text"
    if {int, float} & kinds:
        wanted = "a number" if float in kinds else 'a whole number or a range such as "0..4"'
    text = str(value).lower() if isinstance(value, bool) else shown(value)
    if float in kinds and isinstance(value, str) and ".." in value:
        wanted += f"; ranges are for whole numbers, {_between(value)} would work"
    return f"{text} is not {wanted}"


def _between(text: str) -> str:
    """Some numbers of what was meant as a range."""
    try:
        first, last = map(float, text.split(".."))
    except ValueError:
        return "numbers separated by commas"
    return f"{first:g},{(first + last) / 2:g},{last:g}"


def _kinds(type_: Any) -> set[type]:
    """The Python types that a flag's value may have."""
    origin = typing.get_origin(type_)
    if origin in (typing.Union, types.UnionType):
        return set().union(*(_kinds(each) for each in typing.get_args(type_)))
    if origin is Literal:
        return {type(each) for each in typing.get_args(type_)}
    return set() if type_ is type(None) or origin else {type_}
