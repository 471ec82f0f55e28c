"""Where a run's numbers come from: ``ssl-bench show``."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ssl_bench import runs
from ssl_bench.settings import ShowSettings

_console = Console(markup=False, highlight=False)


def show(settings: ShowSettings) -> None:
    """Print everything that is known about a run: ``ssl-bench show``.

    Raises:
        UserError: there is no such run, or its plan cannot be read.
    """
    folder = runs.find(settings.runs_dir, [settings.target])[0]
    facts = describe(folder)
    if settings.json:
        print(json.dumps(facts, indent=2))
        return
    _console.print(_as_rich(folder.name, facts["run"]))
    for name, evaluated in facts["evaluations"].items():
        _console.print(_as_rich(name, evaluated))


def describe(folder: Path) -> dict[str, Any]:
    """A run's provenance: ``run`` by name, and the same of each of its ``evaluations``.

    What the folder does not tell is left out.

    Raises:
        UserError: its plan cannot be read.
    """
    plan = runs.plan_of(folder)
    cost, failed = runs.facts(folder / "cost.json"), runs.facts(folder / "failed.json")
    run = {
        "folder": str(folder),
        "state": runs.state(folder),
        **{name: value for name, value in failed.items() if name == "error"},
        **_origin(runs.facts(folder / "environment.json")),
        **{name: value for name, value in plan.items() if name != "encoder"},
        **{f"encoder {name}": value for name, value in plan.get("encoder", {}).items()},
        **{f"cost {name}": value for name, value in cost.items()},
        "snapshots": len(list(folder.glob("snapshots/*/encoder.json"))),
    }
    evaluations = {}
    for path in sorted(folder.glob("evals/*/scores.json")):
        record = runs.facts(path)
        environment = record.pop("environment", {})
        record.pop("classes", None)
        evaluations[path.parent.name] = {
            "folder": str(path.parent),
            **_origin(environment),
            **record,
        }
    return {"run": run, "evaluations": evaluations}


def _origin(environment: Mapping[str, Any]) -> dict[str, Any]:
    """Command, code, packages and machine, each by one name."""
    if not environment:
        return {}
    code = environment.get("code", {})
    state = {True: ", with changes that were not committed", False: "", None: ""}
    return {
        "command": shlex.join(environment.get("command", [])),
        "code": f"{code.get('commit') or code.get('version')}{state[code.get('dirty')]}",
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
    for name, value in facts.items():
        table.add_row(name.replace("_", " "), text(value))
    return table


def text(value: Any) -> str:
    """A JSON value for a reader."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {text(each)}" for name, each in value.items())
    if isinstance(value, list):
        return ", ".join(map(text, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return f"{value:,}" if isinstance(value, int) and abs(value) < 1e9 else f"{value:.6g}"
    return "-" if value is None else str(value)
