"""Scores at an equal cost, read from those of the snapshots along each run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ssl_bench.settings import At

_COSTS = ("images_seen", "flops", "seconds")
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
class Reading:
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


def read(rows: pd.DataFrame, at: At, cost: float | None = None) -> Reading:
    """Read every curve at the largest cost that all groups reach, or at a given one.

    A curve is what one run scores at its snapshots and at its end. Between two neighbours it is
    taken to be a straight line; before its first point and after its last one nothing is known of
    it. What costs nothing, as an encoder that is not trained, scores the same at any cost. A group
    whose cost was not recorded does not count among all.
    """
    axis = AXES[at]
    labels = rows.drop_duplicates("key").set_index("key")["label"]
    costs = pd.to_numeric(rows[axis.name], errors="coerce")
    rows = rows.assign(**{axis.name: costs})
    reach = costs.groupby([rows["key"], rows["run"]]).max().groupby("key").min()
    trained = reach[reach > 0]
    notes = [
        f"{labels[key]}: {axis.name} was not recorded, so it cannot be read at an equal cost"
        for key in labels.index[reach.reindex(labels.index).isna()]
    ]
    if cost is None:
        if trained.empty:
            return Reading(rows.iloc[:0], "no costs recorded", tuple(notes), None)
        cost = float(trained.min())
    found: list[pd.Series] = []
    missing: dict[tuple[str, str], list[pd.DataFrame]] = {}
    for _, curve in rows.groupby(_CURVE, sort=False):
        row = _at(curve, axis.name, cost)
        if row is not None:
            found.append(row)
        elif not np.isnan(reach[curve["key"].iloc[0]]):
            name = (labels[curve["key"].iloc[0]], curve["eval"].iloc[0])
            missing.setdefault(name, []).append(curve)
    for (label, name), curves in missing.items():
        known = pd.concat(curves)[axis.name]
        runs = len({curve["run"].iloc[0] for curve in curves})
        notes.append(
            f"{label}: {name} of {runs} run{'s' * (runs > 1)} is not known at {axis.words(cost)}, "
            f"only from {axis.words(known.min())} to {axis.words(known.max())}"
        )
    ended = [labels[key] for key in trained.index if np.isclose(trained[key], cost)]
    if len(ended) == len(trained):
        annealed = "the end of each run"
    else:
        annealed = "learning rates not annealed there"
        annealed += f" (those of {', '.join(ended)} are)" if ended else ""
    title = f"at {axis.words(cost)}, {annealed}"
    kept = pd.DataFrame(found, columns=rows.columns) if found else rows.iloc[:0]
    return Reading(kept, title, tuple(notes), cost)


def _at(curve: pd.DataFrame, axis: str, cost: float) -> pd.Series | None:
    """A curve's score and costs at a cost; None beyond its points."""
    # The end comes last among points of one cost, and stands for them.
    points = curve.sort_values([axis, "step"], na_position="last").dropna(subset=[axis])
    points = points.drop_duplicates(axis, keep="last")
    if points.empty:
        return None
    x, last = points[axis].to_numpy(float), points.iloc[-1]
    if x[-1] == 0:
        return last
    at_cost = np.flatnonzero(np.isclose(x, cost, rtol=1e-9))
    if len(at_cost):
        return points.iloc[at_cost[-1]]
    if not x[0] <= cost <= x[-1]:
        return None
    between = {
        name: np.interp(cost, x, pd.to_numeric(points[name], errors="coerce").to_numpy(float))
        for name in (*_COSTS, "value")
    }
    return pd.Series({**last.to_dict(), **between})
