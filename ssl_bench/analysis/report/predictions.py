"""Figures of the stored predictions: confusions, and classes that one method knows better."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from ssl_bench.analysis.comparison.pairs import LEVEL
from ssl_bench.analysis.comparison.statistics import Difference, difference, holm, mcnemar
from ssl_bench.analysis.report.captions import left_out, measured
from ssl_bench.analysis.report.drawing import FAINT, INK, Drawing, Missing, panels, shorten
from ssl_bench.analysis.report.source import Source, columns, representatives, slug
from ssl_bench.runs import schema

_MOST_MATRICES = 6
_MOST_PAIRS = 6
_NAMED_CLASSES = 30
_WRITTEN_CLASSES = 12
_PALE = 0.3
_MOST_CLASSES, _MOST_NAMES = 5000, 2**20
"""Of a matrix, which has no room in memory for more; of anything."""


def confusions(source: Source) -> Iterator[Drawing | Missing]:
    """Which class was taken for which, one matrix for each method."""
    is_any = False
    for title, column in columns(source, source.headlines):
        chosen = representatives(column)
        found = {
            str(label): (group, np.sum([c for c in counts if c.shape == counts[0].shape], axis=0))
            for label, group in chosen.groupby("label", sort=True)
            if (counts := [m for m in map(lambda f: _confusion(source, f), group["folder"])
                           if m is not None])
        }  # fmt: skip
        if not found:
            continue
        is_any = True
        yield _matrices(source, title, chosen, found)
    if not is_any:
        yield Missing("Confusion matrices", "no predictions are stored", "ssl-bench eval RUN")


def class_differences(source: Source) -> Iterator[Drawing | Missing]:
    """For each class, how much more of its images one of two methods gets right."""
    is_any = False
    for title, column in columns(source, source.headlines):
        groups = {str(label): group for label, group in representatives(column).groupby("label")}
        pairs = list(combinations(groups, 2))
        cut = left_out(len(pairs) - _MOST_PAIRS, "pair of methods is", "pairs of methods are")
        for first, second in pairs[:_MOST_PAIRS]:
            drawing = _differences(source, title, groups[first], groups[second], cut)
            if drawing:
                is_any = True
                yield drawing
    if not is_any:
        yield Missing(
            "Differences by class",
            "no two methods have predictions of the same test images",
            "ssl-bench run --method METHOD",
        )


def _predictions(source: Source, folder: str) -> tuple[np.ndarray, np.ndarray] | None:
    arrays = source.arrays(folder, ("predictions", "labels"), schema.PREDICTIONS)
    if not arrays:
        return None
    predictions, labels = arrays["predictions"], arrays["labels"]
    is_of_classes = all(
        each.ndim == 1 and each.dtype.kind in "iu" for each in (predictions, labels)
    )
    if not is_of_classes or len(predictions) != len(labels) or labels.min(initial=0) < 0:
        source.problem(f"{folder!r}: predictions and labels do not fit together")
        return None
    if max(predictions.max(initial=0), labels.max(initial=0)) >= _MOST_NAMES:
        source.problem(f"{folder!r}: predictions are of {_MOST_NAMES:,} classes or more")
        return None
    return predictions, labels


def _confusion(source: Source, folder: str) -> np.ndarray | None:
    """How many images of each class (rows) were taken for each: int ``(C, C + 1)``.

    The last column is of those taken for none, -1.
    """
    stored = _predictions(source, folder)
    if stored is None or not len(stored[0]):
        return None
    predictions, labels = stored
    count = max(int(predictions.max()), int(labels.max()), len(_classes(source, folder)) - 1) + 1
    if count > _MOST_CLASSES:
        source.problem(f"{folder!r}: a matrix of {count:,} classes is not drawn")
        return None
    predictions, labels = predictions.astype(np.int64), labels.astype(np.int64)
    column = np.where(predictions < 0, count, predictions)
    cells = np.bincount(labels * (count + 1) + column, minlength=count * (count + 1))
    return cells.reshape(count, count + 1)


def _classes(source: Source, folder: str) -> list[str]:
    return source.classes(folder)


def _named(names: list[str], count: int) -> list[str]:
    return names if len(names) == count else [str(number) for number in range(count)]


def _matrices(
    source: Source,
    title: str,
    scores: pd.DataFrame,
    found: Mapping[str, tuple[pd.DataFrame, np.ndarray]],
) -> Drawing:
    cut = left_out(len(found) - _MOST_MATRICES, "method is", "methods are")
    found = dict(list(found.items())[:_MOST_MATRICES])
    scores = scores[scores["label"].isin(list(found))]
    count = max(len(counts) for _, counts in found.values())
    is_named, is_written = count <= _NAMED_CLASSES, count <= _WRITTEN_CLASSES
    none = any(counts[:, -1].any() for _, counts in found.values())
    about_none = " Where a row sums to less than 100, the rest was taken for no class." * none
    figure, axes = panels(len(found), 2, 4.3, 3.9)
    rows = []
    for axis, (label, (group, counts)) in zip(axes, found.items(), strict=True):
        names = _named(_classes(source, group["folder"].iloc[0]), len(counts))
        share = (100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))[:, :-1]
        ticks: Any = [shorten(name, 14) for name in names] if is_named else False
        sns.heatmap(
            share, ax=axis, cmap="Greys", vmin=0, vmax=100, square=True, cbar=False,
            annot=np.array([[f"{v:.0f}" if v > 0.5 else "" for v in row] for row in share])
            if is_written else None,
            fmt="", annot_kws={"size": 7}, xticklabels=ticks, yticklabels=ticks,
            linewidths=0.4 if is_named else 0, linecolor="#eeeeee", rasterized=True,
        )  # fmt: skip
        axis.tick_params(axis="x", rotation=90)
        axis.tick_params(axis="y", rotation=0)
        axis.set(title=shorten(label, 40), xlabel="predicted", ylabel="true")
        for true, predicted in np.argwhere(counts):
            taken = names[predicted] if predicted < len(names) else "none"
            rows.append((label, names[true], taken, counts[true, predicted]))
    return Drawing(
        f"confusion-{slug(title)}",
        "Confusions",
        f"Confusions: {title}",
        f"{measured(source, scores)} Percent of the images of each true class (row), all seeds "
        f"together; the group with most seeds stands for its method.{about_none}{cut}",
        f"Confusion matrices of {', '.join(found)} over {count} classes.",
        pd.DataFrame(rows, columns=["group", "true", "predicted", "images"]),
        figure,
        is_picture=not is_named,
    )


def _differences(
    source: Source, title: str, first: pd.DataFrame, second: pd.DataFrame, cut: str
) -> Drawing | None:
    stored = [_by_seed(source, group) for group in (first, second)]
    if not all(stored):
        return None
    label = next(iter(stored[0].values()))[1]
    alike = [labels for by_seed in stored for _, labels in by_seed.values()]
    if not all(np.array_equal(label, other) for other in alike):
        return None
    names = _named(_classes(source, first["folder"].iloc[0]), int(label.max()) + 1)
    rows = []
    for number in np.unique(label):
        result = _compare(stored[0], stored[1], label == number)
        low, high = result.interval or (np.nan, np.nan)
        rows.append((names[number], result.difference, low, high, result.p, result.test, result.n))
    columns = ["class", "difference", "low", "high", "p", "test", "n"]
    frame = pd.DataFrame(rows, columns=columns)
    frame = frame.assign(p_holm=holm([None if p is None or p != p else p for p in frame["p"]]))
    frame = frame.sort_values("difference", ignore_index=True)
    shown = frame if len(frame) <= _NAMED_CLASSES else frame.iloc[[*range(15), *range(-15, 0)]]
    figure = Figure(figsize=(5.4, 1.1 + 0.24 * len(shown)), layout="constrained")
    axis = figure.subplots()
    looks = [source.look(group["method"].iloc[0]) for group in (first, second)]
    names_shown = [shorten(str(group["label"].iloc[0]), 30) for group in (first, second)]
    is_known = pd.to_numeric(shown["p_holm"]) < LEVEL
    colors = [
        (*looks[0 if value > 0 else 1].color, 1.0 if known else _PALE)
        for value, known in zip(shown["difference"], is_known, strict=True)
    ]
    places = np.arange(len(shown))
    axis.barh(places, shown["difference"], color=colors, height=0.62)
    axis.hlines(places, shown["low"], shown["high"], color=INK, linewidth=1)
    axis.axvline(0, color=FAINT, linewidth=0.8)
    axis.set_yticks(places, [shorten(str(name), 24) for name in shown["class"]])
    axis.set_xlabel(f"← {names_shown[1]} better      points      {names_shown[0]} better →")
    axis.grid(axis="y", visible=False)
    axis.margins(y=0.02)
    test = frame["test"].iloc[0]
    how = {
        "paired t": "Bars are mean differences over seeds, lines their 95 % t intervals (paired)",
        "Welch t": "Bars are differences of means over seeds, lines their 95 % intervals (Welch)",
        "McNemar": "One run each: lines are 95 % intervals from McNemar's exact test, and speak of "
        "these two runs only",
    }.get(str(test), "Bars are differences of means")
    both = pd.concat([first, second])
    ends = "" if len(shown) == len(frame) else " The 15 classes at either end are shown."
    return Drawing(
        f"classes-{slug(title)}-{slug(names_shown[0])}-{slug(names_shown[1])}",
        "Differences by class",
        f"{names_shown[0]} against {names_shown[1]}: {title}",
        f"Share of each class's images that are right. {measured(source, both)} {how}, "
        f"each for itself. Bars in full color are significant (p < {LEVEL:g} by Holm's correction "
        f"over the {len(frame)} classes); pale ones may be chance.{ends}{cut}",
        f"Bar chart of {len(shown)} classes: accuracy of {names_shown[0]} less that of "
        f"{names_shown[1]}.",
        frame,
        figure,
    )


def _by_seed(source: Source, group: pd.DataFrame) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Whether each image is right, and the labels, by seed."""
    found = {}
    for folder, seed in zip(group["folder"], group["seed"], strict=True):
        stored = _predictions(source, folder)
        if stored is not None and len(stored[0]):
            found[int(seed)] = (stored[0] == stored[1], stored[1])
    return found


def _compare(first: Mapping[int, Any], second: Mapping[int, Any], of_class: Any) -> Difference:
    """Over seeds where there are several, else of the two runs' images."""
    if len(first) == len(second) == 1:
        [(right, _)], [(other, _)] = first.values(), second.values()
        return mcnemar(right[of_class], other[of_class])
    shares = [
        {seed: 100 * float(right[of_class].mean()) for seed, (right, _) in by_seed.items()}
        for by_seed in (first, second)
    ]
    return difference(*shares)
