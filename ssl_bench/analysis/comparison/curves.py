"""Scores at an equal cost, read from those of the snapshots along each run."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ssl_bench.config.command_settings import At

Point = dict[str, Any]
_COSTS = ("images_seen", "flops", "seconds")
SAME = 0.01
"""Costs that differ by less than this share of them are equal: trainings end at whole steps."""
_CURVE = ["key", "run", "eval", "protocol", "score"]


@dataclass(frozen=True)
class Axis:
    """What is made equal.

    Attributes:
        name: a column of the scores.
    """

    name: str
    form: str

    def words(self, cost: float) -> str:
        """The cost with its unit."""
        return self.form.format(cost)


AXES: Mapping[str, Axis] = {
    "equal-images": Axis("images_seen", "{:,.0f} images seen"),
    "equal-flops": Axis("flops", "{:.4g} FLOPs"),
    "equal-time": Axis("seconds", "{:.3g} s of the device"),
}


@dataclass(frozen=True)
class RunRecord:
    """Scores at a cost.

    Attributes:
        rows: the scores, one for each run, evaluation, protocol and name, with value and costs as
            they were at that cost.
        title: the cost in words, and whether learning rates were annealed there.
        notes: which groups cannot be read there, and why.
        cost: None where no group has any.
    """

    rows: pd.DataFrame
    title: str
    notes: tuple[str, ...]
    cost: float | None


def read(rows: pd.DataFrame, at: At, cost: float | None = None) -> RunRecord:
    """Read every curve at the largest cost that all groups reach, or at a given one.

    A curve is what one run scores at its snapshots and at its end. Between two neighbours it is
    taken to be a straight line; before its first point and after its last one nothing is known of
    it. What costs nothing, as an encoder that is not trained, scores the same at any cost. A group
    whose cost was not recorded does not count among all. Costs that differ by less than 1 % are
    equal, so that what was evaluated only at the end of trainings under one budget is read there.
    """
    axis = AXES[at]
    labels = rows.drop_duplicates("key").set_index("key")["label"]
    numbers = {name: pd.to_numeric(rows[name], errors="coerce") for name in (*_COSTS, "step")}
    rows = rows.assign(**numbers)
    reach = rows.groupby(["key", "run"])[axis.name].max().groupby("key").min()
    trained = reach[reach > 0]
    notes = [
        f"{labels[key]}: {axis.name} was not recorded, so it cannot be read at an equal cost"
        for key in labels.index[reach.reindex(labels.index).isna()]
    ]
    if cost is None:
        if trained.empty:
            return RunRecord(rows.iloc[:0], "no costs recorded", tuple(notes), None)
        cost = float(trained.min())
    found: list[Point] = []
    missing: dict[tuple[str, str], list[Point]] = defaultdict(list)
    for points in _curves(rows):
        point = _at(points, axis.name, cost)
        if point is not None:
            found.append(point)
        elif not math.isnan(reach[points[0]["key"]]):
            missing[points[0]["label"], points[0]["eval"]] += points
    for (label, name), points in missing.items():
        known = [point[axis.name] for point in points]
        count = len({point["run"] for point in points})
        notes.append(
            f"{label}: {name} of {count} run{'s' * (count > 1)} is not known at "
            f"{axis.words(cost)}, only from {axis.words(min(known))} to {axis.words(max(known))}"
        )
    title = f"at {axis.words(cost)}, {_annealed(rows[rows['key'].isin(trained.index)], axis, cost)}"
    kept = pd.DataFrame(found, columns=rows.columns) if found else rows.iloc[:0]
    return RunRecord(kept, title, tuple(notes), cost)


def _annealed(rows: pd.DataFrame, axis: Axis, cost: float) -> str:
    """Whether the cost is that of the whole training, of all runs or of which."""
    ends = rows[axis.name].where(rows["step"].isna())
    own = ends.groupby([rows["label"], rows["run"]]).max()
    is_end = (own - cost).abs() <= SAME * own.clip(lower=cost)
    if is_end.all():
        return "the end of each run"
    ended = [
        label if part.all() else f"{part.sum()} of {len(part)} runs of {label}"
        for label, part in is_end.groupby(level=0)
        if part.any()
    ]
    whose = f" (those of {', '.join(ended)} are)" if ended else ""
    return f"learning rates not annealed there{whose}"


def _curves(rows: pd.DataFrame) -> Iterable[list[Point]]:
    """The points of each run's score."""
    curves: dict[tuple[str, ...], list[Point]] = defaultdict(list)
    for point in rows.to_dict("records"):
        curves[tuple(point[name] for name in _CURVE)].append(point)
    return curves.values()


def _at(points: list[Point], axis: str, cost: float) -> Point | None:
    """A curve's score and costs at a cost; None beyond its points."""

    def order(point: Point) -> tuple[float, float]:
        return point[axis], math.inf if math.isnan(point["step"]) else point["step"]

    # The end comes last among points of one cost, and stands for them.
    known = [point for point in points if not math.isnan(point[axis])]
    by_cost = {point[axis]: point for point in sorted(known, key=order)}
    if not by_cost:
        return None
    last = by_cost[max(by_cost)]
    if not last[axis]:
        return last
    same = [place for place in by_cost if math.isclose(place, cost, rel_tol=SAME)]
    if same:
        return by_cost[min(same, key=lambda place: abs(place - cost))]
    before = [place for place in by_cost if place < cost]
    after = [place for place in by_cost if place > cost]
    if not before or not after:
        return None
    left, right = by_cost[before[-1]], by_cost[after[0]]
    share = (cost - left[axis]) / (right[axis] - left[axis])
    return last | {
        name: left[name] + share * (right[name] - left[name]) for name in (*_COSTS, "value")
    }
