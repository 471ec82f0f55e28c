"""Which runs may be compared, and what the comparison is worth.

Runs that differ in nothing but the seed are a group, and a group is a row. A column holds one score
of one evaluation under one protocol, and a table one version of a data set: what is not alike is
kept apart, and the table says why. The headline scores are tested in pairs, with Holm's correction
over the whole table; other scores are shown and not tested.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ssl_bench.analysis.comparison import curves, grouping, pairs, statistics
from ssl_bench.analysis.comparison.grouping import Column, Score
from ssl_bench.analysis.comparison.pairs import Mark, Pair
from ssl_bench.analysis.comparison.statistics import Mean
from ssl_bench.config.command_settings import At
from ssl_bench.runs.index import Index

MOST_GROUPS = 40
"""In a table with more groups than that, nothing is tested: the correction would hide it all."""
DONE = ("trained", "broken")
"""States of runs that are not to go on."""
_COSTS = ("images_seen", "flops", "seconds")
_OF_DEVICE = ("seconds", "peak_memory_mib")
_SIZES = ("peak_memory_mib", "encoder_parameters", "trained_parameters")


@dataclass(frozen=True)
class Member:
    """A run of a group."""

    run: str
    seed: int


@dataclass(frozen=True)
class Cost:
    """What a run of a group costs, on average; None where it was not measured.

    Attributes:
        flops: forward and backward of the pre-training.
        seconds: of the device.
        devices: names of all devices in the group.
    """

    images_seen: float | None
    flops: float | None
    seconds: float | None
    peak_memory_mib: float | None
    encoder_parameters: float | None
    trained_parameters: float | None
    devices: tuple[str, ...]


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but the seed, evaluated alike: one row.

    Attributes:
        key: the same in every table.
        label: the method, and the settings in which its groups differ.
        differing: these settings.
        cost: up to where the table reads the scores.
    """

    key: str
    label: str
    method: str
    differing: Mapping[str, Any]
    members: tuple[Member, ...]
    cost: Cost


@dataclass(frozen=True)
class Cell:
    """A group's scores in a column.

    Attributes:
        values: by run, NaN among them.
        mark: "best" if the difference to every other group of the column is significant; "single"
            if it is, but of single runs, whatever other seeds would give; "tied" for the others
            that cannot be told apart from the highest mean, and for that one; else "".
    """

    mean: Mean
    values: Mapping[str, float]
    mark: Mark = ""


@dataclass(frozen=True)
class Table:
    """Groups evaluated on one version of a data set.

    Attributes:
        evaluated_on: the data set's name.
        title: also tells at what cost the scores are read.
        columns: headline scores first.
        cells: by key of the group and key of the column; absent where there is no score.
        pairs: headline scores of all groups, a before b in the order of the rows.
        notes: why columns are apart, and what to know of the data.
    """

    evaluated_on: str
    test_fingerprint: str
    test_images: int
    title: str
    groups: tuple[Group, ...]
    columns: tuple[Column, ...]
    cells: Mapping[tuple[str, str], Cell]
    pairs: tuple[Pair, ...]
    notes: tuple[str, ...]

    @property
    def headlines(self) -> tuple[Column, ...]:
        """The columns that are tested."""
        return tuple(column for column in self.columns if column.is_headline)

    def label(self, key: str) -> str:
        """A group's label by its key."""
        return next(group.label for group in self.groups if group.key == key)


@dataclass(frozen=True)
class Pending:
    """A run that is in no table, or has something to be said of it.

    Attributes:
        state: as in the index: "trained", "failed", "running", "unfinished" or "broken".
        why: one line.
    """

    run: str
    state: str
    why: str


@dataclass(frozen=True)
class Comparison:
    """Tables, and what did not get into them.

    Attributes:
        notes: why tables are apart, and how groups are told apart.
        problems: those of the index.
    """

    tables: tuple[Table, ...]
    pending: tuple[Pending, ...]
    notes: tuple[str, ...]
    problems: tuple[str, ...]


def compare(index: Index, at: At = "end", at_cost: float | None = None) -> Comparison:
    """Put everything in an index side by side.

    An evaluation in another precision, or with another seed than the run's, makes a group of its
    own, whose label says so.

    Args:
        at: where the scores are read: at the "end" of each run, or at a cost that is equal for all.
        at_cost: that cost, in images, FLOPs or seconds. Default: the largest that all runs that are
            not to go on reach.
    """
    found = index.runs.drop_duplicates("run")
    grouped = grouping.rows(found, index.scores)
    rows = grouped.rows
    if at == "end":
        rows = rows[rows["step"].isna()]
    else:
        rows = rows[rows["run"].isin(found.loc[found["state"].isin(DONE), "run"])]
    notes = [*grouped.notes, *grouping.versions(rows)]
    versions = ["evaluated_on", "test_fingerprint", "test_images"]
    if at == "equal-time":
        rows, reasons = grouping.by_device(rows, found)
        versions.append("device")
        notes += reasons
    parts = rows.groupby(versions, sort=False)
    tables = tuple(_table(part, found, grouped.differing, at, at_cost) for _, part in parts)
    shown = set(rows["run"])
    is_shown = found["run"].map(lambda run: grouped.twins.get(run, run) in shown)
    is_plain = (found["state"] == "trained") & ~found["error"].map(lambda e: bool(_text(e)))
    pending = tuple(_pending(row) for _, row in found[~(is_shown & is_plain)].iterrows())
    return Comparison(tables, pending, tuple(notes), tuple(index.problems))


