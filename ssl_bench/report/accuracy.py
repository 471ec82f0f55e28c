"""Figures of scores: by evaluation, over a setting, over what an evaluation varies."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from ssl_bench.report.drawing import FAINT, Drawing, Missing, legend, panels, scale, shorten
from ssl_bench.report.source import (
    Source,
    columns,
    measured,
    settings,
    shades_of,
    slug,
    spread,
)

_CURVE = re.compile(r"(?P<stem>[a-z0-9]+?)_(?P<place>\d+(?:\.\d+)?)(?P<unit_of_place>pct)?")
_BASELINE_LINES = ("--", ":", "-.", (0, (6, 2, 1, 2, 1, 2)))
_SMALLEST_CURVE = 3
_MOST_GROUPS = 80


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
        baselines = {label: Line2D([], [], **line) for label, line in lines.items()}
        for axis, (name, column) in zip(axes, found, strict=True):
            rows += _forest(axis, source, column, places, name)
            for label, value in _baselines(column).items():
                axis.axvline(value, zorder=1, **lines[label])
            axis.set_title(shorten(name.replace(f" on {data}", ""), 34))
            axis.set_xlabel(column["unit"].iloc[0])
            axis.margins(x=0.12)
            axis.grid(axis="y", visible=False)
        axes[0].set_yticks(range(len(labels)), [shorten(label, 44) for label in labels])
        axes[0].set_ylim(len(labels) - 0.4, -0.6)
        legend(figure, baselines)
        cut = f" {left_out} more groups do not fit; name fewer runs." if left_out else ""
        about = " Grey lines are baselines under the same protocol." if baselines else ""
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


def over_settings(source: Source) -> Iterator[Drawing | Missing]:
    """A curve wherever three groups of a method differ in one number alone."""
    is_any = False
    for method, name, values in _ablations(source):
        scores = source.headlines[source.headlines["group"].isin(values)]
        if scores.empty:
            continue
        is_any = True
        scores = scores.assign(value_of=scores["group"].map(values))
        found = list(columns(source, scores))
        look = source.look(method)
        figure, axes = panels(len(found))
        rows = []
        for axis, (title, column) in zip(axes, found, strict=True):
            curve = _curve(column, "value_of")
            _draw_curve(axis, curve, look.color, look.marker, look.line)
            axis.plot(column["value_of"], column["value"], ".", color=look.color, alpha=0.4)
            scale(axis, values.values())
            axis.set(title=shorten(title, 38), xlabel=name, ylabel=column["unit"].iloc[0])
            rows.append(curve.assign(evaluation=title, method=method, setting=name))
        yield Drawing(
            f"ablation-{slug(str(method))}-{slug(name)}-{slug(min(values))}",
            "Ablations",
            f"{name} of {method}",
            f"{measured(source, scores)} All other settings are the same. Bars are 95 % t "
            "intervals over seeds, small dots single runs.",
            f"Score of {method} over {len(set(values.values()))} values of {name}.",
            pd.concat(rows).rename(columns={"value_of": "value"}),
            figure,
        )
    if not is_any:
        yield Missing(
            "Ablation curves",
            "no three groups of a method differ in one number alone",
            "ssl-bench ablate mask-ratio",
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
        curve = _curve(group, "place")
        handles[shorten(label, 40)] = _draw_curve(axis, curve, color, look.marker, look.line)
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


def _lines(scores: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """How each baseline is drawn, the same in all panels."""
    labels = sorted({label for _, column in scores.groupby("eval") for label in _baselines(column)})
    styles = itertools.cycle(_BASELINE_LINES)
    return {
        label: {"color": FAINT, "linestyle": line, "linewidth": 1}
        for label, line in zip(labels, styles, strict=False)
    }


def _baselines(column: pd.DataFrame) -> dict[str, float]:
    """The mean headline of each baseline, by label, in the order in which they were stored."""
    found: dict[str, list[float]] = {}
    for text, score in zip(column["baselines"], column["score"], strict=True):
        for label, scores in (json.loads(text) if isinstance(text, str) else {}).items():
            if scores.get(score) is not None:
                found.setdefault(label, []).append(scores[score])
    return {label: float(np.mean(values)) for label, values in found.items()}


def _ablations(source: Source) -> Iterator[tuple[str, str, dict[str, float]]]:
    """Method, setting, and its value in each group, wherever groups differ in nothing else."""
    groups = source.runs.drop_duplicates("group")
    for method, peers in groups.groupby("method", sort=True):
        told = {row["group"]: settings(row["settings"]) for _, row in peers.iterrows()}
        prints = dict(zip(peers["group"], peers["data_fingerprint"], strict=True))
        for name in dict.fromkeys(name for each in told.values() for name in each):
            alike: dict[str, dict[str, float]] = {}
            for group, each in told.items():
                value = each.get(name)
                if isinstance(value, int | float) and not isinstance(value, bool):
                    rest = {n: v for n, v in each.items() if n != name}
                    key = json.dumps([prints[group], rest], sort_keys=True, default=str)
                    alike.setdefault(key, {})[group] = value
            for values in alike.values():
                if len(set(values.values())) >= _SMALLEST_CURVE:
                    yield str(method), name, values


def _curve(scores: pd.DataFrame, place: str) -> pd.DataFrame:
    """Mean and interval at each place."""
    rows = [(at, *spread(group["value"])) for at, group in scores.groupby(place, sort=True)]
    return pd.DataFrame(rows, columns=[place, "mean", "low", "high", "n"])


def _draw_curve(axis: Axes, curve: pd.DataFrame, color: Any, marker: str, line: str) -> Any:
    places = curve.iloc[:, 0]
    half = (curve["high"] - curve["mean"]).fillna(0)
    [handle] = axis.plot(places, curve["mean"], color=color, marker=marker, linestyle=line)
    axis.errorbar(places, curve["mean"], half, color=color, linestyle="none", capsize=3)
    return handle
