"""Settings that refuse a value outside of the interval that its field is annotated with."""

from __future__ import annotations

import re
import typing
from collections.abc import Mapping
from functools import cache
from typing import ClassVar

from ssl_bench.errors import require, within


class CheckedConfig:
    """Base of dataclasses with fields such as ``mask_ratio: Annotated[float, "(0, 1)"] = 0.75``.

    Each of several values is checked, and None is not. A subclass that gives a field another
    default keeps its interval.

    Attributes:
        section: what the flags of its fields begin with: an evaluation's name.

    Raises:
        UserError: that names the flag: a value is outside, or there is none of several.
    """

    section: ClassVar[str] = ""

    def __post_init__(self) -> None:
        cls: type = type(self)
        for field, interval in intervals(cls).items():
            told = f"--{flag_of(self.section, field)}"
            value = getattr(self, field)
            require(value != (), f"{told} is empty; a number in {interval} would work")
            for each in value if isinstance(value, tuple) else (value,):
                if each is not None:
                    within(told, each, interval)


def flag_of(section: str, field: str) -> str:
    """The flag of a field, without its hyphens in front."""
    return re.sub("[ _]", "-", f"{section} {field}".strip())


@cache
def intervals(cls: type) -> Mapping[str, str]:
    """The interval of each annotated field of a class, written as ``[0, 1)``."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        for name, hint in typing.get_type_hints(base, include_extras=True).items():
            if hasattr(hint, "__metadata__"):
                [found[name]] = hint.__metadata__
    return found
