"""MoCo v3 against a naive reference written from the paper's pseudocode."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ssl_bench import encoders, plugins, pretrain
from ssl_bench.contract import Batch, Method
from ssl_bench.data import Dataset
from ssl_bench.draws import Draws
from ssl_bench.encoders import EncoderSpec

MOCO = plugins.find("method", "mocov3")
SMALL = {"projector_width": 32, "projection_dim": 16}


def build(spec: EncoderSpec, **changes: Any) -> Any:
    config = MOCO.config(**(SMALL | changes))
    return pretrain.build_method(MOCO.load().Pretraining, config, spec, 3, seed=0)


def batch_of(method: Method, data: Dataset, spec: EncoderSpec, count: int = 8) -> Batch:
    return pretrain.make_batch(method, data.train, spec, 0, 0, torch.arange(count))


def perturb(method: Any) -> None:
    """Move the base networks away from the momentum ones."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in [*method.encoder.parameters(), *method.projector.parameters()]:
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)


def naive_mlp(layers: nn.Sequential, x: Tensor) -> Tensor:
    """Linear, batch norm by the batch's own statistics, ReLU."""
    for layer in layers:
        if isinstance(layer, nn.Linear):
            assert layer.bias is None
            x = x @ layer.weight.T
        elif isinstance(layer, nn.BatchNorm1d):
            x = (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt()
            if layer.weight is not None:
                x = x * layer.weight + layer.bias
        else:
            x = x.clamp(min=0)
    return x


def naive_contrast(q: Tensor, k: Tensor, temperature: float) -> Tensor:
    """The paper's ``ctr``: one query at a time."""
    total = q.new_zeros(())
    for i in range(len(q)):
        similarities = torch.stack(
            [(q[i] / q[i].norm()) @ (k[j] / k[j].norm()) for j in range(len(k))]
        )
        logits = similarities / temperature
        total = total - (logits[i] - logits.exp().sum().log())
    return 2 * temperature * total / len(q)


@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_loss_and_gradients_equal_the_naive_reference(
    spec: EncoderSpec, tiny: Dataset, temperature: float
) -> None:
    method = build(spec, temperature=temperature)
    perturb(method)
    method.train()
    batch = batch_of(method, tiny, spec)
    reference = copy.deepcopy(method).double()
    loss = method.loss(batch)
    loss.backward()

    first, second = (view.double() for view in batch.views)

    def query(images: Tensor) -> Tensor:
        tokens = reference.encoder.forward_features(images)
        return naive_mlp(reference.predictor, naive_mlp(reference.projector, tokens[:, 0]))

    def key(images: Tensor) -> Tensor:
        tokens = reference.momentum_encoder.forward_features(images)
        return naive_mlp(reference.momentum_projector, tokens[:, 0]).detach()

    expected = naive_contrast(query(first), key(second), temperature)
    expected = expected + naive_contrast(query(second), key(first), temperature)
    expected.backward()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)
    for (name, ours), theirs in zip(method.named_parameters(), reference.parameters(), strict=True):
        if theirs.grad is None:
            assert ours.grad is None, name
        elif theirs.grad.norm() > 1e-6:
            difference = (ours.grad.double() - theirs.grad).norm() / theirs.grad.norm()
            assert difference < 2e-4, (name, difference)


def test_momentum_networks_follow_parameters_not_buffers(spec: EncoderSpec) -> None:
    method = build(spec, momentum=0.9)
    perturb(method)
    base = [*method.encoder.parameters(), *method.projector.parameters()]
    slow = [*method.momentum_encoder.parameters(), *method.momentum_projector.parameters()]
    before = [parameter.clone() for parameter in slow]
    method.projector[1].running_mean.fill_(5.0)
    method.after_step(0.25)
    momentum = 1 - 0.1 * (math.cos(math.pi * 0.25) + 1) / 2
    for old, new, fast in zip(before, slow, base, strict=True):
        torch.testing.assert_close(new, momentum * old + (1 - momentum) * fast)
    assert not (method.momentum_projector[1].running_mean == 5.0).any()


@pytest.mark.parametrize("progress,expected", [(0.0, 0.99), (0.5, 0.995), (1.0, 1.0)])
def test_momentum_ramps_up_to_one(spec: EncoderSpec, progress: float, expected: float) -> None:
    method = build(spec)
    slow, fast = method.momentum_projector[0].weight, method.projector[0].weight
    with torch.no_grad():
        slow.zero_()
        fast.fill_(1.0)
    method.after_step(progress)
    torch.testing.assert_close(slow, torch.full_like(slow, 1 - expected), atol=1e-6, rtol=0)


def test_parts_have_the_papers_shapes(spec: EncoderSpec) -> None:
    method = build(spec)
    kinds = [type(layer).__name__ for layer in method.projector]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d", "ReLU", "Linear",
                     "BatchNorm1d"]  # fmt: skip
    assert [type(layer).__name__ for layer in method.predictor] == kinds[3:]
    assert method.projector[-1].weight is None
    assert method.projector[1].weight is not None
    assert method.predictor[-1].weight is None
    assert not any(p.requires_grad for p in method.momentum_encoder.parameters())
    assert not any(p.requires_grad for p in method.encoder.patch_embed.proj.parameters())
    assert all(
        p.requires_grad
        for p in build(spec, freeze_patch_embed=False).encoder.patch_embed.proj.parameters()
    )


def test_momentum_networks_start_as_copies(spec: EncoderSpec) -> None:
    method = build(spec)
    for slow, fast in (
        (method.momentum_encoder, method.encoder),
        (method.momentum_projector, method.projector),
    ):
        for theirs, ours in zip(slow.parameters(), fast.parameters(), strict=True):
            assert torch.equal(theirs, ours)


def test_positions_put_the_row_first(spec: EncoderSpec) -> None:
    method = build(spec)
    ours = method.encoder.pos_embed[0, 1:].view(4, 4, -1)
    maes = encoders.sincos_2d(128, 4, 4).view(4, 4, -1)
    assert torch.equal(ours, maes.transpose(0, 1))


def test_query_key_and_value_are_initialised_one_by_one(spec: EncoderSpec) -> None:
    weight = build(spec).encoder.blocks[0].attn.qkv.weight
    bound = math.sqrt(6 / (128 + 128))
    assert weight.abs().max() <= bound
    assert weight.abs().max() > 0.98 * bound


def test_views_are_asymmetric(spec: EncoderSpec) -> None:
    first, second = build(spec).augmentations(32)
    assert (first.blur, first.solarize) == (1.0, 0.0)
    assert (second.blur, second.solarize) == (0.1, 0.2)
    for view in (first, second):
        assert view.jitter == (0.4, 0.4, 0.2, 0.1)
        assert (view.jitter_probability, view.grayscale, view.flip) == (0.8, 0.2, 0.5)
        assert view.crop_scale == (0.08, 1.0)


def test_every_parameter_is_decayed(spec: EncoderSpec) -> None:
    from ssl_bench import optim

    [group] = optim.parameter_groups(build(spec), MOCO.config())
    assert group["weight_decay"] == 0.1


def test_draws_differ_between_views(spec: EncoderSpec, tiny: Dataset) -> None:
    batch = batch_of(build(spec), tiny, spec)
    assert isinstance(batch.draws, Draws)
    assert not torch.equal(*batch.views)
