"""Several processes as one: who is who, shares, decisions, batch norm over the whole batch.

Everything here is the identity where ``torch.distributed`` is not initialised, and inside of
`alone`. In a pre-training, ranks hold equally many rows. With each rank's loss the mean over its
own rows, the mean of the ranks' gradients (what DistributedDataParallel leaves in the parameters)
is the gradient over the whole batch. Evaluations share what may not be divisible: `add_gradients`.

Whatever depends on the disk or the clock is decided by rank 0 (`on_rank_zero`), so that ranks never
disagree. Such messages go over a process group of their own, on the CPU, where a rank may wait for
days; a GPU's ranks exchange tensors only when all of them are there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ssl_bench.errors import UserError

T = TypeVar("T")
_PATIENCE = timedelta(days=30)
_alone = False
_messages: Any = None  # the process group for messages; None for torch's default one
_here = 1


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if _together() else 0


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if _together() else 1


def _together() -> bool:
    return not _alone and dist.is_available() and dist.is_initialized()


@contextmanager
def messages() -> Iterator[None]:
    """Have messages go over a process group of their own meanwhile; every rank calls it."""
    global _messages
    _messages = dist.new_group(backend="gloo", timeout=_PATIENCE)
    try:
        yield
    finally:
        _messages = None


@contextmanager
def on_machine(processes: int) -> Iterator[None]:
    """Let `processes_here` be that many meanwhile."""
    global _here
    _here = processes
    try:
        yield
    finally:
        _here = 1


def processes_here() -> int:
    """How many of the ranks share this machine."""
    return _here


@contextmanager
def alone() -> Iterator[None]:
    """Let this process be the only one meanwhile: nothing in the block waits for another."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def on_rank_zero(function: Callable[[], T]) -> T:
    """What the function returns on rank 0, which alone calls it, while the others wait.

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
    """The context on rank 0; on the others one that does nothing."""
    return context if rank() == 0 else nullcontext()


def file_of_first(path: Path) -> Path:
    """The path on rank 0; on the others one where all that is written is lost."""
    return path if rank() == 0 else Path(os.devnull)


def gather_objects(value: T) -> list[T]:
    """Every rank's value, in their order."""
    if world_size() == 1:
        return [value]
    found: list[Any] = [None] * world_size()
    dist.all_gather_object(found, value, group=_messages)
    return found


def largest(number: float) -> float:
    """The largest of the ranks' numbers."""
    if world_size() == 1:
        return number
    numbers = torch.tensor([number], dtype=torch.float64)
    dist.all_reduce(numbers, dist.ReduceOp.MAX, group=_messages)
    return numbers.item()


def barrier() -> None:
    """Wait until every rank is here, however long that takes; one that is lost is an error."""
    largest(0)


def agreed(signal_number: int) -> int:
    """The largest of the ranks' signal numbers, 0 standing for none: whether all are to stop."""
    return int(largest(signal_number))


def total(value: Tensor) -> Tensor:
    """The sum of the ranks' values."""
    if world_size() == 1:
        return value
    added = value.clone()
    dist.all_reduce(added)
    return added


def mean(value: Tensor) -> Tensor:
    """The mean of the ranks' values."""
    return total(value) / world_size()


def add_gradients(parameters: Iterable[Tensor]) -> None:
    """Make each gradient the sum of all ranks', which have gradients for the same parameters."""
    if world_size() == 1:
        return
    own = [parameter.grad for parameter in parameters if parameter.grad is not None]
    added = torch.cat([gradient.flatten() for gradient in own])
    dist.all_reduce(added)
    for gradient, whole in zip(own, added.split([each.numel() for each in own]), strict=True):
        gradient.copy_(whole.view_as(gradient))


def share(count: int) -> slice:
    """This rank's part of that many things: all in order, as many for each rank as can be."""
    ranks = world_size()
    return slice(count * rank() // ranks, count * (rank() + 1) // ranks)


def share_of(rows_N: Tensor) -> Tensor:
    """This rank's `share` of some rows, or the first one where it has none.

    So that each rank has something to work on, which `gather_shares` leaves out.
    """
    own = rows_N[share(len(rows_N))]
    return own if len(own) else rows_N[:1]


def gather(rows_BD: Tensor) -> Tensor:
    """The rows of all ranks, in their order: ``(world_size * B, D)``, without a gradient."""
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


def gather_shares(own: Tensor, count: int) -> Tensor:
    """The whole of which each rank has its `share_of` the rows: ``(count, ...)``, each row once.

    Waits for the slowest rank first, however long it takes. What is on the CPU stays there.
    """
    ranks = world_size()
    if ranks == 1:
        return own
    barrier()
    own = own[: len(range(count)[share(count)])]
    most = -(-count // ranks)  # equally long parts is what is exchanged; their ends are cut off
    padded = own.new_zeros(most, *own.shape[1:])
    padded[: len(own)] = own
    parts = [torch.empty_like(padded) for _ in range(ranks)]
    dist.all_gather(parts, padded, group=_messages if own.device.type == "cpu" else None)
    counts = [count * (number + 1) // ranks - count * number // ranks for number in range(ranks)]
    return torch.cat([part[:rows] for part, rows in zip(parts, counts, strict=True)])


class SyncBatchNorm(_BatchNorm):
    """Batch norm whose statistics are those of all ranks' rows, gradients through them included.

    ``torch.nn.SyncBatchNorm`` does the same on a GPU alone. With one rank, or in evaluation mode,
    each kind is the batch norm of torch or timm that it stands for, whose parameters and buffers it
    has.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise ``(B, D, ...)`` of any floating dtype over all ranks' rows, in float32."""
        if world_size() == 1 or not self.training:
            return super().forward(input)
        along = [1, -1, *[1] * (input.ndim - 2)]
        dims = [dim for dim in range(input.ndim) if dim != 1]
        rows = input.float()
        own = torch.cat([rows.sum(dim=dims), rows.new_tensor([rows[:, 0].numel()])])
        summed_D, count = _sum_over_ranks(own).split([rows.shape[1], 1])
        mean_D = summed_D / count
        centred = rows - mean_D.view(along)
        variance_D = _sum_over_ranks(centred.square().sum(dim=dims)) / count
        self._remember(mean_D.detach(), variance_D.detach() * count / (count - 1))
        output = centred * (variance_D + self.eps).rsqrt().view(along)
        if self.affine:
            output = output * self.weight.view(along) + self.bias.view(along)
        return output.to(input.dtype)

    @torch.no_grad()
    def _remember(self, mean_D: Tensor, variance_D: Tensor) -> None:
        share = self.momentum
        if self.num_batches_tracked is not None:
            self.num_batches_tracked += 1
            if share is None:  # all batches count alike
                share = 1.0 / float(self.num_batches_tracked)
        for running, current in ((self.running_mean, mean_D), (self.running_var, variance_D)):
            if running is not None and share is not None:
                running.lerp_(current.to(running.dtype), share)


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
    """Every rank's loss depends on the sum, so its gradient is the sum of their gradients."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        return total(own)

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
        return whole_ND[share(len(whole_ND))]


def _sum_over_ranks(own: Tensor) -> Tensor:
    return _SumOverRanks.apply(own)