def _table(
    rows: pd.DataFrame,
    runs: pd.DataFrame,
    differing: Mapping[str, Mapping[str, Any]],
    at: At,
    at_cost: float | None,
) -> Table:
    first = rows.iloc[0]
    title, notes = f"{first['evaluated_on']}, {int(first['test_images']):,} test images", []
    caveats = sorted({f"{first['evaluated_on']}: {note}" for note in rows["note"].dropna() if note})
    columns, reasons = grouping.columns(rows)
    read = rows
    if at != "end":
        reading = curves.read(rows, at, at_cost)
        read, notes = reading.rows, list(reading.notes)
        title = f"{title}, {reading.title}"
        if at == "equal-time":
            title += f", on {first['device']}"
        costs = read.drop_duplicates("run").set_index("run")
        rows = rows.assign(**{name: rows["run"].map(costs[name]) for name in _COSTS})
    groups = _groups(rows, runs, differing)
    by_cell: dict[tuple[str, str], list[Score]] = defaultdict(list)
    for key, column, *score in read[["key", "column", *Score._fields]].itertuples(index=False):
        by_cell[key, column].append(Score(*score))
    tested: tuple[Pair, ...] = ()
    if len(groups) > MOST_GROUPS:
        notes.append(
            f"{len(groups)} groups are too many to test all pairs of them; no more than "
            f"{MOST_GROUPS} are tested, so name fewer runs"
        )
    else:
        labels = {group.key: group.label for group in groups}
        tested, untested = pairs.test_pairs([*labels], columns, by_cell, labels, at == "end")
        notes += untested
    cells = {}
    for column in columns:
        keys = [group.key for group in groups if (group.key, column.key) in by_cell]
        values = {key: {s.run: s.value for s in by_cell[key, column.key]} for key in keys}
        means = {key: statistics.mean_interval([*values[key].values()]) for key in keys}
        marks = pairs.marks(column, {k: m.mean for k, m in means.items() if m.n}, tested)
        for key in keys:
            cells[key, column.key] = Cell(means[key], values[key], marks.get(key, ""))
    devices = sorted({device for group in groups for device in group.cost.devices})
    if len(devices) > 1:
        notes.append(f"times and memory are of different devices: {', '.join(devices)}")
    notes += [
        f"{group.label}: its runs were on different devices, so that it has no mean time or memory"
        for group in groups
        if len(group.cost.devices) > 1
    ]
    return Table(
        evaluated_on=first["evaluated_on"],
        test_fingerprint=first["test_fingerprint"],
        test_images=int(first["test_images"]),
        title=title,
        groups=groups,
        columns=columns,
        cells=cells,
        pairs=tested,
        notes=(*notes, *reasons, *caveats),
    )


def _groups(
    rows: pd.DataFrame, runs: pd.DataFrame, differing: Mapping[str, Mapping[str, Any]]
) -> tuple[Group, ...]:
    """The rows of a table, in order; costs are the means over each group's runs."""
    told = ["key", "label", "method", "run", "seed"]
    own = rows.drop_duplicates(["key", "run"]).sort_values("seed")[[*told, *_COSTS]]
    own = own.merge(runs[["run", "device", *_SIZES]], on="run")
    numbers = own[[*_COSTS, *_SIZES]].apply(pd.to_numeric, errors="coerce")
    means = numbers.groupby(own["key"]).mean()
    means.loc[own.groupby("key")["device"].nunique() > 1, list(_OF_DEVICE)] = math.nan
    means = means.astype(object)
    costs = means.where(means.notna(), None).to_dict("index")
    by_key: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in own[[*told, "device"]].to_dict("records"):
        by_key[row["key"]].append(row)
    groups = [
        Group(
            key=key,
            label=each[0]["label"],
            method=each[0]["method"],
            differing=differing[key],
            members=tuple(Member(row["run"], int(row["seed"])) for row in each),
            cost=Cost(
                **costs[key], devices=tuple(sorted({_text(r["device"]) for r in each} - {""}))
            ),
        )
        for key, each in by_key.items()
    ]
    return tuple(sorted(groups, key=grouping.order))


def _pending(row: pd.Series) -> Pending:
    why = _text(row["error"])
    if not why and row["state"] == "trained":
        why = "not evaluated on anything"
    if not why and not pd.isna(row["step"]):
        why = f"at step {int(row['step']):,}"
    if row["state"] in ("unfinished", "failed") and _text(row["command"]):
        why = "; ".join(filter(None, [why, f"this goes on with it: {row['command']}"]))
    return Pending(row["run"], row["state"], why)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
