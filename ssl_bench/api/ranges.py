"""Ranges that settings are drawn from: a method's in ``ssl-bench sweep --search``."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ssl_bench.errors import require


def _four_digits(value: float, low: float, high: float) -> float:
    """Short enough for a command line to hold it exactly, and still inside."""
    return float(min(max(float(f"{value:.4g}"), low), high))


@dataclass(frozen=True)
class Uniform:
    """A flag's range for ``ssl-bench sweep --search``, every value as likely.

    Attributes:
        low, high: its ends, which belong to it.
        whole: draw whole numbers.

    Raises:
        UserError: the range is empty.
    """

    low: float
    high: float
    whole: bool = False

    def __post_init__(self) -> None:
        require(self.low <= self.high, f"a range from {self.low} to {self.high} is empty")

    def at(self, u: float) -> float:
        """The value that a number in [0, 1) stands for; an int where the range is whole."""
        if self.whole:
            return int(self.low) + math.floor(u * (self.high - self.low + 1))
        return _four_digits(self.low + u * (self.high - self.low), self.low, self.high)


@dataclass(frozen=True)
class LogUniform:
    """A range of positive numbers, every order of magnitude as likely.

    Attributes:
        low, high: its ends, which belong to it.

    Raises:
        UserError: the range is empty, or goes down to 0.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        require(
            0 < self.low <= self.high,
            f"a logarithmic range from {self.low} to {self.high} is impossible; "
            "it runs upwards from above 0",
        )

    def at(self, u: float) -> float:
        """The value that a number in [0, 1) stands for."""
        value: float = self.low * (self.high / self.low) ** u
        return _four_digits(value, self.low, self.high)


@dataclass(frozen=True)
class OneOf:
    """Some values, each as likely; `UserError` where there is none."""

    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        require(bool(self.values), "a choice of no values is impossible")

    def at(self, u: float) -> Any:
        """The value that a number in [0, 1) stands for."""
        return self.values[int(u * len(self.values))]


Range = Uniform | LogUniform | OneOf
"""What a method's ``search_space`` gives for a flag."""


def draw(
    how: str, space: Mapping[str, Range], count: int, *coordinates: str | int
) -> list[dict[str, Any]]:
    """Values from ranges: so many trials, with a value for each name.

    Args:
        how: "random", or "sobol" for a scrambled Sobol sequence, which spreads evenly.
        coordinates: what the draws are a function of, besides the names, the trial's number and,
            for Sobol, the number of names.
    """
    names = sorted(space)
    rows: Any
    if how == "sobol":
        import numpy as np
        from scipy.stats import qmc

        seed = np.random.default_rng(_key(*coordinates))
        # A power of two, as the sequence wants it; what comes first does not depend on it.
        rows = qmc.Sobol(len(names), scramble=True, seed=seed).random_base2(
            (count - 1).bit_length()
        )
    else:  # each a function of the coordinates, the trial and the name alone
        rows = (
            [(_key(*coordinates, trial, name) >> 11) / 2**53 for name in names]
            for trial in range(count)
        )
    rows = itertools.islice(rows, count)
    return [{name: space[name].at(u) for name, u in zip(names, row, strict=True)} for row in rows]


def _key(*coordinates: str | int) -> int:
    """A 64-bit integer for names and numbers, the same on every machine."""
    digest = hashlib.blake2b(repr(coordinates).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")
