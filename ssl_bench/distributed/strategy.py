"""A method on several ranks: a copy on each (DDP) or a shard on each (FSDP), and its full state.

Lightning Fabric wraps the method; files on disk do not depend on the strategy.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ssl_bench.distributed import collectives
from ssl_bench.errors import UserError

Strategy = Literal["ddp", "fsdp"]
_fabric: Any = None
_strategy: Strategy = "ddp"


@contextmanager
def using(fabric: Any, strategy: Strategy) -> Iterator[None]:
    """Wrap methods with this Fabric, which was made for the strategy, during the block."""
    global _fabric, _strategy
    _fabric, _strategy = fabric, strategy
    try:
        yield
    finally:
        _fabric, _strategy = None, "ddp"


def strategy() -> Strategy | None:
    """The strategy; None with one rank."""
    return _strategy if collectives.world_size() > 1 else None


class Replica:
    """A wrapped method, whose gradients are exchanged; its loss has this number of ``terms``."""

    def __init__(self, wrapped: nn.Module, terms: int) -> None:
        self._wrapped, self.terms = wrapped, terms

    def __call__(self, terms: Iterator[Any]) -> Any:
        """The next term of the loss, computed inside the wrapper."""
        return self._wrapped(terms)

    def accumulating(self, enabled: bool) -> AbstractContextManager[Any]:
        """Keep gradients local during the block; a later backward pass exchanges them.

        A sharded method exchanges them each time, since full gradients would take too much memory.
        """
        if not enabled or _strategy == "fsdp":
            return nullcontext()
        return _fabric.no_backward_sync(self._wrapped)


def wrap(method: nn.Module, terms: int) -> Replica:
    """Wrap a method that is on its device, which may replace its parameters.

    Args:
        terms: the number of terms of its loss.

    Raises:
        UserError: it has a batch norm over the images of one rank.
    """
    for name, module in method.named_modules():
        if isinstance(module, _BatchNorm) and not isinstance(module, collectives.SyncBatchNorm):
            raise UserError(
                f"batch norm {name!r} would see a device's own images alone; --devices 1, or "
                "ssl_bench.distributed.collectives.SyncBatchNorm1d in its place, would work"
            )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Replica(_fabric.setup_module(method, move_to_device=False), terms)


def shard(method: nn.Module, mesh: Any) -> nn.Module:
    """Shard a method: each transformer block by itself, and the rest together.

    The last block of a stack belongs to the rest, as parts of it may be used without calling it
    (`encoders.block_at`), and so does a stack that says ``used_in_parts``, all of it.
    """
    from torch.distributed.fsdp import fully_shard

    devices = mesh["data_parallel"]
    for stack in list(method.modules()):
        blocks = [] if getattr(stack, "used_in_parts", False) else list(stack.children())
        if isinstance(stack, nn.Sequential | nn.ModuleList) and all(
            isinstance(block, Block) for block in blocks
        ):
            for block in blocks[:-1]:
                fully_shard(block, mesh=devices)
    fully_shard(method, mesh=devices)
    return method


def full_state(state: Any) -> Any:
    """A state dict with its shards gathered on the CPU of rank 0; every rank calls it.

    Other ranks get None for each sharded tensor. Everything else is left as it is.
    """
    if collectives.world_size() == 1:
        return state
    if isinstance(state, Mapping):
        return {name: full_state(value) for name, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(full_state(value) for value in state)
    if not hasattr(state, "full_tensor"):
        return state
    full = state.full_tensor()
    return full.cpu() if collectives.rank() == 0 else None


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Load an optimiser's `full_state`, sharded like its parameters."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def distribute(parameter: Tensor, value: Any) -> Any:
        is_alike = isinstance(value, Tensor) and value.shape == parameter.shape
        if not isinstance(parameter, DTensor) or not is_alike or value.ndim == 0:
            return value
        value = value.to(parameter.device)
        return distribute_tensor(value, parameter.device_mesh, parameter.placements)

    sharded = {
        number: {name: distribute(parameters[number], value) for name, value in values.items()}
        for number, values in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": sharded})
