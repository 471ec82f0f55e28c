"""One contestant's training, measured: images a second, memory, and the work in a step."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

_LEAST_STEPS = 3


def measure(
    case: Mapping[str, Any], contestant: str, seconds: float, started: float
) -> dict[str, float]:
    """Train for some seconds, in a process that does nothing else.

    Args:
        case: fields of a `cases.Case`.
        contestant: its name.
        seconds: how long to measure, once training is under way.
        started: when the process was asked for, in seconds since the epoch.

    Returns:
        ``images_per_second``, ``seconds_to_first_step``, ``peak_mib`` (of the GPU if there is one,
        else resident, without data workers) and ``steps``.
    """
    from benchmarks.contestants import CONTESTANTS, device, step_of
    from ssl_bench.distributed.device import peak_memory_mib

    where, work = device(), _case(case)
    step = step_of(CONTESTANTS[contestant], work, where)
    step().item()
    first = time.time() - started
    step()
    # An accelerator runs behind: it is waited for now and then, never after each step.
    burst = 1 if where.type == "cpu" else 5
    _wait(where)
    begun, steps = time.perf_counter(), 0
    while time.perf_counter() - begun < seconds or steps < _LEAST_STEPS:
        for _ in range(burst):
            step()
        steps += burst
        _wait(where)
    # The mean over all, not a median: what waits for data waits now and then.
    speed = steps * work.batch_size / (time.perf_counter() - begun)
    return {
        "images_per_second": speed,
        "seconds_to_first_step": first,
        "peak_mib": peak_memory_mib(where),
        "steps": steps,
    }


def work(case: Mapping[str, Any], contestant: str) -> dict[str, float]:
    """What a step computes, and how fast this machine multiplies matrices of its shapes.

    Returns:
        ``gflop_per_image`` of the whole step, and ``product_gflops_per_second``, the rate of its
        matrix products alone, one after the other, each at its best.
    """
    import torch

    from benchmarks import machine
    from benchmarks.contestants import CONTESTANTS, device, step_of

    where, small = device(), _case(case)
    step = step_of(replace(CONTESTANTS[contestant], compile=False), small, where, False)
    step()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # torch counts what its own thread does
    flop, products = machine.count(step)
    torch.set_num_threads(threads)
    return {
        "gflop_per_image": 1e-9 * flop / small.batch_size,
        "product_gflops_per_second": machine.product_rate(products, where),
    }


def _case(fields: Mapping[str, Any]) -> Any:
    from benchmarks.cases import Case

    lists = {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
    return Case(**{**fields, **lists})


def _wait(where: Any) -> None:
    import torch

    if where.type == "cuda":
        torch.cuda.synchronize()
