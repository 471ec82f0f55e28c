"""What only a GPU shows, in some minutes: its tests, its steps, its speed, a short comparison.

Each piece leaves its output in a file before the next one begins, and none takes longer than its
share of the minutes.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

_BENCH = ("-m", "benchmarks", "--rounds", "1", "--seconds", "3")
_RUN = ("-m", "ssl_bench", "run", "--preset", "small", "--evals", "knn,linear")
_LEAST = 10.0


def pieces(data: str, runs: Path) -> Mapping[str, tuple[float, Sequence[str]]]:
    """The share of the time that each piece may take, and the words after ``python``."""
    tests = "test_gpu.py", "training/test_captured.py", "transforms/test_augment.py"
    speed = "training", "--cases", "gpu-mae-b16-224", "--contestants", "ours,plain-fp16"
    found: dict[str, tuple[float, Sequence[str]]] = {
        "tests": (0.3, ("-m", "pytest", "-q", "-n", "8", *(f"tests/{name}" for name in tests))),
        "steps": (0.25, (*_BENCH, "recorded")),
        "speed": (0.2, (*_BENCH, *speed)),
    }
    for method in ("mae", "mocov3") if data else ():
        flags = "--method", method, "--data", data, "--runs-dir", str(runs), "--budget-time", "60s"
        found[method] = 0.125, (*_RUN, *flags)
    return found


def main(words: Sequence[str] | None = None) -> int:
    """Run the pieces one after the other; returns 1 if one of them failed, 2 without a GPU."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=__doc__)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument(
        "--data", default="", help="of a short MAE against MoCo v3, such as cifar10"
    )
    parser.add_argument("--output", type=Path, default=Path("runs/gpu-check"))
    asked = parser.parse_args(words)
    import torch

    if not torch.cuda.is_available():
        print("error: there is no CUDA device here, which this check is of", file=sys.stderr)
        return 2
    asked.output.mkdir(parents=True, exist_ok=True)
    print(f"{torch.cuda.get_device_name()}: at most {asked.minutes:g} minutes", flush=True)
    failed = [
        name
        for name, (share, order) in pieces(asked.data, asked.output / "runs").items()
        if not _done(name, order, max(_LEAST, share * 60 * asked.minutes), asked.output)
    ]
    return 1 if failed else 0


def _done(name: str, order: Sequence[str], seconds: float, folder: Path) -> bool:
    """Run a piece for so long at most; whether it came to its end without an error."""
    path, begun = folder / f"{name}.txt", time.monotonic()
    with path.open("w") as file:
        try:
            code = subprocess.run(
                [sys.executable, *order], stdout=file, stderr=subprocess.STDOUT, timeout=seconds
            ).returncode
        except subprocess.TimeoutExpired:
            code = None
    how = "stopped after its share of the time" if code is None else f"exit code {code}"
    print(f"{name}: {how}, {time.monotonic() - begun:.0f} s, {path}", flush=True)
    for line in path.read_text().splitlines()[-3:]:
        print(f"  {line}", flush=True)
    return code == 0


if __name__ == "__main__":
    sys.exit(main())
