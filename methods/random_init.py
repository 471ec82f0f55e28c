"""Random initialisation: the encoder as it starts, for what pre-training has to beat."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ssl_bench.api import DataInfo, Method


@dataclass(frozen=True)
class Config:
    """Nothing is trained, so there is nothing to set."""


class RandomInit(Method):
    """Nothing to train: no parameter requires a gradient."""

    version = 1
    columns = frozenset({"image", "clip"})

    def __init__(self, config: Config, backbone: nn.Module, data: DataInfo) -> None:
        super().__init__(config, backbone.requires_grad_(False), data)
