"""A method over several ranks: a copy on each (DDP) or a share on each (FSDP), and its whole state.

Lightning Fabric wraps the method; what is written to disk is the same whatever wrapped it.
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
def through(fabric: Any, strategy: Strategy) -> Iterator[None]:
    """Have this Fabric wrap methods meanwhile, by the strategy that it was made for."""
    global _fabric, _strategy
    _fabric, _strategy = fabric, strategy
    try:
        yield
    finally:
        _fabric, _strategy = None, "ddp"


def strategy() -> Strategy | None:
    """How methods are wrapped; None with one rank."""
    return _strategy if collectives.world_size() > 1 else None


class Replica:
    """A wrapped method, whose gradients become those of all ranks.

    Attributes:
        terms: how many terms the method's loss has.
    """

    def __init__(self, wrapped: nn.Module, terms: int) -> None:
        self._wrapped, self.terms = wrapped, terms

    def __call__(self, terms: Iterator[Any]) -> Any:
        """The next of the terms, computed inside of the wrapper."""
        return self._wrapped(terms)

    def accumulating(self, enabled: bool) -> AbstractContextManager[Any]:
        """Leave this rank's gradients to itself meanwhile; a later backward pass exchanges them.

        A sharded method exchanges them each time: whole ones would have no room.
        """
        if not enabled or _strategy == "fsdp":
            return nullcontext()
        return _fabric.no_backward_sync(self._wrapped)


def wrap(method: nn.Module, terms: int) -> Replica:
    """Wrap a method, which is on its device. Its parameters may be others then.

    Args:
        terms: how many terms its loss has.

    Raises:
        UserError: it has a batch norm over one rank's images alone.
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
    """Shard a method: its transformer blocks one by one, and all the rest together.

    The last block of a stack is with the rest, as parts of it may be used without calling it
    (`encoders.block_at`).
    """
    from torch.distributed.fsdp import fully_shard

    devices = mesh["data_parallel"]
    for stack in list(method.modules()):
        blocks = list(stack.children())
        if isinstance(stack, nn.Sequential | nn.ModuleList) and all(
            isinstance(block, Block) for block in blocks
        ):
            for block in blocks[:-1]:
                fully_shard(block, mesh=devices)
    fully_shard(method, mesh=devices)
    return method


def whole(state: Any) -> Any:
    """A state dict with shards put together, on the CPU of rank 0; every rank calls it.

    The other ranks get nothing in place of what was sharded. What was not is left as it is.
    """
    if collectives.world_size() == 1:
        return state
    if isinstance(state, Mapping):
        return {name: whole(value) for name, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(whole(value) for value in state)
    if not hasattr(state, "full_tensor"):
        return state
    full = state.full_tensor()
    return full.cpu() if collectives.rank() == 0 else None


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Load an optimiser's `whole` state, sharded as its parameters are."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def placed(parameter: Tensor, value: Any) -> Any:
        is_alike = isinstance(value, Tensor) and value.shape == parameter.shape
        if not isinstance(parameter, DTensor) or not is_alike or value.ndim == 0:
            return value
        value = value.to(parameter.device)
        return distribute_tensor(value, parameter.device_mesh, parameter.placements)

    own = {
        number: {name: placed(parameters[number], value) for name, value in values.items()}
        for number, values in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": own})
