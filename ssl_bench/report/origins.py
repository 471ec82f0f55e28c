"""Where the report's numbers come from: every run with its state, and its provenance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from ssl_bench.errors import first_line
from ssl_bench.files import read_json
from ssl_bench.report.source import Source, settings, slug
from ssl_bench.report.tables import Cell, Table, anchor, known, plain


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
        link = f"run-{slug(run['run'])}"
        rows.append(
            (
                Cell(run["run"], run["run"], link),
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
    shown: set[str] = set()
    done: set[str] = set()
    blocks = []
    for table in source.comparison.tables:
        for group in table.groups:
            if group.key in done:
                continue
            done.add(group.key)
            names = [member.run for member in group.members if member.run in told]
            blocks.append(
                _block(source, anchor(group.key), group.label, [told[n] for n in names], shown)
            )
    left = [row for name, row in told.items() if name not in shown]
    if left:
        blocks.append(_block(source, "runs-without-scores", "Runs without scores", left, shown))
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
    source: Source, name: str, label: str, rows: Sequence[pd.Series], shown: set[str]
) -> Provenance:
    origins = []
    for row in rows:
        # Evaluated in two precisions, a run stands under two groups; a page has each name once.
        own = f"run-{slug(row['run'])}" if row["run"] not in shown else ""
        shown.add(row["run"])
        origins.append(_origin(source, row, own))
    told = settings(rows[0]["settings"]) if rows else {}
    return Provenance(
        name,
        label,
        tuple((key, str(value)) for key, value in told.items()) if label else (),
        tuple(origins),
    )


def _origin(source: Source, row: pd.Series, name: str) -> Origin:
    environment: dict[str, Any] = {}
    path = Path(row["folder"]) / "environment.json"
    try:
        environment = read_json(path)
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        source.problem(f"{str(path)!r} cannot be read: {first_line(error)}")
    packages = environment.get("packages") or {}
    facts = {
        "seed": _whole(row["seed"]),
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
        "packages": ", ".join(f"{k} {v}" for k, v in packages.items() if v),
        "evaluations": ", ".join(_evaluations(source, row["run"])),
        "error": _text(row["error"]),
    }
    return Origin(
        name,
        str(row["run"]),
        str(row["state"]),
        str(Path(row["folder"]).resolve()),
        _text(row["command"]),
        tuple((title, text) for title, text in facts.items() if text),
    )


def _evaluations(source: Source, run: str) -> list[str]:
    own = source.headlines[source.headlines["run"] == run]
    return [
        f"{row['eval']} on {row['evaluated_on']} (protocol {row['protocol']}, seed "
        f"{_whole(row['eval_seed']) or _whole(row['seed'])}, {row['eval_precision']}): "
        f"{row['value']:.2f}"
        for _, row in own.iterrows()
    ]


def _keys_of_runs(source: Source) -> dict[str, str]:
    return {
        member.run: anchor(group.key)
        for table in source.comparison.tables
        for group in table.groups
        for member in group.members
    }


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


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
