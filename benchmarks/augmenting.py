"""Views alone: made by the batch, or picture by picture in a ``DataLoader``."""

from __future__ import annotations

import time
from collections.abc import Mapping

NAMES: Mapping[str, str] = {
    "ours": "ssl-bench, by the batch",
    "torchvision": "torchvision on Pillow's images, DataLoader of 2 workers",
}


def measure(name: str, seconds: float, case: str) -> dict[str, float]:
    """Make views for some seconds.

    Args:
        name: a contestant of `NAMES`.
        seconds: how long to measure, once the first batches are there.
        case: one of `cases.AUGMENTED`; an image counts once, however many views it gets.
    """
    from benchmarks import contestants, plain
    from benchmarks.cases import AUGMENTED

    where, work = contestants.device(), AUGMENTED[case]
    if name == "ours":
        contestants.settle(contestants.CONTESTANTS["ours"], where)
        batches = contestants.in_memory(work, where)
    else:
        batches = contestants.loaded(plain.transforms)(work, where)
    for _ in range(4):  # workers fetch that many ahead
        next(batches)
    begun, count = time.perf_counter(), 0
    while time.perf_counter() - begun < seconds:
        next(batches)
        count += 1
    if where.type == "cuda":
        import torch

        torch.cuda.synchronize()
    return {"images_per_second": count * work.batch_size / (time.perf_counter() - begun)}
