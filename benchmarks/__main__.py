"""``python -m benchmarks``: every contestant on every case, in turn, over several rounds."""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.cases import CASES

_PEERS = ["plain", "plain-bf16", "plain-bf16-unfused", "lightly", "lightly-bf16"]
_CONTESTANTS = ["ours-fp32", "ours", *_PEERS]


def main() -> None:
    """Check that all compute the same, measure, write a report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--cases", default="mae-ti4-32,mocov3-ti4-32", help=", ".join(CASES))
    parser.add_argument("--contestants", default=",".join(_CONTESTANTS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=6.0, help="of measuring, in each round")
    parser.add_argument("--output", type=Path, default=Path("results/speed"))
    words = parser.parse_args()
    cases, names = words.cases.split(","), words.contestants.split(",")
    unknown = [name for name in cases if name not in CASES]
    unknown += [name for name in names if name not in _CONTESTANTS]
    if unknown or words.rounds < 1:
        parser.error(f"unknown: {', '.join(unknown) or f'{words.rounds} rounds'}")

    import torch

    from benchmarks import gate
    from ssl_bench.hardware import choose

    hardware = choose()
    rate = matrix_rate(hardware.device)
    measured: dict[str, dict[str, list[dict[str, float]]]] = {}
    losses = {case: gate.losses(CASES[case], names, hardware.device) for case in cases}
    for case, found in losses.items():
        print(f"{case}: same weights, same noise: losses {min(found.values()):.5f} to "
              f"{max(found.values()):.5f}")  # fmt: skip
        measured[case] = {name: [] for name in names}
        for number in range(words.rounds):
            for name in names:
                result = run(case, name, words.seconds)
                measured[case][name].append(result)
                print(f"  round {number + 1} {name:<20} {result['images_per_second']:9,.1f} img/s")

    from benchmarks import report

    about = {
        "device": hardware.name,
        "matrix products, bf16 or fp32, GFLOP/s": rate,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.now(UTC).date().isoformat(),
        "rounds": words.rounds,
        "seconds of each round": words.seconds,
    }
    print(f"report: {report.write(measured, about, words.output)}")


def run(case: str, contestant: str, seconds: float) -> dict[str, float]:
    """One round of one contestant, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.worker", case, contestant, str(seconds)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{contestant} on {case} failed: {done.stderr.strip()[-500:]}")
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def matrix_rate(device: Any) -> dict[str, float]:
    """Rate of large matrix products in GFLOP/s by precision, the best of five."""
    import time

    import torch

    rates = {}
    size = 8192 if device.type == "cuda" else 2048
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.randn(size, size, device=device, dtype=dtype)
        durations = []
        for _ in range(6):
            before = time.perf_counter()
            a @ a
            if device.type == "cuda":
                torch.cuda.synchronize()
            durations.append(time.perf_counter() - before)
        rates[str(dtype).removeprefix("torch.")] = round(2e-9 * size**3 / min(durations[1:]), 1)
    return rates


if __name__ == "__main__":
    main()
