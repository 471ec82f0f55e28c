"""Schedules and parameter groups against their formulas."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ssl_bench import encoders, optim, plugins
from ssl_bench.encoders import EncoderSpec
from ssl_bench.errors import UserError
from ssl_bench.optim import Schedule
from ssl_bench.settings import OptimizerConfig


@given(st.integers(1, 50), st.integers(1, 20), st.integers(1, 30), st.floats(0, 0.9))
def test_learning_rate_warms_up_then_follows_a_cosine(
    batch_size: int, extra: int, epochs: int, warmup: float
) -> None:
    config = OptimizerConfig(base_lr=1e-3, warmup=warmup)
    schedule = Schedule.of(batch_size + extra, batch_size, epochs, config)
    peak = 1e-3 * batch_size / 256
    total, rising = schedule.steps, round(warmup * schedule.steps)
    for step in range(total):
        if step < rising:
            expected = peak * step / rising
        else:
            expected = 0.5 * peak * (1 + math.cos(math.pi * (step - rising) / (total - rising)))
        assert schedule.learning_rate(step) == pytest.approx(expected)


@given(st.integers(1, 200), st.integers(1, 50), st.integers(1, 3))
def test_an_epoch_sees_each_image_at_most_once_and_drops_only_the_rest(
    images: int, batch_size: int, epochs: int
) -> None:
    batch_size = min(batch_size, images)
    schedule = Schedule.of(images, batch_size, epochs, OptimizerConfig())
    per_epoch = schedule.steps_per_epoch
    for epoch in range(epochs):
        seen = [
            index
            for step in range(epoch * per_epoch, (epoch + 1) * per_epoch)
            for index in schedule.batch(step, 0).tolist()
        ]
        assert len(set(seen)) == len(seen) == images - images % batch_size


def test_epochs_and_purposes_have_orders_of_their_own() -> None:
    schedule = Schedule.of(100, 100, 2, OptimizerConfig())
    orders = [schedule.batch(step, 0, purpose) for step in (0, 1) for purpose in ("a", "b")]
    assert len({tuple(order.tolist()) for order in orders}) == 4


def test_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(UserError, match="batch size 64 is larger than the 10 training images"):
        Schedule.of(10, 64, 1, OptimizerConfig())


def test_vectors_and_biases_are_exempt_from_decay(spec: EncoderSpec) -> None:
    encoder = encoders.build(spec, seed=0)
    names = {parameter: name for name, parameter in encoder.named_parameters()}
    decayed, exempt = optim.parameter_groups(encoder, OptimizerConfig(weight_decay=0.05))
    assert decayed["weight_decay"] == 0.05
    assert exempt["weight_decay"] == 0
    exempt_names = {names[p] for p in exempt["params"]}
    assert exempt_names == {
        name
        for name, p in encoder.named_parameters()
        if p.requires_grad and (p.ndim == 1 or name.endswith("bias"))
    }
    assert "cls_token" in {names[p] for p in decayed["params"]}
    count = len(decayed["params"]) + len(exempt["params"])
    assert count == sum(p.requires_grad for p in encoder.parameters())


def test_layer_decay_falls_from_the_head_to_the_embeddings(spec: EncoderSpec) -> None:
    finetune = plugins.find("eval", "finetune").load()
    encoder = encoders.build(spec, seed=0).requires_grad_(True)
    model = finetune.Classifier(encoder, 3)
    groups = optim.layer_decay_groups(model, OptimizerConfig(weight_decay=0.05), 0.5)
    scale, decay = {}, {}
    names = {parameter: name for name, parameter in model.named_parameters()}
    for group in groups:
        for parameter in group["params"]:
            scale[names[parameter]] = group["lr_scale"]
            decay[names[parameter]] = group["weight_decay"]
    assert set(scale) == set(names.values())
    depth = 6
    assert scale["encoder.patch_embed.proj.weight"] == 0.5 ** (depth + 1)
    assert scale["encoder.pos_embed"] == scale["encoder.cls_token"] == 0.5 ** (depth + 1)
    for block in range(depth):
        assert scale[f"encoder.blocks.{block}.attn.qkv.weight"] == 0.5 ** (depth - block)
    assert scale["head.weight"] == scale["fc_norm.weight"] == 1.0
    exempt = {name for name, value in decay.items() if value == 0}
    assert {"encoder.pos_embed", "encoder.cls_token", "head.bias", "fc_norm.weight"} <= exempt
    assert decay["head.weight"] == decay["encoder.blocks.0.mlp.fc1.weight"] == 0.05


def test_set_learning_rate_scales_each_group() -> None:
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups = [{"params": [p], "lr_scale": s} for p, s in zip(parameters, (1.0, 0.5), strict=True)]
    optimizer = optim.adamw(groups, 0.95)
    optim.set_learning_rate(optimizer, 0.1)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.05]
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.95)
