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
from ssl_bench.errors import UserError
from ssl_bench.runs import mapping
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
    for problem in facts["problems"]:
        _console.print(f"note: {problem}", style="yellow", soft_wrap=True)


def describe(folder: Path) -> dict[str, Any]:
    """A run's provenance: ``run`` by name, the same of each of its ``evaluations``, ``problems``.

    What the folder does not tell is left out; what cannot be read is a problem.

    Raises:
        UserError: its plan cannot be read.
    """
    problems: list[str] = []

    def read(path: Path) -> dict[str, Any]:
        try:
            return runs.facts(path)
        except UserError as error:
            problems.append(str(error))
            return {}

    plan = runs.plan_of(folder)
    snapshots = [path.parent.name for path in sorted(folder.glob("snapshots/*/encoder.json"))]
    run = {
        "folder": str(folder),
        "state": runs.state(folder),
        **{name: value for name, value in plan.items() if name != "encoder"},
        **{f"encoder {name}": value for name, value in mapping(plan.get("encoder")).items()},
        **{f"cost {name}": value for name, value in read(folder / "cost.json").items()},
        "snapshots": snapshots,
        **_origin(read(folder / "environment.json")),
        **read(folder / "failed.json"),
    }
    evaluations = {}
    for path in sorted(folder.glob("evals/*/scores.json")):
        record = read(path)
        environment = mapping(record.pop("environment", None))
        record.pop("classes", None)
        if record:
            evaluations[path.parent.name] = {
                "folder": str(path.parent),
                **record,
                **_origin(environment),
            }
    return {"run": run, "evaluations": evaluations, "problems": problems}


def _origin(environment: Mapping[str, Any]) -> dict[str, Any]:
    """Command, code, packages and machine, each by one name."""
    if not environment:
        return {}
    code = mapping(environment.get("code"))
    state = {True: ", with changes that were not committed", False: "", None: ""}
    return {
        "command": shlex.join(map(str, environment.get("command") or [])),
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
        if value in (None, "", [], {}):
            continue
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
