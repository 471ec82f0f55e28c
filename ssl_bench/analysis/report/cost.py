"""Figures of accuracy against cost, at the snapshots and at the end, and under several budgets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from ssl_bench.analysis.comparison import ENDED, grouping
from ssl_bench.analysis.comparison.curves import SAME
from ssl_bench.analysis.comparison.statistics import mean_interval
from ssl_bench.analysis.report import drawing
from ssl_bench.analysis.report.captions import measured
from ssl_bench.analysis.report.drawing import Drawing, Missing
from ssl_bench.analysis.report.source import Source, slug
from ssl_bench.utils.formatting import count

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


def over_budgets(source: Source) -> Iterator[Drawing]:
    """What each method reaches under budgets of several sizes, over each kind of cost.

    Each point is the end of trainings of their own, whose learning rates were annealed for that
    budget, unlike the encoders on the way of one long training.
    """
    scores = source.headlines[source.headlines["better"] != "neither"]
    costs = [cost for cost in _COSTS if pd.to_numeric(scores[cost], errors="coerce").notna().any()]
    settings = scores["settings"].map(_but_length)
    scores = scores.assign(
        family=scores["method"].astype(str) + settings,
        **{cost: pd.to_numeric(scores[cost], errors="coerce") for cost in costs},
    )
    for title, of_evaluation in source.evaluations(scores):
        budgets = of_evaluation.groupby("family")["key"].nunique()
        several = of_evaluation[of_evaluation["family"].isin(budgets[budgets > 1].index)]
        if several.empty:
            continue
        names: dict[str, str] = {}
        for method, peers in several.groupby("method"):
            known = {each: json.loads(each.removeprefix(method)) for each in peers["family"]}
            labels = grouping.described(grouping.differences(known))
            names |= {key: f"{method} {labels[key]}".strip() for key in known}
        figure, axes = drawing.panels(len(costs))
        handles: dict[str, Any] = {}
        rows, crossed = [], []
        for axis, cost in zip(axes, costs, strict=True):
            curves = {}
            for (method, family), of_family in several.groupby(["method", "family"], sort=True):
                curve = _ends(of_family, cost)
                look, name = source.looks[str(method)], names[str(family)]
                handles[name] = drawing.draw_curve(
                    axis, curve, look.color, look, of_family[of_family[cost] > 0]
                )
                curves[str(family)] = name, curve
                rows.append(curve.rename(columns={cost: "at"}).assign(cost=cost, method=name))
            for label, mean in _free(source, of_evaluation).items():
                handles[label] = axis.axhline(mean, color=drawing.INK, linewidth=0.9, linestyle=":")
            for (one, first), (other, second) in combinations(curves.values(), 2):
                places = crossings(first, second, cost)
                crossed += [f"{one} and {other} at {count(x)} {_COSTS[cost]}" for x in places]
            drawing.scale(axis, several[cost])
            axis.set(xlabel=_COSTS[cost], ylabel=of_evaluation["unit"].iloc[0])
        drawing.legend(figure, handles)
        told = f"means change places: {'; '.join(crossed)}" if crossed else "no means change places"
        yield Drawing(
            f"budgets-{slug(title)}",
            "Accuracy against cost",
            f"{title} under {int(budgets.max())} budgets",
            f"{measured(source, several)} Each point is the mean over seeds at the end of "
            "trainings that were planned for that budget, with its 95 % t interval; small dots are "
            "single runs, and dotted lines cost nothing. Panels read the same runs at equal "
            f"{', '.join(_COSTS[cost] for cost in costs)}. Between the points, {told}.",
            f"{title} of {several['method'].nunique()} methods under several budgets.",
            pd.concat(rows),
            figure,
        )


def _but_length(settings: str) -> str:
    """A run's settings without the length of its training, as text."""
    known = {n: v for n, v in grouping.parse(settings).items() if n != "epochs"}
    return json.dumps(known, sort_keys=True)


def _ends(scores: pd.DataFrame, cost: str) -> pd.DataFrame:
    """The mean of each group at its mean cost, in ascending order."""
    groups = [
        (part[cost].mean(), mean_interval(part["value"])) for _, part in scores.groupby("key")
    ]
    rows = [(at, mean.mean, *mean.interval, mean.n) for at, mean in groups if at > 0]
    return pd.DataFrame(rows, columns=[cost, "mean", "low", "high", "n"]).sort_values(cost)


def _free(source: Source, scores: pd.DataFrame) -> dict[str, float]:
    """The mean of each baseline of an evaluation, by its name."""
    first = scores.iloc[0]
    found = {}
    for table in source.comparison.tables:
        for group in filter(lambda group: group.is_baseline, table.groups):
            score = table.cells.get((group.key, first["column"]))
            if score and score.mean.n and table.test_fingerprint == first["test_fingerprint"]:
                found[group.label] = score.mean.mean
    return found


def crossings(first: pd.DataFrame, second: pd.DataFrame, cost: str) -> list[float]:
    """The costs at which two curves of means change places, linear in the logarithm of the cost.

    Only where both are known: nothing is read beyond the points of either.
    """
    ends = [np.log(curve[cost].to_numpy(float)) for curve in (first, second)]
    means = [curve["mean"].to_numpy(float) for curve in (first, second)]
    if any(len(each) < 2 for each in ends):
        return []
    low, high = max(each[0] for each in ends), min(each[-1] for each in ends)
    at = np.unique(np.clip(np.concatenate(ends), low, high)) if low <= high else np.empty(0)
    ahead = np.interp(at, ends[0], means[0]) - np.interp(at, ends[1], means[1])
    return [
        float(np.exp(at[i] + (at[i + 1] - at[i]) * ahead[i] / (ahead[i] - ahead[i + 1])))
        for i in range(len(at) - 1)
        if ahead[i] * ahead[i + 1] < 0
    ]


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
