"""Figures of accuracy against cost, at the snapshots and at the end."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from ssl_bench.analysis.comparison import ENDED
from ssl_bench.analysis.comparison.curves import SAME
from ssl_bench.analysis.comparison.statistics import mean_interval
from ssl_bench.analysis.report import drawing
from ssl_bench.analysis.report.captions import measured
from ssl_bench.analysis.report.drawing import Drawing, Missing
from ssl_bench.analysis.report.source import Source, slug

_COSTS = {"flops": "FLOPs", "images_seen": "images seen", "seconds": "device-seconds"}


def against_cost(source: Source) -> Iterator[Drawing | Missing]:
    """A panel for each evaluation made at several costs, over the first kind that is known."""
    ended = source.runs.loc[source.runs["state"].isin(ENDED), "run"]
    scores = source.scores[source.scores["is_headline"] & source.scores["run"].isin(ended)]
    scores = scores[scores["better"] != "neither"]  # a score that ranks nothing has no front
    if scores.empty:
        return
    for cost, words in _COSTS.items():
        scores = scores.assign(**{cost: pd.to_numeric(scores[cost], errors="coerce")})
        known = scores[scores[cost] >= 0]
        paid = known[known[cost] > 0]
        is_one_clock = cost != "seconds" or paid["device"].nunique() == 1
        if is_one_clock and not paid.empty:
            of_column = paid.groupby("column")[cost]
            is_curve = of_column.transform("min") < of_column.transform("max") * (1 - SAME)
            curves = known[known["column"].isin(paid.loc[is_curve, "column"])]
            if not curves.empty:
                yield from _panels(source, curves, cost, words)
            return
    yield Missing(
        "Accuracy against cost", "no run has counted it", "ssl-bench run --eval-every EPOCHS ..."
    )


def _panels(source: Source, scores: pd.DataFrame, cost: str, words: str) -> Iterator[Drawing]:
    for data, on_data in scores.groupby("evaluated_on", sort=False):
        found = list(source.evaluations(on_data))
        figure, axes = drawing.panels(len(found))
        handles, fronts, rows = {}, {}, []
        for axis, (name, of_evaluation) in zip(axes, found, strict=True):
            points = []
            for label, color, look, group in source.styled_groups(of_evaluation):
                curve = _means(group, cost)
                points.append(curve.assign(evaluation=name, group=label))
                for free in curve[curve[cost] == 0].itertuples():
                    handles[drawing.fold(label, 44)] = axis.axhline(
                        free.mean, color=color, linestyle=look.line, linewidth=1.1
                    )
                    if free.low == free.low:
                        axis.axhspan(free.low, free.high, color=color, alpha=0.12, linewidth=0)
                curve = curve[curve[cost] > 0]
                if curve.empty:
                    continue
                # A line between means of different runs would look like progress.
                parts = (curve["runs"] != curve["runs"].shift()).cumsum()
                for _, part in curve.groupby(parts):
                    [handle] = axis.plot(
                        part[cost], part["mean"], color=color, marker=look.marker,
                        linestyle=look.line, markeredgecolor="white", markeredgewidth=0.6,
                    )  # fmt: skip
                half = (curve["high"] - curve["mean"]).fillna(0)
                axis.errorbar(curve[cost], curve["mean"], half, color=color, linestyle="none",
                              capsize=2, elinewidth=1)  # fmt: skip
                handles[drawing.fold(label, 44)] = handle
            together = pd.concat(points)
            is_higher_better = of_evaluation["better"].iloc[0] == "higher"
            front = pareto(together[cost], together["mean"], is_higher_better)
            together = together.assign(on_front=front)
            best = together[front & (together[cost] > 0)].sort_values(cost)
            [line] = axis.step(best[cost], best["mean"], where="post", color=drawing.INK,
                               linewidth=0.9, linestyle=(0, (1, 1.5)), zorder=1)  # fmt: skip
            if len(best) > 1:
                fronts["Pareto front"] = line
            drawing.scale(axis, together[cost])
            paid = together.loc[together[cost] > 0, cost]
            if len(paid) and paid.min() > paid.max() * (1 - SAME):
                axis.set_xlim(0.8 * paid.mean(), 1.2 * paid.mean())
            axis.set(title=drawing.fold(name.replace(f" on {data}", ""), 34), xlabel=words)
            axis.set_ylabel(of_evaluation["unit"].iloc[0])
            axis.margins(x=0.12, y=0.12)
            rows.append(together)
        drawing.legend(figure, handles | fronts)
        yield Drawing(
            f"cost-{cost.replace('_', '-')}-{slug(str(data))}",
            "Accuracy against cost",
            f"Accuracy against {words} on {data}",
            f"{measured(source, on_data)} Cost is that of the pre-training up to the encoder that "
            "was evaluated, of runs that are over; points are means over seeds with 95 % t "
            "intervals, joined where they are of the same runs. What costs nothing is a "
            "horizontal line. A dotted line is the Pareto front of all these means, the free ones "
            "among them: nothing measured was both cheaper and better than a point on it (costs "
            "within 1 % of each other are equal). That is a statement about means; it is not "
            "tested.",
            f"Score over {words} of {on_data['group'].nunique()} groups of runs.",
            pd.concat(rows),
            figure,
        )


def pareto(costs: pd.Series, values: pd.Series, is_higher_better: bool) -> np.ndarray:
    """Which points no other one dominates: bool ``(N,)``."""
    cost, value = costs.to_numpy(float), values.to_numpy(float) * (1 if is_higher_better else -1)
    no_worse = (cost * (1 - SAME) <= cost[:, None]) & (value >= value[:, None])
    better = (cost < cost[:, None] * (1 - SAME)) | (value > value[:, None])
    return ~(no_worse & better).any(axis=1)


def _means(scores: pd.DataFrame, cost: str) -> pd.DataFrame:
    """Mean over the seeds at each step; the final encoders come last."""
    rows = [
        (step, pd.to_numeric(group[cost]).mean(), mean.mean, *mean.interval, mean.n,
         " ".join(sorted(group["run"])))
        for step, group in scores.groupby(scores["step"].astype(float), sort=True, dropna=False)
        for mean in [mean_interval(group["value"])]
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["step", cost, "mean", "low", "high", "n", "runs"])
