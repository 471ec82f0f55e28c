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
from ssl_bench.analysis.report.curves import draw_curve, means
from ssl_bench.analysis.report.drawing import (
    Drawing,
    Missing,
    legend,
    panels,
    scale,
    shades,
    shorten,
)
from ssl_bench.analysis.report.source import Source, columns, settings, slug
from ssl_bench.errors import UserError
from ssl_bench.runs import schema

_SMALLEST_CURVE = 3


@dataclass(frozen=True)
class Line:
    """Groups that differ in one number alone.

    Attributes:
        rest: everything else that is known of them.
        values: the number, by key of the group.
    """

    rest: Mapping[str, Any]
    values: Mapping[str, float]


def over_settings(source: Source) -> Iterator[Drawing | Missing]:
    """A curve wherever three groups of a method differ in one number alone."""
    is_any = False
    for method, name, lines in _ablations(source):
        is_any = True
        yield _drawn(source, method, name, lines)
    if not is_any:
        yield Missing(
            "Ablation curves",
            "no three groups of a method differ in one number alone",
            "ssl-bench ablate mask-ratio",
        )


def _drawn(source: Source, method: str, name: str, lines: list[Line]) -> Drawing:
    every = {key: value for line in lines for key, value in line.values.items()}
    scores = source.headlines[source.headlines["key"].isin(every)]
    scores = scores.assign(value_of=scores["key"].map(every))
    labels = _labels(lines)
    found = list(columns(source, scores))
    look = source.look(method)
    figure, axes = panels(len(found))
    handles, rows = {}, []
    for axis, (title, column) in zip(axes, found, strict=True):
        for line, label, color in zip(lines, labels, shades(look.color, len(lines)), strict=True):
            own = column[column["key"].isin(line.values)]
            if own.empty:
                continue
            curve = means(own, "value_of")
            handles[shorten(label, 60)] = draw_curve(axis, curve, color, look)
            axis.plot(own["value_of"], own["value"], ".", color=color, alpha=0.4)
            rows.append(curve.assign(evaluation=title, method=method, setting=name, curve=label))
        scale(axis, every.values())
        axis.set(title=shorten(title, 38), xlabel=name, ylabel=column["unit"].iloc[0])
    if len(lines) > 1:
        legend(figure, handles)
    return Drawing(
        f"ablation-{slug(method)}-{slug(name)}",
        "Ablations",
        f"{name} of {method}",
        f"{measured(source, scores)} Along a curve nothing else differs: settings, code of the "
        "method, data, and how it was evaluated. Bars are 95 % t intervals over seeds, small dots "
        "single runs.",
        f"Score of {method} over {len(set(every.values()))} values of {name}.",
        pd.concat(rows).rename(columns={"value_of": "value"}),
        figure,
    )


def _ablations(source: Source) -> Iterator[tuple[str, str, list[Line]]]:
    """Method, setting, and the curves over it."""
    if source.headlines.empty:
        return
    groups = source.headlines.drop_duplicates("key")
    folders = source.runs.set_index("run")["folder"]
    for method, peers in groups.groupby("method", sort=True):
        told = {
            row["key"]: _told(row, Path(folders[row["run"]])) for row in peers.to_dict("records")
        }
        for name in dict.fromkeys(name for each in told.values() for name in each):
            lines = _lines(told, name)
            if lines:
                yield str(method), name, lines


def _told(row: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """All that sets a group apart from others of its method."""
    try:
        plan = schema.plan_of(folder)
    except UserError:
        plan = {}
    return {
        **settings(row["settings"]),
        "version": plan.get("method_version"),
        "data": row["data_fingerprint"],
        "evaluated_in": row["eval_precision"],
        "evaluated_with_seed": "the run's" if pd.isna(row["eval_seed"]) else str(row["eval_seed"]),
    }


def _lines(told: Mapping[str, Mapping[str, Any]], name: str) -> list[Line]:
    """The curves over one setting. Groups that nothing known tells apart are on none."""
    alike: dict[str, dict[str, float]] = {}
    for key, each in told.items():
        value = each.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            others = {n: v for n, v in each.items() if n != name}
            alike.setdefault(json.dumps(others, sort_keys=True, default=str), {})[key] = value
    lines = []
    for rest, values in alike.items():
        times = Counter(values.values())
        own = {key: value for key, value in values.items() if times[value] == 1}
        if len(own) >= _SMALLEST_CURVE:
            lines.append(Line(json.loads(rest), own))
    return lines


def _labels(lines: list[Line]) -> list[str]:
    """What tells each curve from the others."""
    names = dict.fromkeys(name for line in lines for name in line.rest)
    apart = [n for n in names if len({json.dumps(line.rest.get(n)) for line in lines}) > 1]
    return [
        ", ".join(f"{name}={line.rest[name]}" for name in apart if name in line.rest)
        for line in lines
    ]
