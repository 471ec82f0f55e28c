"""Numbers and names for people."""

from __future__ import annotations

import pytest

from ssl_bench.utils.formatting import many


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 epochs"),
        (1, "1 epoch"),
        (1.0, "1 epoch"),
        (0.25, "0.25 epochs"),
        (1 / 3, "0.3333 epochs"),
        (8.0, "8 epochs"),
        (1200, "1,200 epochs"),
        (123456, "123,456 epochs"),
    ],
)
def test_one_thing_has_no_plural(number: float, text: str) -> None:
    assert many(number, "epoch") == text
