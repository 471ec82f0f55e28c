"""A table's rows: what its runs and their baselines are, cost and scored."""

from __future__ import annotations

import itertools
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ssl_bench.analysis.comparison import baselines, statistics
from ssl_bench.analysis.comparison.curves import COSTS
from ssl_bench.analysis.comparison.grouping import Score
from ssl_bench.analysis.comparison.pairs import Mark
from ssl_bench.analysis.comparison.statistics import Mean
from ssl_bench.config import chosen
from ssl_bench.config.chosen import ChosenBy
from ssl_bench.runs import schema

SIZES = ("peak_memory_mib", "encoder_parameters", "trained_parameters")
_DEVICE_COSTS = ("seconds", "peak_memory_mib")


@dataclass(frozen=True)
class Group:
    """Runs that differ only in the seed and were evaluated alike: one row.

    Attributes:
        key: the same in every table.
        label: the method, and the settings in which its groups differ.
        seeds: by run, in ascending order.
        costs: means over the pre-trainings, up to the point where the table reads the scores, and
            sizes; None where they were not measured.
        choices: how the settings of its runs were chosen, each way once; None of a run that does
            not tell.
        is_baseline: whether it is what the evaluations have beside the runs, such as raw pixels;
            its runs are names for them alone, and it is not tested.
    """

    key: str
    label: str
    method: str
    seeds: Mapping[str, int]
    costs: Mapping[str, float | None]
    devices: tuple[str, ...]
    choices: tuple[ChosenBy | None, ...] = ()
    is_baseline: bool = False

    @property
    def chosen_by(self) -> str:
        """How its settings were chosen, as `chosen.in_words` has it."""
        return " / ".join(sorted({chosen.in_words(each) for each in self.choices}))

    @property
    def searches(self) -> list[ChosenBy]:
        """Those of its choices that a search has made."""
        return [each for each in self.choices if each and each.trials]


@dataclass(frozen=True)
class GroupScore:
    """A group's scores in one column: the values by run, NaN included, and their mean."""

    mean: Mean
    values: Mapping[str, float]
    mark: Mark = ""


def groups(scores: pd.DataFrame, runs: pd.DataFrame, keys: Sequence[str]) -> tuple[Group, ...]:
    """The rows of a table, in the order of the keys, with the mean costs of their runs."""
    names = ["key", "label", "method", "run", "seed", *COSTS]
    members = scores.drop_duplicates(["key", "run"]).sort_values("seed")[names]
    members = members.merge(runs[["run", "device", "chosen_by", *SIZES]], on="run")
    members["chosen_by"] = members["chosen_by"].map(schema.text)
    numbers = members[[*COSTS, *SIZES]].apply(pd.to_numeric, errors="coerce")
    means = numbers.groupby(members["key"]).mean()
    means.loc[members.groupby("key")["device"].nunique() > 1, list(_DEVICE_COSTS)] = math.nan
    means = means.astype(object)
    costs = means.where(means.notna(), None).to_dict("index")
    by_key: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in members.to_dict("records"):
        by_key[row["key"]].append(row)
    return tuple(
        Group(
            key=key,
            label=of_group[0]["label"],
            method=of_group[0]["method"],
            seeds={row["run"]: int(row["seed"]) for row in of_group},
            costs=costs[key],
            devices=tuple(sorted({schema.text(row["device"]) for row in of_group} - {""})),
            choices=tuple(map(_choice, dict.fromkeys(row["chosen_by"] for row in of_group))),
        )
        for key in keys
        if (of_group := by_key.get(key))
    )


def beside(
    scores: pd.DataFrame,
    groups: Sequence[Group],
    by_cell: Mapping[tuple[str, str], Sequence[Score]],
) -> tuple[tuple[Group, ...], dict[tuple[str, str], GroupScore]]:
    """The baselines of these scores as groups, and their cells.

    Where untrained encoders are a group of their own, they are not shown again as a baseline.
    """
    found, cells = [], {}
    untrained = [group.key for group in groups if group.method == baselines.UNTRAINED_METHOD]
    for label, values in baselines.found(scores).items():
        by_column: dict[str, dict[int, float]] = defaultdict(dict)
        for (seed, column), value in values.items():
            by_column[column][seed] = value
        if label.startswith(baselines.UNTRAINED):
            for key, column in itertools.product(untrained, [*by_column]):
                of_group = {s.seed: s.value for s in by_cell.get((key, column), ())}
                if of_group == by_column.get(column):
                    del by_column[column]
        if not by_column:
            continue
        key = f"baseline {label}"
        runs = {f"{label} seed {seed}": seed for seed in sorted({seed for seed, _ in values})}
        costs = dict.fromkeys((*COSTS, *SIZES))
        found.append(Group(key, label, label, runs, costs, (), is_baseline=True))
        for column, of_column in by_column.items():
            of_runs = {f"{label} seed {seed}": value for seed, value in of_column.items()}
            cells[key, column] = GroupScore(statistics.mean_interval([*of_runs.values()]), of_runs)
    return tuple(found), cells


def _choice(text: str) -> ChosenBy | None:
    return chosen.read(json.loads(text)) if text else None
