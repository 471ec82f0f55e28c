"""Accuracy against what it cost, from the evaluations along the way and the last one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from ssl_bench.analysis.comparison import DONE
from ssl_bench.analysis.comparison.curves import SAME
from ssl_bench.analysis.report.captions import measured
from ssl_bench.analysis.report.drawing import INK, Drawing, Missing, legend, panels, scale, shorten
from ssl_bench.analysis.report.source import Source, columns, shades_of, slug, spread

_COSTS = {"flops": "FLOPs", "images_seen": "images seen", "seconds": "device-seconds"}


def against_cost(source: Source) -> Iterator[Drawing | Missing]:
    """One figure for each kind of cost, one panel for each evaluation.

    Of runs that are not to go on, as in `comparison.compare` at an equal cost.
    """
    scores = source.scores
    scores = scores[scores["is_headline"].astype(bool)] if len(scores) else scores
    done = source.runs.loc[source.runs["state"].isin(DONE), "run"]
    if len(scores):  # what ranks nobody has no front
        scores = scores[scores["run"].isin(done) & (scores["better"] != "neither")]
    if scores.empty:
        return
    for cost, words in _COSTS.items():
        title = f"Accuracy against {words}"
        scores = scores.assign(**{cost: pd.to_numeric(scores[cost], errors="coerce")})
        known = scores[scores[cost] >= 0]
        paid = known[known[cost] > 0]
        if cost == "seconds" and paid["device"].nunique() > 1:
            yield Missing(title, "the runs were on several devices, whose seconds differ")
            continue
        if paid.empty:
            yield Missing(title, "no run has counted them", "ssl-bench run --eval-every EPOCHS ...")
            continue
        yield from _panels(source, known, cost, words)


def _panels(source: Source, scores: pd.DataFrame, cost: str, words: str) -> Iterator[Drawing]:
    for data, on_data in scores.groupby("evaluated_on", sort=False):
        found = list(columns(source, on_data))
        figure, axes = panels(len(found))
        handles, fronts, rows = {}, {}, []
        for axis, (name, column) in zip(axes, found, strict=True):
            points = []
            for label, color, look, group in shades_of(source, column):
                curve = _means(group, cost)
                points.append(curve.assign(evaluation=name, group=label))
                for mean, low, high in curve.loc[
                    curve[cost] == 0, ["mean", "low", "high"]
                ].itertuples(index=False):
                    free = axis.axhline(mean, color=color, linestyle=look.line, linewidth=1.1)
                    if low == low:
                        axis.axhspan(low, high, color=color, alpha=0.12, linewidth=0)
                    handles[shorten(label, 44)] = free
                curve = curve[curve[cost] > 0]
                if curve.empty:
                    continue
                # A line between means of other runs would show their difference as a course.
                parts = (curve["runs"] != curve["runs"].shift()).cumsum()
                for _, part in curve.groupby(parts):
                    [handle] = axis.plot(
                        part[cost], part["mean"], color=color, marker=look.marker,
                        linestyle=look.line, markeredgecolor="white", markeredgewidth=0.6,
                    )  # fmt: skip
                half = (curve["high"] - curve["mean"]).fillna(0)
                axis.errorbar(curve[cost], curve["mean"], half, color=color, linestyle="none",
                              capsize=2, elinewidth=1)  # fmt: skip
                handles[shorten(label, 44)] = handle
            together = pd.concat(points)
            is_better = column["better"].iloc[0]
            if is_better in ("higher", "lower"):
                front = pareto(together[cost], together["mean"], is_better == "higher")
                together = together.assign(on_front=front)
                best = together[front & (together[cost] > 0)].sort_values(cost)
                [line] = axis.step(best[cost], best["mean"], where="post", color=INK,
                                     linewidth=0.9, linestyle=(0, (1, 1.5)), zorder=1)  # fmt: skip
                if len(best) > 1:
                    fronts["Pareto front"] = line
            scale(axis, together[cost])
            paid = together.loc[together[cost] > 0, cost]
            if len(paid) and paid.min() > paid.max() * (1 - SAME):
                axis.set_xlim(0.8 * paid.mean(), 1.2 * paid.mean())
            axis.set(title=shorten(name.replace(f" on {data}", ""), 34), xlabel=words)
            axis.set_ylabel(column["unit"].iloc[0])
            axis.margins(x=0.12, y=0.12)
            rows.append(together)
        legend(figure, handles | fronts)
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
    """Which points no other one beats in both: bool ``(N,)``.

    Args:
        costs: zero or more.
    """
    cost, value = costs.to_numpy(float), values.to_numpy(float) * (1 if is_higher_better else -1)
    no_worse = (cost * (1 - SAME) <= cost[:, None]) & (value >= value[:, None])
    better = (cost < cost[:, None] * (1 - SAME)) | (value > value[:, None])
    return ~(no_worse & better).any(axis=1)


def _means(scores: pd.DataFrame, cost: str) -> pd.DataFrame:
    """Mean over the seeds at each step; the final encoders come last."""
    scores = scores.assign(step=scores["step"].astype(float).fillna(np.inf))
    rows = [
        (
            step,
            pd.to_numeric(group[cost]).mean(),
            *spread(group["value"]),
            " ".join(sorted(group["run"])),
        )
        for step, group in scores.groupby("step", sort=True)
    ]
    frame = pd.DataFrame(rows, columns=["step", cost, "mean", "low", "high", "n", "runs"])
    return frame.replace({"step": {np.inf: np.nan}})
