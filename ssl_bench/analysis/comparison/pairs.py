"""Which differences in a column are more than chance, and which group is the best.

Over seeds where there are several, else over the test images of one pair of runs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from ssl_bench.analysis.comparison import statistics
from ssl_bench.analysis.comparison.grouping import Column, Score
from ssl_bench.analysis.comparison.statistics import Difference
from ssl_bench.errors import UserError
from ssl_bench.runs import schema
from ssl_bench.utils import arrays

LEVEL = 0.05
_ROUNDED = 0.006
"""By how much a score may differ from the share of right predictions: two digits are stored."""
Mark = Literal["best", "single", "tied", ""]


@dataclass(frozen=True)
class Pair:
    """Two groups in a column.

    Attributes:
        a, b: keys of the groups.
        difference: of a to b.
        p_adjusted: by Holm's correction over the table; None where there was no test.
    """

    column: Column
    a: str
    b: str
    difference: Difference
    p_adjusted: float | None

    @property
    def is_significant(self) -> bool:
        """Whether it is no tie."""
        return self.p_adjusted is not None and self.p_adjusted < LEVEL

    @property
    def is_of_runs(self) -> bool:
        """Whether it tells of two runs, and not of what other seeds would give."""
        return self.difference.test == "McNemar"

    @property
    def better(self) -> str | None:
        """The key of the one that is significantly better; None for a tie."""
        if not self.is_significant:
            return None
        is_first = (self.difference.difference > 0) == (self.column.better != "lower")
        return self.a if is_first else self.b

    @property
    def how(self) -> str:
        """Which test it was."""
        n, unpaired = self.difference.n, self.difference.unpaired
        rest = f" ({unpaired} more without a partner)" if unpaired else ""
        return {
            "paired t": f"paired t, {n} seeds{rest}",
            "Welch t": f"Welch t, {n} seeds or more",
            "McNemar": "McNemar, one pair of runs",
            "none": "not tested",
        }[self.difference.test]


def test_pairs(
    keys: Sequence[str],
    columns: Sequence[Column],
    cells: Mapping[tuple[str, str], Sequence[Score]],
    labels: Mapping[str, str],
    has_predictions: bool,
) -> tuple[tuple[Pair, ...], list[str]]:
    """Test all pairs of groups in the headline columns, corrected over all of them together.

    Args:
        keys: of the groups, in order.
        cells: by key of group and column, one for each run.
        labels: of the groups, by key.
        has_predictions: whether the scores are those of stored predictions, for McNemar's test.

    Returns:
        The pairs, and why some could not be tested.
    """
    found: list[tuple[Column, str, str, Difference]] = []
    notes: dict[str, None] = {}
    for column in columns:
        if not column.is_headline or column.better == "neither":
            continue
        present = {key: cells[key, column.key] for key in keys if (key, column.key) in cells}
        values = {key: {s.seed: s.value for s in part} for key, part in present.items()}
        answers = {}
        for key, part in present.items():
            if has_predictions and len(part) == 1 and len(present) > 1:
                answers[key] = _answers(part[0], notes)
        for a, b in itertools.combinations(present, 2):
            difference = statistics.difference(values[a], values[b])
            one, other = answers.get(a), answers.get(b)
            if difference.test == "none" and one is not None and other is not None:
                if np.array_equal(one.labels_N, other.labels_N):
                    difference = statistics.mcnemar(one.right_N, other.right_N)
                else:
                    notes[
                        f"{column.title}: {labels[a]} and {labels[b]} were tested on other images "
                        "or in another order, so their predictions are not compared"
                    ] = None
            found.append((column, a, b, difference))
    adjusted = statistics.holm([difference.p for *_, difference in found])
    return tuple(Pair(*pair, p) for pair, p in zip(found, adjusted, strict=True)), list(notes)


def marks(column: Column, means: Mapping[str, float], pairs: Sequence[Pair]) -> dict[str, Mark]:
    """Who is best in a column, or who cannot be told apart from the highest mean.

    A paired test may contradict the means, which are over all seeds: then nobody is beaten. Of a
    group that was not tested against the highest mean, nothing is said.

    Args:
        means: by key of group, without NaN.
        pairs: at least those of the column.
    """
    own = [pair for pair in pairs if pair.column == column]
    if not own or len(means) < 2:
        return {}
    sign = -1 if column.better == "lower" else 1
    top = max(means, key=lambda key: sign * means[key])
    against = {p.b if p.a == top else p.a: p for p in own if top in (p.a, p.b)}
    won = [pair for pair in against.values() if pair.better == top]
    if len(won) == len(means) - 1:
        return {top: "single" if any(pair.is_of_runs for pair in won) else "best"}
    tested = [key for key in means if key in against and against[key].p_adjusted is not None]
    level = [key for key in tested if against[key] not in won]
    return dict.fromkeys([top, *level], "tied") if level else {}


@dataclass(frozen=True)
class _Answers:
    """Of a run, in the test split's order: bool and int ``(N,)``."""

    right_N: np.ndarray
    labels_N: np.ndarray


def _answers(score: Score, notes: dict[str, None]) -> _Answers | None:
    """Whether a run has each test image right; None where that is not stored."""
    if math.isnan(score.value):
        return None
    try:
        found = arrays.read(Path(score.folder) / schema.PREDICTIONS, ("predictions", "labels"))
    except UserError as error:
        notes[str(error)] = None
        return None
    if not found:
        return None
    predictions_N, labels_N = found["predictions"], found["labels"]
    if predictions_N.shape == labels_N.shape and labels_N.ndim == 1 and labels_N.size:
        right_N = predictions_N == labels_N
        if abs(100 * np.mean(right_N) - score.value) < _ROUNDED:
            return _Answers(right_N, labels_N)
    notes[f"{score.run}: predictions of {score.eval} do not give its score"] = None
    return None
