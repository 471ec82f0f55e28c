"""Ranks, shards, collective operations, and batch norm over the whole batch.

Everything here is the identity where ``torch.distributed`` is not initialised, and inside `alone`.
In a pre-training each rank has the same number of rows, and its loss is the mean over them, so that
the mean of the ranks' gradients, which DistributedDataParallel leaves in the parameters, is the
gradient over the whole batch. Evaluations have shards of unequal length: `add_gradients`.

Rank 0 decides whatever depends on the disk or the clock (`on_rank_zero`), so that ranks never
disagree. Such messages have a process group of their own, on the CPU, where a rank may wait for
days; GPUs exchange tensors only when all ranks are ready.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from functools import wraps
from inspect import signature
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ssl_bench.errors import UserError

K = TypeVar("K")
T = TypeVar("T")
_PATIENCE = timedelta(days=30)
_alone = False
_messages: Any = None  # the process group for messages; None for torch's default one
_local_world_size = 1


def rank() -> int:
    """This process's rank, from 0."""
    return dist.get_rank() if _is_distributed() else 0


def world_size() -> int:
    """The number of ranks."""
    return dist.get_world_size() if _is_distributed() else 1


def local_world_size() -> int:
    """The number of ranks on this machine."""
    return _local_world_size


def _is_distributed() -> bool:
    return not _alone and dist.is_available() and dist.is_initialized()


@contextmanager
def ready(local_ranks: int) -> Iterator[None]:
    """Use a process group of their own for messages during the block; every rank calls it.

    Args:
        local_ranks: the number of ranks on this machine.
    """
    global _messages, _local_world_size
    _messages = dist.new_group(backend="gloo", timeout=_PATIENCE)
    _local_world_size = local_ranks
    try:
        yield
    finally:
        _messages, _local_world_size = None, 1


@contextmanager
def alone() -> Iterator[None]:
    """Act as the only process during the block, which then waits for no other rank."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def on_rank_zero(function: Callable[[], T]) -> T:
    """Call the function on rank 0 alone, and return its result on every rank.

    Raises:
        UserError, OSError: on every rank, where the function raises it.
    """
    if world_size() == 1:
        return function()
    found: list[Any] = [None, None]
    if rank() == 0:
        try:
            with alone():
                found[0] = function()
        except (UserError, OSError) as error:
            found[1] = error
    dist.broadcast_object_list(found, src=0, group=_messages, device=torch.device("cpu"))
    if found[1] is not None:
        raise found[1]
    return found[0]


def broadcast(value: T) -> T:
    """Rank 0's value."""
    return on_rank_zero(lambda: value)


def rank_zero_only(context: AbstractContextManager[T]) -> AbstractContextManager[T | None]:
    """The context on rank 0; on other ranks one that does nothing."""
    return context if rank() == 0 else nullcontext()


def path_on_rank_zero(path: Path) -> Path:
    """The path on rank 0; on other ranks the null device."""
    return path if rank() == 0 else Path(os.devnull)


def gather_objects(value: T) -> list[T]:
    """The values of all ranks, in order."""
    if world_size() == 1:
        return [value]
    found: list[Any] = [None] * world_size()
    dist.all_gather_object(found, value, group=_messages)
    return found


def largest(number: float) -> float:
    """The largest number of all ranks."""
    if world_size() == 1:
        return number
    numbers = torch.tensor([number], dtype=torch.float64)
    dist.all_reduce(numbers, dist.ReduceOp.MAX, group=_messages)
    return numbers.item()


def barrier() -> None:
    """Wait for every rank, however long that takes; a lost rank is an error."""
    largest(0)


def total(value: Tensor) -> Tensor:
    """The sum over all ranks."""
    if world_size() == 1:
        return value
    added = value.clone()
    dist.all_reduce(added)
    return added


def mean(value: Tensor) -> Tensor:
    """The mean over all ranks."""
    return total(value) / world_size()


def add_gradients(parameters: Iterable[Tensor]) -> None:
    """Sum each gradient over all ranks, which must have gradients for the same parameters."""
    if world_size() == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    sums = flat.split([gradient.numel() for gradient in gradients])
    for gradient, summed in zip(gradients, sums, strict=True):
        gradient.copy_(summed.view_as(gradient))


