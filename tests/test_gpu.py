"""What must hold on a CUDA device too."""

from __future__ import annotations

from pathlib import Path

import pytest
import test_contract as contract
import torch

from ssl_bench import encoders, pretrain
from ssl_bench.data import Dataset
from ssl_bench.encoders import EncoderSpec
from ssl_bench.features import Encoder
from ssl_bench.hardware import choose
from ssl_bench.plugins import Plugin

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize("plugin", contract.METHODS, ids=contract.named)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_methods_train(
    plugin: Plugin, precision: str, spec: EncoderSpec, tiny: Dataset, tmp_path: Path
) -> None:
    hardware = choose(precision)  # type: ignore[arg-type]
    method = contract.build(plugin, spec)
    pretrain.pretrain(method, tiny, contract.plan(plugin, spec, tiny), tmp_path, hardware)
    assert (tmp_path / "encoder.json").exists()
    pretrain.restore(method, tmp_path)


@pytest.mark.parametrize("plugin", contract.EVALS, ids=contract.named)
def test_evaluations_run(plugin: Plugin, spec: EncoderSpec, tiny: Dataset) -> None:
    encoder = Encoder(encoders.build(spec, seed=0), spec, choose(), seed=0)
    result = plugin.load().evaluate(encoder, tiny, contract.small(plugin))
    assert result.predictions_N is None or result.predictions_N.device.type == "cpu"
