"""Figures of the stored predictions: confusions, and accuracy by class of two methods."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from ssl_bench.analysis.comparison.pairs import read_predictions
from ssl_bench.analysis.comparison.statistics import (
    LEVEL,
    Difference,
    Pairing,
    difference,
    holm,
    mcnemar,
)
from ssl_bench.analysis.report import drawing
from ssl_bench.analysis.report.captions import left_out, measured
from ssl_bench.analysis.report.drawing import Drawing, Missing, or_missing
from ssl_bench.analysis.report.source import Source, representatives, slug
from ssl_bench.utils.formatting import listed

_MOST_MATRICES = 6
_MOST_PAIRS = 6
_NAMED_CLASSES = 30
_ANNOTATED_CLASSES = 12
_PALE = 0.3
_MOST_CLASSES, _MOST_LABELS = 5000, 2**20
"""Of a matrix, which must fit into memory, and of any predictions."""
_TESTS = {"Welch t": "Welch's t test", "paired t": "the t test of pairs of one seed"}
Predictions = tuple[np.ndarray, np.ndarray]
"""Predicted and true classes: int ``(N,)``."""


@or_missing(Missing("Confusion matrices", "no predictions are stored", "ssl-bench eval RUN"))
def confusions(source: Source) -> Iterator[Drawing]:
    """Confusion matrices, one for each of the best methods."""
    for title, scores in source.evaluations(source.headlines):
        chosen = representatives(scores)
        found = {}
        for label, group in chosen.groupby("label", sort=True):
            counts = [c for f in group["folder"] if (c := _confusion(source, f)) is not None]
            if counts:
                alike = [c for c in counts if c.shape == counts[0].shape]
                found[str(label)] = (group, np.sum(alike, axis=0))
        if found:
            best = [label for label in _best_first(chosen) if label in found][:_MOST_MATRICES]
            cut = left_out(len(found) - len(best), "method is", "methods are")
            shown = {label: found[label] for label in sorted(best)}
            yield _draw_matrices(source, title, chosen, shown, cut)


@or_missing(
    Missing(
        "Differences by class",
        "no two methods have predictions of the same test images",
        "ssl-bench run --method METHOD",
    )
)
def class_differences(source: Source) -> Iterator[Drawing]:
    """For each class, how much more of its images one of two methods gets right: of the best
    method and the next ones, where there are many."""
    for title, scores in source.evaluations(source.headlines):
        chosen = representatives(scores)
        groups = {str(label): group for label, group in chosen.groupby("label")}
        pairs = [sorted(pair) for pair in combinations(_best_first(chosen), 2)]
        cut = left_out(len(pairs) - _MOST_PAIRS, "pair of methods is", "pairs of methods are")
        for first, second in sorted(pairs[:_MOST_PAIRS]):
            yield from _draw_differences(source, title, groups[first], groups[second], cut)


def _best_first(scores: pd.DataFrame) -> list[str]:
    """The labels of groups, those of the highest mean accuracy first."""
    means = scores.groupby(scores["label"].astype(str))["value"].mean()
    return means.sort_values(ascending=False, kind="stable").index.tolist()


def _predictions(source: Source, folder: str) -> Predictions | None:
    stored = source.tried(lambda: read_predictions(folder), None)
    if not stored or max(int(each.max()) for each in stored) < _MOST_LABELS:
        return stored
    source.problem(f"{folder!r}: predictions are of {_MOST_LABELS:,} classes or more")
    return None


def _confusion(source: Source, folder: str) -> np.ndarray | None:
    """The number of images by true class (rows) and predicted class: int ``(C, C + 1)``.

    The last column counts the predictions of no class, -1.
    """
    stored = _predictions(source, folder)
    if stored is None:
        return None
    predictions, labels = (each.astype(np.int64) for each in stored)
    count = int(max(predictions.max(), labels.max(), len(source.classes(folder)) - 1)) + 1
    if count > _MOST_CLASSES:
        source.problem(f"{folder!r}: a matrix of {count:,} classes is not drawn")
        return None
    column = np.where(predictions < 0, count, predictions)
    cells = np.bincount(labels * (count + 1) + column, minlength=count * (count + 1))
    return cells.reshape(count, count + 1)


def _class_names(source: Source, scores: pd.DataFrame, count: int) -> list[str]:
    names = source.classes(scores["folder"].iloc[0])
    return names if len(names) == count else [str(number) for number in range(count)]


def _draw_matrices(
    source: Source,
    title: str,
    scores: pd.DataFrame,
    found: Mapping[str, tuple[pd.DataFrame, np.ndarray]],
    cut: str,
) -> Drawing:
    scores = scores[scores["label"].isin(list(found))]
    count = max(len(counts) for _, counts in found.values())
    is_named, is_annotated = count <= _NAMED_CLASSES, count <= _ANNOTATED_CLASSES
    has_none = any(counts[:, -1].any() for _, counts in found.values())
    none = " Where a row sums to less than 100, the rest was taken for no class." * has_none
    figure, axes = drawing.panels(len(found), 2, 4.3, 3.9)
    rows = []
    for axis, (label, (group, counts)) in zip(axes, found.items(), strict=True):
        names = _class_names(source, group, len(counts))
        percent = (100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))[:, :-1]
        ticks: Any = [drawing.shorten(name, 14) for name in names] if is_named else False
        sns.heatmap(
            percent, ax=axis, cmap="Greys", vmin=0, vmax=100, square=True, cbar=False,
            annot=np.array([[f"{v:.0f}" if v > 0.5 else "" for v in row] for row in percent])
            if is_annotated else None,
            fmt="", annot_kws={"size": 7}, xticklabels=ticks, yticklabels=ticks,
            linewidths=0.4 if is_named else 0, linecolor="#eeeeee", rasterized=True,
        )  # fmt: skip
        axis.tick_params(axis="x", rotation=90)
        axis.tick_params(axis="y", rotation=0)
        axis.set(title=drawing.fold(label, 34), xlabel="predicted", ylabel="true")
        for true, predicted in np.argwhere(counts):
            taken = names[predicted] if predicted < len(names) else "none"
            rows.append((label, names[true], taken, counts[true, predicted]))
    return Drawing(
        f"confusion-{slug(title)}",
        "Confusions",
        f"Confusions: {title}",
        f"{measured(source, scores)} Percent of the images of each true class (row), all seeds "
        f"together; the group with most seeds stands for its method.{none}{cut}",
        f"Confusion matrices of {', '.join(found)} over {count} classes.",
        pd.DataFrame(rows, columns=["group", "true", "predicted", "images"]),
        figure,
        is_picture=not is_named,
    )


def _draw_differences(
    source: Source, title: str, first: pd.DataFrame, second: pd.DataFrame, cut: str
) -> Iterator[Drawing]:
    by_seed = [
        {
            int(seed): found
            for seed, folder in zip(group["seed"], group["folder"], strict=True)
            if (found := _predictions(source, folder))
        }
        for group in (first, second)
    ]
    if not all(by_seed):
        return
    labels, *others = [labels for stored in by_seed for _, labels in stored.values()]
    if not all(np.array_equal(labels, other) for other in others):
        return
    names = _class_names(source, first, int(labels.max()) + 1)
    rows = []
    for number in np.unique(labels):
        result = _compare(by_seed[0], by_seed[1], number, source.settings.pairing)
        low, high = result.interval or (np.nan, np.nan)
        rows.append((names[number], result.difference, low, high, result.p, result.test, result.n))
    frame = pd.DataFrame(rows, columns=["class", "difference", "low", "high", "p", "test", "n"])
    frame = frame.assign(p_holm=holm([None if p is None or p != p else p for p in frame["p"]]))
    frame = frame.sort_values("difference", ignore_index=True)
    shown = frame if len(frame) <= _NAMED_CLASSES else frame.iloc[[*range(15), *range(-15, 0)]]
    figure = Figure(figsize=(5.4, 1.1 + 0.24 * len(shown)), layout="constrained")
    axis = figure.subplots()
    looks = [source.looks[group["method"].iloc[0]] for group in (first, second)]
    a, b = (drawing.shorten(str(group["label"].iloc[0]), 30) for group in (first, second))
    is_significant = pd.to_numeric(shown["p_holm"]) < LEVEL
    colors = [
        (*looks[0 if value > 0 else 1].color, 1.0 if is_clear else _PALE)
        for value, is_clear in zip(shown["difference"], is_significant, strict=True)
    ]
    ys = np.arange(len(shown))
    axis.barh(ys, shown["difference"], color=colors, height=0.62)
    axis.hlines(ys, shown["low"], shown["high"], color=drawing.INK, linewidth=1)
    axis.axvline(0, color=drawing.FAINT, linewidth=0.8)
    axis.set_yticks(ys, [drawing.shorten(str(name), 24) for name in shown["class"]])
    axis.set_xlabel(f"← {b} better      points      {a} better →")
    axis.grid(axis="y", visible=False)
    axis.margins(y=0.02)
    both = pd.concat([first, second])
    ends = "" if len(shown) == len(frame) else " The 15 classes at either end are shown."
    yield Drawing(
        f"classes-{slug(title)}-{slug(a)}-{slug(b)}",
        "Differences by class",
        f"{a} against {b}: {title}",
        f"Share of each class's images that are right. {measured(source, both)} "
        f"{_tested(frame['test'])}, each for itself. Bars in full color are significant "
        f"(p < {LEVEL:g} by Holm's correction over the {len(frame)} classes); pale ones may be "
        f"chance.{ends}{cut}",
        f"Bar chart of {len(shown)} classes: accuracy of {a} less that of {b}.",
        frame,
        figure,
    )


def _tested(tests: pd.Series) -> str:
    """What the bars and lines are, by the test of each class."""
    used = Counter(map(str, tests))
    if "McNemar" in used:
        return (
            "One run each: lines are 95 % intervals from McNemar's exact test, and speak of these "
            "two runs only"
        )
    names = [f"{name} ({used[test]} of {len(tests)} classes)" if len(used) > 1 else name
             for test, name in _TESTS.items() if test in used]  # fmt: skip
    lines = f", lines their 95 % intervals by {listed(names)}" if names else ""
    return f"Bars are differences of means over seeds{lines}"


def _compare(
    first: Mapping[int, Predictions],
    second: Mapping[int, Predictions],
    number: int,
    pairing: Pairing,
) -> Difference:
    """The accuracies on a class over seeds where there are several, else those of two runs."""
    right_a, right_b = (
        {seed: (predictions == labels)[labels == number]
         for seed, (predictions, labels) in by_seed.items()}
        for by_seed in (first, second)
    )  # fmt: skip
    if len(right_a) == len(right_b) == 1:
        return mcnemar(*right_a.values(), *right_b.values())
    accuracies_a, accuracies_b = (
        {seed: 100 * float(right.mean()) for seed, right in by_seed.items()}
        for by_seed in (right_a, right_b)
    )
    return difference(accuracies_a, accuracies_b, pairing)
