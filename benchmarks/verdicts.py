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
METHODS, SEEDS = (2, 4, 8, 20), (2, 3, 5, 10)
TRUTHS: dict[str, tuple[float, ...]] = {
    "all equal": (0,),
    "two ahead by 3": (3, 3, 0),
    "one ahead by 1": (1, 0),
    "one ahead by 3": (3, 0),
}
"""True means of the first methods, in points; those that follow are as the last one."""
LAYOUTS = ("equal spreads", "unequal spreads", "unequal numbers of seeds")
SPREAD = 0.4
"""Points of accuracy over seeds, about the middle of those in ``results/presets``."""
UNEQUAL = (0.1, 1.0)
"""The smallest and the largest spread where they differ, evenly spaced."""
SHARES = ("any false verdict", "false star", "leader has the star", "all intervals hold")


def judged(scores: Mapping[str, np.ndarray], truth: Mapping[str, float]) -> np.ndarray:
    """What of `SHARES` is so, of one column: bool ``(4,)``."""
    cells = {
        (key, COLUMN.key): [
            Score("", seed, value, COLUMN.evaluation, "") for seed, value in enumerate(values)
        ]
        for key, values in scores.items()
    }
    found, _ = pairs.test_pairs([*scores], [COLUMN], cells, {}, has_predictions=False)
    marks = pairs.marks(COLUMN, {key: float(v.mean()) for key, v in scores.items()}, found)
    best = next((key for key, mark in marks.items() if mark == "best"), None)
    is_leader = best is not None and all(truth[best] > truth[key] for key in truth if key != best)
    return np.array(
        [
            any(p.better and truth[p.better] <= truth[p.other(p.better)] for p in found),
            best is not None and not is_leader,
            is_leader,
            all(p.interval[0] <= truth[p.a] - truth[p.b] <= p.interval[1] for p in found
                if p.interval),
        ]
    )  # fmt: skip


def simulate(
    methods: int, seeds: int, layout: str, truths: str, trials: int, generator: np.random.Generator
) -> np.ndarray:
    """The shares of the trials in which each of `SHARES` is so: float ``(4,)``."""
    spreads = np.full(methods, SPREAD)
    if layout == "unequal spreads":
        spreads = np.linspace(*UNEQUAL, methods)
    counts = [seeds] * methods
    if layout == "unequal numbers of seeds":
        counts = [seeds if number % 2 else 2 * seeds for number in range(methods)]
    means = np.pad(TRUTHS[truths], (0, methods), mode="edge")[:methods]
    found = np.zeros(len(SHARES))
    for _ in range(trials):
        truth = {str(number): mean for number, mean in enumerate(generator.permutation(means))}
        scores = {
            key: 80 + truth[key] + generator.normal(0, spread, count)
            for key, spread, count in zip(truth, spreads, counts, strict=True)
        }
        found += judged(scores, truth)
    return found / trials


def table(trials: int) -> pd.DataFrame:
    """One row for each setting; of 20 methods, a fifth of the trials."""
    generator, rows = np.random.default_rng(0), []
    for methods in METHODS:
        for seeds in SEEDS:
            for layout in LAYOUTS:
                for truths in TRUTHS:
                    number = trials if methods < 20 else trials // 5
                    shares = simulate(methods, seeds, layout, truths, number, generator)
                    rows.append((methods, seeds, layout, truths, number, *shares))
        print(f"{methods} methods done", flush=True)
    return pd.DataFrame(rows, columns=["methods", "seeds", "layout", "truth", "trials", *SHARES])


def draw(frame: pd.DataFrame) -> Figure:
    """False verdicts and stars where methods are equal, and stars of a leader, over the seeds."""
    sns.set_theme(style="whitegrid", context="paper")
    figure = Figure(figsize=(9.6, 9.6), layout="constrained")
    shown = [
        ("all equal", SHARES[0]),
        ("two ahead by 3", SHARES[0]),
        ("two ahead by 3", SHARES[1]),
        ("one ahead by 1", SHARES[2]),
        ("one ahead by 3", SHARES[2]),
    ]
    axes = figure.subplots(len(shown), len(LAYOUTS), sharex=True, sharey="row")
    colors = sns.color_palette("viridis", len(METHODS))
    for row, (truths, name) in enumerate(shown):
        for axis, layout in zip(axes[row], LAYOUTS, strict=True):
            part = frame[(frame["truth"] == truths) & (frame["layout"] == layout)]
            for methods, color in zip(METHODS, colors, strict=True):
                of = part[part["methods"] == methods]
                axis.plot(
                    of["seeds"], of[name], marker="o", color=color, label=f"{methods} methods"
                )
            axis.set_xticks(SEEDS)
            if name == SHARES[2]:
                axis.set_ylim(0, 1.03)
            else:
                axis.axhline(0.05, color="0.4", linestyle="--", linewidth=1)
                axis.set_ylim(0, 0.15)
        axes[row][0].set_ylabel(f"{truths}:\n{name}")
    for axis, layout in zip(axes[0], LAYOUTS, strict=True):
        axis.set_title(layout)
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
