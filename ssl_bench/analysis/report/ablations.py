"""Figures of scores over a setting of a method."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from ssl_bench.analysis.report.captions import measured
from ssl_bench.analysis.report.drawing import (
    Drawing,
    Missing,
    draw_curve,
    legend,
    panels,
    scale,
    shades,
    shorten,
)
from ssl_bench.analysis.report.source import (
    Source,
    evaluations,
    mean_curve,
    parse_settings,
    slug,
)
from ssl_bench.errors import UserError
from ssl_bench.runs import schema

_SMALLEST_CURVE = 3


@dataclass(frozen=True)
class Curve:
    """Groups that differ in one number: its values by the groups' keys, and what they share."""

    shared: Mapping[str, Any]
    values: Mapping[str, float]


def over_settings(source: Source) -> Iterator[Drawing | Missing]:
    """A curve wherever three groups of a method differ in one number alone."""
    is_any = False
    for method, name, curves in _ablations(source):
        is_any = True
        yield _draw(source, method, name, curves)
    if not is_any:
        yield Missing(
            "Ablation curves",
            "no three groups of a method differ in one number alone",
            "ssl-bench ablate mask-ratio",
        )


def _draw(source: Source, method: str, name: str, curves: list[Curve]) -> Drawing:
    values = {key: value for curve in curves for key, value in curve.values.items()}
    scores = source.headlines[source.headlines["key"].isin(values)]
    scores = scores.assign(value_of=scores["key"].map(values))
    found = list(evaluations(source, scores))
    look = source.looks[method]
    styles = list(zip(curves, _labels(curves), shades(look.color, len(curves)), strict=True))
    figure, axes = panels(len(found))
    handles, rows = {}, []
    for axis, (title, of_evaluation) in zip(axes, found, strict=True):
        for curve, label, color in styles:
            part = of_evaluation[of_evaluation["key"].isin(curve.values)]
            if part.empty:
                continue
            means = mean_curve(part, "value_of")
            handles[shorten(label, 60)] = draw_curve(axis, means, color, look)
            axis.plot(part["value_of"], part["value"], ".", color=color, alpha=0.4)
            rows.append(means.assign(evaluation=title, method=method, setting=name, curve=label))
        scale(axis, values.values())
        axis.set(title=shorten(title, 38), xlabel=name, ylabel=of_evaluation["unit"].iloc[0])
    if len(curves) > 1:
        legend(figure, handles)
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


def _ablations(source: Source) -> Iterator[tuple[str, str, list[Curve]]]:
    """Method, setting, and the curves over it."""
    if source.headlines.empty:
        return
    groups = source.headlines.drop_duplicates("key")
    folders = source.runs.set_index("run")["folder"]
    for method, peers in groups.groupby("method", sort=True):
        settings = {
            row["key"]: _settings(row, Path(folders[row["run"]]))
            for row in peers.to_dict("records")
        }
        for name in dict.fromkeys(name for each in settings.values() for name in each):
            curves = _curves(settings, name)
            if curves:
                yield str(method), name, curves


def _settings(row: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Everything that sets a group apart from others of its method."""
    try:
        plan = schema.load_plan(folder)
    except UserError:
        plan = {}
    return {
        **parse_settings(row["settings"]),
        "version": plan.get("method_version"),
        "data": row["data_fingerprint"],
        "evaluated_in": row["eval_precision"],
        "evaluated_with_seed": "the run's" if pd.isna(row["eval_seed"]) else str(row["eval_seed"]),
    }


def _curves(settings: Mapping[str, Mapping[str, Any]], name: str) -> list[Curve]:
    """The curves over one setting, without groups of the same settings: those are ambiguous."""
    alike: dict[str, dict[str, float]] = {}
    for key, each in settings.items():
        value: Any = each.get(name)
        if schema.is_number(value):
            others = {n: v for n, v in each.items() if n != name}
            alike.setdefault(json.dumps(others, sort_keys=True, default=str), {})[key] = value
    curves = []
    for shared, values in alike.items():
        times = Counter(values.values())
        unique = {key: value for key, value in values.items() if times[value] == 1}
        if len(unique) >= _SMALLEST_CURVE:
            curves.append(Curve(json.loads(shared), unique))
    return curves


def _labels(curves: list[Curve]) -> list[str]:
    """The settings that set each curve apart from the others."""
    names = dict.fromkeys(name for curve in curves for name in curve.shared)
    apart = [n for n in names if len({json.dumps(c.shared.get(n)) for c in curves}) > 1]
    return [", ".join(f"{n}={c.shared[n]}" for n in apart if n in c.shared) for c in curves]
