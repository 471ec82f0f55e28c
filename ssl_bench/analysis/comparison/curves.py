"""Scores at an equal cost, interpolated between each run's snapshots."""

from __future__ import annotations

import math
from bisect import bisect
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from ssl_bench.config.command_settings import At
from ssl_bench.utils.formatting import listed, many

Point = dict[str, Any]
COSTS = ("images_seen", "flops", "seconds")
SAME = 0.01
"""Costs within this fraction of each other are equal: trainings end at whole steps."""
_CURVE = ["key", "run", "eval", "protocol", "score"]
AXES: Mapping[At, tuple[str, str]] = {
    "equal-images": ("images_seen", "{:,.0f} images seen"),
    "equal-flops": ("flops", "{:.4g} FLOPs"),
    "equal-time": ("seconds", "{:.3g} s of the device"),
}
"""For each kind of equal cost: its column of the scores, and how a value reads."""


def scores_at(
    rows: pd.DataFrame, at: At, cost: float | None = None
) -> tuple[pd.DataFrame, str, list[str]]:
    """Read every curve at a cost; by default at the largest that all groups reach.

    A curve holds what one run scores at its snapshots and at its end. It is linear between two
    neighbours, and unknown before its first point and after its last. An encoder that costs nothing
    because it is not trained scores the same at any cost. Groups whose cost was not recorded are
    ignored. Costs that differ by less than 1 % are equal, so that what was evaluated only at the
    end of trainings under one budget can be read there.

    Returns:
        A row for each run, evaluation, protocol and score, with the value and the costs at that
        point; the cost in words, and whether learning rates were annealed there; which groups have
        no score there, and why.
    """
    axis, form = AXES[at]
    labels = rows.drop_duplicates("key").set_index("key")["label"]
    numbers = {name: pd.to_numeric(rows[name], errors="coerce") for name in (*COSTS, "step")}
    rows = rows.assign(**numbers)
    reach = rows.groupby(["key", "run"])[axis].max().groupby("key").min()
    trained = reach[reach > 0]
    notes = [
        f"{labels[key]}: {axis} was not recorded, so it cannot be read at an equal cost"
        for key in labels.index[reach.reindex(labels.index).isna()]
    ]
    if cost is None:
        if trained.empty:
            return rows.iloc[:0], "no costs recorded", notes
        cost = float(trained.min())
    found: list[Point] = []
    missing: dict[tuple[str, str], list[Point]] = defaultdict(list)
    curves: dict[tuple[str, ...], list[Point]] = defaultdict(list)
    for point in rows.to_dict("records"):
        curves[tuple(point[name] for name in _CURVE)].append(point)
    for points in curves.values():
        read = _interpolate(points, axis, cost)
        if read is not None:
            found.append(read)
        elif not math.isnan(reach[points[0]["key"]]):
            missing[points[0]["label"], points[0]["eval"]] += points
    notes += _told_missing(missing, axis, form, cost)
    annealed = _describe_annealing(rows[rows["key"].isin(trained.index)], axis, cost)
    scores = pd.DataFrame(found, columns=rows.columns) if found else rows.iloc[:0]
    return scores, f"at {form.format(cost)}, {annealed}", notes


def _told_missing(
    missing: Mapping[tuple[str, str], Sequence[Point]], axis: str, form: str, cost: float
) -> Iterator[str]:
    """A line for each range of costs between which curves of a group and evaluation are known.

    Groups that were evaluated at their end alone share one.
    """
    only_ends: dict[str, dict[str, None]] = defaultdict(dict)  # evaluations of groups
    for (label, name), points in missing.items():
        known = [point[axis] for point in points]
        count = len({point["run"] for point in points})
        if all(math.isnan(point["step"]) for point in points):
            only_ends[f"{label} ({many(count, 'run')})"][name] = None
            continue
        yield (
            f"{label}: {name} of {count} run{'s' * (count > 1)} is not known at "
            f"{form.format(cost)}, only from {form.format(min(known))} to {form.format(max(known))}"
        )
    by_names: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for label, names in only_ends.items():
        by_names[(*names,)].append(label)
    for evals, labels in by_names.items():
        yield (
            f"{', '.join(labels)}: {listed(evals)} not known at {form.format(cost)}, evaluated at "
            "the end alone; run --eval-every does so on the way, too"
        )


def _describe_annealing(rows: pd.DataFrame, axis: str, cost: float) -> str:
    """Which runs end at the cost, with their learning rates annealed."""
    last = rows[axis].where(rows["step"].isna()).groupby([rows["label"], rows["run"]]).max()
    is_end = (last - cost).abs() <= SAME * last.clip(lower=cost)
    if is_end.all():
        return "the end of each run"
    ended = [
        label if part.all() else f"{part.sum()} of {len(part)} runs of {label}"
        for label, part in is_end.groupby(level=0)
        if part.any()
    ]
    exceptions = f" (those of {', '.join(ended)} are)" if ended else ""
    return f"learning rates not annealed there{exceptions}"


def _interpolate(points: list[Point], axis: str, cost: float) -> Point | None:
    """A curve's score and costs at a cost; None outside its range."""
    # Among points of one cost the end of the training, without a step, is the one kept.
    known = [point for point in points if not math.isnan(point[axis])]
    known.sort(key=lambda point: (point[axis], math.isnan(point["step"]), point["step"]))
    by_cost = {point[axis]: point for point in known}
    if not by_cost:
        return None
    last = by_cost[max(by_cost)]
    if not last[axis]:
        return last
    same = [other for other in by_cost if math.isclose(other, cost, rel_tol=SAME)]
    if same:
        return by_cost[min(same, key=lambda other: abs(other - cost))]
    place = bisect([*by_cost], cost)
    if not 0 < place < len(by_cost):
        return None
    left, right = list(by_cost.values())[place - 1 : place + 1]
    fraction = (cost - left[axis]) / (right[axis] - left[axis])
    return last | {
        name: left[name] + fraction * (right[name] - left[name]) for name in (*COSTS, "value")
    }
