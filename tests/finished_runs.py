"""Finished runs as ``ssl-bench run`` leaves them, without any training."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ssl_bench.utils.files import write_json

NASTY = "<script>alert(1)</script> $x_1$ & | % _a"
CLASSES = ["ankle & boot", "<b>bag</b>", "$x_1$"]
IMAGES = 60


def make_run(
    runs_dir: Path,
    method: str,
    seed: int,
    mask_ratio: float = 0.75,
    data: str = "tiny",
    evals: tuple[str, ...] = (),
) -> Path:
    """A finished run, as `ssl-bench run` would leave it, with everything that figures need."""
    name = re.sub(r"[^a-z0-9]+", "-", f"{method}-{data}")
    folder = runs_dir / f"{name}-seed{seed}-{mask_ratio}"
    (folder / "figures").mkdir(parents=True)
    config = {
        "method": method, "method_code": "1", "method_config": {"mask_ratio": mask_ratio},
        "data": data, "data_fingerprint": "abcd", "epochs": 2, "batch_size": 32, "seed": seed,
        "encoder": {"backbone": "vit_nano", "image_size": 16, "patch_size": 4, "channels": 3,
                    "mean": [0.5] * 3, "std": [0.5] * 3},
        "precision": "fp32", "method_version": 1, "preset": "quick", "data_source": data,
    }  # fmt: skip
    price = {"images_seen": 640, "flops": 10**12, "seconds": 4.0, "peak_memory_mib": 100,
             "encoder_parameters": 1000, "trained_parameters": 1200, "device": "CPU",
             "precision": "fp32", "steps": 20}  # fmt: skip
    write_json(folder / "config.json", config)
    write_json(folder / "cost.json", price)
    write_json(folder / "encoder.json", {})
    write_json(folder / "environment.json", {"command": ["ssl-bench", "run", "--data", data],
               "started": "2026-01-01T00:00:00+00:00", "packages": {"torch": "2.11"},
               "code": {"version": "0.1", "commit": "c0ffee" * 6, "dirty": True}})  # fmt: skip
    lines = [{"step": n, "epoch": n / 10, "loss": 1 / (n + 1), "learning_rate": 0.1}
             for n in range(20)]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    Image.new("RGB", (40, 30), (90, 90, 90)).save(folder / "figures" / "pictures.png")
    random = np.random.default_rng([seed, len(method), int(100 * mask_ratio)])
    labels = np.arange(IMAGES) % len(CLASSES)
    right = random.random(IMAGES) < 0.6 + 0.01 * len(method)
    predictions = np.where(right, labels, (labels + 1) % len(CLASSES)).astype(np.int32)
    top = float(100 * (predictions == labels).mean())
    knn = {"top1": top}
    add_scores(folder, "knn", knn, data, seed, predictions=predictions, labels=labels)
    grid = random.random((4, 2, 4, 4)).astype(np.float32)
    add_scores(folder, "attention", {"entropy": 3.0}, data, seed, unit="entropy (%)",
               images=np.full((4, 3, 16, 16), 99, np.uint8), attention=grid,
               rollout=grid[:, 0], labels=labels[:4])  # fmt: skip
    add_scores(folder, "embedding", {"trust": 0.9}, data, seed, unit="trust",
               points=random.normal(size=(IMAGES, 2)), labels=labels,
               index=np.arange(IMAGES))  # fmt: skip
    blocks: dict[str, Any] = {
        f"block_{n}": random.normal(size=(20, 8)).astype(np.float32) for n in range(3)
    }
    add_scores(folder, "cka", {"pixels": 0.4}, data, seed, unit="CKA", index=np.arange(20),
               **blocks)  # fmt: skip
    kinds = {f"top1_{kind}": 50.0 for kind in ("fog", "snow")}
    severities = {f"top1_severity_{n}": 60.0 - n for n in (1, 2, 3)}
    add_scores(folder, "robustness", {"top1_corrupted": 40.0, "top1_clean": 70.0} | kinds
               | severities, data, seed, {"images": 20},
               accuracy=50 + random.random((2, 3)))  # fmt: skip
    add_scores(folder, "low-shot", {"top1_1pct": 30.0 + seed, "top1_10pct": 50.0}, data, seed)
    for home in folder.glob("evals/*") if evals else ():
        if not home.name.startswith(evals):
            shutil.rmtree(home)
    snapshot = folder / "snapshots" / "step-00000010"
    snapshot.mkdir(parents=True)
    half = {"images_seen": 320, "flops": 5 * 10**11, "seconds": 2.0, "steps": 10, "step": 10}
    write_json(snapshot / "cost.json", price | half)
    write_json(snapshot / "encoder.json", {})
    add_scores(snapshot, "knn", {"top1": top - 5}, data, seed)
    return folder


def add_scores(
    folder: Path, name: str, scores: dict[str, float], data: str, seed: int,
    config: dict[str, Any] | None = None, unit: str = "top-1 accuracy (%)", **arrays: np.ndarray,
) -> None:  # fmt: skip
    home = folder / "evals" / f"{name}-beef-seed{seed}-fp32"
    home.mkdir(parents=True)
    record = {
        "eval": name, "protocol": "beef", "config": config or {}, "data": data,
        "data_fingerprint": "abcd",
        "note": "", "seed": seed, "classes": CLASSES, "scores": scores, "unit": unit,
        "better": "higher", "chosen": {}, "test_images": IMAGES, "seconds": 1.0,
        "precision": "fp32", "baselines": {"random init": scores}, "environment": {},
    }  # fmt: skip
    write_json(home / "scores.json", record)
    if arrays:
        file = "predictions.npz" if "predictions" in arrays else "arrays.npz"
        with (home / file).open("wb") as opened:
            np.savez_compressed(opened, **arrays)  # type: ignore[arg-type]
