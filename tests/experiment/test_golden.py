"""Golden curves and scores: what the core computes today.

A change of them raises ``ssl_bench.CORE_VERSION``, which is part of each run's identity.
"""

from __future__ import annotations

import json
from pathlib import Path

import helpers
import pytest
from helpers import CPU

from ssl_bench import CORE_VERSION
from ssl_bench.api import registry
from ssl_bench.data import Dataset
from ssl_bench.evaluation.features import Encoder
from ssl_bench.models import backbones
from ssl_bench.models.backbones import EncoderSpec

# The first five steps: after that, rounding that differs between processors shows in the losses.
GOLDEN = {
    "mae": [2.06441, 2.06454, 1.66931, 1.47529, 1.38152],
    "mocov3": [2.58785, 2.72619, 2.75245, 2.62239, 2.5712],
    "supervised": [1.13278, 1.08597, 1.10222, 1.09665, 1.09466],
}
# Of an untrained encoder; one of the 40 test images more or less is 2.5. Not of the embedding: its
# map of so few images follows the last bit of its input.
SCORES = {
    "attention": {"entropy": 98.487, "distance_1": 1.98},
    "cka": {"pixels_last": 80.481, "block_0_last": 87.414, "block_4_last": 97.619},
    "finetune": {"top1": 35.0},
    "knn": {"top1": 100.0},
    "linear": {"top1": 100.0},
    "linear-paper": {"top1": 42.5},
    "low-shot": {"top1_10pct": 100.0, "top1_50pct": 98.75},
    "partial-finetune": {"blocks_1": 35.0, "blocks_6": 35.0},
    "representation": {"rankme_avg": 4.962, "alignment_avg": 0.169, "uniformity_avg": -0.399},
    "robustness": {"top1_corrupted": 73.926, "top1_clean": 100.0, "top1_gaussian_noise": 86.667},
}


@pytest.mark.parametrize("method", GOLDEN)
def test_losses_are_those_of_these_results(
    method: str, spec: EncoderSpec, tiny: Dataset, tmp_path: Path
) -> None:
    assert CORE_VERSION == 1, "new results want new golden curves"
    folder = helpers.train(registry.find("method", method), spec, tiny, tmp_path / method)
    losses = [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").open()]
    first = len(GOLDEN[method])
    assert losses[:first] == pytest.approx(GOLDEN[method], rel=2e-3)


@pytest.mark.parametrize("name", SCORES)
def test_scores_are_those_of_these_results(name: str, spec: EncoderSpec, tiny: Dataset) -> None:
    assert CORE_VERSION == 1, "new results want new golden scores"
    plugin = registry.find("eval", name)
    encoder = Encoder(backbones.build(spec, seed=0), spec, CPU, seed=0)
    found = plugin.load_class()(helpers.small(plugin)).evaluate(encoder, tiny).scores
    near = 2.6 if name in ("finetune", "linear-paper") else 0.01
    assert {score: found[score] for score in SCORES[name]} == pytest.approx(
        SCORES[name], rel=0.01, abs=near
    )
