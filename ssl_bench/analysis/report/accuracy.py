"""Figures of scores: by evaluation, and over what an evaluation varies."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from ssl_bench.analysis.report.captions import encoder, measured
from ssl_bench.analysis.report.drawing import (
    FAINT,
    Drawing,
    Missing,
    draw_curve,
    legend,
    missing,
    panels,
    shorten,
)
from ssl_bench.analysis.report.source import (
    Source,
    evaluations,
    mean_and_interval,
    mean_curve,
    parse_settings,
    slug,
    styled_groups,
)

_SERIES = re.compile(r"(?P<stem>[a-z0-9]+?)_(?P<x>\d+(?:\.\d+)?)(?P<unit_of_x>pct)?")
_BASELINE_LINES = (
    "--", ":", "-.", (0, (6, 2, 1, 2, 1, 2)), (0, (10, 3)), (0, (1, 5)),
)  # fmt: skip
_MOST_GROUPS = 80

Baseline = tuple[str, str]


def by_evaluation(source: Source) -> Iterator[Drawing | Missing]:
    """The mean, interval and runs of every group, one panel for each evaluation."""
    headlines = source.headlines
    if headlines.empty:
        reason = "no run has a score yet"
        yield Missing("Accuracy by evaluation", reason, "ssl-bench eval RUN")
        return
    is_accuracy = headlines["unit"].str.contains("accuracy", na=False)
    headlines = headlines.assign(kind=np.where(is_accuracy, "Accuracy", "Scores"))
    for (kind, data), scores in headlines.groupby(["kind", "evaluated_on"], sort=True):
        present = set(scores["label"])
        labels = [label for label in source.labels if label in present]
        left_out = len(labels[_MOST_GROUPS:])
        labels = labels[:_MOST_GROUPS]
        scores = scores[scores["label"].isin(labels)]
        found = list(evaluations(source, scores))
        figure, axes = panels(len(found), 3, 3.1, 1.0 + 0.26 * len(labels), sharey=True)
        rows = []
        lines = _baseline_lines(scores)
        encoders = {of_encoder for _, of_encoder in lines}
        baselines = {
            label if len(encoders) == 1 else f"{label}: {of_encoder}": Line2D([], [], **style)
            for (label, of_encoder), style in lines.items()
        }
        for axis, (name, of_evaluation) in zip(axes, found, strict=True):
            rows += _draw_groups(axis, source, of_evaluation, labels, name)
            for baseline, value in _baselines(of_evaluation).items():
                if baseline in lines:
                    axis.axvline(value, zorder=1, **lines[baseline])
            axis.set_title(shorten(name.replace(f" on {data}", ""), 34))
            axis.set_xlabel(of_evaluation["unit"].iloc[0])
            axis.margins(x=0.12)
            axis.grid(axis="y", visible=False)
        axes[0].set_yticks(range(len(labels)), [shorten(label, 44) for label in labels])
        axes[0].set_ylim(len(labels) - 0.4, -0.6)
        legend(figure, baselines)
        cut = f" {left_out} more groups do not fit; name fewer runs." if left_out else ""
        about = " Grey lines are baselines under the same protocol" if baselines else ""
        about += "; each is of one encoder." if len(encoders) > 1 else "." if baselines else ""
        yield Drawing(
            f"{kind.lower()}-{slug(str(data))}",
            "Accuracy" if kind == "Accuracy" else "Other scores",
            f"{kind} by evaluation on {data}",
            f"{measured(source, scores)} Large marks are means over seeds, bars their 95 % t "
            f"intervals, small dots single runs; a mean without a bar is of one run.{about}{cut}",
            f"Dot plot of {len(labels)} groups of runs under {len(found)} evaluations on {data}.",
            pd.DataFrame(rows),
            figure,
        )


def within_evaluations(source: Source) -> Iterator[Drawing | Missing]:
    """Curves over what an evaluation itself varies: trained blocks, percentage of labels."""
    finals = source.finals
    drawn = set()
    if len(finals):
        parts = finals["score"].str.extract(f"^{_SERIES.pattern}$")
        parts["x"] = pd.to_numeric(parts["x"])
        points = finals.join(parts).dropna(subset=["x"])
        for title, scores in evaluations(source, points):
            # An evaluation's unit is that of its first score, and of scores with the same stem.
            headline = scores.loc[scores["is_headline"].astype(bool), ["stem", "unit"]].to_numpy()
            if not len(headline):
                continue
            stem, unit = headline[0]
            series = scores[scores["stem"] == stem]
            if series["x"].nunique() > 1:
                drawn.add(series["eval"].iloc[0])
                is_percentage = (series["unit_of_x"] == "pct").any()
                name = "labels used (%)" if is_percentage else stem
                yield _draw_series(source, title, name, unit, series)
    for name, title in (
        ("low-shot", "Accuracy with few labels"),
        ("partial-finetune", "Partial fine-tuning"),
    ):
        if name not in drawn:
            yield missing(title, name, "scores")


def _draw_series(
    source: Source, title: str, xlabel: str, unit: str, scores: pd.DataFrame
) -> Drawing:
    figure, [axis] = panels(1, 1, 5.2, 3.2)
    handles: dict[str, Any] = {}
    rows = []
    for label, color, look, group in styled_groups(source, scores):
        means = mean_curve(group, "x")
        handles[shorten(label, 40)] = draw_curve(axis, means, color, look)
        axis.plot(group["x"], group["value"], ".", color=color, alpha=0.4)
        rows.append(means.assign(group=label))
    xs = sorted(scores["x"].unique())
    if xs[0] > 0 and xs[-1] / xs[0] >= 10:
        axis.set_xscale("log")
        axis.minorticks_off()
    axis.set_xticks(xs, [f"{x:g}" for x in xs])
    axis.set(xlabel=xlabel, ylabel=unit)
    legend(figure, handles)
    return Drawing(
        f"curve-{slug(title)}-{slug(xlabel)}",
        "Accuracy",
        f"{title}: over {xlabel}",
        f"{measured(source, scores)} Means over seeds with 95 % t intervals, small dots single "
        "runs.",
        f"Score of {len(handles)} groups of runs over {len(xs)} values of {xlabel}.",
        pd.concat(rows).rename(columns={"x": xlabel}),
        figure,
    )


def _draw_groups(
    axis: Axes, source: Source, scores: pd.DataFrame, labels: list[str], name: str
) -> list[dict[str, Any]]:
    """Draw a row for each group: its interval, its mean and its runs. Returns the numbers."""
    rows = []
    for label, group in scores.groupby("label", sort=False):
        method, y = group["method"].iloc[0], labels.index(str(label))
        look = source.looks[method]
        mean, low, high, n = mean_and_interval(group["value"])
        if low == low:
            axis.plot([low, high], [y, y], color=look.color, linewidth=2.2, alpha=0.55)
        axis.plot(group["value"], [y] * len(group), ".", color=look.color, alpha=0.6, ms=4)
        axis.plot(mean, y, look.marker, color=look.color, ms=6.5, mec="white", mew=0.7)
        shared = {"evaluation": name, "group": label, "method": method, "mean": mean, "low": low,
                  "high": high, "n": n, "unit": group["unit"].iloc[0]}  # fmt: skip
        rows += [shared | run for run in group[["run", "seed", "value"]].to_dict("records")]
    return rows


def _baseline_lines(scores: pd.DataFrame) -> dict[Baseline, dict[str, Any]]:
    """The style of each baseline, the same in all panels; none where they are too many."""
    found = {each for _, part in scores.groupby("eval") for each in _baselines(part)}
    if len(found) > len(_BASELINE_LINES):
        return {}
    return {
        baseline: {"color": FAINT, "linestyle": style, "linewidth": 1}
        for baseline, style in zip(sorted(found), _BASELINE_LINES, strict=False)
    }


def _baselines(scores: pd.DataFrame) -> dict[Baseline, float]:
    """The mean headline of each baseline, by its label and the encoder of its runs."""
    found: dict[Baseline, list[float]] = {}
    for row in scores[["baselines", "score", "settings"]].itertuples(index=False):
        of_encoder = encoder(parse_settings(row.settings))
        for label, values in parse_settings(row.baselines).items():
            if values.get(row.score) is not None:
                found.setdefault((label, of_encoder), []).append(values[row.score])
    return {baseline: float(np.mean(values)) for baseline, values in found.items()}
