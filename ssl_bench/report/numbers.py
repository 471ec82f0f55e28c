"""Numbers as CSV."""

from __future__ import annotations

from typing import Any

import pandas as pd

_FORMULAS = ("=", "+", "-", "@", "\t", "\r")


def as_csv(frame: pd.DataFrame) -> bytes:
    """All digits; missing numbers are empty.

    A name that a spreadsheet would run as a formula gets an apostrophe before it.
    """
    return frame.map(_plain).rename(columns=_plain).to_csv(index=False).encode()


def _plain(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULAS) else value