def shard(count: int) -> slice:
    """This rank's shard of ``count`` items: contiguous, of nearly equal lengths."""
    ranks = world_size()
    return slice(count * rank() // ranks, count * (rank() + 1) // ranks)


def shard_rows(rows_N: Tensor) -> Tensor:
    """This rank's `shard` of the rows; the first row where it is empty.

    Then each rank has something to compute; `gather_shards` leaves it out again.
    """
    rows = rows_N[shard(len(rows_N))]
    return rows if len(rows) else rows_N[:1]


def gather(rows_BD: Tensor) -> Tensor:
    """The rows of all ranks, in order: ``(world_size * B, D)``, without a gradient."""
    rows_BD = rows_BD.detach()
    if world_size() == 1:
        return rows_BD
    parts = [torch.empty_like(rows_BD) for _ in range(world_size())]
    dist.all_gather(parts, rows_BD.contiguous())
    return torch.cat(parts)


def gather_with_gradient(rows_BD: Tensor) -> Tensor:
    """The rows of all ranks, in their order: ``(world_size * B, D)``.

    A row's gradient is the sum of what all ranks' losses make of it, so that the mean of the ranks'
    gradients is that of the mean of their losses.
    """
    return rows_BD if world_size() == 1 else _Gather.apply(rows_BD)


def sum_with_gradient(value: Tensor) -> Tensor:
    """The sum over all ranks, with the gradient of `gather_with_gradient`.

    ``torch.distributed.all_reduce`` alone has no gradient: a rank's would be that of its own rows.
    """
    return value if world_size() == 1 else _SumOverRanks.apply(value)


def mean_with_gradient(value: Tensor) -> Tensor:
    """The mean over all ranks, with gradient."""
    return sum_with_gradient(value) / world_size()


def gather_shards(rows: Tensor, count: int) -> Tensor:
    """All ``count`` rows, of which each rank has those of `shard_rows`: ``(count, ...)``.

    Waits for the slowest rank first, however long it takes. Tensors on the CPU stay there.
    """
    ranks = world_size()
    if ranks == 1:
        return rows
    barrier()
    rows = rows[: len(range(count)[shard(count)])]
    longest = -(-count // ranks)  # all_gather takes equal lengths, so shards are padded
    padded = rows.new_zeros(longest, *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in range(ranks)]
    dist.all_gather(parts, padded, group=_messages if rows.device.type == "cpu" else None)
    ends = [count * number // ranks for number in range(ranks + 1)]
    lengths = [end - start for start, end in pairwise(ends)]
    return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])


def sharded(
    name: str,
) -> Callable[[Callable[..., Mapping[K, Tensor]]], Callable[..., Mapping[K, Tensor]]]:
    """Have each rank call a function with its shard of one argument's rows.

    Every rank gets the whole result, with a row for each of the argument's.

    Args:
        name: of the argument, whose rows do not depend on each other.
    """

    def decorate(function: Callable[..., Mapping[K, Tensor]]) -> Callable[..., Mapping[K, Tensor]]:
        parameters = signature(function)

        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Mapping[K, Tensor]:
            if world_size() == 1:
                return function(*args, **kwargs)
            bound = parameters.bind(*args, **kwargs)
            rows = bound.arguments[name]
            bound.arguments[name] = rows[shard(len(rows))]
            result = function(*bound.args, **bound.kwargs)
            return {key: gather_shards(value, len(rows)) for key, value in result.items()}

        return call

    return decorate


class SyncBatchNorm(_BatchNorm):
    """Batch norm over the rows of all ranks, with gradients through the statistics.

    ``torch.nn.SyncBatchNorm`` does the same, but only on GPUs. With one rank, or in evaluation
    mode, each kind is the batch norm of torch or timm that it stands for, with the same parameters
    and buffers.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise ``(B, D, ...)`` of any floating dtype over all ranks' rows, in float32."""
        if world_size() == 1 or not self.training:
            return super().forward(input)
        along = [1, -1, *[1] * (input.ndim - 2)]
        dims = [dim for dim in range(input.ndim) if dim != 1]
        rows = input.float()
        sums = torch.cat([rows.sum(dim=dims), rows.new_full((1,), rows[:, 0].numel())])
        summed_D, count = sum_with_gradient(sums).split([rows.shape[1], 1])
        mean_D = summed_D / count
        centred = rows - mean_D.view(along)
        variance_D = sum_with_gradient(centred.square().sum(dim=dims)) / count
        self._update_running(mean_D.detach(), variance_D.detach() * count / (count - 1))
        output = centred * (variance_D + self.eps).rsqrt().view(along)
        if self.affine:
            output = output * self.weight.view(along) + self.bias.view(along)
        return output.to(input.dtype)

    @torch.no_grad()
    def _update_running(self, mean_D: Tensor, variance_D: Tensor) -> None:
        momentum = self.momentum
        if self.num_batches_tracked is not None:
            self.num_batches_tracked += 1
            if momentum is None:  # a plain average over all batches
                momentum = 1.0 / float(self.num_batches_tracked)
        for running, current in ((self.running_mean, mean_D), (self.running_var, variance_D)):
            if running is not None and momentum is not None:
                running.lerp_(current.to(running.dtype), momentum)


class SyncBatchNorm1d(SyncBatchNorm, nn.BatchNorm1d):
    """`SyncBatchNorm` of ``(B, D)``."""


class _SyncBatchNorm2d(SyncBatchNorm, nn.BatchNorm2d):
    pass


class _SyncBatchNormAct2d(SyncBatchNorm, BatchNormAct2d):
    def forward(self, x: Tensor) -> Tensor:
        normed = super().forward(x)
        done = world_size() == 1 or not self.training
        return normed if done else self.act(self.drop(normed))  # type: ignore[operator]


def synchronise(module: nn.Module) -> None:
    """Make the batch norms of a module those over all ranks' images, with all that they hold."""
    kinds: dict[type, type] = {
        nn.BatchNorm1d: SyncBatchNorm1d,
        nn.BatchNorm2d: _SyncBatchNorm2d,
        BatchNormAct2d: _SyncBatchNormAct2d,
    }
    for each in module.modules():
        if type(each) in kinds:
            each.__class__ = kinds[type(each)]


def has_batch_norm(module: nn.Module) -> bool:
    """Whether an image's output depends on what other images are in its batch."""
    return any(isinstance(each, _BatchNorm) for each in module.modules())


class _SumOverRanks(torch.autograd.Function):
    """A sum over ranks: every rank's loss depends on it, so its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return total(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return total(gradients[0].contiguous())


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows_BD: Tensor) -> Tensor:
        return gather(rows_BD)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        whole_ND = total(gradients[0].contiguous())
        return whole_ND[shard(len(whole_ND))]
