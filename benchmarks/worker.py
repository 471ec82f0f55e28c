"""One contestant, one round, in a process of its own: prints what it took as a line of JSON."""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time

_STARTED = time.perf_counter()
_PEAK_UNIT = 2**20 if sys.platform == "darwin" else 2**10


def main() -> None:
    """Train for some seconds and report."""
    case_name, contestant_name, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
    import os

    os.environ.setdefault("GOMP_SPINCOUNT", "5000")
    import torch

    from benchmarks.cases import CASES
    from benchmarks.contestants import CONTESTANTS, step_of

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    case = CASES[case_name]
    step = step_of(CONTESTANTS[contestant_name], case, device)
    step().item()
    first = time.perf_counter() - _STARTED
    for _ in range(2):
        step()
    _wait(device)
    durations: list[float] = []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or len(durations) < 3:
        before = time.perf_counter()
        step()
        _wait(device)
        durations.append(time.perf_counter() - before)
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**20
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _PEAK_UNIT
    print(
        json.dumps(
            {
                # The mean, not the median: what waits for data waits now and then.
                "images_per_second": case.batch_size / statistics.fmean(durations),
                "seconds_to_first_step": first,
                "peak_mib": peak,
                "steps": len(durations),
            }
        )
    )
    sys.stdout.flush()
    os._exit(0)  # a DataLoader's workers need no farewell


def _wait(device: object) -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
