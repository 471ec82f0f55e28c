"""How often a comparison calls equal methods different, or unequal ones as good as each other, and
how often it finds a true lead.

``python -m benchmarks.verdicts`` draws scores of methods whose true means are known, lets the
comparison judge them, and writes a table and a figure into ``results/statistics``.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from ssl_bench.analysis.comparison import pairs
from ssl_bench.analysis.comparison.grouping import Column, Score
from ssl_bench.config.command_settings import VerdictSettings

METHODS, SEEDS = (2, 4, 8, 20), (2, 3, 5, 10)
TRUTHS: dict[str, tuple[float, ...]] = {
    "all equal": (0,),
    "two ahead by 3": (3, 3, 0),
    "one ahead by the margin": (VerdictSettings.margin, 0),
    "one ahead by 1": (1, 0),
    "one ahead by 3": (3, 0),
}
"""True means of the first methods, in points; those that follow are as the last one."""
LAYOUTS = ("equal spreads", "unequal spreads", "unequal numbers of seeds", "correlated seeds")
COLUMNS = 5
SPREAD = 0.4
"""Points of accuracy over seeds, about the middle of those in ``results/presets``."""
UNEQUAL = (0.1, 1.0)
"""The smallest and the largest spread where they differ, evenly spaced."""
CORRELATION = 0.9
"""Of the scores of one seed, where seeds are correlated."""
SHARES = (
    *("any false verdict", "false star", "false equivalence"),
    *("leader has the star", "equal pairs called equivalent", "all intervals hold"),
)
Scores = Mapping[str, np.ndarray]
Family = Literal["column", "table"]


def judged(
    tables: Sequence[Scores], truth: Mapping[str, float], settings: VerdictSettings
) -> np.ndarray:
    """What of `SHARES` is so of the columns of a table: float ``(6,)``.

    Of what is false and of intervals, whether it is so of any and of all columns; of the star and
    of equivalence, in which share of the columns and of the equal pairs.
    """
    columns = [
        Column(f"knn{n}", "protocol", "top1", "", "top-1 accuracy (%)", "higher", True)
        for n in range(len(tables))
    ]
    cells = {
        (key, column.key): [
            Score("", seed, v, column.evaluation, "") for seed, v in enumerate(each)
        ]
        for column, scores in zip(columns, tables, strict=True)
        for key, each in scores.items()
    }
    found, _ = pairs.test_pairs([*truth], columns, cells, {}, False, settings)
    best = []
    for column, scores in zip(columns, tables, strict=True):
        marks = pairs.marks(column, {key: float(v.mean()) for key, v in scores.items()}, found)
        best += [key for key, mark in marks.items() if mark == "best"]
    leaders = [b for b in best if all(truth[b] > truth[key] for key in truth if key != b)]
    apart = {pair: abs(truth[pair.a] - truth[pair.b]) for pair in found}
    alike = [pair.verdict == "equivalent" for pair in found if not apart[pair]]
    return np.array(
        [
            any(p.better and truth[p.better] <= truth[p.other(p.better)] for p in found),
            len(best) > len(leaders),
            any(p.verdict == "equivalent" and apart[p] >= settings.margin for p in found),
            len(leaders) / len(columns),
            np.mean(alike) if alike else np.nan,
            all(p.interval[0] <= truth[p.a] - truth[p.b] <= p.interval[1] for p in found
                if p.interval),
        ]
    )  # fmt: skip


def simulate(
    methods: int,
    seeds: int,
    layout: str,
    truths: str,
    trials: int,
    generator: np.random.Generator,
    columns: int,
    family: Family,
) -> np.ndarray:
    """The means over the trials of each of `SHARES`: float ``(6,)``."""
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
        how = truth, spreads, counts, layout == "correlated seeds", generator
        tables = [drawn(*how) for _ in range(columns)]
        found += judged(tables, truth, VerdictSettings(family=family))
    return found / trials


def drawn(
    truth: Mapping[str, float],
    spreads: np.ndarray,
    counts: Sequence[int],
    is_correlated: bool,
    generator: np.random.Generator,
) -> Scores:
    """The scores of each method's seeds, normal about its true mean."""
    common = CORRELATION**0.5 * generator.normal(0, 1, max(counts))
    scores = {}
    for (key, mean), spread, count in zip(truth.items(), spreads, counts, strict=True):
        noise = generator.normal(0, 1, count)
        if is_correlated:
            noise = common[:count] + (1 - CORRELATION) ** 0.5 * noise
        scores[key] = 80 + mean + spread * noise
    return scores


def table(trials: int) -> pd.DataFrame:
    """One row for each setting; of 20 methods, a fifth of the trials.

    Tables of several columns, of four methods alike in spread, are corrected in either way.
    """
    generator, rows = np.random.default_rng(0), []
    of_columns: list[tuple[int, int, str, int, Family]] = [
        (methods, seeds, layout, 1, "column")
        for methods in METHODS
        for seeds in SEEDS
        for layout in LAYOUTS
    ]
    families: tuple[Family, ...] = ("column", "table")
    of_tables = [(4, seeds, LAYOUTS[0], COLUMNS, family) for seeds in SEEDS for family in families]
    for methods, seeds, layout, columns, family in [*of_columns, *of_tables]:
        for truths in TRUTHS:
            number = trials if methods < 20 else trials // 5
            how = layout, truths, number, generator, columns, family
            shares = simulate(methods, seeds, *how)
            rows.append((methods, seeds, layout, columns, family, truths, number, *shares))
        print(f"{methods} methods, {seeds} seeds, {layout}, {columns} x {family}", flush=True)
    names = ["methods", "seeds", "layout", "columns", "family", "truth", "trials", *SHARES]
    return pd.DataFrame(rows, columns=names)


def draw(frame: pd.DataFrame) -> Figure:
    """False verdicts of each kind, and stars of a leader, over the seeds."""
    frame = frame[frame["columns"] == 1]
    sns.set_theme(style="whitegrid", context="paper")
    figure = Figure(figsize=(11.2, 11.2), layout="constrained")
    shown = [
        ("all equal", SHARES[0]),
        ("two ahead by 3", SHARES[0]),
        ("two ahead by 3", SHARES[1]),
        ("one ahead by the margin", SHARES[2]),
        ("one ahead by 1", SHARES[3]),
        ("one ahead by 3", SHARES[3]),
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
            if name == SHARES[3]:
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
