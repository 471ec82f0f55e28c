"""Where a run's numbers come from: ``ssl-bench show``."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from ssl_bench.config.command_settings import ShowSettings
from ssl_bench.errors import UserError, require
from ssl_bench.runs import run_folder, schema
from ssl_bench.runs.schema import mapping
from ssl_bench.utils.files import leads_out, strange
from ssl_bench.utils.terminal import Console

_MOST_ROWS, _LONGEST = 500, 5000
_NOTHING = (None, "", [], {})
"""Of a table, and characters of a value in it: no run of ours has as much."""
_console = Console()


def show(settings: ShowSettings) -> None:
    """Print everything that is known about a run: ``ssl-bench show``."""
    folder = run_folder.find(settings.runs_dir, [settings.target])[0]
    facts = describe(folder)
    if settings.json:
        print(json.dumps(facts, indent=2))
        return
    _console.print(_as_rich(folder.name, facts["run"]))
    for name, evaluated in facts["evaluations"].items():
        _console.print(_as_rich(name, evaluated))
    for problem in facts["problems"]:
        _console.print(f"note: {problem}", style="yellow")


def describe(folder: Path) -> dict[str, Any]:
    """A run's provenance: ``run`` by name, the same of each of its ``evaluations``, ``problems``.

    What the folder does not tell is left out; what cannot be read is a problem.
    """
    problems = [f"{line}, and is not read" for line in strange(folder)]

    def read(path: Path) -> dict[str, Any]:
        try:
            return {} if leads_out(path, folder) else schema.load_object(path)
        except UserError as error:
            problems.append(str(error))
            return {}

    require(not leads_out(folder / schema.CONFIG, folder), "; ".join(problems))
    plan = schema.load_config(folder)
    try:
        schema.load_plan(folder)
    except UserError as error:
        problems.append(str(error))
    snapshots = [path.parent.name for path in sorted(folder.glob("snapshots/*/encoder.json"))]
    run = {
        "folder": str(folder),
        "state": schema.state(folder),
        **{name: value for name, value in plan.items() if name != "encoder"},
        "figures": [str(path) for path in sorted(folder.glob("figures/*.png"))],
        **{f"encoder {name}": value for name, value in mapping(plan.get("encoder")).items()},
        **{f"cost {name}": value for name, value in read(folder / schema.COST).items()},
        "snapshots": snapshots,
        **_origin(read(folder / schema.ENVIRONMENT)),
        **read(folder / schema.FAILED),
    }
    evaluations = {}
    for path in schema.score_files(folder):
        record = read(path)
        origin = _origin(mapping(record.pop("environment", None)))
        record.pop("classes", None)
        if record:
            figures = {"figures": [str(each) for each in sorted(path.parent.glob("*.png"))]}
            where = {"folder": str(path.parent), **figures}
            evaluations[path.parent.name] = {**where, **record, **origin}
    return {"run": run, "evaluations": evaluations, "problems": problems}


def _origin(environment: Mapping[str, Any]) -> dict[str, Any]:
    """Command, code, packages and machine, each by one name."""
    if not environment:
        return {}
    code = mapping(environment.get("code"))
    command = environment.get("command")
    state = ", with changes that were not committed" if code.get("dirty") is True else ""
    return {
        "command": shlex.join(map(str, command)) if isinstance(command, list) else command,
        "code": f"{code.get('commit') or code.get('version')}{state}",
        "packages": environment.get("packages", {}),
        **{
            name: environment[name]
            for name in ("python", "device", "cores", "platform", "host", "started", "earlier")
            if name in environment
        },
    }


def _as_rich(title: str, facts: Mapping[str, Any]) -> Table:
    table = Table(title=title, show_header=False)
    table.add_column("what")
    table.add_column("value", overflow="fold")
    told = [(name, value) for name, value in facts.items() if value not in _NOTHING]
    for name, value in told[:_MOST_ROWS]:
        table.add_row(_cut(name.replace("_", " ")), _cut(text(value)))
    if len(told) > _MOST_ROWS:
        table.add_row(f"... and {len(told) - _MOST_ROWS:,} more", "(--json tells all)")
    return table


def _cut(words: str) -> str:
    return words if len(words) <= _LONGEST else f"{words[:_LONGEST]}... ({len(words):,} characters)"


def text(value: Any) -> str:
    """A JSON value for a reader."""
    if isinstance(value, dict):
        told = {name: each for name, each in value.items() if each not in _NOTHING}
        return ", ".join(f"{name} {text(each)}" for name, each in told.items())
    if isinstance(value, list):
        return ", ".join(map(text, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return f"{value:,}" if isinstance(value, int) and abs(value) < 1e9 else f"{value:.6g}"
    return "-" if value is None else str(value)
