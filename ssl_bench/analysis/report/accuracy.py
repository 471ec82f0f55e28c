"""Figures of scores: by evaluation, and over what an evaluation varies."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from ssl_bench.analysis.report.captions import encoder, measured
from ssl_bench.analysis.report.curves import draw_curve, means
from ssl_bench.analysis.report.drawing import FAINT, Drawing, Missing, legend, panels, shorten
from ssl_bench.analysis.report.source import Source, columns, settings, shades_of, slug, spread

_CURVE = re.compile(r"(?P<stem>[a-z0-9]+?)_(?P<place>\d+(?:\.\d+)?)(?P<unit_of_place>pct)?")
_BASELINE_LINES = (
    "--", ":", "-.", (0, (6, 2, 1, 2, 1, 2)), (0, (10, 3)), (0, (1, 5)),
)  # fmt: skip
_MOST_GROUPS = 80

Baseline = tuple[str, str]


def by_evaluation(source: Source) -> Iterator[Drawing | Missing]:
    """Every group's mean, its interval and its runs, one panel for each evaluation."""
    title = "Accuracy by evaluation"
    if source.headlines.empty:
        yield Missing(title, "no run has a score yet", "ssl-bench eval RUN")
        return
    headlines = source.headlines
    headlines = headlines.assign(
        kind=np.where(headlines["unit"].str.contains("accuracy", na=False), "Accuracy", "Scores")
    )
    for (kind, data), scores in headlines.groupby(["kind", "evaluated_on"], sort=True):
        present = set(scores["label"])
        labels = [label for label in source.labels if label in present]
        left_out = len(labels[_MOST_GROUPS:])
        labels = labels[:_MOST_GROUPS]
        scores = scores[scores["label"].isin(labels)]
        found = list(columns(source, scores))
        places = {label: place for place, label in enumerate(labels)}
        figure, axes = panels(len(found), 3, 3.1, 1.0 + 0.26 * len(labels), sharey=True)
        rows = []
        lines = _lines(scores)
        encoders = {of_run for _, of_run in lines}
        baselines = {
            label if len(encoders) == 1 else f"{label}: {of_run}": Line2D([], [], **style)
            for (label, of_run), style in lines.items()
        }
        for axis, (name, column) in zip(axes, found, strict=True):
            rows += _forest(axis, source, column, places, name)
            for line, value in _baselines(column).items():
                if line in lines:
                    axis.axvline(value, zorder=1, **lines[line])
            axis.set_title(shorten(name.replace(f" on {data}", ""), 34))
            axis.set_xlabel(column["unit"].iloc[0])
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
    """Curves over what an evaluation itself varies: blocks that are trained, share of labels."""
    finals = source.finals
    seen = set()
    if len(finals):
        parts = finals["score"].str.extract(f"^{_CURVE.pattern}$")
        parts["place"] = pd.to_numeric(parts["place"])
        points = finals.join(parts).dropna(subset=["place"])
        for title, column in columns(source, points):
            # An evaluation's unit is that of its first score, and of those that are called alike.
            headline = column.loc[column["is_headline"].astype(bool), ["stem", "unit"]].to_numpy()
            if not len(headline):
                continue
            stem, unit = headline[0]
            alike = column[column["stem"] == stem]
            if alike["place"].nunique() > 1:
                seen.add(alike["eval"].iloc[0])
                is_share = (alike["unit_of_place"] == "pct").any()
                yield _within(source, title, "labels used (%)" if is_share else stem, unit, alike)
    for name, what in (("low-shot", "Accuracy with few labels"),
                       ("partial-finetune", "Partial fine-tuning")):  # fmt: skip
        if name not in seen:
            yield Missing(
                what, f"no run has scores of {name}", f"ssl-bench eval RUN --evals {name}"
            )


def _within(source: Source, title: str, stem: str, unit: str, scores: pd.DataFrame) -> Drawing:
    figure, [axis] = panels(1, 1, 5.2, 3.2)
    handles: dict[str, Any] = {}
    rows = []
    for label, color, look, group in shades_of(source, scores):
        curve = means(group, "place")
        handles[shorten(label, 40)] = draw_curve(axis, curve, color, look)
        axis.plot(group["place"], group["value"], ".", color=color, alpha=0.4)
        rows.append(curve.assign(group=label))
    low, high = scores["place"].min(), scores["place"].max()
    if low > 0 and high / low >= 10:
        axis.set_xscale("log")
        axis.minorticks_off()
    places = sorted(scores["place"].unique())
    axis.set_xticks(places, [f"{place:g}" for place in places])
    axis.set(xlabel=stem, ylabel=unit)
    legend(figure, handles)
    return Drawing(
        f"curve-{slug(title)}-{slug(stem)}",
        "Accuracy",
        f"{title}: over {stem}",
        f"{measured(source, scores)} Means over seeds with 95 % t intervals, small dots single "
        "runs.",
        f"Score of {len(handles)} groups of runs over {len(places)} values of {stem}.",
        pd.concat(rows).rename(columns={"place": stem}),
        figure,
    )


def _forest(
    axis: Axes, source: Source, column: pd.DataFrame, places: dict[str, int], name: str
) -> list[dict[str, Any]]:
    """Draw a row for each group: its interval, its mean and its runs. Returns the numbers."""
    rows = []
    for label, group in column.groupby("label", sort=False):
        look, place = source.look(group["method"].iloc[0]), places[str(label)]
        mean, low, high, n = spread(group["value"])
        if low == low:
            axis.plot([low, high], [place, place], color=look.color, linewidth=2.2, alpha=0.55)
        axis.plot(group["value"], [place] * len(group), ".", color=look.color, alpha=0.6, ms=4)
        axis.plot(mean, place, look.marker, color=look.color, ms=6.5, mec="white", mew=0.7)
        common = {"evaluation": name, "group": label, "method": group["method"].iloc[0]}
        cell = {"mean": mean, "low": low, "high": high, "n": n, "unit": group["unit"].iloc[0]}
        rows += [
            {**common, **cell, "run": run, "seed": seed, "value": value}
            for run, seed, value in zip(group["run"], group["seed"], group["value"], strict=True)
        ]
    return rows


def _lines(scores: pd.DataFrame) -> dict[Baseline, dict[str, Any]]:
    """How each baseline is drawn, the same in all panels; none where they are too many."""
    found = {line for _, column in scores.groupby("eval") for line in _baselines(column)}
    if len(found) > len(_BASELINE_LINES):
        return {}
    return {
        line: {"color": FAINT, "linestyle": style, "linewidth": 1}
        for line, style in zip(sorted(found), _BASELINE_LINES, strict=False)
    }


def _baselines(column: pd.DataFrame) -> dict[Baseline, float]:
    """The mean headline of each baseline, by its label and the encoder of the runs beside it."""
    found: dict[Baseline, list[float]] = {}
    told = column[["baselines", "score", "settings"]].itertuples(index=False)
    for text, score, own in told:
        of_run = encoder(settings(own))
        for label, scores in (json.loads(text) if isinstance(text, str) else {}).items():
            if scores.get(score) is not None:
                found.setdefault((label, of_run), []).append(scores[score])
    return {line: float(np.mean(values)) for line, values in found.items()}
