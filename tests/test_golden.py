"""Golden curves: what the core computes today. A change of them raises ``ssl_bench.RESULTS``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import test_contract as contract

from ssl_bench import RESULTS, plugins
from ssl_bench.data import Dataset
from ssl_bench.encoders import EncoderSpec

GOLDEN = {
    "mae": [
        2.06441,
        2.06454,
        1.66931,
        1.47529,
        1.38152,
        1.29681,
        1.23671,
        1.22274,
        1.20368,
        1.20457,
    ],
    "mocov3": [
        2.58785,
        2.72619,
        2.75242,
        2.62098,
        2.57013,
        2.62275,
        2.58485,
        2.63863,
        2.59725,
        2.56958,
    ],
    "supervised": [
        1.13278,
        1.08597,
        1.10222,
        1.09665,
        1.09466,
        1.0809,
        1.0839,
        1.08735,
        1.08338,
        1.07752,
    ],
}


@pytest.mark.parametrize("method", GOLDEN)
def test_losses_are_those_of_these_results(
    method: str, spec: EncoderSpec, tiny: Dataset, tmp_path: Path
) -> None:
    assert RESULTS == 1, "new results want new golden curves"
    folder = contract.train(plugins.find("method", method), spec, tiny, tmp_path / method)
    losses = [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").open()]
    assert losses == pytest.approx(GOLDEN[method], rel=2e-3)
