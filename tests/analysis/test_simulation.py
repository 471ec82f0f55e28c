"""What the simulation of verdicts calls false, of scores whose verdict is plain."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import verdicts
from ssl_bench.config.command_settings import VerdictSettings

NOISE = np.array([0.0, 0.01, -0.01, 0.02])


def found(a: float, b: float, of_a: float, of_b: float) -> dict[str, float]:
    """What is so where two methods have these scores, and these true means."""
    tables = [{"a": a + NOISE, "b": b - NOISE}]
    shares = verdicts.judged(tables, {"a": of_a, "b": of_b}, VerdictSettings())
    return dict(zip(verdicts.SHARES, shares, strict=True))


@pytest.mark.parametrize(
    ("scores", "truth", "so"),
    [
        ((90, 80), (90, 80), {"leader has the star", "all intervals hold"}),
        ((90, 80), (85, 85), {"any false verdict", "false star"}),
        ((90, 80), (80, 90), {"any false verdict", "false star"}),
        ((80, 80), (80, 80), {"equal pairs called equivalent", "all intervals hold"}),
        ((80, 80), (80, 80.5), {"false equivalence"}),
        ((80, 80), (80, 80.4), set()),
    ],
)
def test_what_is_false(
    scores: tuple[float, float], truth: tuple[float, float], so: set[str]
) -> None:
    assert {name for name, share in found(*scores, *truth).items() if share == 1} == so


def test_of_a_tables_columns_any_may_be_false_and_each_has_its_star() -> None:
    tables = [{"a": 90 + NOISE, "b": 80 - NOISE}, {"a": 70 + NOISE, "b": 80 - NOISE}]
    shares = verdicts.judged(tables, {"a": 85, "b": 80}, VerdictSettings())
    named = dict(zip(verdicts.SHARES, shares, strict=True))
    assert (named["any false verdict"], named["false star"]) == (1, 1)
    assert (named["leader has the star"], named["all intervals hold"]) == (0.5, 0)
