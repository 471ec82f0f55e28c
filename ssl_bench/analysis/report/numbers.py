"""Numbers as CSV."""

from __future__ import annotations

import pandas as pd

from ssl_bench.utils.formatting import cell


def as_csv(frame: pd.DataFrame) -> bytes:
    """All digits; missing numbers are empty; no name is run as a formula (`formatting.cell`)."""
    return frame.map(cell).rename(columns=cell).to_csv(index=False).encode()
