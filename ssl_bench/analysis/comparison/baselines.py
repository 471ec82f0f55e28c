"""The baselines that evaluations show beside an encoder, as rows beside the runs."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from ssl_bench.analysis.comparison import grouping
from ssl_bench.runs import schema

_ENCODER = ("backbone", "image_size", "patch_size")
UNTRAINED, UNTRAINED_METHOD = "random init", "random-init"
"""The encoder as it starts, as a baseline and as a method."""
Values = dict[tuple[int, str], float]
"""A baseline's scores, by seed and column."""


def seed_of(row: Any) -> int:
    """The seed of a score's baselines: its evaluation's where it has one, else its run's."""
    return int(row.seed if pd.isna(row.eval_seed) else row.eval_seed)


def found(scores: pd.DataFrame) -> dict[str, Values]:
    """Each baseline of these scores, by a label that says what tells those of one name apart.

    Runs with the same encoder have the same baselines; those that come out equal for several
    encoders, as raw pixels do, are one.
    """
    every: dict[tuple[str, str], Values] = {}
    encoders: dict[tuple[str, str], dict[str, Any]] = {}
    names = ["baselines", "score", "column", "settings", "seed", "eval_seed", "eval_precision"]
    for row in scores[names].itertuples(index=False):
        told = grouping.parse(row.settings)
        encoder = {name: told[name] for name in _ENCODER if name in told}
        encoder["evaluated_in"] = row.eval_precision
        seed = seed_of(row)
        for label, values in grouping.parse(row.baselines).items():
            value: Any = schema.mapping(values).get(row.score)
            if schema.is_number(value) and math.isfinite(value):
                which = label, schema.digest(encoder)
                encoders[which] = encoder
                every.setdefault(which, {}).setdefault((seed, row.column), float(value))
    merged: dict[str, Values] = {}
    for label in dict.fromkeys(label for label, _ in every):
        kept: dict[tuple[str, str], Values] = {}
        for which, values in every.items():
            if which[0] == label and values not in kept.values():
                kept[which] = values
        labels = grouping.described(grouping.differences({each: encoders[each] for each in kept}))
        for which, values in kept.items():
            merged[f"{label} {labels[which]}".rstrip()] = values
    return merged
