"""``ssl-bench status``: how far sweeps are."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ssl_bench.config.sweep_settings import StatusSettings
from ssl_bench.errors import require
from ssl_bench.sweep import manifest
from ssl_bench.sweep.manifest import Sweep
from ssl_bench.sweep.status import UNDER_WAY, CellState, CellStatus, statuses_of
from ssl_bench.utils.formatting import plain
from ssl_bench.utils.formatting import time as duration
from ssl_bench.utils.terminal import Console

_console = Console()
_ORDER: tuple[CellState, ...] = (
    *("failed", "running", "unknown", "stopped", "pending", "new", "done"),
)
_STYLES = {"failed": "red", "running": "green", "stopped": "yellow", "done": "dim"}
_SECONDS_BETWEEN_LOOKS = {"local": 2.0, "slurm": 15.0}
_SHORT = ("state", "progress", "left", "loss")
_MOST_LOGS = 3
_LINES_AROUND = 11
"""Lines of a terminal that the table cannot have: its title, head, borders and notes."""


def status(settings: StatusSettings) -> None:
    """Show how far a sweep is, live on a terminal until it is over: ``ssl-bench status``."""
    sweep = find(settings.runs_dir, settings.sweep)
    require(not sweep.damage, sweep.damage)
    if settings.json:
        print(json.dumps(_as_json(sweep, _look(sweep)), indent=2))
        return
    if not _console.is_terminal or settings.once:
        _console.print(_show(sweep, _look(sweep), None))
        return
    pause = _SECONDS_BETWEEN_LOOKS.get(sweep.cluster, max(_SECONDS_BETWEEN_LOOKS.values()))
    with Live(console=_console, auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            statuses = _look(sweep)
            is_over = not any(each.state in UNDER_WAY for each in statuses)
            rows = None if is_over else max(4, _console.height - _LINES_AROUND)
            live.update(_show(sweep, statuses, rows), refresh=True)
            if is_over:
                return
            time.sleep(pause)


def find(runs_dir: Path, name: str) -> Sweep:
    """The sweep that is meant; what cannot be read of the others is told beside it."""
    sweeps = manifest.every(runs_dir)
    found = manifest.find(sweeps, runs_dir, name)
    for each in sweeps:
        if each.damage and each != found:
            print(f"ssl-bench: {each.damage}", file=sys.stderr)
    return found


def summary(statuses: Sequence[CellStatus]) -> str:
    """How many cells are in which state: "3 done, 1 running"."""
    counts = Counter(each.state for each in statuses)
    return ", ".join(f"{counts[state]} {state}" for state in reversed(_ORDER) if counts[state])


def _look(sweep: Sweep) -> list[CellStatus]:
    """How far it is now; jobs may have been added meanwhile."""
    now = manifest.read(sweep.folder)
    sweep = sweep if now.damage else now  # what was read before can still be shown
    others = [each for each in manifest.every(sweep.runs_dir) if each.folder != sweep.folder]
    return statuses_of(sweep, [*others, sweep])


def _show(sweep: Sweep, statuses: Sequence[CellStatus], rows: int | None) -> Group:
    """A table with what needs attention first, and what a person may do next.

    Args:
        rows: how many there is room for; None for all.
    """
    shown = sorted(statuses, key=lambda each: _ORDER.index(each.state)) if rows else statuses
    columns: dict[str, Callable[[CellStatus], str | Text]] = {
        "cell": lambda each: each.entry.label,
        "state": lambda each: Text(each.state, style=_STYLES.get(each.state, "")),
        "progress": _progress,
        "left": lambda each: duration(each.seconds_left) if each.seconds_left is not None else "",
        "loss": lambda each: f"{each.loss:.4f}" if each.loss is not None else "",
        "scores, or an error": _scores,
    }
    cells = {name: [show(each) for each in shown[:rows]] for name, show in columns.items()}
    filled = {name: column for name, column in cells.items() if any(column)}
    table = Table()
    for name in filled:
        table.add_column(name, overflow="fold", no_wrap=name in _SHORT)
    for line in zip(*filled.values(), strict=True):
        table.add_row(*line)
    title = Text(f"{sweep.name}: {summary(statuses)}", no_wrap=True, overflow="ignore")
    failed = [e for e in statuses if e.state == "failed" and e.log and Path(e.log).exists()]
    notes = [f"log of {each.entry.label}: {each.log}" for each in failed[:_MOST_LOGS]]
    if rows and len(statuses) > rows:
        notes.append(f"and {len(statuses) - rows} more, which `ssl-bench status --once` shows")
    states = {each.state for each in statuses}
    if "done" in states or any(each.scores for each in statuses):
        notes.append(f"`ssl-bench compare{sweep.place}` shows the table so far")
    if "unknown" in states:
        notes.append("the cluster does not answer; what is unknown was submitted, and may run")
    if states & {"stopped", "new"}:
        notes.append("the same `ssl-bench sweep` resumes what is stopped and starts what is new")
    if "failed" in states:
        notes.append("`ssl-bench sweep ... --retry-failed` tries again what failed")
    return Group(title, table, *(Text(note, overflow="fold") for note in notes))


def _progress(each: CellStatus) -> str:
    if each.stage == "evaluate" and not each.waits_for:
        return f"to evaluate: {len(each.missing)}" if each.state != "done" else ""
    if each.waits_for:
        return f"waits: {each.waits_for}"
    if each.state in ("new", "pending") and not each.step:
        return ""
    pace = each.images_per_second if each.state == "running" else None
    return f"{each.step:,}/{each.entry.steps:,}" + (f", {pace:,.0f} img/s" if pace else "")


def _scores(each: CellStatus) -> Text:
    if each.error:
        return Text(plain(each.error), style=_STYLES[each.state])
    return Text(", ".join(f"{name} {score:.2f}" for name, score in each.scores.items()))


def _as_json(sweep: Sweep, statuses: Sequence[CellStatus]) -> dict[str, object]:
    cells = []
    for each in statuses:
        cell = dataclasses.asdict(each)
        entry = cell.pop("entry")
        cells.append({"label": entry["label"], "run": entry["run"], "steps": entry["steps"]} | cell)
    return {"sweep": sweep.name, "cluster": sweep.cluster, "cells": cells}
