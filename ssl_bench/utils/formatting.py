"""Formatting numbers and names for people."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

_NOTHING = "-"
_DIRECTIONS = (0x61C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_UNSEEN = {
    **dict.fromkeys({*range(32), *range(127, 160), 0x2028, 0x2029, *_DIRECTIONS} - {*b"\t\n"}),
    **dict.fromkeys(range(0xD800, 0xE000), "?"),
}
_FORMULAS = ("=", "+", "-", "@", "\t", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""First characters of spreadsheet formulas; the last four are full-width signs."""
_SECONDS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
_NUMBER = r"(\d+\.?\d*|\.\d+)"
_IN_UNITS = re.compile(
    rf"(?:{_NUMBER} ?d(?:ays?)?)? ?(?:{_NUMBER} ?h(?:(?:ou)?rs?)?)? ?"
    rf"(?:{_NUMBER} ?m(?:in(?:ute)?s?)?)? ?(?:{_NUMBER} ?s(?:ec(?:ond)?s?)?)?"
)
_ON_A_CLOCK = re.compile(r"(?:(\d+)-)?(\d+(?::\d+){0,2})")
_LARGE = ("", " k", " M", " G", " T", " P", " E", " Z", " Y")


def digits(value: float, unit: str, sign: str = "") -> str:
    """A score: a percentage with two decimals, else four digits; ``sign="+"`` always shows it."""
    if math.isnan(value):
        return "NaN"
    return f"{value:{sign}.2f}" if "%" in unit else f"{value:{sign}.4g}"


def share(p: float) -> str:
    """A probability."""
    return "<0.0001" if p < 1e-4 else f"{p:.2g}"


def count(value: float | None) -> str:
    """Three digits: 1,198,592 as "1.2 M", 1.234e15 as "1.23 P"."""
    if value is None:
        return _NOTHING
    power = 0 if value < 1000 else min(int(math.log10(value) // 3), len(_LARGE) - 1)
    if power and round(value / 1000**power, 1) >= 1000 and power < len(_LARGE) - 1:
        power += 1
    return f"{value / 1000**power:.3g}{_LARGE[power]}"


def time(seconds: float | None) -> str:
    """Seconds as "93 s", "2 h 05 min"."""
    if seconds is None:
        return _NOTHING
    if seconds < 600:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def seconds(text: str) -> float | None:
    """Parse "90s", "10 min", "1h30m", "0.5 hours", "1:30:00" or "1-12:00:00"; else None.

    Times without units are read as in Slurm: "M", "M:S", "H:M:S", "D-H", "D-H:M" or "D-H:M:S".
    """
    text = " ".join(text.lower().split())
    if text and (found := _IN_UNITS.fullmatch(text)):
        return sum(
            float(n or 0) * u for n, u in zip(found.groups(), _SECONDS.values(), strict=True)
        )
    if not (found := _ON_A_CLOCK.fullmatch(text)):
        return None
    numbers = [float(number) for number in found[2].split(":")]
    if found[1] is None:
        numbers = [0.0] * (len(numbers) < 3) + numbers
    hours, minutes, rest = (*numbers, 0.0, 0.0)[:3]
    return float(found[1] or 0) * 86400 + hours * 3600 + minutes * 60 + rest


def whole(value: float | None) -> str:
    """A number without decimals: "1,996"."""
    return _NOTHING if value is None else f"{value:,.0f}"


def many(number: float, thing: str) -> str:
    """A count of things: "1 cell", "1,200 cells", "0.25 epochs"."""
    text = f"{number:,}" if isinstance(number, int) else f"{number:,.4g}"
    return f"{text} {thing}{'s' * (number != 1)}"


def listed(items: Iterable[Any]) -> str:
    """Items in a sentence: one, two and three."""
    *first, last = [str(item) for item in items if str(item)] or [""]
    return f"{', '.join(first)} and {last}" if first else last


def plain(text: str) -> str:
    """The text without characters that control a terminal or reverse the direction of a line.

    Invalid characters (lone surrogates, undecodable bytes of file names) become question marks.
    """
    return text if text.isascii() and text.isprintable() else text.translate(_UNSEEN)


def cell(value: Any) -> Any:
    """The value for a CSV file; text that looks like a spreadsheet formula gets an apostrophe."""
    if not isinstance(value, str):
        return value
    shown = plain(value)
    return f"'{shown}" if shown.startswith(_FORMULAS) else shown
