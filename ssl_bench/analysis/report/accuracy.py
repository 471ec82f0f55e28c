"""Figures of scores: by evaluation, over settings, within evaluations, and under corruptions."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from ssl_bench.analysis.comparison import grouping
from ssl_bench.analysis.comparison.baselines import seed_of
from ssl_bench.analysis.report import drawing
from ssl_bench.analysis.report.captions import encoder, measured
from ssl_bench.analysis.report.drawing import Drawing, Missing, missing, or_missing
from ssl_bench.analysis.report.source import MEAN_OF, Source, mean_curve, slug
from ssl_bench.runs import schema

_SERIES = re.compile(r"(?P<stem>[a-z0-9]+?)_(?P<x>\d+(?:\.\d+)?)(?P<unit_of_x>pct)?")
_BASELINE_LINES: tuple[Any, ...] = (
    "--", ":", "-.", (0, (6, 2, 1, 2, 1, 2)), (0, (10, 3)), (0, (1, 5)),
)  # fmt: skip
_MOST_GROUPS = 80
_SMALLEST_CURVE = 3
_MEAN = "mean of all"

Baseline = tuple[str, str]
Curve = tuple[Mapping[str, Any], Mapping[str, float]]
"""Groups that differ in one number: the settings that they share, and its values by their keys."""


@or_missing(Missing("Accuracy by evaluation", "no run has a score yet", "ssl-bench eval RUN"))
def by_evaluation(source: Source) -> Iterator[Drawing]:
    """The mean, interval and runs of every group, one panel for each evaluation."""
    is_accuracy = source.headlines["unit"].astype(str).str.contains("accuracy")
    headlines = source.headlines.assign(kind=np.where(is_accuracy, "Accuracy", "Scores"))
    for (kind, data), scores in headlines.groupby(["kind", "evaluated_on"], sort=True):
        present = set(scores["label"])
        labels = [label for label in source.labels if label in present]
        left_out = len(labels[_MOST_GROUPS:])
        labels = labels[:_MOST_GROUPS]
        scores = scores[scores["label"].isin(labels)]
        found = list(source.evaluations(scores))
        folded = {label: drawing.fold(label, 44) for label in labels}
        row = 0.26 + 0.14 * max(text.count("\n") for text in folded.values())
        figure, axes = drawing.panels(len(found), 3, 3.1, 1.1 + row * len(labels), sharey=True)
        rows = []
        baselines = [_baselines(of_evaluation) for _, of_evaluation in found]
        names = sorted({each for of_panel in baselines for each in of_panel})
        has_lines = 0 < len(names) <= len(_BASELINE_LINES)
        lines = dict(zip(names, _BASELINE_LINES, strict=False)) if has_lines else {}
        style: dict[str, Any] = {"color": drawing.FAINT, "linewidth": 1}
        encoders = {of_encoder for _, of_encoder in lines}
        handles = {
            label if len(encoders) == 1 else f"{label}: {of_encoder}": Line2D(
                [], [], linestyle=line, **style
            )
            for (label, of_encoder), line in lines.items()
        }
        for axis, (name, of_evaluation), of_panel in zip(axes, found, baselines, strict=True):
            rows += _draw_groups(axis, source, of_evaluation, labels, name)
            for baseline, line in lines.items():
                if baseline in of_panel:
                    axis.axvline(of_panel[baseline], zorder=1, linestyle=line, **style)
            axis.set_title(drawing.fold(name.replace(f" on {data}", ""), 34))
            axis.set_xlabel(of_evaluation["unit"].iloc[0])
            axis.margins(x=0.12)
            axis.grid(axis="y", visible=False)
        axes[0].set_yticks(range(len(labels)), [folded[label] for label in labels])
        axes[0].set_ylim(len(labels) - 0.4, -0.6)
        drawing.legend(figure, handles)
        cut = f" {left_out} more groups do not fit; name fewer runs." if left_out else ""
        about = " Grey lines are baselines under the same protocol" if has_lines else ""
        about += "; each is of one encoder." if len(encoders) > 1 else "." * has_lines
        of_data = (t for t in source.comparison.tables if t.evaluated_on == data)
        over = "; ".join(dict.fromkeys(table.interval_over for table in of_data))
        yield Drawing(
            f"{kind.lower()}-{slug(str(data))}",
            "Accuracy" if kind == "Accuracy" else "Other scores",
            f"{kind} by evaluation on {data}",
            f"{measured(source, scores)} Large marks are means over seeds, bars their 95 % t "
            f"intervals over {over}, small dots single runs; a mean without a bar is of one run."
            f"{about}{cut}",
            f"Dot plot of {len(labels)} groups of runs under {len(found)} evaluations on {data}.",
            pd.DataFrame(rows),
            figure,
        )


def within_evaluations(source: Source) -> Iterator[Drawing | Missing]:
    """Curves over what an evaluation itself varies: trained blocks, percentage of labels."""
    drawn = set()
    parts = source.finals["score"].astype(str).str.extract(f"^{_SERIES.pattern}$")
    points = source.finals.join(parts.assign(x=pd.to_numeric(parts["x"]))).dropna(subset=["x"])
    for title, scores in source.evaluations(points):
        # An evaluation's unit is that of its first score, and of scores with the same stem.
        for stem, unit in scores.loc[scores["is_headline"], ["stem", "unit"]].to_numpy()[:1]:
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
    figure, [axis] = drawing.panels(1, 1, 5.2, 3.2)
    handles: dict[str, Any] = {}
    rows = []
    for label, color, look, group in source.styled_groups(scores):
        means = mean_curve(group, "x")
        handles[drawing.fold(label, 44)] = drawing.draw_curve(axis, means, color, look, group)
        rows.append(means.assign(group=label))
    xs = sorted(scores["x"].unique())
    if xs[0] > 0 and xs[-1] / xs[0] >= 10:
        axis.set_xscale("log")
        axis.minorticks_off()
    axis.set_xticks(xs, [f"{x:g}" for x in xs])
    axis.set(xlabel=xlabel, ylabel=unit)
    drawing.legend(figure, handles)
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
    for label, color, look, group in source.styled_groups(scores):
        method, y = group["method"].iloc[0], labels.index(label)
        mean = source.means[tuple(group[MEAN_OF].iloc[0])]
        low, high = mean.interval
        if low == low:
            axis.plot([low, high], [y, y], color=color, linewidth=2.2, alpha=0.55)
        axis.plot(group["value"], [y] * len(group), ".", color=color, alpha=0.6, ms=4)
        axis.plot(mean.mean, y, look.marker, color=color, ms=6.5, mec="white", mew=0.7)
        shared = {"evaluation": name, "group": label, "method": method, "mean": mean.mean,
                  "low": low, "high": high, "n": mean.n,
                  "unit": group["unit"].iloc[0]}  # fmt: skip
        rows += [shared | run for run in group[["run", "seed", "value"]].to_dict("records")]
    return rows


def _baselines(scores: pd.DataFrame) -> dict[Baseline, float]:
    """The mean headline of each baseline, by its label and the encoder of its runs.

    Runs of one seed have the same baseline, which counts once.
    """
    found: dict[Baseline, dict[tuple[int, str], float]] = {}
    names = ["baselines", "score", "settings", "seed", "eval_seed", "eval_precision"]
    for row in scores[names].itertuples(index=False):
        of_encoder = encoder(grouping.parse(row.settings))
        which = seed_of(row), str(row.eval_precision)
        for label, values in grouping.parse(row.baselines).items():
            if values.get(row.score) is not None:
                found.setdefault((label, of_encoder), {}).setdefault(which, values[row.score])
    return {baseline: float(np.mean([*each.values()])) for baseline, each in found.items()}


@or_missing(
    Missing(
        "Ablation curves",
        "no three groups of a method differ in one number alone",
        "ssl-bench ablate mask-ratio",
    )
)
def over_settings(source: Source) -> Iterator[Drawing]:
    """A curve wherever three groups of a method differ in one number alone."""
    groups = source.headlines.drop_duplicates("key")
    folders = source.runs.set_index("run")["folder"]
    for method, peers in groups.groupby("method", sort=True):
        settings = {}
        for row in peers.to_dict("records"):
            version = schema.peek(Path(folders[row["run"]]) / schema.CONFIG).get("method_version")
            apart = {"version": version, "data": row["data_fingerprint"]}
            settings[row["key"]] = grouping.settings_of(row) | apart
        for name in dict.fromkeys(name for each in settings.values() for name in each):
            if curves := _ablation_curves(settings, name):
                yield _draw_ablation(source, str(method), name, curves)


def _draw_ablation(source: Source, method: str, name: str, curves: list[Curve]) -> Drawing:
    values = {key: value for _, of_curve in curves for key, value in of_curve.items()}
    scores = source.headlines[source.headlines["key"].isin(values)]
    scores = scores.assign(value_of=scores["key"].map(values))
    found = list(source.evaluations(scores))
    look = source.looks[method]
    apart = grouping.differences({number: shared for number, (shared, _) in enumerate(curves)})
    labels = grouping.described(apart).values()
    styles = list(zip(curves, labels, drawing.shades(look.color, len(curves)), strict=True))
    figure, axes = drawing.panels(len(found))
    handles, rows = {}, []
    for axis, (title, of_evaluation) in zip(axes, found, strict=True):
        for (_, of_curve), label, color in styles:
            part = of_evaluation[of_evaluation["key"].isin(of_curve)]
            if part.empty:
                continue
            means = mean_curve(part, "value_of")
            handles[drawing.fold(label, 60)] = drawing.draw_curve(axis, means, color, look, part)
            rows.append(means.assign(evaluation=title, method=method, setting=name, curve=label))
        drawing.scale(axis, values.values())
        axis.set(title=drawing.fold(title, 34), xlabel=name, ylabel=of_evaluation["unit"].iloc[0])
    if len(curves) > 1:
        drawing.legend(figure, handles)
    return Drawing(
        f"ablation-{slug(method)}-{slug(name)}",
        "Ablations",
        f"{name} of {method}",
        f"{measured(source, scores)} Along a curve nothing else differs: settings, code of the "
        "method, data, and how it was evaluated. Bars are 95 % t intervals over seeds, small dots "
        "single runs.",
        f"Score of {method} over {len(set(values.values()))} values of {name}.",
        pd.concat(rows).rename(columns={"value_of": "value"}),
        figure,
    )


def _ablation_curves(settings: Mapping[str, Mapping[str, Any]], name: str) -> list[Curve]:
    """The curves over one setting, without groups of the same settings: those are ambiguous."""
    alike: dict[str, dict[str, float]] = {}
    for key, each in settings.items():
        value: Any = each.get(name)
        if schema.is_number(value):
            others = {n: v for n, v in each.items() if n != name}
            alike.setdefault(json.dumps(others, sort_keys=True, default=str), {})[key] = value
    curves: list[Curve] = []
    for shared, values in alike.items():
        times = Counter(values.values())
        unique = {key: value for key, value in values.items() if times[value] == 1}
        if len(unique) >= _SMALLEST_CURVE:
            curves.append((json.loads(shared), unique))
    return curves


@or_missing(missing("Robustness", "robustness"))
def by_corruption(source: Source) -> Iterator[Drawing]:
    """Accuracy by corruption and severity."""
    for title, scores in source.evaluations(source.with_arrays(("accuracy",))):
        rows = [row for _, run in scores.iterrows() for row in _accuracies(source, run)]
        if rows:
            yield _draw_corruptions(source, title, scores, pd.DataFrame(rows))


def _accuracies(source: Source, row: pd.Series) -> list[dict[str, Any]]:
    """A run's accuracy at each severity of each corruption; severity 0 is the clean images.

    Nothing where the scores are of something else.
    """
    accuracy = source.arrays(row["folder"], ("accuracy",)).get("accuracy", np.empty(0))
    scores = source.record(row["folder"]).get("scores") or {}
    others = [name for name in scores if not re.search(r"_severity_\d+$", name)]
    severities = len(scores) - len(others)
    if not severities or accuracy.shape[1:] != (severities,) or len(accuracy) > len(others):
        return []
    kinds = [name.partition("_")[2] or name for name in others[-len(accuracy) :]]
    clean = [scores[name] for name in others if name.endswith("_clean")][:1]
    return [
        {**row[["run", "label", "method", "seed"]], "corruption": kind, "severity": severity,
         "accuracy": float(value)}
        for kind, values in zip(kinds, accuracy, strict=True)
        for severity, value in enumerate([*clean, *values], 1 - len(clean))
    ]  # fmt: skip


def _draw_corruptions(
    source: Source, title: str, scores: pd.DataFrame, frame: pd.DataFrame
) -> Drawing:
    mean = frame.groupby(["run", "label", "method", "seed", "severity"], as_index=False)
    mean = mean["accuracy"].mean().assign(corruption=_MEAN)
    kinds = list(dict.fromkeys(frame["corruption"]))
    together = pd.concat([mean, frame])
    figure, axes = drawing.panels(1 + len(kinds), 4, 1.85, 1.75, sharex=True, sharey=True)
    handles: dict[str, Any] = {}
    for axis, kind in zip(axes, [_MEAN, *kinds], strict=True):
        of_kind = together[together["corruption"] == kind]
        for label, color, look, group in source.styled_groups(of_kind):
            by = group.groupby("severity")["accuracy"].mean()
            [handle] = axis.plot(by.index, by, color=color, marker=look.marker, markersize=3.5,
                                 linestyle=look.line)  # fmt: skip
            handles[drawing.fold(label, 44)] = handle
        axis.set_title(drawing.shorten(str(kind).replace("_", " "), 24), fontsize=8.5)
        axis.set_xticks(sorted(frame["severity"].unique()))
    figure.supxlabel("severity", fontsize=9)
    figure.supylabel(scores["unit"].iloc[0], fontsize=9)
    drawing.legend(figure, handles)
    shown = scores[scores["run"].isin(frame["run"])]
    return Drawing(
        f"robustness-{slug(title)}",
        "Robustness",
        f"Accuracy under corruptions: {title}",
        f"{measured(source, shown)} Each corruption at {frame['severity'].max()} severities; 0 is "
        "the same images as they are. Means over seeds. At any image size the strengths are about "
        "those of ImageNet-C at 224 px, scaled to the image, so the numbers cannot be compared "
        "with published ones of CIFAR-10-C.",
        f"Accuracy over severity under {len(kinds)} corruptions, for {len(handles)} groups.",
        together,
        figure,
    )
