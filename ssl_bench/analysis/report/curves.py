"""Curves of scores over a number."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from ssl_bench.analysis.report.drawing import Look
from ssl_bench.analysis.report.source import spread


def means(scores: pd.DataFrame, place: str) -> pd.DataFrame:
    """Mean and interval of ``value`` at each place: columns place, mean, low, high and n."""
    rows = [(at, *spread(group["value"])) for at, group in scores.groupby(place, sort=True)]
    return pd.DataFrame(rows, columns=[place, "mean", "low", "high", "n"])


def draw_curve(axis: Axes, curve: pd.DataFrame, color: Any, look: Look) -> Any:
    """Draw means over their places, the first column. Returns the line."""
    places = curve.iloc[:, 0]
    half = (curve["high"] - curve["mean"]).fillna(0)
    [handle] = axis.plot(
        places, curve["mean"], color=color, marker=look.marker, linestyle=look.line
    )
    axis.errorbar(places, curve["mean"], half, color=color, linestyle="none", capsize=3)
    return handle
