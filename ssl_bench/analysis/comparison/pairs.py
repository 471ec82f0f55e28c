"""Which differences in a column are decided, and which group is the best.

Two claims, each with its own guard against chance:

- *This group is better than all others of its column*: every other group is worse by a test of its
  own. That all of them are is an intersection of claims, which needs no correction (Berger,
  Technometrics 24, 1982). Of groups that cannot be tested, such as single runs, nothing is claimed.
- *This pair differs*: Holm's correction over all pairs of the column, or of the table.

Beside the best mean, a group counts as worse only if all groups of lower means do, and as
equivalent only if all between the two do, so that no mark contradicts the means. Each interval is
that of its pair's own level: it leaves out zero exactly where the pair is decided, and stays within
the margin where the pair is equivalent. Intervals hold one by one: together they may cover less.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from ssl_bench.analysis.comparison import statistics
from ssl_bench.analysis.comparison.grouping import Column, Score
from ssl_bench.analysis.comparison.statistics import LEVEL, Difference
from ssl_bench.config.command_settings import VerdictSettings
from ssl_bench.errors import UserError, require
from ssl_bench.runs import schema
from ssl_bench.utils import arrays

_ROUNDING = 0.006
"""How far a stored score, of two decimals, may be from the accuracy of its predictions."""
Mark = Literal["best", "equivalent", "undecided", ""]
"""What a score is in its column: better than all others, as good as the best mean within the
margin, not decided against it, or none of these."""
Verdict = Literal["better", "worse", "equivalent", "undecided", "not tested"]


@dataclass(frozen=True)
class Pair:
    """The difference of group ``a`` to group ``b`` in a column.

    Attributes:
        verdict: what a is.
        p_adjusted: corrected; below the level where the pair is decided. None without a test over
            seeds.
        level: at which the pair is decided: the share of such intervals that miss the truth.
        interval: at that level, so that it agrees with the verdict; 95 % over the test images for
            two runs. None where the spread is not known.
        is_fair: whether the better one does not owe it to how settings were chosen.
    """

    column: Column
    a: str
    b: str
    difference: Difference
    verdict: Verdict
    p_adjusted: float | None
    level: float
    interval: tuple[float, float] | None
    is_fair: bool = True

    @property
    def better(self) -> str | None:
        """The key of the group that is better; None where that is not decided."""
        return {"better": self.a, "worse": self.b}.get(self.verdict)

    def other(self, key: str) -> str:
        """The key of the other group; "" where this one is not of the pair."""
        return {self.a: self.b, self.b: self.a}.get(key, "")

    @property
    def test(self) -> str:
        """The test in words."""
        n = self.difference.n
        return {
            "paired t": f"paired t, {n} seeds",
            "Welch t": f"Welch t, {n} seeds or more",
            "McNemar": "one run a side: only these two, over test images",
            "none": "not tested",
        }[self.difference.test]


def test_pairs(
    keys: Sequence[str],
    columns: Sequence[Column],
    cells: Mapping[tuple[str, str], Sequence[Score]],
    labels: Mapping[str, str],
    has_predictions: bool,
    settings: VerdictSettings | None = None,
) -> tuple[tuple[Pair, ...], list[str]]:
    """Test all pairs of groups in the headline columns.

    Args:
        keys: of the groups, in order.
        cells: the scores of each run, by the keys of group and column.
        has_predictions: whether the scores follow from stored predictions, for two single runs.

    Returns:
        The pairs, and why some could not be tested.
    """
    settings = settings or VerdictSettings()
    found: list[Pair] = []
    means_of: dict[Column, tuple[dict[str, float], set[str]]] = {}
    notes: dict[str, None] = {}
    for column in columns:
        if not column.is_ranked:
            continue
        present = {key: cells[key, column.key] for key in keys if (key, column.key) in cells}
        values = {key: {s.seed: s.value for s in scores} for key, scores in present.items()}
        means_of[column] = _, diverged = _means(column, cells)
        answers = {
            key: _answers(scores[0], notes)
            for key, scores in present.items()
            if has_predictions and len(scores) == 1 and len(present) > 1
        }
        for a, b in itertools.combinations(present, 2):
            difference = statistics.difference(values[a], values[b], settings.pairing)
            first, second = answers.get(a), answers.get(b)
            if first and second:  # two single runs
                (right_a, labels_a), (right_b, labels_b) = first, second
                if np.array_equal(labels_a, labels_b):
                    difference = statistics.mcnemar(right_a, right_b)
                else:
                    note = (
                        f"{column.title}: {labels[a]} and {labels[b]} were tested on other images "
                        "or in another order, so their predictions are not compared"
                    )
                    notes[note] = None
            ahead = a if difference.difference * column.sign > 0 else b
            if difference.p is not None and ahead in diverged:
                difference = Difference("none", difference.n, difference.difference)
                notes[f"{column.title}: {labels[ahead]} has a run that diverged, so that no lead "
                      "of its other runs is tested"] = None  # fmt: skip
            pair = Pair(column, a, b, difference, "not tested", None, LEVEL, difference.interval)
            found.append(pair)
    apart = _holm(found, settings.family, lambda d: None if d.test == "McNemar" else d.p)
    alike = _holm(found, settings.family, lambda d: d.p_within(settings.margin))
    decided: list[Pair] = []
    for column, group in itertools.groupby(
        zip(found, apart, alike, strict=True), key=lambda each: each[0].column
    ):
        tested, ps, ps_alike = map(list, zip(*group, strict=True))
        means, diverged = means_of[column]
        _order_by_means(tested, ps, ps_alike, means, settings.family == "table")
        decided += [
            _decide(pair, p, None if diverged & {pair.a, pair.b} else p_alike, settings.margin)
            for pair, p, p_alike in zip(tested, ps, ps_alike, strict=True)
        ]
    return tuple(decided), list(notes)


def _holm(
    found: Sequence[Pair], family: str, p_of: Callable[[Difference], float | None]
) -> list[float | None]:
    """Holm's correction within each column, or over the whole table."""
    families: dict[str, list[int]] = defaultdict(list)
    for index, pair in enumerate(found):
        families[pair.column.key if family == "column" else ""].append(index)
    adjusted: list[float | None] = [None] * len(found)
    for members in families.values():
        corrected = statistics.holm([p_of(found[index].difference) for index in members])
        for index, p in zip(members, corrected, strict=True):
            adjusted[index] = p
    return adjusted


