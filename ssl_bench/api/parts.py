"""What methods share: projection heads, networks that follow others, queues, float32 losses."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import wraps
from itertools import pairwise
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_bench.distributed import collectives

T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)


def mlp(
    widths: Sequence[int],
    last_norm: Literal["none", "plain", "scale"] = "none",
    last_bias: bool = False,
) -> nn.Sequential:
    """Linear layers without bias, batch-normalised over all ranks, with ReLU between them.

    Args:
        widths: from the input's to the output's.
        last_norm: what comes after the last layer: nothing, a batch norm without parameters, or one
            that scales without a shift.
        last_bias: give the last layer a bias, which no norm after it may take away again.
    """
    layers: list[nn.Module] = []
    *hidden, last = pairwise(widths)
    for inputs, outputs in hidden:
        layers += [
            nn.Linear(inputs, outputs, bias=False),
            collectives.SyncBatchNorm1d(outputs),
            nn.ReLU(inplace=True),
        ]
    layers.append(nn.Linear(*last, bias=last_bias))
    if last_norm != "none":
        norm = collectives.SyncBatchNorm1d(widths[-1], affine=last_norm == "scale")
        if last_norm == "scale":
            norm.bias.requires_grad_(False)
        layers.append(norm)
    return nn.Sequential(*layers)


def synchronised(head: M) -> M:
    """A head of another library, its batch norms now over all ranks."""
    collectives.synchronise(head)
    return head


def frozen_copy(module: M) -> M:
    """A copy that is not trained, to `follow` the module."""
    return copy.deepcopy(module).requires_grad_(False)


@torch.no_grad()
def follow(slow: nn.Module, fast: nn.Module, momentum: float) -> None:
    """Move the parameters of a `frozen_copy` to ``momentum * slow + (1 - momentum) * fast``.

    Buffers stay as they are: a batch norm keeps statistics of its own.
    """
    torch._foreach_lerp_(list(slow.parameters()), list(fast.parameters()), 1 - momentum)


class Queue(nn.Module):
    """The last features of a momentum encoder, to tell others from (MoCo, arXiv:1911.05722).

    Attributes:
        rows_KD: features of length 1, from the oldest at `pointer` on; at the start random ones.
        pointer: int64; where the next ones go.
    """

    rows_KD: Tensor
    pointer: Tensor

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.register_buffer("rows_KD", F.normalize(torch.randn(size, width), dim=1))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))

    @staticmethod
    def refuses(size: int, batch_size: int, images: int) -> str | None:
        """Why so large a queue is not filled by whole batches of different images, if it is not."""
        near = max(1, round(min(size, images) / batch_size)) * batch_size
        if near > images:
            near -= batch_size
        would = f"--queue-size {near} would work"
        if size % batch_size:
            return f"--queue-size {size} is no multiple of batch size {batch_size}; {would}"
        if size > images:
            return (
                f"--queue-size {size} is more than the {images:,} training images, so that each "
                f"would be among its own negatives; {would}"
            )
        return None

    @torch.no_grad()
    def push(self, rows_ND: Tensor) -> None:
        """Put in features of length 1, no more than it holds; the oldest ones leave."""
        size, count = len(self.rows_KD), len(rows_ND)
        place_N = (self.pointer + torch.arange(count, device=self.pointer.device)) % size
        self.rows_KD[place_N] = rows_ND
        self.pointer.copy_((self.pointer + count) % size)


def in_float32(function: Callable[..., T]) -> Callable[..., T]:
    """Have a function compute in float32 at least, where autocast would make it round to bf16.

    Its positional arguments that are tensors are widened, and float64 stays float64.
    """

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> T:
        wide = [_widened(arg) if isinstance(arg, Tensor) else arg for arg in args]
        device = next(arg.device.type for arg in args if isinstance(arg, Tensor))
        with torch.autocast(device, enabled=False):
            return function(*wide, **kwargs)

    return call


def _widened(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
