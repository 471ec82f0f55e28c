"""Searches: what the best of so many trials reached on held-out images, and what they drew."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from ssl_bench.analysis.comparison import grouping
from ssl_bench.analysis.report import drawing
from ssl_bench.analysis.report.drawing import Drawing
from ssl_bench.analysis.report.source import Source, slug
from ssl_bench.analysis.report.tables import Table, text_cell
from ssl_bench.config import chosen
from ssl_bench.config.chosen import Better
from ssl_bench.utils.formatting import count, listed


def best_of_trials(source: Source) -> Iterator[Drawing]:
    """A curve for each method that a search has chosen the settings of, by what has judged."""
    rows = []
    for run in source.runs.to_dict("records"):
        known = chosen.read(grouping.parse(run["chosen_by"]))
        if known and known.scores:
            judge, method = (known.judged_by, known.judged_on), str(run["method"])
            rows.append((*judge, method, known.scores, known.better, known.flops))
    names = ["judge", "data", "method", "scores", "better", "flops"]
    found = pd.DataFrame(rows, columns=names).drop_duplicates()
    for (evaluation, data), of_judge in found.groupby(["judge", "data"]):
        title = f"{evaluation} on {data}"
        figure, [axis] = drawing.panels(1, 1, 5.2, 3.2)
        handles, curves, last = {}, [], []
        searches = of_judge[["method", "scores", "better"]]
        for method, scores, better in searches.itertuples(index=False):
            look, best = source.looks[method], expected_best(scores, better)
            last += [f"{method} {abs(best[-1] - best[-2]):.2g}"] if len(best) > 1 else []
            numbers = range(1, 1 + len(best))
            [handles[method]] = axis.plot(
                numbers, best, color=look.color, marker=look.marker, linestyle=look.line
            )
            curves.append(pd.DataFrame({"method": method, "trials": numbers, "best": best}))
        axis.set(xlabel="trials", ylabel=textwrap.fill(f"{title}: best", 30))
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        drawing.legend(figure, handles)
        of_trials = of_judge[["method", "flops"]].itertuples(index=False)
        costs = listed(f"{method} {count(flops)}" for method, flops in of_trials)
        yield Drawing(
            f"trials-{slug(title)}",
            "Training",
            f"What more trials find: {title}",
            "Score on held-out training images that the best of k trials has on average, over all "
            "ways to take k of the trials that were made. It gets better with k by construction, "
            "also where all settings are equally good: a last step tells nothing that is no larger "
            f"than the noise of a trial.{_last(last)}{_noise(source, of_judge)} FLOPs of all "
            f"trials: {costs}.",
            f"Best score over the number of trials of {len(curves)} methods.",
            pd.concat(curves),
            figure,
        )


def spaces(source: Source) -> Iterator[Table]:
    """What the searches drew that have chosen the settings of rows; nothing without a search."""
    rows: dict[tuple[str, ...], None] = {}
    data: dict[tuple[str, str, str], None] = {}
    for group in (each for table in source.comparison.tables for each in table.groups):
        for search in group.searches:
            ranges = {name: f"{_words(name)} {drawn}" for name, drawn in search.space.items()}
            roles = {name: role for name in ranges for role in chosen.ROLES if name.endswith(role)}
            of_roles = (
                ", ".join(text for name, text in ranges.items() if roles.get(name) == role)
                for role in chosen.ROLES
            )
            own = ", ".join(text for name, text in ranges.items() if name not in roles)
            by_hand = ", ".join(map(_words, search.flags))
            rows[group.method, str(len(ranges)), *of_roles, own, by_hand] = None
            data |= dict.fromkeys((group.method, *each) for each in search.space.items())
    if rows:
        yield Table(
            name="search-spaces",
            title="What the searches drew",
            caption="Settings that each trial drew from a range, and those that were set by hand "
            "beside the search. All others are the preset's.",
            columns=("method", "settings", *map(_words, chosen.ROLES), "its own", "by hand"),
            numeric=frozenset({1}),
            rows=tuple(tuple(map(text_cell, row)) for row in rows),
            data=pd.DataFrame([*data], columns=["method", "setting", "range"]),
        )


def _words(name: str) -> str:
    return name.replace("_", " ")


def _last(steps: Sequence[str]) -> str:
    return f" Last steps: {listed(steps)}." if steps else ""


def _noise(source: Source, searches: pd.DataFrame) -> str:
    """By how much what the searches have chosen differs over seeds by the same evaluation."""
    scores = source.headlines
    is_theirs = scores["method"].isin(searches["method"]) & scores["eval"].isin(searches["judge"])
    of_rows = scores[is_theirs].groupby(["key", "evaluated_on", "protocol"])["value"]
    variances, free = of_rows.var(), of_rows.count() - 1
    if not free.sum():
        return ""
    std = math.sqrt((variances.fillna(0) * free).sum() / free.sum())
    return f" Over seeds, what they chose has a standard deviation of {std:.2g} on test images."


def expected_best(scores: Sequence[float], better: Better = "higher") -> list[float]:
    """The mean of the best of k scores, over all subsets of k, for each k up to all.

    Exact, without replacement: the i-th worst is the best of a subset in C(i - 1, k - 1) of the
    C(n, k) ways.
    """
    ordered = np.sort(np.asarray(scores, float))[:: 1 if better == "higher" else -1]
    found = []
    weights = np.full(len(ordered), 1 / len(ordered))
    for k in range(1, 1 + len(ordered)):
        found.append(float(weights @ ordered))
        # From subsets of k to those of k + 1, of which each score is the largest more or less.
        smaller = np.arange(len(ordered)) - (k - 1)
        weights = weights * np.clip(smaller, 0, None) * (k + 1) / (k * max(1, len(ordered) - k))
    return found
