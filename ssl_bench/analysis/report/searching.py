"""The figure of searches: what the best of so many trials reached on held-out images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from ssl_bench.analysis.comparison import grouping
from ssl_bench.analysis.report import drawing
from ssl_bench.analysis.report.drawing import Drawing
from ssl_bench.analysis.report.source import Source, slug
from ssl_bench.runs.schema import is_number
from ssl_bench.utils.formatting import count, listed


def best_of_trials(source: Source) -> Iterator[Drawing]:
    """A curve for each method that a search has chosen the settings of, by what has judged."""
    rows = []
    for run in source.runs.to_dict("records"):
        known = grouping.parse(run["chosen_by"])
        scores = known.get("scores")
        if isinstance(scores, list) and scores and all(map(is_number, scores)):
            judge = f"{known.get('judged_by')} on {known.get('judged_on')}"
            rows.append((judge, str(run["method"]), tuple(scores), known.get("flops") or 0))
    found = pd.DataFrame(rows, columns=["judge", "method", "scores", "flops"]).drop_duplicates()
    for judge, of_judge in found.groupby("judge"):
        figure, [axis] = drawing.panels(1, 1, 5.2, 3.2)
        handles, curves = {}, []
        for method, scores in of_judge[["method", "scores"]].itertuples(index=False):
            look, best = source.looks[method], expected_best(scores)
            numbers = range(1, 1 + len(best))
            [handles[method]] = axis.plot(
                numbers, best, color=look.color, marker=look.marker, linestyle=look.line
            )
            curves.append(pd.DataFrame({"method": method, "trials": numbers, "best": best}))
        axis.set(xlabel="trials", ylabel=f"{judge}: best")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        drawing.legend(figure, handles)
        costs = listed(f"{method} {count(flops)}" for _, method, _, flops in
                       of_judge.itertuples(index=False))  # fmt: skip
        yield Drawing(
            f"trials-{slug(str(judge))}",
            "Training",
            f"What more trials find: {judge}",
            "Score on held-out training images that the best of k trials has on average, over all "
            "ways to take k of the trials that were made. A curve that still rises says that more "
            f"trials would find better settings. FLOPs of all trials: {costs}.",
            f"Best score over the number of trials of {len(curves)} methods.",
            pd.concat(curves),
            figure,
        )


def expected_best(scores: Sequence[float]) -> list[float]:
    """The mean of the largest of k scores, over all subsets of k, for each k up to all.

    Exact, without replacement: the i-th smallest is the largest of a subset in C(i - 1, k - 1) of
    the C(n, k) ways.
    """
    ordered = np.sort(np.asarray(scores, float))
    found = []
    weights = np.full(len(ordered), 1 / len(ordered))
    for k in range(1, 1 + len(ordered)):
        found.append(float(weights @ ordered))
        # From subsets of k to those of k + 1, of which each score is the largest more or less.
        smaller = np.arange(len(ordered)) - (k - 1)
        weights = weights * np.clip(smaller, 0, None) * (k + 1) / (k * max(1, len(ordered) - k))
    return found
