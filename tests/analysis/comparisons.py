"""Runs and scores made by hand, and what a comparison of them shows."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console

from ssl_bench.analysis import comparison, tables
from ssl_bench.analysis.comparison import Comparison
from ssl_bench.analysis.comparison.score_tables import ScoreTable
from ssl_bench.analysis.report.source import Source
from ssl_bench.runs.index import Index
from ssl_bench.runs.run_records import RUN_COLUMNS, SCORE_COLUMNS

NOISE = np.random.default_rng(0).normal(0, 0.1, 100)


def by(trials: int = 0, flags: tuple[str, ...] = (), tuned: str = "", **more: Any) -> str:
    """How a run stores who chose its settings; without ``tried``, as old ones do."""
    search = {"trials": trials, "judged_by": "linear", "flops": 10**12} if trials else {}
    return json.dumps({"preset": "quick", "tuned": tuned, "flags": [*flags], **search, **more})


def searched(*names: str, has: Iterable[str] = ("base_lr", "weight_decay", "crop_scale")) -> str:
    """The record of a search that drew these settings, of a method that has those beside."""
    space, config = dict.fromkeys(names, "a range"), dict.fromkeys([*names, *has], 0.1)
    return by(trials=8, tried=8, space=space, config=config)


class Results:
    """An index made by hand."""

    def __init__(self) -> None:
        self.runs: list[dict[str, Any]] = []
        self.scores: list[dict[str, Any]] = []

    def run(self, method: str, seed: int = 0, **values: Any) -> str:
        settings = values.pop("settings", {})
        name = f"{method}-data-seed{seed}-{len(self.runs):08d}"
        row = dict.fromkeys(RUN_COLUMNS) | {
            "run": name, "group": method + json.dumps(settings), "method": method,
            "settings": json.dumps(settings), "pretrained_on": "data", "data_fingerprint": "aa",
            "seed": seed, "state": "trained", "step": 100, "peak_memory_mib": 100.0,
            "encoder_parameters": 10, "trained_parameters": 20, "device": "a CPU",
            "chosen_by": by(),
        }  # fmt: skip
        self.runs.append(row | values)
        return name

    def score(self, run: str, value: float, step: int | None = None, **values: Any) -> None:
        seed = next(row["seed"] for row in self.runs if row["run"] == run)
        done = 1.0 if step is None else step / 100
        row = dict.fromkeys(SCORE_COLUMNS) | {
            "run": run, "eval": "knn", "protocol": "p0", "evaluated_on": "data",
            "test_fingerprint": "aa", "test_images": 100, "eval_seed": seed,
            "eval_precision": "fp32", "score": "top1", "value": value, "is_headline": True,
            "unit": "top-1 accuracy (%)", "better": "higher", "step": step,
            "images_seen": 1000 * done, "flops": 1e9 * done, "seconds": 10.0 * done, "note": "",
            "folder": "nowhere",
        }  # fmt: skip
        self.scores.append(row | values)

    def seeds(self, method: str, values: Iterable[float], **settings: Any) -> list[str]:
        runs = []
        for seed, value in enumerate(values):
            runs.append(self.run(method, seed, settings=settings))
            self.score(runs[-1], value)
        return runs

    def compare(self, **options: Any) -> Comparison:
        frames = pd.DataFrame(self.runs), pd.DataFrame(self.scores, columns=list(SCORE_COLUMNS))
        for frame, columns in zip(frames, (RUN_COLUMNS, SCORE_COLUMNS), strict=True):
            for name, (kind, _) in columns.items():
                if kind in ("int", "float"):
                    frame[name] = frame[name].astype(float)
        return comparison.compare(Index(*frames, ("a problem",)), **options)

    def table(self, **options: Any) -> ScoreTable:
        [table] = self.compare(**options).tables
        return table


def marks(table: ScoreTable) -> dict[str, str]:
    """The mark of each group's first score."""
    column = table.columns[0].key
    return {g.label: table.cells[g.key, column].mark for g in table.groups}


def shown(compared: Comparison, width: int = 80) -> str:
    console = Console(width=width, markup=False)
    with console.capture() as capture:
        for table in tables.as_rich(compared, width):
            console.print(table)
        for note in tables.notes(compared):
            console.print(note, soft_wrap=True)
    return capture.get()


def source_of(compared: Comparison) -> Source:
    """What a report is made of, without its figures."""
    runs, scores = (pd.DataFrame(columns=list(c)) for c in (RUN_COLUMNS, SCORE_COLUMNS))
    return Source(Index(runs, scores, ()), compared, {})


def beside(**values: float) -> str:
    """Baselines of an evaluation, as the index has them."""
    return json.dumps({name.replace("_", " "): {"top1": value} for name, value in values.items()})


def curve(results: Results, method: str, points: dict[int, float], scale: float = 1) -> str:
    """A run whose cost is ten images and ten million FLOPs a step, times the scale."""
    run = results.run(method)
    last = max(points)
    for step, value in points.items():
        results.score(
            run, value, step=None if step == last else step, images_seen=10 * step * scale,
            flops=1e7 * step, seconds=step / 10,
        )  # fmt: skip
    return run
