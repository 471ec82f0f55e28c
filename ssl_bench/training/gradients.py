"""The gradient of a batch's loss: part by part where the loss allows it, on a CPU by all cores.

A thread with a part of its own does not wait for the others at the end of every operation, and what
it computes stays in its core's cache. Dropout and stochastic depth draw from random numbers that
threads would share, in the order in which they happen to get there: with these, parts take turns.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from ssl_bench.api.method import Loss, Method, total
from ssl_bench.api.step import Batch, Step
from ssl_bench.distributed import collectives
from ssl_bench.distributed.device import Hardware
from ssl_bench.distributed.strategy import Replica
from ssl_bench.models import encoders

TOTAL = "loss"
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
    step: Step,
    hardware: Hardware,
    images_at_once: int | None = None,
    replica: Replica | None = None,
) -> Mapping[str, Tensor]:
    """Add the gradient of the batch's loss to the parameters'.

    The result depends on ``images_at_once`` and the number of threads in its rounding alone, and
    not at all on which thread is faster. Dropout and stochastic depth are drawn part by part.

    Args:
        batch: this rank's share of it, where there are several.
        images_at_once: how many images' activations are kept at a time, by each thread, where the
            method's loss is `taken_in_parts`; None for all.
        replica: the method as `strategy.wrap` wraps it. The gradient is that of all ranks' images
            then, and the losses are of this rank's.

    Returns:
        The scalar that is minimised as ``loss``, and the losses that the method names.
    """
    if images_at_once is None or taken_in_parts(method) != "loss":
        images_at_once = len(batch)
    count = max(1, math.ceil(len(batch) / images_at_once))
    threads = 1
    is_free = hardware.device.type == "cpu" and not replica and not encoders.drops(method)
    if count > 1 and is_free:
        threads = min(_MOST_THREADS, torch.get_num_threads(), len(batch))
        count = min(len(batch), threads * math.ceil(count / threads))  # as many for each
    parts = list(batch.split(count)) if count > 1 else [batch]
    if threads > 1:
        return _in_threads(method, parts, step, threads, hardware)
    losses, left = [], len(parts) * (replica.terms if replica else 0)
    for part in parts:
        terms = method.terms(part, step)  # a generator, whose code runs inside of the wrapper
        for _ in range(replica.terms) if replica else itertools.count():
            left -= 1
            # Ranks exchange gradients with those of the last term.
            with replica.accumulating(left > 0) if replica else nullcontext():
                with hardware.autocast():
                    term = replica(terms) if replica else next(terms, None)
                if term is None:
                    break
                weighted = _weighted(term, len(part) / len(batch))
                weighted[TOTAL].backward()
            losses.append(_detached(weighted))
    return _sum(losses)


def _in_threads(
    method: Method, parts: Sequence[Batch], step: Step, threads: int, hardware: Hardware
) -> Mapping[str, Tensor]:
    """Each thread adds up the gradients of every n-th part; their sums are then added."""
    trained = [parameter for parameter in method.parameters() if parameter.requires_grad]
    whole = sum(map(len, parts))

    def work(first: int) -> tuple[Mapping[str, Tensor], list[Tensor | None]]:
        losses = []
        gradients: list[Tensor | None] = [None] * len(trained)
        for part in parts[first::threads]:
            terms = method.terms(part, step)
            while True:
                # Threads share the cache of cast weights, and empty it for each other.
                with hardware.autocast(cached=False):
                    term = next(terms, None)
                if term is None:
                    break
                weighted = _weighted(term, len(part) / whole)
                # Not backward(), which would add to the parameters' as threads happen to finish.
                own = torch.autograd.grad(weighted[TOTAL], trained, allow_unused=True)
                gradients = [_added(*both) for both in zip(gradients, own, strict=True)]
                losses.append(_detached(weighted))
        return _sum(losses), gradients

    done = list(_pool(threads, torch.get_num_threads() // threads).map(work, range(threads)))
    for _, gradients in done:
        for parameter, gradient in zip(trained, gradients, strict=True):
            parameter.grad = _added(parameter.grad, gradient)
    return _sum([losses for losses, _ in done])


def _weighted(term: Loss, weight: float) -> dict[str, Tensor]:
    named = {} if isinstance(term, Tensor) else {name: each * weight for name, each in term.items()}
    return {**named, TOTAL: total(term) * weight}


def _detached(losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: loss.detach() for name, loss in losses.items()}


def _sum(losses: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    by_name = defaultdict(list)
    for each in losses:
        for name, loss in each.items():
            by_name[name].append(loss)
    return {name: torch.stack(values).sum() for name, values in by_name.items()}


def _added(sum_so_far: Tensor | None, own: Tensor | None) -> Tensor | None:
    if sum_so_far is None or own is None:
        return own if sum_so_far is None else sum_so_far
    return sum_so_far.add_(own)


@lru_cache(maxsize=1)
def _pool(threads: int, cores: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "part", torch.set_num_threads, (cores,))
