"""Tables of 10,000 runs with three evaluations each, from their folders: the part ``tables``.

The folders are synthetic and lie in the system's cache. The peer is what one writes without an
index: ``json.load`` of every file of every folder, then pandas. Commands are whole processes.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

NAMES: Mapping[str, str] = {
    "warm": "ssl-bench, nothing changed",
    "cold": "ssl-bench, without an index",
    "one": "ssl-bench, one run changed",
    "plain": "json.load of every file, pandas",
    "query": "ssl-bench query, a process",
    "compare": "ssl-bench compare, a process",
}
RUNS = 10_000
_EVALS = ("knn", "linear", "finetune")
_SETTLING = 4.0
"""Seconds until a file's stamp is trusted."""


def measure(name: str, seconds: float, folder: str) -> dict[str, float]:
    """One contestant, in this process but for commands; the fastest of what fits into the time.

    Args:
        name: a key of `NAMES`.
        seconds: how long to repeat it.
        folder: what `synthetic` made.

    Returns:
        ``seconds`` of one time.
    """
    home = Path(folder)
    contestants: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "warm": (_nothing, lambda: _ours(home)),
        "cold": (lambda: shutil.rmtree(home / ".index", ignore_errors=True), lambda: _ours(home)),
        "one": (lambda: os.utime(home / "mae-data-seed0-00000000"), lambda: _ours(home)),
        "plain": (_nothing, lambda: plain(home)),
        "query": (_nothing, lambda: _command(home, "query", "select avg(value) from scores")),
        "compare": (_nothing, lambda: _command(home, "compare")),
    }
    prepare, work = contestants[name]
    if name != "cold":
        _ours(home)
    times: list[float] = []
    while sum(times) < seconds:
        prepare()
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return {"seconds": min(times)}


@cache
def folders() -> str:
    """`synthetic` run folders in a temporary folder that goes when this process ends."""
    temporary = tempfile.TemporaryDirectory()
    atexit.register(temporary.cleanup)
    home = Path(temporary.name) / "tables"
    synthetic(home, RUNS)
    time.sleep(_SETTLING)
    return str(home)


def synthetic(folder: Path, runs: int) -> None:
    """Write run folders as ``ssl-bench run`` does, without weights."""
    environment = {"command": ["ssl-bench", "run"], "started": "2026-01-01T00:00:00+00:00",
                   "code": {"commit": "0" * 40, "dirty": False}, "device": "CPU"}  # fmt: skip
    cost = {"steps": 1000, "images_seen": 128_000, "flops": 1e15, "seconds": 90.0,
            "peak_memory_mib": 900, "encoder_parameters": 10**6, "trained_parameters": 10**6,
            "device": "CPU", "precision": "bf16"}  # fmt: skip
    steps = (json.dumps({"step": step, "epoch": step / 100, "loss": 0.4}) for step in range(250))
    metrics = "\n".join(steps) + "\n"
    for number in range(runs):
        seed = number % 10
        plan = {
            "method": ("mae", "mocov3")[number // 10 % 2], "method_code": "0" * 16,
            "method_config": {f"setting_{n}": number // 10 for n in range(15)}, "data": "data",
            "data_fingerprint": "0" * 16, "encoder": {"backbone": "vit_micro", "image_size": 28,
            "patch_size": 7}, "epochs": 8, "batch_size": 128, "seed": seed, "precision": "bf16",
            "core_version": 1, "preset": "quick", "data_source": "data",
        }  # fmt: skip
        run = folder / f"{plan['method']}-data-seed{seed}-{number:08x}"
        contents: dict[str, Any] = {"config": plan, "environment": environment, "cost": cost,
                                    "encoder": plan["encoder"]}  # fmt: skip
        for name in _EVALS:
            contents[f"evals/{name}-0000-seed{seed}-bf16/scores"] = {
                "eval": name, "protocol": "0" * 8, "config": {}, "data": "data",
                "data_fingerprint": "0" * 16, "note": "", "seed": seed,
                "classes": [f"class {n}" for n in range(10)],
                "scores": {"top1": 80 + number % 100 / 10}, "test_images": 10_000, "seconds": 9.0,
                "precision": "bf16", "environment": environment,
                "baselines": {"raw pixels": {"top1": 80.0}, "random init": {"top1": 70.0}},
            }  # fmt: skip
        for path, content in contents.items():
            (run / path).parent.mkdir(parents=True, exist_ok=True)
            (run / f"{path}.json").write_text(json.dumps(content, indent=2))
        (run / "metrics.jsonl").write_text(metrics)


def plain(folder: Path) -> tuple[Any, Any]:
    """A table of the runs and one of their scores, without an index."""
    import pandas as pd

    def load(path: Path) -> dict[str, Any]:
        with path.open() as file:
            return dict(json.load(file))

    paths = sorted(folder.glob("*/config.json"))
    runs = pd.DataFrame(
        {"run": path.parent.name, **load(path), **load(path.parent / "cost.json"),
         **load(path.parent / "environment.json")}
        for path in paths
    )  # fmt: skip
    scores = pd.DataFrame(
        {"run": path.parent.name, "eval": record["eval"], "score": name, "value": value}
        for path in paths
        for file in sorted(path.parent.glob("evals/*/scores.json"))
        for record in [load(file)]
        for name, value in record["scores"].items()
    )
    return runs, scores


def _nothing() -> None:
    return


def _ours(folder: Path) -> Any:
    from ssl_bench.runs import index

    return index.load(folder)


def _command(folder: Path, *words: str) -> None:
    command = [sys.executable, "-m", "ssl_bench", *words, "--runs-dir", str(folder)]
    subprocess.run(command, capture_output=True, check=True)
