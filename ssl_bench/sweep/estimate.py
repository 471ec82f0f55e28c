"""What a cell may cost, before it is submitted: FLOPs counted, time by what earlier runs took."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ssl_bench.runs.index import Index
from ssl_bench.runs.schema import Plan
from ssl_bench.utils.formatting import many

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Pace:
    """How fast something was done before.

    Attributes:
        rate: FLOPs a second on one device.
        basis: which runs tell, for a person.
    """

    rate: float
    basis: str


def pace(plan: Plan, index: Index | None) -> Pace | None:
    """How fast runs most like this one went, on the device that was used last.

    Of the same method, backbone and precision; else the same backbone and precision; else the same
    precision; None where there is none.
    """
    if index is None:
        return None
    done = index.runs
    done = done[(done["state"] == "trained") & (done["flops"] > 0) & (done["seconds"] > 0)]
    if done.empty:
        return None
    backbone = plan.encoder.backbone
    is_like = done["settings"].map(lambda text: _backbone(text) == backbone)
    is_precise = done["precision"] == plan.precision
    for which, words in (
        (is_like & is_precise & (done["method"] == plan.method), f"{plan.method}, {backbone}"),
        (is_like & is_precise, backbone),
        (is_precise, "another backbone"),
    ):
        like = done[which]
        if len(like):
            device = like.sort_values("started", na_position="first")["device"].iloc[-1]
            like = like[like["device"] == device]
            rate = float((like["flops"] / like["seconds"]).median())
            return Pace(
                rate, f"{many(len(like), 'run')} of {words} in {plan.precision} on {device}"
            )
    return None


def evaluation_seconds(names: Sequence[str], data: str, index: Index | None) -> float | None:
    """How long those evaluations took on that data set before; None where one is new there."""
    if not names:
        return 0.0
    if index is None:
        return None
    known = index.scores
    known = known[known["is_headline"].astype(bool) & (known["evaluated_on"] == data)]
    total = 0.0
    for name in names:
        took: pd.Series[Any] = known.loc[known["eval"] == name, "eval_seconds"].dropna()
        if took.empty:
            return None
        total += float(took.median())
    return total


def _backbone(settings: str) -> Any:
    return json.loads(settings).get("backbone")
