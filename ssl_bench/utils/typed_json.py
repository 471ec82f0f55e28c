"""Reading dataclasses from untrusted JSON files."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

from ssl_bench.utils.files import Unreadable, load_json

T = TypeVar("T")
_LARGEST = 10**30
_hints = cache(typing.get_type_hints)


def read(path: Path, cls: type[T], **known: Any) -> T:
    """Read a dataclass from a JSON file.

    Args:
        known: JSON values of further fields, which override the file's.

    Raises:
        Unreadable: it cannot be read, or holds something else.
    """
    content = load_json(path)
    return of(cls, {**content, **known} if isinstance(content, dict) else content)


def of(type_: Any, value: Any, where: str = "it") -> Any:
    """Convert a JSON value to a dataclass, or to the type of one of its fields.

    Args:
        where: names the value in error messages.

    Raises:
        Unreadable: the value has another type, or is a gigantic integer.
    """
    origin, arguments = typing.get_origin(type_), typing.get_args(type_)
    if dataclasses.is_dataclass(type_):
        return _dataclass(type_, value, where)
    if origin in (tuple, Sequence) and isinstance(value, list):
        return tuple(of(arguments[0], each, f"{where}, {n}") for n, each in enumerate(value))
    if origin is Mapping and isinstance(value, dict):
        return {key: of(arguments[1], each, f"{where}, {key!r:.40}") for key, each in value.items()}
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        [type_] = set(arguments) - {type(None)}
        return of(type_, value, where)
    if (
        (origin is Literal and any(type(a) is type(value) and a == value for a in arguments))
        or (type_ in (str, bool) and type(value) is type_)
        or (type_ is int and type(value) is int and abs(value) < _LARGEST)
        or (type_ is float and type(value) in (int, float) and math.isfinite(value))
        or type_ is Any
    ):
        return value
    if type_ is Path and isinstance(value, str):
        return Path(value)
    raise Unreadable(f"{where} is {value!r:.40}")


def _dataclass(cls: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise Unreadable(f"{where} holds no names and values")
    hints = _hints(cls)
    fields = {each.name: each for each in dataclasses.fields(cls)}
    unknown = sorted(value.keys() - fields.keys())
    if unknown:
        raise Unreadable(f"{where} has {unknown[0]!r:.40}, which is unknown")
    for name, each in fields.items():
        has_default = {each.default, each.default_factory} != {dataclasses.MISSING}
        if name not in value and not has_default:
            raise Unreadable(f"{where} has no {name!r}")
    return cls(**{name: of(hints[name], each, f"{name!r}") for name, each in value.items()})
