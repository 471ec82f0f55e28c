"""Figure of accuracy under corruptions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from ssl_bench.analysis.report.captions import measured
from ssl_bench.analysis.report.drawing import Drawing, Missing, legend, missing, panels, shorten
from ssl_bench.analysis.report.source import Source, evaluations, slug, styled_groups

_MEAN = "mean of all"


def by_corruption(source: Source) -> Iterator[Drawing | Missing]:
    """Accuracy by corruption and severity."""
    is_any = False
    for title, scores in evaluations(source, source.with_arrays(("accuracy",))):
        rows = [row for _, run in scores.iterrows() for row in _rows(source, run)]
        if rows:
            is_any = True
            yield _draw(source, title, scores, pd.DataFrame(rows))
    if not is_any:
        yield missing("Robustness", "robustness")


def _rows(source: Source, row: pd.Series) -> list[dict[str, Any]]:
    """A run's accuracy at each severity of each corruption; severity 0 is the clean images."""
    arrays = source.arrays(row["folder"], ("accuracy",))
    named = _names(source.record(row["folder"]), arrays["accuracy"]) if arrays else None
    if named is None:
        return []
    kinds, clean = named
    before, start = ([], 1) if clean is None else ([clean], 0)
    return [
        {**row[["run", "label", "method", "seed"]], "corruption": kind, "severity": severity,
         "accuracy": float(value)}
        for kind, values in zip(kinds, arrays["accuracy"], strict=True)
        for severity, value in enumerate([*before, *values], start)
    ]  # fmt: skip


def _names(record: dict[str, Any], accuracy: np.ndarray) -> tuple[list[str], float | None] | None:
    """The names of the corruptions, and the score on clean images; None for other scores."""
    scores = record.get("scores") or {}
    others = [name for name in scores if not re.search(r"_severity_\d+$", name)]
    severities = len(scores) - len(others)
    if not severities or accuracy.ndim != 2 or accuracy.shape[1] != severities:
        return None
    if len(accuracy) > len(others):
        return None
    kinds = [name.partition("_")[2] or name for name in others[-len(accuracy) :]]
    return kinds, next((scores[name] for name in others if name.endswith("_clean")), None)


def _draw(source: Source, title: str, scores: pd.DataFrame, frame: pd.DataFrame) -> Drawing:
    mean = frame.groupby(["run", "label", "method", "seed", "severity"], as_index=False)
    mean = mean["accuracy"].mean().assign(corruption=_MEAN)
    kinds = list(dict.fromkeys(frame["corruption"]))
    together = pd.concat([mean, frame])
    figure, axes = panels(1 + len(kinds), 4, 1.85, 1.75, sharex=True, sharey=True)
    handles: dict[str, Any] = {}
    for axis, kind in zip(axes, [_MEAN, *kinds], strict=True):
        of_kind = together[together["corruption"] == kind]
        for label, color, look, group in styled_groups(source, of_kind):
            by = group.groupby("severity")["accuracy"].mean()
            [handle] = axis.plot(by.index, by, color=color, marker=look.marker, markersize=3.5,
                                 linestyle=look.line)  # fmt: skip
            handles[shorten(label, 40)] = handle
        axis.set_title(shorten(str(kind).replace("_", " "), 24), fontsize=8.5)
        axis.set_xticks(sorted(frame["severity"].unique()))
    figure.supxlabel("severity", fontsize=9)
    figure.supylabel(scores["unit"].iloc[0], fontsize=9)
    legend(figure, handles)
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