def _means(
    column: Column, cells: Mapping[tuple[str, str], Sequence[Score]]
) -> tuple[dict[str, float], set[str]]:
    """The means in a column, so that more is better, and the groups that have a diverged run."""
    values = {key: [s.value for s in scores] for (key, name), scores in cells.items()
              if name == column.key}  # fmt: skip
    known = {key: [v for v in each if not math.isnan(v)] for key, each in values.items()}
    means = {key: column.sign * float(np.mean(each)) for key, each in known.items() if each}
    return means, {key for key in values if len(known[key]) < len(values[key])}


def _order_by_means(
    tested: Sequence[Pair],
    ps: list[float | None],
    ps_alike: list[float | None],
    means: Mapping[str, float],
    is_strict: bool,
) -> None:
    """Make the corrected p values of a column's best mean agree with the means, in place.

    Its pairs have p values of their own where it is better than all others that are tested, unless
    ``is_strict``.

    Args:
        ps, ps_alike: of the pairs' difference, and of their equivalence.
        means: so that more is better.
    """
    top = max(means, key=lambda key: means[key], default="")
    at = {key: n for n, pair in enumerate(tested) if (key := pair.other(top)) in means}
    own = {n: tested[n].difference.p for n in at.values() if ps[n] is not None}
    if not is_strict and all(p < LEVEL for p in own.values() if p):
        for n, p in own.items():
            ps[n] = p
    by_mean = [at[key] for key in sorted(at, key=lambda key: means[key])]
    for places, of in ((by_mean, ps), (by_mean[::-1], ps_alike)):
        largest = 0.0
        for n in places:
            p = of[n]
            if p is not None:
                largest = max(largest, p)
                of[n] = p if largest < LEVEL else largest


