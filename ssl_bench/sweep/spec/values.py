"""The values that a sweep is given for a flag: words of a command line, or TOML."""

from __future__ import annotations

import datetime
import os
import re
import types
import typing
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ssl_bench.cli.argv import joined
from ssl_bench.data.names import base
from ssl_bench.errors import UserError, require
from ssl_bench.experiment.run_config import text_of

MOST_CELLS = 10_000
_YES, _NO = {"yes", "true", "on"}, {"no", "false", "off"}
_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)")

Words = tuple[str, ...]
"""A flag with its value, as a command line has them."""


@dataclass(frozen=True)
class Given:
    """What was given for a flag.

    Attributes:
        value: text of the command line (None after a flag without a value), or anything of TOML.
        where: the file and the key, for error messages; "" on the command line.
    """

    value: Any
    where: str = ""


def choices(name: str, type_: Any, given: Given) -> list[Words]:
    """The values of a flag, one or several, each as words of ``ssl-bench run``.

    Args:
        name: the field's name.
        type_: the field's type.

    Raises:
        UserError: there is no value, or one that cannot be the flag's.
    """
    flag = name.replace("_", "-")
    try:
        texts = [text for text in dict.fromkeys(_texts(type_, given)) if text.strip(", ")]
        require(bool(texts), "it needs a value")
    except UserError as error:
        raise UserError(f"{given.where or f'--{flag}'}: {error}") from error
    if is_flag_alone(type_):
        return [(f"--{flag}" if text == "yes" else f"--no-{flag}",) for text in texts]
    return [(f"--{flag}", text) for text in texts]


def value_in(words: Words) -> str:
    """The value that words of `choices` hold, for people."""
    if len(words) > 1:
        return words[1]
    return "no" if words[0].startswith("--no-") else "yes"


def is_flag_alone(type_: Any) -> bool:
    """Whether a flag is given without a value."""
    return type_ is bool


def is_sequence(type_: Any) -> bool:
    """Whether a flag's value is several values, so that commas do not make it several cells."""
    return typing.get_origin(type_) is tuple


def shown(value: Any) -> str:
    """A value of TOML in a message."""
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, list):
        return f"[{', '.join(map(shown, value))}]"
    return repr(value)


def _texts(type_: Any, given: Given) -> list[str]:
    """Each value as one word; booleans as yes and no."""
    if not given.where:
        return _from_command_line(type_, given.value)
    if isinstance(given.value, list):
        if is_sequence(type_) and not any(isinstance(each, list) for each in given.value):
            return [_sequence(type_, given.value)]
        return [text for each in given.value for text in _from_toml(type_, each)]
    return _from_toml(type_, given.value)


def _from_command_line(type_: Any, value: str | None) -> list[str]:
    if value is None:
        require(is_flag_alone(type_), "it needs a value")
        return ["yes"]
    if is_sequence(type_):
        return [value] if value.strip(", ") else []
    if {str, Path} & _kinds(type_) and "," in base(value) and os.path.exists(base(value)):
        return [value]
    return list(_expanded(type_, [part.strip() for part in value.split(",") if part.strip()]))


def _expanded(type_: Any, parts: Sequence[str]) -> Iterator[str]:
    for part in parts:
        if is_flag_alone(type_):
            require(part.lower() in _YES | _NO, f"{part!r} is neither yes nor no")
            yield "yes" if part.lower() in _YES else "no"
        elif int in _kinds(type_) and ".." in part:
            yield from map(str, _range(part))
        else:
            is_range_of_numbers = float in _kinds(type_) and ".." in part
            require(not is_range_of_numbers, _wrong(_kinds(type_), part))
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


def _from_toml(type_: Any, value: Any) -> list[str]:
    kinds = _kinds(type_)
    if is_sequence(type_) and isinstance(value, list):
        return [_sequence(type_, value)]
    if isinstance(value, str) and int in kinds:
        parts = [part.strip() for part in value.split(",")]
        fit = all(re.fullmatch(r"-?\d+(\.\.-?\d+)?", part) for part in parts)
        require(fit, _wrong(kinds, value))
        return list(_expanded(type_, parts))
    fits = (
        (isinstance(value, bool) and bool in kinds)
        or (isinstance(value, int | float) and not isinstance(value, bool) and float in kinds)
        or (type(value) is int and int in kinds)
        or (isinstance(value, str) and bool({str, Path} & kinds))
        or (isinstance(value, str) and is_sequence(type_))
        # Such as eval-every = 0.5, which is a text as it may be 20% too.
        or (isinstance(value, int | float) and not isinstance(value, bool) and kinds == {str})
    )
    require(fits, _wrong(kinds, value))
    return [text_of(value)]


def _sequence(type_: Any, values: list[Any]) -> str:
    """An array as the one word that a flag takes with commas between its values."""
    item = typing.get_args(type_)[0]
    return ",".join(text for value in values for text in _from_toml(item, value))


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


def in_order(groups: Iterable[Words]) -> Words:
    """Words of flags as one command line: the method first, the seed last, the others by name."""

    def place(group: Sequence[str]) -> tuple[bool, bool, str]:
        flag = group[0].replace("--no-", "--", 1)
        return flag != "--method", flag == "--seed", flag

    return joined(sorted(groups, key=place))
