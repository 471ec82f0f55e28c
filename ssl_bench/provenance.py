"""Where a run's numbers come from, and whether they come out again: ``show`` and ``rerun``."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ssl_bench import plugins, runs
from ssl_bench.errors import UserError, require
from ssl_bench.files import read_json, write_json
from ssl_bench.flags import Request
from ssl_bench.plugins import Plugin
from ssl_bench.settings import RerunSettings, Settings, ShowSettings

_ENVIRONMENT = ("code", "python", "packages", "device", "cores", "platform")
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
    environment = _read(folder / "environment.json")
    cost, failed = _read(folder / "cost.json"), _read(folder / "failed.json")
    state = "trained" if runs.is_trained(folder) else "failed" if failed else "unfinished"
    run = {
        "folder": str(folder),
        "state": state,
        **({"error": failed["error"]} if failed and state == "failed" else {}),
        **_origin(environment),
        **{name: value for name, value in plan.items() if name != "encoder"},
        **{f"encoder {name}": value for name, value in plan["encoder"].items()},
        **{f"cost {name}": value for name, value in cost.items()},
        "snapshots": len(list(folder.glob("snapshots/*/encoder.json"))),
    }
    evaluations = {}
    for path in sorted(folder.glob("evals/*/scores.json")):
        record = _read(path)
        environment = record.pop("environment", {})
        record.pop("classes", None)
        evaluations[path.parent.name] = {
            "folder": str(path.parent),
            **_origin(environment),
            **record,
        }
    return {"run": run, "evaluations": evaluations}


def rerun(settings: RerunSettings) -> bool:
    """Train and evaluate a run again in a new folder, and compare: ``ssl-bench rerun``.

    Returns:
        Whether everything that could be compared came out the same.

    Raises:
        UserError: there is no such finished run, or what it was made with is not there any more.
    """
    folder = runs.find_trained(settings.runs_dir, settings.target)
    request, left_out = request_of(folder, settings)
    for change in changes(folder, request):
        _console.print(f"note: {change}", style="yellow", soft_wrap=True)
    for reason in left_out:
        _console.print(f"note: {reason}", style="yellow", soft_wrap=True)
    from ssl_bench import commands

    again = commands.run(request)
    outcome = outcomes(folder, again.folder, [record["eval"] for record in again.records])
    same = all(row["same"] is not False for row in outcome)
    write_json(again.folder / "rerun.json", {"of": str(folder), "same": same, "parts": outcome})
    table = Table(title=f"{folder.name}, and again")
    for title in ("what", "before", "again", ""):
        table.add_column(title, overflow="fold")
    for row in outcome:
        verdict = {True: "the same", False: "differs: ", None: "cannot tell: "}[row["same"]]
        verdict += row["difference"]
        table.add_row(row["what"], row["before"], row["again"], verdict)
    _console.print(table)
    _console.print(f"{'came out the same' if same else 'did NOT come out the same'}: {folder.name}")
    return same


def request_of(folder: Path, settings: RerunSettings) -> tuple[Request, list[str]]:
    """The request that a finished run is the answer to, in a folder of its own.

    Returns:
        It, and one line for each evaluation that cannot be repeated as a part of the run.

    Raises:
        UserError: the run was not trained here, or a plugin of it is gone.
    """
    plan, cost = runs.plan_of(folder), _read(folder / "cost.json")
    require(
        "weights_sha256" not in plan,
        f"run {folder.name!r} holds weights from elsewhere, which cannot be trained again; "
        "`ssl-bench eval` evaluates them",
    )
    method = plugins.find("method", plan.get("method_source") or plan["method"])
    evals, left_out = {}, []
    for path in sorted(folder.glob("evals/*/scores.json")):
        record = _read(path)
        own = (record["data_fingerprint"], record["seed"], record["precision"])
        if own != (plan["data_fingerprint"], plan["seed"], plan["precision"]):
            left_out.append(f"{path.parent.name} is left out: its data, seed or precision differ")
        else:
            plugin = plugins.find("eval", record.get("source") or record["eval"])
            evals[plugin] = _config(plugin, record["config"])
    now = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    splits = getattr(method.load().Pretraining, "splits", False)
    again = Settings(
        method=plan["method"],
        data=plan["data_source"],
        backbone=plan["encoder"]["backbone"],
        image_size=plan["encoder"]["image_size"],
        patch_size=plan["encoder"]["patch_size"],
        epochs=plan["epochs"] or 1,
        batch_size=plan["batch_size"],
        seed=plan["seed"],
        precision=plan["precision"],
        compile="on" if cost.get("compiled") else "off",
        micro_batch_size=cost.get("images_at_once") if splits else None,
        preset=plan["preset"],
        runs_dir=settings.runs_dir / "reruns" / f"{folder.name}-{now}",
        data_dir=settings.data_dir,
    )
    return Request(again, method, _config(method, plan["method_config"]), evals, {}), left_out


def changes(folder: Path, request: Request) -> Iterator[str]:
    """What is not as it was when the run was made, one line each."""
    plan, before = runs.plan_of(folder), _read(folder / "environment.json")
    now = runs.environment("")
    for name in _ENVIRONMENT:
        if name != "device" and name in before and before[name] != now[name]:
            yield from _differences(name, before[name], now[name])
    if request.method and request.method.fingerprint != plan["method_code"]:
        yield f"the code of {plan['method']} is not the run's ({request.method.path})"


def outcomes(folder: Path, again: Path, names: list[str]) -> list[dict[str, Any]]:
    """Weights, scores and predictions of two runs, side by side.

    Args:
        names: of the evaluations to compare.

    Returns:
        For each part ``what``, ``before``, ``again``, whether they are the ``same`` (None where
        that cannot be told), and the ``difference``.
    """
    from ssl_bench import evaluation

    rows = [_compared_weights(folder, again)]
    plan = runs.plan_of(again)
    for record in evaluation.stored_records(again):
        if record["eval"] not in names:
            continue
        which = f"{record['eval']}-{record['protocol']}-seed{plan['seed']}-{plan['precision']}"
        before = _read(folder / "evals" / which / "scores.json")
        if not before:
            rows.append(_row(record["eval"], "-", "-", f"protocol {record['protocol']} is new"))
            continue
        for score, value in record["scores"].items():
            was = before["scores"].get(score)
            apart = "" if was == value else f"{value - was:+.4g}" if was is not None else "new"
            rows.append(_row(f"{record['eval']} {score}", f"{was:.4f}", f"{value:.4f}", apart))
        rows += _compared_predictions(folder / "evals" / which, again / "evals" / which)
    return rows


def _compared_weights(folder: Path, again: Path) -> dict[str, Any]:
    from ssl_bench import weights

    if not (folder / "encoder.safetensors").exists():
        return {**_row("encoder", "-", "-", "its weights were not kept"), "same": None}
    old, new = weights.load(folder)[0], weights.load(again)[0]
    digests = weights.digest(old), weights.digest(new)
    largest = max(
        (a.float() - b.float()).abs().max().item()
        for a, b in zip(old.state_dict().values(), new.state_dict().values(), strict=True)
    )
    apart = "" if digests[0] == digests[1] else f"weights by up to {largest:.2g}"
    return _row("encoder", digests[0][:12], digests[1][:12], apart)


def _compared_predictions(before: Path, again: Path) -> list[dict[str, Any]]:
    import numpy as np

    files = [folder / "predictions.npz" for folder in (before, again)]
    if not all(path.exists() for path in files):
        return []
    old, new = (np.load(path)["predictions"] for path in files)
    differing = int((old != new).sum())
    apart = f"{differing:,} images" if differing else ""
    return [_row("  its predictions", f"{len(old):,}", f"{len(new):,}", apart)]


def _row(what: str, before: str, again: str, difference: str) -> dict[str, Any]:
    return {
        "what": what,
        "before": before,
        "again": again,
        "same": not difference,
        "difference": difference,
    }


def _config(plugin: Plugin, values: Mapping[str, Any]) -> Any:
    """A plugin's ``Config`` from JSON, whose lists were tuples."""
    known = {field.name for field in fields(plugin.config)}
    require(
        set(values) <= known,
        f"{plugin.kind} {plugin.name!r} has no {', '.join(sorted(set(values) - known))} any more, "
        "which the run was made with",
    )
    restored = {n: tuple(v) if isinstance(v, list) else v for n, v in values.items()}
    return plugin.config(**restored)


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
            for name in ("python", "device", "cores", "platform", "host", "started")
            if name in environment
        },
    }


def _differences(name: str, before: Any, now: Any) -> Iterator[str]:
    if isinstance(before, dict):
        for key, value in before.items():
            if value != now.get(key):
                yield f"{name} {key} was {value}, is {now.get(key)}"
    else:
        yield f"{name} was {before}, is {now}"


def _read(path: Path) -> dict[str, Any]:
    """A JSON file of a run; nothing if it is not there.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return read_json(path) if path.exists() else {}
    except (OSError, ValueError) as error:
        raise UserError(f"{str(path)!r} cannot be read: {error}") from error


def _as_rich(title: str, facts: Mapping[str, Any]) -> Table:
    table = Table(title=title, show_header=False)
    table.add_column("what")
    table.add_column("value", overflow="fold")
    for name, value in facts.items():
        table.add_row(name.replace("_", " "), _text(value))
    return table


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(each)}" for name, each in value.items())
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return f"{value:,}" if isinstance(value, int) and abs(value) < 1e9 else f"{value:.6g}"
    return "-" if value is None else str(value)
