"""Where the report's numbers come from: every run with its state, and its provenance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ssl_bench.analysis.report.source import Source, settings, slug
from ssl_bench.analysis.report.tables import Cell, Table, anchor, known, plain
from ssl_bench.errors import UserError
from ssl_bench.runs import schema
from ssl_bench.runs.schema import digest, facts, mapping
from ssl_bench.utils.formatting import plain as plain_text

_LONGEST = 20_000
Evaluations = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Origin:
    """Where a run comes from.

    Attributes:
        anchor: its name on the page.
        facts: title and text.
        command: which started it.
    """

    anchor: str
    run: str
    state: str
    folder: str
    command: str
    facts: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Provenance:
    """The runs of a group."""

    anchor: str
    label: str
    settings: tuple[tuple[str, str], ...]
    origins: tuple[Origin, ...]


def run_table(source: Source) -> Table:
    """Every run with its state, the failed and the unfinished among them."""
    whys = {pending.run: pending.why for pending in source.comparison.pending}
    links = _keys_of_runs(source)
    rows = []
    data = source.runs.drop(columns=["key", "settings"], errors="ignore").assign(
        note=source.runs["run"].map(whys)
    )
    for _, run in source.runs.iterrows():
        why = whys.get(run["run"], "")
        rows.append(
            (
                Cell(run["run"], run["run"], _anchor(run["run"])),
                Cell(run["label"], run["label"], links.get(run["run"], "")),
                plain(run["seed"], "d"),
                Cell(
                    str(run["state"]),
                    str(run["state"]),
                    mark="" if run["state"] == "trained" else "bad",
                ),
                plain(run["images_seen"]),
                plain(run["flops"]),
                plain(run["seconds"]),
                Cell(_text(run["device"]) or "-", _text(run["device"]) or None),
                Cell(_commit(run) or "-", _commit(run) or None),
                Cell(why or "-", why or None),
            )
        )
    return Table(
        name="runs",
        title="All runs",
        caption="Every run folder that was read, whatever its state.",
        columns=(
            "run",
            "method",
            "seed",
            "state",
            "images seen",
            "FLOPs",
            "device-seconds",
            "device",
            "code",
            "note",
        ),
        numeric=frozenset({2, 4, 5, 6}),
        rows=tuple(rows),
        data=data,
    )


def provenance(source: Source) -> list[Provenance]:
    """Where the runs of each group come from; those of no group come last."""
    told = {row["run"]: row for _, row in source.runs.iterrows()}
    evaluations = _evaluations(source)
    shown: set[str] = set()
    done: set[str] = set()
    blocks = []
    for table in source.comparison.tables:
        for group in table.groups:
            if group.key in done:
                continue
            done.add(group.key)
            rows = [told[member.run] for member in group.members if member.run in told]
            name = anchor(group.key)
            blocks.append(_block(source, name, group.label, rows, evaluations, shown))
    left = [row for name, row in told.items() if name not in shown]
    if left:
        name = "runs-without-scores"
        blocks.append(_block(source, name, "Runs without scores", left, evaluations, shown))
    return blocks


def provenance_table(blocks: Sequence[Provenance]) -> pd.DataFrame:
    """The same as numbers and text, a row for each run."""
    return pd.DataFrame(
        {
            "group": block.label,
            "run": o.run,
            "state": o.state,
            "folder": o.folder,
            "command": o.command,
            **dict(o.facts),
        }
        for block in blocks
        for o in block.origins
    )


def _block(
    source: Source,
    name: str,
    label: str,
    rows: Sequence[pd.Series],
    evaluations: Evaluations,
    shown: set[str],
) -> Provenance:
    origins = []
    for row in rows:
        # Evaluated in two precisions, a run stands under two groups; a page has each name once.
        own = _anchor(row["run"]) if row["run"] not in shown else ""
        shown.add(row["run"])
        origins.append(_origin(source, row, evaluations, own))
    told = settings(rows[0]["settings"]) if rows else {}
    return Provenance(
        name,
        label,
        tuple((key, str(value)) for key, value in told.items()) if label else (),
        tuple(origins),
    )


def _origin(source: Source, row: pd.Series, evaluations: Evaluations, name: str) -> Origin:
    environment: dict[str, Any] = {}
    path = source.file(row, schema.ENVIRONMENT)
    try:
        environment = facts(path) if path else {}
    except UserError as error:
        source.problem(str(error))
    packages = mapping(environment.get("packages"))
    told = {
        "seed": "-" if pd.isna(row["seed"]) else str(row["seed"]),
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
        "evaluations": ", ".join(evaluations.get(row["run"], ())),
        "error": _text(row["error"]),
    }
    return Origin(
        name,
        str(row["run"]),
        str(row["state"]),
        _text(row["folder"]),
        _text(row["command"]),
        tuple((title, text) for title, text in told.items() if text),
    )


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
    """The name on the page of a run; names of folders may differ in their signs alone."""
    return f"run-{slug(run)}-{digest(run)}"


def _keys_of_runs(source: Source) -> dict[str, str]:
    return {
        member.run: anchor(group.key)
        for table in source.comparison.tables
        for group in table.groups
        for member in group.members
    }


def _text(value: Any) -> str:
    return plain_text(value[:_LONGEST]) if isinstance(value, str) else ""


def _whole(value: Any) -> str:
    number = known(value)
    return "" if number is None else f"{number:,.0f}"


def _is_true(value: Any) -> bool:
    return not pd.isna(value) and bool(value)


def _commit(row: pd.Series) -> str:
    commit = _text(row["commit"])
    if not commit:
        return ""
    return f"{commit[:10]} with uncommitted changes" if _is_true(row["dirty"]) else commit[:10]
