"""Numbers as people read them, and a run beside its baselines."""

from __future__ import annotations

import math
from typing import Any

import pytest
from rich.console import Console

from ssl_bench.experiment import evaluating
from ssl_bench.utils import formatting


@pytest.mark.parametrize(
    "text,expected",
    [
        (formatting.digits(88.351, "top-1 accuracy (%)"), "88.35"),
        (formatting.digits(-1.0, "top-1 accuracy (%)", "+"), "-1.00"),
        (formatting.digits(1234.5678, "rank"), "1235"),
        (formatting.digits(0.00123456, "loss"), "0.001235"),
        (formatting.digits(math.nan, "loss"), "NaN"),
        (formatting.share(0.00003), "<0.0001"),
        (formatting.share(0.0312), "0.031"),
        (formatting.count(None), "-"),
        (formatting.count(0), "0"),
        (formatting.count(1_198_592), "1.2 M"),
        (formatting.count(479_232), "479 k"),
        (formatting.count(999_999), "1 M"),
        (formatting.count(1.234e15), "1.23 P"),
        (formatting.time(93.4), "93 s"),
        (formatting.time(3500), "58 min"),
        (formatting.time(7500), "2 h 05 min"),
        (formatting.whole(1996.0), "1,996"),
    ],
)
def test_numbers_are_short(text: str, expected: str) -> None:
    assert text == expected


def record(name: str, score: float, baseline: float, **more: Any) -> dict[str, Any]:
    return {
        "eval": name, "data": "data", "note": "", "test_images": 100, "scores": {"it": score},
        "baselines": {"random init": {"it": baseline}}, **more,
    }  # fmt: skip


def shown(*records: dict[str, Any]) -> str:
    console = Console(width=100)
    with console.capture() as capture:
        console.print(evaluating.beside_baselines("mae", records))
    return capture.get()


def test_a_run_stands_beside_its_baselines() -> None:
    text = shown(record("knn", 80.0, 70.5))
    assert "70.50 (+9.50)" in text
    assert "top-1 accuracy (%), 100 test images" in " ".join(text.split())


def test_units_are_told_where_they_differ() -> None:
    text = shown(record("knn", 80.0, 70.5), record("rank", 31.4159, 2.0, unit="effective rank"))
    assert "top-1 accuracy (%)" in text
    assert "effective rank" in text
    assert "2 (+29.42)" in text


def test_a_score_that_is_better_lower_is_told_and_one_that_is_neither_has_no_gain() -> None:
    lower = record("depth", 0.2, 0.4, unit="error", better="lower")
    neither = record("cka", 0.3, 0.5, unit="CKA", better="neither")
    text = " ".join(shown(lower, neither).split())
    assert "0.4 (-0.2)" in text and "lower is better in depth" in text
    assert "0.5 (" not in text
    assert "lower" not in shown(record("knn", 80.0, 70.5))
