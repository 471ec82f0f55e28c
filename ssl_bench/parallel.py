"""Several processes as one: who is who, rows gathered from all, batch norm over the whole batch.

Everything here is the identity where ``torch.distributed`` is not initialised. Ranks hold equally
many rows. With each rank's loss the mean over its own rows, the mean of the ranks' gradients (what
DistributedDataParallel leaves in the parameters) is the gradient over the whole batch.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather(rows_BD: Tensor) -> Tensor:
    """The rows of all ranks, in their order: ``(world_size * B, D)``, without a gradient."""
    rows_BD = rows_BD.detach()
    if world_size() == 1:
        return rows_BD
    parts = [torch.empty_like(rows_BD) for _ in range(world_size())]
    dist.all_gather(parts, rows_BD.contiguous())
    return torch.cat(parts)


class SyncBatchNorm1d(nn.BatchNorm1d):
    """Batch norm whose statistics are those of all ranks' rows, gradients through them included.

    ``torch.nn.SyncBatchNorm`` does the same on a GPU alone. With one rank, or in evaluation mode,
    this is ``torch.nn.BatchNorm1d``, whose parameters and buffers it has.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise ``(B, D)`` of any floating dtype over all ranks' rows, in float32."""
        if world_size() == 1 or not self.training:
            return super().forward(input)
        rows_BD = input.float()
        count = world_size() * len(rows_BD)
        mean_D = _sum_over_ranks(rows_BD.sum(dim=0)) / count
        centred_BD = rows_BD - mean_D
        variance_D = _sum_over_ranks(centred_BD.square().sum(dim=0)) / count
        self._remember(mean_D.detach(), variance_D.detach() * count / (count - 1))
        output_BD = centred_BD * (variance_D + self.eps).rsqrt()
        if self.affine:
            output_BD = output_BD * self.weight + self.bias
        return output_BD.to(input.dtype)

    def _remember(self, mean_D: Tensor, variance_D: Tensor) -> None:
        for running, current in ((self.running_mean, mean_D), (self.running_var, variance_D)):
            if running is not None:
                running.lerp_(current.to(running.dtype), self.momentum or 0.0)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked += 1


class _SumOverRanks(torch.autograd.Function):
    """Every rank's loss depends on the sum, so its gradient is the sum of their gradients."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        total = own.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total


def _sum_over_ranks(own: Tensor) -> Tensor:
    return _SumOverRanks.apply(own)
