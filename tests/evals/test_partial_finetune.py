"""Partial fine-tuning: what is frozen stays as it is, and what is not is trained as ever."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import CPU
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ssl_bench.api import registry
from ssl_bench.data import Dataset
from ssl_bench.errors import UserError
from ssl_bench.evaluation import finetuning
from ssl_bench.evaluation.features import Encoder
from ssl_bench.models import backbones
from ssl_bench.models.backbones import EncoderSpec

PARTIAL = registry.find("eval", "partial-finetune").load()
FINETUNE = registry.find("eval", "finetune").load()
RECIPE: dict[str, Any] = {"epochs": 2, "batch_size": 24, "base_lr": 1e-2}
DEPTH = 6


@pytest.fixture(scope="module")
def encoder(spec: EncoderSpec) -> Encoder:
    return Encoder(backbones.build(spec, seed=0), spec, CPU, seed=0)


def test_all_blocks_are_fine_tuning(encoder: Encoder, tiny: Dataset) -> None:
    ours = PARTIAL.PartialFineTuning(PARTIAL.Config(blocks=(DEPTH,), **RECIPE)).evaluate(
        encoder, tiny
    )
    wanted = FINETUNE.FineTuning(FINETUNE.Config(**RECIPE)).evaluate(encoder, tiny)
    assert ours.scores == {"blocks_6": wanted.scores["top1"]}
    assert torch.equal(ours.predictions_N, wanted.predictions_N)


def expected(name: str, blocks: float) -> bool:
    """Whether a parameter is to be trained."""
    if not name.startswith("encoder.") or name.startswith("encoder.norm."):
        return True
    if blocks == 0.5:
        return name.startswith(("encoder.blocks.5.mlp.", "encoder.blocks.5.norm2."))
    first = DEPTH - int(blocks)
    return any(name.startswith(f"encoder.blocks.{block}.") for block in range(first, DEPTH))


@pytest.mark.parametrize("blocks", [0, 0.5, 1, 4])
@pytest.mark.parametrize("pooling", ["avg", "cls"])
def test_what_is_frozen_does_not_change_and_the_rest_does(
    blocks: float, pooling: str, encoder: Encoder, tiny: Dataset
) -> None:
    recipe = {**RECIPE, "epochs": 1, "head_std": 0.02}
    config = PARTIAL.Config(blocks=(blocks,), pooling=pooling, **recipe)
    model = PARTIAL._classifier(encoder, 3, config, blocks)
    before = {name: value.clone() for name, value in model.named_parameters()}
    finetuning.train(model, encoder, tiny.train, config)
    for name, value in model.named_parameters():
        assert torch.equal(value, before[name]) != expected(name, blocks), name
    inside = {name: value.grad for name, value in model.named_parameters()}
    assert all(inside[name] is None for name in inside if not expected(name, blocks))


def test_frozen_blocks_are_run_without_a_graph_and_are_never_skipped(
    encoder: Encoder, tiny: Dataset
) -> None:
    config = PARTIAL.Config(drop_path=0.9, **RECIPE)
    inputs: list[Tensor] = []
    for blocks in (0.5, 2.0):
        model = PARTIAL._classifier(encoder, 3, config, blocks).train()
        first = model.encoder.blocks[DEPTH - max(1, int(blocks))]
        part = first.norm2 if blocks == 0.5 else first
        part.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
        torch.manual_seed(0)
        images = torch.randn(8, 3, 16, 16)
        for mode in (True, False):
            model.train(mode)(images)
        trained, evaluated = inputs[-2:]
        assert not trained.requires_grad
        assert torch.equal(trained, evaluated)
    outputs = [model.train().encoder.blocks[-1](torch.ones_like(trained) + trained) for _ in "ab"]
    assert not torch.equal(*outputs), "what is trained is skipped at times"


def test_zero_blocks_are_a_linear_probe(encoder: Encoder, tiny: Dataset) -> None:
    """Its logits are an affine function of the standardised mean of the frozen patch tokens."""
    config = PARTIAL.Config(**RECIPE)
    model = PARTIAL._classifier(encoder, 3, config, 0)
    finetuning.train(model, encoder, tiny.train, config)
    images = torch.randn(6, 3, 16, 16)
    frozen = backbones.build(encoder.spec, 0).eval()
    with torch.no_grad():
        tokens = frozen.blocks(frozen._pos_embed(frozen.patch_embed(images)))
        mean = tokens[:, 1:].mean(dim=1)
        scaled = (mean - mean.mean(1, keepdim=True)) / (mean.var(1, False)[:, None] + 1e-6).sqrt()
        weight = model.head.weight * model.fc_norm.weight
        bias = model.head.bias + model.head.weight @ model.fc_norm.bias
        torch.testing.assert_close(model.eval()(images), scaled @ weight.T + bias)


def test_headline_is_one_block_and_predictions_are_its(encoder: Encoder, tiny: Dataset) -> None:
    config = PARTIAL.Config(**{**RECIPE, "epochs": 1})
    result = PARTIAL.PartialFineTuning(config).evaluate(encoder, tiny)
    assert list(result.scores) == [f"blocks_{k}" for k in ("1", "0", "0.5", "2", "3", "6")]
    right = (result.predictions_N == tiny.test.labels_N).double().mean().item()
    assert result.scores["blocks_1"] == pytest.approx(100 * right)
    other = PARTIAL.Config(**{**RECIPE, "epochs": 1}, blocks=(2, 0))
    assert list(PARTIAL.PartialFineTuning(other).evaluate(encoder, tiny).scores) == [
        "blocks_2",
        "blocks_0",
    ]


@given(st.integers(1, 40))
def test_default_numbers_fit_every_depth(depth: int) -> None:
    numbers = PARTIAL._numbers(PARTIAL.Config(), depth)
    assert numbers == sorted(set(numbers))
    assert numbers[:3] == [0, 0.5, 1]
    assert numbers[-1] == depth


def test_more_blocks_than_there_are_is_one_line_before_training(encoder: Encoder) -> None:
    with pytest.raises(UserError, match=r"blocks 7 is more .* at most 6 would work"):
        PARTIAL.PartialFineTuning(PARTIAL.Config(blocks=(1, 7))).audit(encoder)
    assert "the last 0, 0.5, 1, 2, 3, 6 blocks" in PARTIAL.PartialFineTuning(
        PARTIAL.Config()
    ).audit(encoder)


@pytest.mark.parametrize("blocks", [-1, 1.5, float("inf"), float("nan")])
def test_part_of_a_block_is_one_line(blocks: float) -> None:
    with pytest.raises(UserError, match=r"0,0\.5,1,2 would work"):
        PARTIAL.Config(blocks=(blocks,))
