"""Golden curves: what the core computes today. A change of them raises ``ssl_bench.RESULTS``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import test_contract as contract

from ssl_bench import RESULTS, plugins
from ssl_bench.data import Dataset
from ssl_bench.encoders import EncoderSpec

# The first five steps: after that, rounding that differs between processors shows in the losses.
GOLDEN = {
    "mae": [2.06441, 2.06454, 1.66931, 1.47529, 1.38152],
    "mocov3": [2.58785, 2.72619, 2.75245, 2.62239, 2.5712],
    "supervised": [1.13278, 1.08597, 1.10222, 1.09665, 1.09466],
}


@pytest.mark.parametrize("method", GOLDEN)
def test_losses_are_those_of_these_results(
    method: str, spec: EncoderSpec, tiny: Dataset, tmp_path: Path
) -> None:
    assert RESULTS == 1, "new results want new golden curves"
    folder = contract.train(plugins.find("method", method), spec, tiny, tmp_path / method)
    losses = [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").open()]
    first = len(GOLDEN[method])
    assert losses[:first] == pytest.approx(GOLDEN[method], rel=2e-3)
