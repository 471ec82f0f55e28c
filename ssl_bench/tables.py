"""Results as tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from rich.table import Table

from ssl_bench import evaluation, runs
from ssl_bench.files import read_json

Record = Mapping[str, Any]


def headline(scores: Mapping[str, float]) -> float:
    """The first score, in percent."""
    return next(iter(scores.values()))


def beside_baselines(method: str, records: Iterable[Record]) -> Table:
    """One row for each evaluation: the method's score, its baselines' and what it gains."""
    records = list(records)
    labels = list(dict.fromkeys(label for record in records for label in record["baselines"]))
    tested = " or ".join(f"{count:,}" for count in sorted({r["test_images"] for r in records}))
    notes = sorted({record["note"] for record in records if record["note"]})
    caption = f"top-1 accuracy in percent, {tested} test images, one seed (gain over the baseline)"
    table = Table(title=f"{method} on {records[0]['data']}", caption="\n".join([caption, *notes]))
    table.add_column("evaluation")
    table.add_column(method, justify="right", style="bold")
    for label in labels:
        table.add_column(label, justify="right")
    for record in records:
        score = headline(record["scores"])
        others = {label: headline(scores) for label, scores in record["baselines"].items()}
        cells = (
            f"{others[label]:.2f} ({score - others[label]:+.2f})" if label in others else "-"
            for label in labels
        )
        table.add_row(record["eval"], f"{score:.2f}", *cells)
    return table


def comparison(folders: Iterable[Path]) -> pd.DataFrame:
    """One row for each run: what it was, what it cost, its score under each protocol.

    Scores of one evaluation stand in one column only if the same protocol made them; columns of
    different protocols carry its hash.
    """
    found = [
        (folder, runs.plan_of(folder), evaluation.stored_records(folder)) for folder in folders
    ]
    protocols: dict[str, dict[str, None]] = {}
    for _, _, records in found:
        for record in records:
            name = f"{record['data']} {record['eval']}"
            protocols.setdefault(name, {})[record["protocol"]] = None

    def column(record: Record) -> str:
        name = f"{record['data']} {record['eval']}"
        return name if len(protocols[name]) == 1 else f"{name} [{record['protocol']}]"

    rows = []
    for folder, plan, records in found:
        path = folder / "cost.json"
        cost = read_json(path) if path.exists() else {}
        rows.append(
            {
                "run": folder.name,
                "method": plan["method"],
                "pre-trained on": plan["data"],
                "seed": plan["seed"],
                "epochs": plan["epochs"],
                "images seen": cost.get("images_seen"),
                "seconds": cost.get("seconds"),
                "state": "trained" if runs.is_trained(folder) else "unfinished",
                **{column(record): headline(record["scores"]) for record in records},
            }
        )
    return pd.DataFrame(rows)


def caveats(folders: Iterable[Path]) -> list[str]:
    """What to know about the data behind the runs' scores."""
    records = [record for folder in folders for record in evaluation.stored_records(folder)]
    return sorted({f"{record['data']}: {record['note']}" for record in records if record["note"]})


def as_rich(frame: pd.DataFrame, title: str) -> Table:
    """A data frame for the terminal; scores get two digits, what is missing a dash."""
    table = Table(title=title)
    for name in frame.columns:
        is_number = pd.api.types.is_numeric_dtype(frame[name])
        table.add_column(str(name), justify="right" if is_number else "left", overflow="fold")
    for row in frame.itertuples(index=False):
        table.add_row(*(_cell(value) for value in row))
    return table


def _cell(value: Any) -> str:
    if value is None or value != value:
        return "-"
    if isinstance(value, float) and not value.is_integer():
        return f"{value:.2f}"
    return f"{int(value):,}" if isinstance(value, float | int) else str(value)