def _decide(pair: Pair, p: float | None, p_alike: float | None, margin: float) -> Pair:
    """The pair with its verdict, and with the interval at the level that it was decided at."""
    difference = pair.difference
    if p is None or difference.p is None:
        is_of_two = difference.test == "McNemar"
        return replace(pair, verdict="undecided" if is_of_two else "not tested")
    level = LEVEL * difference.p / p if p else LEVEL
    verdict: Verdict = "undecided"
    if p < LEVEL:
        verdict = "better" if difference.difference * pair.column.sign > 0 else "worse"
    elif pair.column.unit.endswith("(%)") and p_alike is not None and p_alike < LEVEL:
        verdict = "equivalent"
        # Both one-sided tests at a level are the interval at twice that level.
        level = 2 * LEVEL * (difference.p_within(margin) or 0.0) / p_alike if p_alike else level
    interval = difference.interval_at(level)
    return replace(pair, verdict=verdict, p_adjusted=p, level=level, interval=interval)


def rivals(top: str, means: Mapping[str, float], pairs: Iterable[Pair]) -> dict[str, Pair]:
    """The pairs that a group is in with another one that has a mean, by the other's key."""
    return {key: pair for pair in pairs if (key := pair.other(top)) in means}


def marks(column: Column, means: Mapping[str, float], pairs: Sequence[Pair]) -> dict[str, Mark]:
    """The best group of a column, or those that are not decided against the best mean.

    Single runs get no mark, since other seeds may differ.

    Args:
        means: by the group's key, without NaN.
        pairs: at least those of the column.
    """
    if len(means) < 2:
        return {}
    top = max(means, key=lambda key: column.sign * means[key])
    beside = rivals(top, means, (pair for pair in pairs if pair.column == column))
    if means.keys() - {top} == beside.keys() and all(p.better == top for p in beside.values()):
        return {top: "best"}
    found: dict[str, Mark] = {}
    for key, pair in beside.items():
        if pair.p_adjusted is not None and pair.better != top:
            found[key] = "equivalent" if pair.verdict == "equivalent" else "undecided"
    if found:
        found[top] = "equivalent" if {*found.values()} == {"equivalent"} else "undecided"
    return found


def what_would_decide(
    column: Column, cells: Mapping[tuple[str, str], Sequence[Score]], lead: float = 1.0
) -> str | None:
    """How many seeds would show a lead at the spread of a column; None where it has none."""
    values = [
        [s.value for s in scores if not math.isnan(s.value)]
        for (_, name), scores in cells.items()
        if name == column.key
    ]
    variances = [float(np.var(each, ddof=1)) for each in values if len(each) > 1]
    if (
        not column.unit.endswith("(%)")
        or not variances
        or not (spread := np.mean(variances) ** 0.5)
    ):
        return None
    rivals = len(values) - 1
    needed = statistics.seeds_needed(lead, float(spread), rivals)
    seeds = f"{needed} seeds each" if needed else "not even 1,000 seeds each"
    others = "the other one" if rivals == 1 else f"each of the other {rivals}"
    return (
        f"{column.title}: at the spread seen here ({spread:.2f} over seeds), {seeds} would show a "
        f"lead of {lead:g} point over {others} with a probability of 80 % or more"
    )


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


def right_answers(scores: Sequence[Score], notes: list[str]) -> np.ndarray | None:
    """Whether each run has each test image right: bool ``(S, N)``; None if that is not known."""
    told: dict[str, None] = {}
    found = [_answers(score, told) for score in scores]
    notes += told
    whole = [each for each in found if each]
    if len(whole) < len(found) or any(
        not np.array_equal(labels, whole[0][1]) for _, labels in whole
    ):
        return None
    return np.stack([right for right, _ in whole])


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
