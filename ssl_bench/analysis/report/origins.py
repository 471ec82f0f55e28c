"""Where the report's numbers come from: every run with its state, and its provenance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from ssl_bench.analysis.comparison import grouping
from ssl_bench.analysis.comparison.rows import Group
from ssl_bench.analysis.report.source import Source, slug
from ssl_bench.analysis.report.tables import Cell, Table, anchor, known, number_cell, text_cell
from ssl_bench.config import chosen
from ssl_bench.runs import schema
from ssl_bench.runs.schema import digest, mapping
from ssl_bench.utils.formatting import count, plain

_LONGEST = 20_000
_COLUMNS = (
    *("run", "method", "seed", "state", "images seen", "FLOPs", "device-seconds", "device"),
    *("code", "note"),
)


def run_table(source: Source) -> Table:
    """Every run with its state, failed and unfinished ones included."""
    notes = {run.run: run.why for run in source.comparison.incomplete}
    links = {
        run: anchor(group.key)
        for table in source.comparison.tables
        for group in table.groups
        for run in group.seeds
    }
    rows = []
    for _, run in source.runs.iterrows():
        state = str(run["state"])
        rows.append(
            (
                text_cell(run["run"], _anchor(run["run"])),
                text_cell(run["label"], links.get(run["run"], "")),
                number_cell(run["seed"], whole=True),
                Cell(state, state, mark="" if state == "trained" else "bad"),
                *(number_cell(run[cost]) for cost in ("images_seen", "flops", "seconds")),
                text_cell(_text(run["device"])),
                text_cell(_commit(run)),
                text_cell(notes.get(run["run"], "")),
            )
        )
    data = source.runs.drop(columns=["key", "settings"], errors="ignore")
    return Table(
        name="runs",
        title="All runs",
        caption="Every run folder that was read, whatever its state.",
        columns=_COLUMNS,
        numeric=frozenset({2, 4, 5, 6}),
        rows=tuple(rows),
        data=data.assign(note=source.runs["run"].map(notes)),
    )


def provenance(source: Source) -> list[dict[str, Any]]:
    """The runs of each group with their settings, for the page; those of no group come last."""
    runs = {row["run"]: row for _, row in source.runs.iterrows()}
    evaluations = _evaluations(source)
    groups: dict[str, Group] = {}
    for table in source.comparison.tables:
        for group in table.groups:
            if not group.is_baseline:
                groups.setdefault(group.key, group)
    shown: set[str] = set()

    def block(name: str, label: str, rows: Sequence[pd.Series]) -> dict[str, Any]:
        origins = []
        for row in rows:
            # Evaluated in two precisions, a run is in two groups, but a page has each anchor once.
            own = "" if row["run"] in shown else _anchor(row["run"])
            shown.add(row["run"])
            facts = _facts(source, row, evaluations.get(row["run"], ()))
            told = {name: _text(row[name]) for name in ("run", "state", "folder", "command")}
            origins.append({"anchor": own, "told": told, "facts": facts})
        settings = grouping.parse(rows[0]["settings"]) if rows else {}
        return {"anchor": name, "label": label, "settings": settings, "origins": origins}

    blocks = [
        block(anchor(key), group.label, [runs[run] for run in group.seeds if run in runs])
        for key, group in groups.items()
    ]
    left = [row for name, row in runs.items() if name not in shown]
    if left:
        blocks.append(block("runs-without-scores", "Runs without scores", left))
    return blocks


def provenance_table(blocks: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """A row for each run, for a CSV file."""
    return pd.DataFrame(
        {"group": block["label"], **origin["told"], **origin["facts"]}
        for block in blocks
        for origin in block["origins"]
    )


def _facts(source: Source, row: pd.Series, evaluations: Sequence[str]) -> dict[str, str]:
    path = source.file(row, schema.ENVIRONMENT)
    nothing: dict[str, Any] = {}
    environment = source.tried(lambda: schema.load_object(path), nothing) if path else nothing
    packages = mapping(environment.get("packages"))
    facts = {
        "seed": "-" if pd.isna(row["seed"]) else str(row["seed"]),
        "settings chosen by": _chosen(row["chosen_by"]),
        "code": _commit(row),
        "started": _text(row["started"]),
        "device": _text(row["device"]) or _text(environment.get("device")),
        "precision": _text(row["precision"]),
        "pre-trained on": _text(row["pretrained_on"]),
        "data fingerprint": _text(row["data_fingerprint"]),
        "images seen": _whole(row["images_seen"]),
        "FLOPs": _whole(row["flops"]),
        "device-seconds": _whole(row["seconds"]),
        "peak memory (MiB)": _whole(row["peak_memory_mib"]),
        "host": _text(environment.get("host")),
        "python": _text(environment.get("python")),
        "packages": ", ".join(_text(f"{k} {v}"[:_LONGEST]) for k, v in packages.items() if v),
        "evaluations": ", ".join(evaluations),
        "error": _text(row["error"]),
    }
    return {title: text for title, text in facts.items() if text}


def _evaluations(source: Source) -> dict[str, list[str]]:
    """The headline scores of each run, in words."""
    found: dict[str, list[str]] = {}
    for row in source.headlines.to_dict("records"):
        seed = row["seed"] if pd.isna(row["eval_seed"]) else row["eval_seed"]
        found.setdefault(row["run"], []).append(
            f"{row['eval']} on {row['evaluated_on']} (protocol {row['protocol']}, seed "
            f"{int(seed)}, {row['eval_precision']}): {row['value']:.2f}"
        )
    return found


def _anchor(run: str) -> str:
    """A run's name on the page; names of folders may differ in their signs alone."""
    return f"run-{slug(run)}-{digest(run)}"


def _text(value: Any) -> str:
    return plain(value[:_LONGEST]) if isinstance(value, str) else ""


def _chosen(text: Any) -> str:
    """How a run's settings were chosen, in full."""
    if not isinstance(text, str):
        return chosen.NOT_RECORDED
    record = grouping.parse(text)
    told = {name: value for name, value in record.items() if name != "config" and value}
    return "; ".join(
        [
            chosen.in_words(chosen.read(record)),
            *(f"{name.replace('_', ' ')} {_plain(v)}" for name, v in told.items()),
        ]
    )


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(each)}" for name, each in value.items())
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    return _text(value) if isinstance(value, str) else count(value)


def _whole(value: Any) -> str:
    number = known(value)
    return "" if number is None else f"{number:,.0f}"


def _commit(row: pd.Series) -> str:
    commit = _text(row["commit"])[:10]
    is_dirty = not pd.isna(row["dirty"]) and bool(row["dirty"])
    return f"{commit} with uncommitted changes" if commit and is_dirty else commit
