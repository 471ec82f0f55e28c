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
    """One row for each run and how it was evaluated (data, seed, precision): scores, cost.

    Scores of one evaluation stand in one column only if the same protocol made them, whose hash
    the column's name ends with. ``settings`` holds what differs among runs of a method.
    """
    rows: list[dict[str, Any]] = []
    for folder in folders:
        plan, records = runs.plan_of(folder), evaluation.stored_records(folder)
        path = folder / "cost.json"
        cost = read_json(path) if path.exists() else {}
        cells = dict.fromkeys((r["data"], r["seed"], r["precision"]) for r in records)
        for data, seed, precision in cells or [(plan["data"], plan["seed"], None)]:
            own = [
                r
                for r in records
                if (r["data"], r["seed"], r["precision"]) == (data, seed, precision)
            ]
            rows.append(
                {
                    "evaluated on": data,
                    "method": plan["method"],
                    "settings": _settings(plan)
                    | ({"evaluated in": precision} if precision else {}),
                    "seed": seed,
                    "scores": {
                        f"{record['eval']} {record['protocol']}": headline(record["scores"])
                        for record in own
                    },
                    "note": "; ".join(sorted({r["note"] for r in own if r["note"]})),
                    "images seen": cost.get("images_seen"),
                    "seconds": cost.get("seconds"),
                    "state": "trained" if runs.is_trained(folder) else "unfinished",
                    "run": folder.name,
                }
            )
    frame = pd.DataFrame(rows)
    scores = pd.DataFrame(list(frame["scores"])).sort_index(axis="columns")
    position = frame.columns.get_loc("scores")
    frame = pd.concat([frame.iloc[:, :position], scores, frame.iloc[:, position + 1 :]], axis=1)
    peers = frame.groupby(["evaluated on", "method"], dropna=False)["settings"]
    frame["settings"] = peers.transform(_differences)
    return frame


def _settings(plan: Record) -> dict[str, Any]:
    """What a run was told, flat."""
    encoder = {name: plan["encoder"][name] for name in ("backbone", "image_size", "patch_size")}
    length = {name: plan.get(name) for name in ("epochs", "batch_size", "precision")}
    return {**plan.get("method_config", {}), **encoder, **length, "pre-trained on": plan["data"]}


def _differences(peers: pd.Series) -> pd.Series:
    """For each run, the settings that are not the same in all of its peers."""
    names = dict.fromkeys(name for settings in peers for name in settings)
    differing = [n for n in names if len({str(each[n]) for each in peers if n in each}) > 1]
    return peers.map(
        lambda each: "\n".join(f"{name}={each[name]}" for name in differing if name in each)
    )


def caveats(frame: pd.DataFrame) -> list[str]:
    """What to know about the data behind a comparison's scores."""
    noted = frame[frame["note"] != ""]
    return sorted(set(noted["evaluated on"] + ": " + noted["note"]))


def as_rich(frame: pd.DataFrame) -> list[Table]:
    """A comparison for the terminal, one table for each data set.

    Runs are named by the end of their folder's name, which `runs.find` understands; a protocol's
    hash is shown where an evaluation has several.
    """
    tables = []
    for data, rows in frame.groupby("evaluated on", sort=False, dropna=False):
        rows = rows.drop(columns=["evaluated on", "images seen", "note"]).dropna(
            axis="columns", how="all"
        )
        if (rows["state"] == "trained").all():
            rows = rows.drop(columns="state")
        rows["run"] = rows["run"].str.rpartition("-")[2]
        names = [str(name).partition(" ")[0] for name in rows.columns]
        is_mixed = any(names.count(name) > 1 for name in names)
        caption = "columns of one evaluation under several protocols carry the protocol's hash"
        table = Table(
            title=f"top-1 accuracy in percent on {data}", caption=caption if is_mixed else None
        )
        for column, name in zip(rows.columns, names, strict=True):
            is_number = pd.api.types.is_numeric_dtype(rows[column])
            title = str(column).replace(" ", "\n") if names.count(name) > 1 else name
            justify: Any = "right" if is_number else "left"
            table.add_column(title, justify=justify, no_wrap=name != "settings", overflow="fold")
        for row in rows.itertuples(index=False):
            table.add_row(*map(_cell, rows.columns, row))
        tables.append(table)
    return tables


def _cell(column: str, value: Any) -> str:
    """Scores with two digits, other numbers whole, a dash for what is missing."""
    if value is None or value != value:
        return "-"
    if not isinstance(value, float | int):
        return str(value)
    is_score = " " in column
    return f"{value:.2f}" if is_score else f"{value:,.0f}"
