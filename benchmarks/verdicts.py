"""How often a comparison calls equal methods different, and how often it finds a true lead.

``python -m benchmarks.verdicts`` draws scores of methods whose true means are known, lets the
comparison judge them, and writes a table and a figure into ``results/statistics``.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from ssl_bench.analysis.comparison import pairs
from ssl_bench.analysis.comparison.grouping import Column, Score

COLUMN = Column("knn", "protocol", "top1", "", "top-1 accuracy (%)", "higher", True)
METHODS, SEEDS, LEADS = (2, 4, 8, 20), (2, 3, 5, 10), (0.0, 1.0, 3.0)
LAYOUTS = ("equal spreads", "unequal spreads", "unequal numbers of seeds")
SPREAD = 0.4
"""Points of accuracy over seeds, about the middle of those in ``results/presets``."""
UNEQUAL = (0.1, 1.0)
"""The smallest and the largest spread where they differ, evenly spaced."""


def judged(scores: Mapping[str, np.ndarray]) -> tuple[bool, str | None]:
    """Whether any method is called better than another one, and which one is the best of all."""
    cells = {
        (key, COLUMN.key): [
            Score("", seed, value, COLUMN.evaluation, "") for seed, value in enumerate(values)
        ]
        for key, values in scores.items()
    }
    found, _ = pairs.test_pairs([*scores], [COLUMN], cells, {}, has_predictions=False)
    marks = pairs.marks(COLUMN, {key: float(v.mean()) for key, v in scores.items()}, found)
    best = next((key for key, mark in marks.items() if mark == "best"), None)
    return any(pair.better for pair in found), best


def simulate(
    methods: int, seeds: int, layout: str, lead: float, trials: int, generator: np.random.Generator
) -> tuple[float, float]:
    """Shares of the trials in which any pair is decided, and in which the leader is the best."""
    spreads = np.full(methods, SPREAD)
    if layout == "unequal spreads":
        spreads = np.linspace(*UNEQUAL, methods)
    counts = [seeds] * methods
    if layout == "unequal numbers of seeds":
        counts = [seeds if number % 2 else 2 * seeds for number in range(methods)]
    decided = best = 0
    for _ in range(trials):
        leader = int(generator.integers(methods))
        scores = {
            str(number): 80 + lead * (number == leader) + generator.normal(0, spread, count)
            for number, (spread, count) in enumerate(zip(spreads, counts, strict=True))
        }
        is_any, winner = judged(scores)
        decided += is_any
        best += winner == str(leader)
    return decided / trials, best / trials


def table(trials: int) -> pd.DataFrame:
    """One row for each setting; of 20 methods, a fifth of the trials."""
    generator, rows = np.random.default_rng(0), []
    for methods in METHODS:
        for seeds in SEEDS:
            for layout in LAYOUTS:
                for lead in LEADS:
                    number = trials if methods < 20 else trials // 5
                    shares = simulate(methods, seeds, layout, lead, number, generator)
                    rows.append((methods, seeds, layout, lead, number, *shares))
        print(f"{methods} methods done", flush=True)
    names = ["methods", "seeds", "layout", "lead", "trials", "any pair decided", "leader is best"]
    return pd.DataFrame(rows, columns=names)


def draw(frame: pd.DataFrame) -> Figure:
    """False alarms of equal methods, and power at each lead, over the number of seeds."""
    sns.set_theme(style="whitegrid", context="paper")
    figure = Figure(figsize=(9.6, 6.2), layout="constrained")
    axes = figure.subplots(len(LEADS), len(LAYOUTS), sharex=True, sharey="row")
    colors = sns.color_palette("viridis", len(METHODS))
    for row, lead in enumerate(LEADS):
        name = "leader is best" if lead else "any pair decided"
        for axis, layout in zip(axes[row], LAYOUTS, strict=True):
            part = frame[(frame["lead"] == lead) & (frame["layout"] == layout)]
            for methods, color in zip(METHODS, colors, strict=True):
                of = part[part["methods"] == methods]
                axis.plot(
                    of["seeds"], of[name], marker="o", color=color, label=f"{methods} methods"
                )
            axis.set_xticks(SEEDS)
            if not lead:
                axis.axhline(0.05, color="0.4", linestyle="--", linewidth=1)
                axis.set_title(layout)
                axis.set_ylim(0, 0.15)
            else:
                axis.set_ylim(0, 1.03)
        axes[row][0].set_ylabel(f"found at a lead of {lead:g}" if lead else "false alarms")
    for axis in axes[-1]:
        axis.set_xlabel("seeds")
    axes[0][0].legend(fontsize="small", ncols=2)
    return figure


def main() -> None:
    """Write the table and the figure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--output", type=Path, default=Path("results/statistics"))
    told = parser.parse_args()
    told.output.mkdir(parents=True, exist_ok=True)
    frame = table(told.trials)
    frame.to_csv(told.output / "verdicts.csv", index=False, float_format="%.4f")
    draw(frame).savefig(told.output / "verdicts.png", dpi=150)


if __name__ == "__main__":
    main()
