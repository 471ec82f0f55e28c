"""Which differences in a column are significant, and which group is the best.

Tested over seeds where there are several, else over the test images of one pair of runs.
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
from ssl_bench.errors import UserError, require
from ssl_bench.runs import schema
from ssl_bench.utils import arrays

LEVEL = 0.05
_ROUNDING = 0.006
"""How far a stored score, of two decimals, may be from the accuracy of its predictions."""
Mark = Literal["best", "single", "tied", ""]
"""What a score is in its column: significantly better than all others ("single": but of single
runs, so that other seeds may differ), not distinguishable from the best mean, or neither."""


@dataclass(frozen=True)
class Pair:
    """The difference of group ``a`` to group ``b`` in a column.

    Attributes:
        p_adjusted: by Holm's correction over the table; None where there was no test.
    """

    column: Column
    a: str
    b: str
    difference: Difference
    p_adjusted: float | None

    @property
    def is_significant(self) -> bool:
        """Whether the corrected p value is below the level."""
        return self.p_adjusted is not None and self.p_adjusted < LEVEL

    @property
    def is_of_single_runs(self) -> bool:
        """Whether the test compares two runs, and says nothing about other seeds."""
        return self.difference.test == "McNemar"

    @property
    def better(self) -> str | None:
        """The key of the group that is significantly better; None for a tie."""
        if not self.is_significant:
            return None
        return self.a if self.difference.difference * self.column.sign > 0 else self.b

    @property
    def test(self) -> str:
        """The test in words."""
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
        cells: the scores of each run, by the keys of group and column.
        has_predictions: whether the scores follow from stored predictions, for McNemar's test.

    Returns:
        The pairs, and why some could not be tested.
    """
    found: list[tuple[Column, str, str, Difference]] = []
    notes: dict[str, None] = {}
    for column in columns:
        if not column.is_headline or column.better == "neither":
            continue
        present = {key: cells[key, column.key] for key in keys if (key, column.key) in cells}
        values = {key: {s.seed: s.value for s in scores} for key, scores in present.items()}
        answers = {
            key: _answers(scores[0], notes)
            for key, scores in present.items()
            if has_predictions and len(scores) == 1 and len(present) > 1
        }
        for a, b in itertools.combinations(present, 2):
            difference = statistics.difference(values[a], values[b])
            first, second = answers.get(a), answers.get(b)
            if difference.test == "none" and first and second:
                (right_a, labels_a), (right_b, labels_b) = first, second
                if np.array_equal(labels_a, labels_b):
                    difference = statistics.mcnemar(right_a, right_b)
                else:
                    note = (
                        f"{column.title}: {labels[a]} and {labels[b]} were tested on other images "
                        "or in another order, so their predictions are not compared"
                    )
                    notes[note] = None
            found.append((column, a, b, difference))
    adjusted = statistics.holm([difference.p for *_, difference in found])
    return tuple(Pair(*pair, p) for pair, p in zip(found, adjusted, strict=True)), list(notes)


def marks(column: Column, means: Mapping[str, float], pairs: Sequence[Pair]) -> dict[str, Mark]:
    """The groups that are best in a column, or cannot be told apart from the best mean.

    A paired test may contradict the means, which are over all seeds: then no group is best. A group
    that was not tested against the best mean gets no mark.

    Args:
        means: by the group's key, without NaN.
        pairs: at least those of the column.
    """
    pairs = [pair for pair in pairs if pair.column == column]
    if not pairs or len(means) < 2:
        return {}
    top = max(means, key=lambda key: column.sign * means[key])
    against = {p.b if p.a == top else p.a: p for p in pairs if top in (p.a, p.b)}
    won = [pair for pair in against.values() if pair.better == top]
    if len(won) == len(means) - 1:
        return {top: "single" if any(pair.is_of_single_runs for pair in won) else "best"}
    tested = [key for key in means if key in against and against[key].p_adjusted is not None]
    level = [key for key in tested if against[key] not in won]
    return dict.fromkeys([top, *level], "tied") if level else {}


def read_predictions(folder: str) -> tuple[np.ndarray, np.ndarray] | None:
    """An evaluation's predicted and true classes: int ``(N,)``; None where they are not stored.

    Raises:
        UserError: they cannot be read, or do not fit together.
    """
    found = arrays.read(Path(folder) / schema.PREDICTIONS, ("predictions", "labels"))
    if not found:
        return None
    predictions_N, labels_N = found["predictions"], found["labels"]
    is_valid = all(each.ndim == 1 and each.dtype.kind in "iu" for each in (predictions_N, labels_N))
    require(
        is_valid and len(predictions_N) == len(labels_N) > 0 and labels_N.min() >= 0,
        f"{folder!r}: predictions and labels do not fit together",
    )
    return predictions_N, labels_N


def _answers(score: Score, notes: dict[str, None]) -> tuple[np.ndarray, np.ndarray] | None:
    """Whether a run has each test image right, and the labels; None if that is not known."""
    try:
        stored = None if math.isnan(score.value) else read_predictions(score.folder)
    except UserError as error:
        notes[str(error)] = None
        return None
    if stored is None:
        return None
    predictions_N, labels_N = stored
    right_N = predictions_N == labels_N
    if abs(100 * np.mean(right_N) - score.value) < _ROUNDING:
        return right_N, labels_N
    notes[f"{score.run}: predictions of {score.eval} do not give its score"] = None
    return None
