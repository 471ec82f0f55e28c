"""What only a GPU shows, in some minutes: its tests, its steps, its speed, a short comparison.

Each piece leaves its output in a file before the next one begins, and none takes longer than its
share of the minutes that are left; none of its processes is there any more when the next one is
measured.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

_BENCH = ("-m", "benchmarks", "--rounds", "1", "--seconds", "3")
_RUN = ("-m", "ssl_bench", "run", "--preset", "small", "--evals", "knn,linear")
_TESTS = Path(__file__).parents[1] / "tests"
_TRAINING = 0.2  # of a run's share: the rest is compiling, twice, and its evaluations
_GRACE = 5.0  # seconds in which a piece that is stopped may say what it has found


def pieces(data: str, folder: Path, seconds: float) -> Mapping[str, tuple[float, Sequence[str]]]:
    """The share of those seconds that each piece may take, and the words after ``python``."""
    bench = *_BENCH, "--output", str(folder)
    # Names one by one as tests end, since a piece may be stopped.
    tests = "-m", "pytest", "-v", "--tb=short", "-n", "8", "-m", "gpu"
    files = (f for f in _TESTS.rglob("test_*.py") if "mark.gpu" in f.read_text())
    steps = "recorded", "--contestants", "mae,mae+,mocov3,mocov3+,finetune,finetune+"
    speed = "training", "--cases", "gpu-mae-b16-224", "--contestants", "ours,plain-fp16"
    found: dict[str, tuple[float, Sequence[str]]] = {
        "tests": (0.25, (*tests, *sorted(map(str, files)))),
        "steps": (0.25, (*bench, *steps)),
        "speed": (0.2, (*bench, *speed)),
    }
    share = 0.15
    for method in ("mae", "mocov3") if data else ():
        budget = f"{_TRAINING * share * seconds:.0f}s"
        where = "--data", data, "--runs-dir", str(folder / "runs")
        found[method] = share, (*_RUN, "--method", method, *where, "--budget-time", budget)
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
    seconds = 60 * asked.minutes
    succeeded = run(pieces(asked.data, asked.output, seconds), seconds, asked.output)
    return 0 if succeeded else 1


def run(orders: Mapping[str, tuple[float, Sequence[str]]], seconds: float, folder: Path) -> bool:
    """Run pieces within so many seconds, of which a quick piece leaves more to the next ones.

    Returns whether all of them came to their end without an error.
    """
    end, shares = time.monotonic() + seconds, sum(share for share, _ in orders.values())
    succeeded = True
    for name, (share, order) in orders.items():
        left = max(0.0, end - time.monotonic())
        succeeded &= _done(name, order, left * share / shares, folder)
        shares -= share
    return succeeded


def _done(name: str, order: Sequence[str], seconds: float, folder: Path) -> bool:
    """Run a piece for so long at most; whether it came to its end without an error."""
    path, begun = folder / f"{name}.txt", time.monotonic()
    # A shell's background processes ignore interrupts, and would hand that on.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with path.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, *order], stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
    code = None
    try:
        code = process.wait(max(0.0, seconds - _GRACE))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(min(seconds, _GRACE))
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # with the processes that it has started
        process.wait()
    how = "stopped after its share of the time" if code is None else f"exit code {code}"
    print(f"{name}: {how}, {time.monotonic() - begun:.0f} s, {path}", flush=True)
    for line in path.read_text().splitlines()[-3:]:
        print(f"  {line}", flush=True)
    return code == 0


if __name__ == "__main__":
    sys.exit(main())
