"""An ablation's cells run, and what came out: a table and a figure, beside the paper's numbers."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
from rich.table import Table

from ssl_bench.experiment import figures, loading, running
from ssl_bench.experiment.evaluating import headline
from ssl_bench.experiment.loading import console
from ssl_bench.experiment.preparation import prepare_run
from ssl_bench.experiment.run_config import text_of
from ssl_bench.experiment.running import Run
from ssl_bench.models import masking
from ssl_bench.papers import Ablation
from ssl_bench.runs import schema
from ssl_bench.sweep.ablation import AblationCell, Study, as_number
from ssl_bench.utils.files import atomic, checked_name, write_json
from ssl_bench.utils.formatting import cell, many

_HALF, _STD, _PAPER = " half width", " std", " of the paper"
_LINE = 100


def run(study: Study) -> Path:
    """Run the cells, show them beside the paper's, draw them: ``ssl-bench ablate``.

    Returns:
        The folder with ``figure.png``, ``table.csv`` and ``cells.json``, which names the runs.

    Raises:
        UserError: a cell cannot be run; nothing has been trained then.
    """
    ablation = study.ablation
    study, shares, joined = _joined(study, _patches(study.cells))
    finished = _run_in_turn(study.cells)
    scores = collect(ablation, study.cells, finished)
    table = tabulate(scores)
    plans = [schema.load_plan(run.folder) for run in finished]
    # Other runs and other protocols have a folder of another name.
    content = [
        [run.folder.name, [[r["eval"], r["protocol"], r["precision"]] for r in run.records]]
        for run in finished
    ]
    name = checked_name(f"{study.name}-{plans[0]['data']}-{schema.digest(content)}")
    folder = study.runs_dir / "ablations" / name
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "cells.json", _provenance(study, finished))
    with atomic(folder / "table.csv") as path:
        table.map(cell).to_csv(path)
    title = f"{study.method}: {ablation.title}"
    elsewhere = {record["data"] for run in finished for record in run.records} - {plans[0]["data"]}
    tested = f", evaluated on {', '.join(sorted(elsewhere))}" if elsewhere else ""
    ours = f"ours: {setting(plans, study.constant)}{tested}"
    paper = f"paper ({ablation.source}): {ablation.setting}"
    told = (ablation.note, joined, differing(ablation.settings, plans[0]))
    note = " ".join(filter(None, told))
    figures.ablation(
        scores,
        title,
        study.name,
        (textwrap.fill(ours, _LINE), textwrap.fill(paper, _LINE)),
        note,
        is_numeric=bool(ablation.flag),
        output=folder / "figure.png",
        ours_at=shares,
    )
    console.print(_as_rich(table, title))
    for line in filter(None, (ours, paper, note)):
        console.print(line)
    console.print(f"figure, table and runs: {folder}", soft_wrap=True)
    return folder


def _patches(cells: Sequence[AblationCell]) -> int:
    """How many patches an image has in these cells, 0 where it has none.

    Raises:
        UserError: a cell is impossible, and nothing has been trained.
    """
    load = lru_cache(maxsize=2)(loading.load)
    prepared = [prepare_run(each.config, loading.data_of(each.config, load)) for each in cells]
    return prepared[0].spec.patches if prepared[0].spec.is_vit else 0


def _joined(study: Study, patches: int) -> tuple[Study, dict[str, float], str]:
    """The study without cells that would train as another one does, shares apart in name alone.

    Returns:
        The study; the share that each value really hides; what was joined, for a reader.
    """
    if not (study.ablation.share_of_patches and patches):
        return study, {}, ""
    kept = {each.value: masking.count_kept(patches, float(each.value)) for each in study.cells}
    shares = {value: 1 - number / patches for value, number in kept.items()}
    groups: dict[int, list[str]] = {}
    for value, number in kept.items():
        groups.setdefault(number, []).append(value)
    run_as = {n: min(g, key=lambda v: abs(float(v) - shares[v])) for n, g in groups.items()}
    lines = [
        f"Of {patches} patches, {', '.join(group[:-1])} and {group[-1]} leave {number} visible: "
        f"one training, run as {run_as[number]}."
        for number, group in groups.items()
        if len(group) > 1
    ]
    if any(abs(float(value) - share) > 1e-9 for value, share in shares.items()):
        lines.append("Ours stand at the share that is really hidden.")
    cells = [each for each in study.cells if each.value in run_as.values()]
    return replace(study, cells=cells), shares, " ".join(lines)


def differing(paper: Mapping[str, Any], plan: Mapping[str, Any]) -> str:
    """What of the paper's settings is otherwise in a run, the paper's in brackets; "" if nothing.

    Args:
        plan: of the run.
    """
    ours = {**plan["encoder"], **plan["method_config"], **plan}
    parts = [
        f"{name.replace('_', ' ')} {text_of(ours[name])} ({text_of(value)})"
        for name, value in paper.items()
        if ours.get(name) != value
    ]
    return f"Unlike the paper: {', '.join(parts)}." if parts else ""


def _run_in_turn(cells: Sequence[AblationCell]) -> list[Run]:
    """Run one cell after the other, once `_patches` has found all of them possible.

    Each is what ``ssl-bench run`` makes of the same settings, run folder included: what is done is
    reused, and what was interrupted is resumed.

    Returns:
        The run of each cell, in their order.
    """
    load = lru_cache(maxsize=2)(loading.load)
    finished = []
    for number, each in enumerate(cells, start=1):
        console.rule(f"cell {number} of {len(cells)}")
        console.print(each.command, soft_wrap=True)
        finished.append(running.run(each.config, loading.data_of(each.config, load)))
    return finished


def collect(
    ablation: Ablation, cells: Sequence[AblationCell], finished: Sequence[Run]
) -> pd.DataFrame:
    """Every score: columns ``value``, ``source`` (ours, paper), ``evaluation``, ``score``.

    There is a row of ours for each seed. The paper's values are all there, run here or not, and
    numeric ones are in order.
    """
    rows = [
        (cell.value, "ours", record["eval"], headline(record["scores"]))
        for cell, run in zip(cells, finished, strict=True)
        for record in run.records
    ]
    labels = list(map(as_number, ablation.values))
    for evaluation in dict.fromkeys(row[2] for row in rows):
        for known, paper in ablation.paper.items():
            if evaluation.startswith(known):
                rows += [
                    (label, "paper", evaluation, score)
                    for label, score in zip(labels, paper, strict=True)
                ]
    frame = pd.DataFrame(rows, columns=["value", "source", "evaluation", "score"])
    order = list(dict.fromkeys([*labels, *frame["value"]]))
    if ablation.flag:
        order.sort(key=float)
    return frame.sort_values("value", key=lambda column: column.map(order.index), kind="stable")


def tabulate(scores: pd.DataFrame) -> pd.DataFrame:
    """One row for each value: how many runs, and of each evaluation our mean, half of its 95 % t
    interval, the standard deviation over runs, and the paper's.
    """
    ours, paper = (scores[scores["source"] == source] for source in ("ours", "paper"))
    table = pd.DataFrame(index=pd.Index(scores["value"].unique(), name="value"))
    first = ours["evaluation"].iloc[0]
    counts = ours[ours["evaluation"] == first].groupby("value").size()
    table["runs"] = counts.reindex(table.index, fill_value=0)
    for evaluation in ours["evaluation"].unique():
        groups = ours[ours["evaluation"] == evaluation].groupby("value")["score"]
        known = paper[paper["evaluation"] == evaluation].set_index("value")["score"]
        table[evaluation] = groups.mean().round(4)
        table[evaluation + _HALF] = figures.half_widths(groups).round(4)
        table[evaluation + _STD] = groups.std().round(4)
        table[evaluation + _PAPER] = known
    return table


def _provenance(study: Study, finished: Sequence[Run]) -> dict[str, Any]:
    return {
        "ablation": study.name,
        "cells": [
            {
                "value": cell.value,
                "command": cell.command,
                "run": run.folder.name,
                "evals": {
                    record["eval"]: {
                        "protocol": record["protocol"],
                        "seed": record["seed"],
                        "precision": record["precision"],
                        "scores": record["scores"],
                    }
                    for record in run.records
                },
            }
            for cell, run in zip(study.cells, finished, strict=True)
        ],
    }


def setting(plans: Sequence[Mapping[str, Any]], constant: Sequence[str]) -> str:
    """What the runs have in common, and their seeds.

    Args:
        plans: of the runs.
        constant: fields of the method's ``Config`` that are worth telling.
    """
    first, seeds = plans[0], dict.fromkeys(str(plan["seed"]) for plan in plans)
    config = first["method_config"]
    parts = [
        "/".join(
            str(first["encoder"][n]) for n in ("backbone", "patch_size") if first["encoder"][n]
        ),
        many(first["epochs"], "epoch"),
        first["data"],
        f"batch {first['batch_size']}",
        *(f"{name.replace('_', ' ')} {text_of(config[name])}" for name in constant),
        f"seed{'s' if len(seeds) > 1 else ''} {', '.join(seeds)}",
    ]
    return ", ".join(parts)


def _as_rich(table: pd.DataFrame, title: str) -> Table:
    shown = Table(title=title)
    shown.add_column("value")
    evaluations = [name.removesuffix(_PAPER) for name in table if str(name).endswith(_PAPER)]
    for who in ("ours", "paper"):
        for evaluation in evaluations:
            shown.add_column(f"{who}\n{evaluation}", justify="right")
    for value, row in table.iterrows():
        ours = [_score(row[name], row[name + _HALF]) for name in evaluations]
        paper = [_score(row[name + _PAPER], digits=1) for name in evaluations]
        shown.add_row(str(value), *ours, *paper)
    return shown


def _score(mean: float, half: float = math.nan, digits: int = 2) -> str:
    if math.isnan(mean):
        return "-"
    spread = "" if math.isnan(half) else f" ± {half:.{digits}f}"
    return f"{mean:.{digits}f}{spread}"
