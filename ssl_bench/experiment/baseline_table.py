"""A run beside its baselines, as a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich.table import Table

from ssl_bench.utils.formatting import digits

Record = Mapping[str, Any]


def headline(scores: Mapping[str, float]) -> float:
    """The first score."""
    return next(iter(scores.values()))


def beside_baselines(
    method: str, records: Iterable[Record], pretrained_on: str | None = None
) -> Table:
    """One row for each evaluation: the method's score, its baselines' and what it gains."""
    records = list(records)
    labels = list(dict.fromkeys(label for record in records for label in record["baselines"]))
    tested = " or ".join(f"{count:,}" for count in sorted({r["test_images"] for r in records}))
    notes = sorted({record["note"] for record in records if record["note"]})
    units = [record.get("unit", "top-1 accuracy (%)") for record in records]
    is_mixed = len(set(units)) > 1
    what = "" if is_mixed else f"{units[0]}, "
    caption = f"{what}{tested} test images, one seed (gain over the baseline)"
    data = records[0]["data"]
    origin = "" if pretrained_on in (None, data) else f", pre-trained on {pretrained_on}, evaluated"
    table = Table(title=f"{method}{origin} on {data}", caption="\n".join([caption, *notes]))
    table.add_column("evaluation")
    table.add_column(method, justify="right", style="bold")
    for label in labels:
        table.add_column(label, justify="right")
    for record, unit in zip(records, units, strict=True):
        score = headline(record["scores"])
        others = {label: headline(scores) for label, scores in record["baselines"].items()}
        gains = {label: f" ({digits(score - other, unit, '+')})" for label, other in others.items()}
        if record.get("better") == "neither":
            gains = dict.fromkeys(others, "")
        cells = (digits(others[n], unit) + gains[n] if n in others else "-" for n in labels)
        name = f"{record['eval']}\n{unit}" if is_mixed else record["eval"]
        table.add_row(name, digits(score, unit), *cells)
    return table
