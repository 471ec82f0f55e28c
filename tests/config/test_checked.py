"""Settings refuse values outside of their fields' intervals."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Annotated, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssl_bench.cli.parser import flags_with
from ssl_bench.config.checked import CheckedConfig
from ssl_bench.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Base(CheckedConfig):
    share: Annotated[float, "(0, 1]"] = 0.5
    count: Annotated[int | None, "[2, inf)"] = None
    rates: Annotated[tuple[float, ...], "[0, 1)"] = (0.0, 0.5)
    free: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Other(Base):
    section: ClassVar[str] = "probe"
    share: float = 0.25
    more: Annotated[float, "(-inf, 0)"] = -1.0


NUMBERS = st.floats(allow_nan=True, allow_infinity=True)


@given(NUMBERS)
def test_a_number_outside_is_refused(value: float) -> None:
    for inside, values in (
        (0 < value <= 1, {"share": value}),
        (2 <= value < math.inf, {"count": value}),
        (0 <= value < 1, {"rates": (0.5, value)}),
    ):
        if inside:
            Base(**values)
            continue
        with pytest.raises(UserError, match=re.escape(f"{next(iter(values))} {value}")):
            Base(**values)
    Base(free=value)


def test_a_subclass_keeps_the_interval_and_says_its_section() -> None:
    assert Other().share == 0.25
    with pytest.raises(UserError, match=r"^--probe-share 2 "):
        Other(share=2)
    with pytest.raises(UserError, match=r"^--probe-more 0\.0 "):
        Other(more=0.0)


def test_help_tells_an_interval_that_ends() -> None:
    told = {flag.name: flag.help for flag in flags_with(Other, "", {})}
    assert "(0, 1]" in told["share"] and "inf" not in told["count"] + told["more"]


def test_several_values_are_at_least_one() -> None:
    with pytest.raises(UserError, match="rates is empty"):
        Base(rates=())
