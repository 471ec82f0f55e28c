"""How fast a machine multiplies matrices, and how much of that a step asks for."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from ssl_bench.distributed.device import choose

_Operand = tuple[tuple[int, ...], tuple[int, ...], torch.dtype]
Product = tuple[_Operand, _Operand]
"""Shapes, strides and dtypes of two matrices, or batches of them, that are multiplied."""
_OPERANDS = {"mm": (0, 1), "bmm": (0, 1), "addmm": (1, 2), "baddbmm": (1, 2)}


class _Products(TorchDispatchMode):
    """Counts the matrix products that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[Product] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in _OPERANDS:
            first, second = (args[position] for position in _OPERANDS[name])
            self.seen[(_operand(first), _operand(second))] += 1
        return func(*args, **(kwargs or {}))


def _operand(matrix: torch.Tensor) -> _Operand:
    return tuple(matrix.shape), matrix.stride(), matrix.dtype


def count(step: Callable[[], Any]) -> tuple[int, Mapping[Product, int]]:
    """Floating-point operations of a step, as torch counts them, and its matrix products."""
    with FlopCounterMode(display=False) as counter, _Products() as products:
        step()
    return counter.get_total_flops(), products.seen


def product_rate(products: Mapping[Product, int], device: torch.device, sweeps: int = 8) -> float:
    """GFLOP/s of those products, each as often as it was seen and at the best of its times.

    All are timed in one sweep after another: what disturbs a moment does not slow one product in
    all of its tries.
    """
    best = dict.fromkeys(products, float("inf"))
    for _ in range(sweeps):
        for product in products:
            a, b = (_random(operand, device) for operand in product)
            best[product] = min(best[product], _seconds(partial(torch.matmul, a, b), device, 2))
    flop = sum(
        times * 2 * math.prod(first[0]) * second[0][-1]
        for (first, second), times in products.items()
    )
    seconds = sum(times * best[product] for product, times in products.items())
    return 1e-9 * flop / seconds if seconds else 0.0


def matrix_rate(device: torch.device) -> dict[str, float]:
    """Rate of large square products in GFLOP/s by precision, of those that the hardware has."""
    dtypes = [torch.float32, torch.bfloat16][: 2 if choose().precision == "bf16" else 1]
    size = 8192 if device.type == "cuda" else 2048
    rates = {}
    for dtype in dtypes:
        a = torch.randn(size, size, device=device, dtype=dtype)
        rates[str(dtype).removeprefix("torch.")] = round(
            2e-9 * size**3 / _seconds(partial(torch.matmul, a, a), device), 1
        )
    return rates


def _random(operand: _Operand, device: torch.device) -> torch.Tensor:
    shape, stride, dtype = operand
    if 0 in stride:  # one row for many, which cannot be filled
        own = [1 if step == 0 else length for length, step in zip(shape, stride, strict=True)]
        return torch.randn(own, device=device).to(dtype).expand(shape)
    return torch.empty_strided(shape, stride, dtype=dtype, device=device).normal_()


def _seconds(compute: Callable[[], Any], device: torch.device, tries: int = 5) -> float:
    """The best of several times, after one that does not count."""
    best = float("inf")
    for number in range(tries + 1):
        before = time.perf_counter()
        compute()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if number:
            best = min(best, time.perf_counter() - before)
    return best
