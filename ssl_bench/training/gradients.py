"""The gradient of a batch's loss: part by part where the loss allows it, on a CPU by all cores.

A thread with a part of its own waits for no other thread at the end of every operation, and what
it computes stays in its core's cache.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from ssl_bench.api.method import Batch, Method
from ssl_bench.distributed import collectives
from ssl_bench.distributed.device import Hardware
from ssl_bench.distributed.strategy import Replica

_MOST_THREADS = 8  # each holds a copy of the gradient


def taken_in_parts(method: Method) -> Literal["loss", "encoder", ""]:
    """What may take a batch in parts: the whole loss, or the encoder alone, or nothing.

    A batch norm is over all images of a batch.
    """
    if method.per_sample_loss:
        return "" if collectives.has_batch_norm(method) else "loss"
    is_free = method.encodes_in_parts and not collectives.has_batch_norm(method.encoder)
    return "encoder" if is_free else ""


def backward(
    method: Method,
    batch: Batch,
    hardware: Hardware,
    images_at_once: int | None = None,
    replica: Replica | None = None,
) -> Tensor:
    """Add the gradient of the batch's loss to the parameters'; returns the loss.

    The result depends on ``images_at_once`` and the number of threads in its rounding alone, and
    not at all on which thread is faster.

    Args:
        batch: this rank's share of it, where there are several.
        images_at_once: how many images' activations are kept at a time, by each thread, where the
            method's loss is `taken_in_parts`; None for all.
        replica: the method as `strategy.wrap` wraps it. The gradient is that of all ranks' images
            then, and the loss is of this rank's.
    """
    if images_at_once is None or taken_in_parts(method) != "loss":
        images_at_once = len(batch)
    if replica:
        return _over_ranks(method, batch, hardware, images_at_once, replica)
    if images_at_once >= len(batch):
        return _one_by_one(method, batch, hardware)
    count = math.ceil(len(batch) / images_at_once)
    threads = 1
    if hardware.device.type == "cpu":
        threads = min(_MOST_THREADS, torch.get_num_threads(), len(batch))
        count = min(len(batch), threads * math.ceil(count / threads))  # as many for each
    parts = list(batch.split(count))
    if threads > 1:
        return _in_threads(method, batch, parts, threads, hardware)
    losses = [_one_by_one(method, part, hardware, len(part) / len(batch)) for part in parts]
    return torch.stack(losses).sum()


def _one_by_one(method: Method, part: Batch, hardware: Hardware, share: float = 1.0) -> Tensor:
    """The terms' gradients in turn, as a part's share of its batch."""
    losses = []
    for loss in _terms(method, part, hardware, share):
        loss.backward()
        losses.append(loss.detach())
    return torch.stack(losses).sum()


def _over_ranks(
    method: Method, batch: Batch, hardware: Hardware, images_at_once: int, replica: Replica
) -> Tensor:
    """The terms of each part in turn; gradients are exchanged with the last one's."""
    parts = list(batch.split(math.ceil(len(batch) / images_at_once)))
    losses, left = [], len(parts) * replica.terms
    for part in parts:
        terms = method.terms(part)  # a generator, whose code runs inside of the wrapper
        for _ in range(replica.terms):
            left -= 1
            with replica.accumulating(left > 0):
                with hardware.autocast():
                    term = replica(terms)
                loss = term * (len(part) / len(batch))
                loss.backward()
            losses.append(loss.detach())
    return torch.stack(losses).sum()


def _in_threads(
    method: Method, batch: Batch, parts: Sequence[Batch], threads: int, hardware: Hardware
) -> Tensor:
    """Each thread sums up the gradients of every so-manieth part; their sums are then added."""
    trained = [parameter for parameter in method.parameters() if parameter.requires_grad]

    def work(first: int) -> tuple[Tensor, list[Tensor | None]]:
        losses: list[Tensor] = []
        total: list[Tensor | None] = [None] * len(trained)
        for part in parts[first::threads]:
            share = len(part) / len(batch)
            # Threads share the cache of cast weights, and empty it for each other.
            for loss in _terms(method, part, hardware, share, cached=False):
                # Not backward(), which would add to the parameters' as threads happen to finish.
                own = torch.autograd.grad(loss, trained, allow_unused=True)
                total = [_sum(*both) for both in zip(total, own, strict=True)]
                losses.append(loss.detach())
        return torch.stack(losses).sum(), total

    done = list(_pool(threads, torch.get_num_threads() // threads).map(work, range(threads)))
    for _, gradients in done:
        for parameter, gradient in zip(trained, gradients, strict=True):
            parameter.grad = _sum(parameter.grad, gradient)
    return torch.stack([loss for loss, _ in done]).sum()


def _terms(
    method: Method, part: Batch, hardware: Hardware, share: float, cached: bool = True
) -> Iterator[Tensor]:
    """The terms of a part's loss, to be differentiated outside of autocast."""
    terms = method.terms(part)
    while True:
        with hardware.autocast(cached):
            term = next(terms, None)
        if term is None:
            return
        yield term * share


def _sum(total: Tensor | None, own: Tensor | None) -> Tensor | None:
    if total is None or own is None:
        return own if total is None else total
    return total.add_(own)


@lru_cache(maxsize=1)
def _pool(threads: int, cores: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "part", torch.set_num_threads, (cores,))
