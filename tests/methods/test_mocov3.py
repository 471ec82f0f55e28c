"""MoCo v3 against a naive reference, and the parts it is made of."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import helpers
import naive
import pytest
import torch
from helpers import CPU
from torch import Tensor

from ssl_bench.api import optimizers, registry
from ssl_bench.api.method import Batch, Method
from ssl_bench.data import Dataset, Split
from ssl_bench.models.backbones import EncoderSpec
from ssl_bench.training import pretrain, setup
from ssl_bench.utils.rng import SampleRng

MOCO = registry.find("method", "mocov3")
SMALL = {"proj_hidden_dim": 32, "proj_output_dim": 16}
NO_DRAWS = SampleRng(0, 0, torch.arange(16))


@pytest.fixture(scope="session")
def spec(tiny: Dataset) -> EncoderSpec:
    """No deeper than what is asserted needs."""
    return EncoderSpec("vit_micro", 16, 4, 3, tiny.mean, tiny.std, {"depth": 2})


def build(spec: EncoderSpec, **changes: Any) -> Any:
    config = MOCO.config(**(SMALL | changes))
    return setup.build_method(MOCO.load_class(), config, spec, 3, seed=0)


def batch_of(method: Method, data: Dataset, spec: EncoderSpec, count: int = 8) -> Batch:
    return setup.make_batch(method, data.train, spec, 0, 0, torch.arange(count))


def views_of(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images that differ in colour, as photographs do: like ones leave batch norm only rounding."""
    generator = torch.Generator().manual_seed(seed)
    colours = torch.randn(count, 3, 1, 1, generator=generator)
    first, second = (colours + torch.randn(count, 3, 16, 16, generator=generator) for _ in "12")
    return first, second


def randomise(method: Any) -> None:
    """Random weights everywhere, class tokens small enough that images tell class tokens apart."""
    naive.randomise(method)
    with torch.no_grad():
        for encoder in (method.encoder, method.momentum_encoder):
            encoder.cls_token.mul_(0.1)


@pytest.mark.parametrize("temperature,frozen", [(0.2, True), (1.0, False)])
def test_outputs_loss_and_gradients_equal_the_naive_reference(
    spec: EncoderSpec, temperature: float, frozen: bool
) -> None:
    method = build(spec, temperature=temperature, freeze_patch_embed=frozen)
    randomise(method)
    method.train()
    weights = naive.weights_of(method)
    views = views_of(12)
    first, second = (view.double().requires_grad_() for view in views)
    expected = naive.mocov3(weights, (first, second), 4, 4, temperature)
    expected.loss.backward()

    for view, query, key in zip(views, expected.queries, expected.keys, strict=True):
        with torch.no_grad():
            assert naive.relative_error(method.query(view), query) < 1e-5
            assert naive.relative_error(method.key(view), key) < 1e-5
    for view in views:
        view.requires_grad_()
    named = {"first": views[0], "second": views[1]}
    loss = method.loss(Batch(named, NO_DRAWS), helpers.FIRST_STEP)
    loss.backward()
    assert naive.relative_error(loss, expected.loss) < 1e-5
    for ours, theirs in zip(views, (first, second), strict=True):
        assert naive.relative_error(ours.grad, theirs.grad) < 1e-5
    errors = naive.gradient_errors(method, weights)
    assert ("encoder.patch_embed.proj.weight" in errors) != frozen
    # A shift of all class tokens is gone after batch norm: its gradient is zero but for rounding.
    assert errors.pop("encoder.norm.bias") > 0
    shift, scale = method.encoder.norm.bias.grad, method.encoder.norm.weight.grad
    assert shift.norm() < 1e-5 * scale.norm()
    assert max(errors.values()) < 1e-5, max(errors, key=lambda name: errors[name])


def test_training_keeps_the_official_order_of_operations(
    spec: EncoderSpec, tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two epochs of the training loop against the official one, spelt out with plain SGD.

    There, each iteration takes the fractional epoch, sets learning rate and momentum by it,
    computes the queries, moves the momentum networks, computes the keys, and steps.
    """
    epochs, batch_size, per_epoch, base_lr, momentum = 2, 16, 2, 0.5, 0.8
    split = Split(tiny.train.images_NCHW[:32], tiny.train.labels_N[:32])
    data = dataclasses.replace(tiny, train=split)
    method = build(spec, base_lr=base_lr, warmup=0.25, weight_decay=0.0, momentum=momentum)
    randomise(method)
    method.momentum_encoder.load_state_dict(method.encoder.state_dict())
    method.momentum_projector.load_state_dict(method.projector.state_dict())
    weights = naive.weights_of(method)
    views = [views_of(batch_size, seed=step) for step in range(epochs * per_epoch)]
    batches = [Batch({"first": a, "second": b}, NO_DRAWS) for a, b in views]
    monkeypatch.setattr(setup, "batches", lambda *given: (batches[d.step] for d in given[-1]))
    monkeypatch.setattr(optimizers, "adamw", lambda groups, beta2: torch.optim.SGD(groups, lr=0.0))
    plan = helpers.plan(MOCO, spec, data)
    plan = dataclasses.replace(plan, epochs=epochs, batch_size=batch_size)
    pretrain.pretrain(method, data, plan, tmp_path, CPU)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").open()]
    assert len(losses) == epochs * per_epoch

    peak, warmup_epochs = base_lr * batch_size / 256, epochs / 4
    for step, loss in enumerate(losses):
        epoch = step // per_epoch + step % per_epoch / per_epoch
        if epoch < warmup_epochs:
            rate = peak * epoch / warmup_epochs
        else:
            done = (epoch - warmup_epochs) / (epochs - warmup_epochs)
            rate = peak * 0.5 * (1 + math.cos(math.pi * done))
        m = 1 - 0.5 * (1 + math.cos(math.pi * epoch / epochs)) * (1 - momentum)
        with torch.no_grad():
            for name, weight in weights.items():
                if name.startswith("momentum_"):
                    weight.mul_(m).add_((1 - m) * weights[name.removeprefix("momentum_")])
        expected = naive.mocov3(weights, [view.double() for view in views[step]], 4, 4, 0.2).loss
        expected.backward()
        assert loss == pytest.approx(expected.item(), rel=1e-5), step
        with torch.no_grad():
            for weight in weights.values():
                if weight.grad is not None:
                    weight.sub_(rate * weight.grad)
                    weight.grad = None
    for name, parameter in method.named_parameters():
        assert naive.relative_error(parameter, weights[name]) < 1e-5, name


def test_a_collapse_is_looked_for_in_the_queries(spec: EncoderSpec) -> None:
    method, views = build(spec), views_of(6)
    method.loss(Batch({"first": views[0], "second": views[1]}, NO_DRAWS), helpers.FIRST_STEP)
    torch.testing.assert_close(method.watched_BD, method.query(views[1]))


def test_logits_keep_their_precision_in_mixed_precision(spec: EncoderSpec) -> None:
    method = build(spec)
    generator = torch.Generator().manual_seed(0)
    queries, keys = (torch.randn(8, 16, generator=generator) for _ in "12")
    with torch.autocast("cpu", torch.bfloat16):
        mixed = method.contrast(queries, keys)
    assert torch.equal(mixed, method.contrast(queries, keys))


def test_momentum_networks_follow_parameters_not_buffers(spec: EncoderSpec) -> None:
    method = build(spec, momentum=0.9)
    randomise(method)
    base = [*method.encoder.parameters(), *method.projector.parameters()]
    slow = [*method.momentum_encoder.parameters(), *method.momentum_projector.parameters()]
    before = [parameter.clone() for parameter in slow]
    method.projector[1].running_mean.fill_(5.0)
    method.after_optimizer_step(helpers.step_to(0.25))
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
    method.after_optimizer_step(helpers.step_to(progress))
    torch.testing.assert_close(slow, torch.full_like(slow, 1 - expected), atol=1e-6, rtol=0)


def test_parts_have_the_papers_shapes(spec: EncoderSpec) -> None:
    method = build(spec)
    kinds = [type(layer).__name__ for layer in method.projector]
    hidden = ["Linear", "SyncBatchNorm1d", "ReLU"]
    assert kinds == [*hidden, *hidden, "Linear", "SyncBatchNorm1d"]
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


def test_positions_are_fixed_and_put_the_row_first(spec: EncoderSpec) -> None:
    table = build(spec).encoder.pos_embed
    assert not table.requires_grad
    assert not table[0, 0].any()
    for patch in range(16):
        expected = naive.position(128, patch // 4, patch % 4).float()
        torch.testing.assert_close(table[0, 1 + patch], expected, rtol=0, atol=1e-6)


def test_initial_weights_follow_the_official_formulas(spec: EncoderSpec) -> None:
    """q, k and v one by one; the patch embedding by its fan-in; the heads by torch's default."""
    method = build(spec, proj_hidden_dim=64)
    encoder = method.encoder
    for block in encoder.blocks:
        for name, weight in zip("qkv", block.attn.qkv.weight.chunk(3), strict=True):
            naive.assert_uniform(weight, math.sqrt(6 / (128 + 128)), name)
        for layer in (block.attn.proj, block.mlp.fc1, block.mlp.fc2):
            naive.assert_uniform(layer.weight, math.sqrt(6 / sum(layer.weight.shape)), str(layer))
        for layer in (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2):
            assert not layer.bias.any()
    naive.assert_normal(encoder.cls_token, 1e-6)
    projection = encoder.patch_embed.proj
    naive.assert_uniform(projection.weight, math.sqrt(6 / (3 * 4 * 4 + 128)), "patch embedding")
    assert not projection.bias.any()
    for layer in [*method.projector, *method.predictor]:
        if isinstance(layer, torch.nn.Linear):
            naive.assert_uniform(layer.weight, 1 / math.sqrt(layer.in_features), str(layer))


def test_views_are_asymmetric(spec: EncoderSpec) -> None:
    first, second = build(spec).transforms().values()
    assert (first.blur, first.solarize) == (1.0, 0.0)
    assert (second.blur, second.solarize) == (0.1, 0.2)
    for view in (first, second):
        assert view.jitter == (0.4, 0.4, 0.2, 0.1)
        assert (view.jitter_probability, view.grayscale, view.flip) == (0.8, 0.2, 0.5)
        assert view.crop_scale == (0.08, 1.0)


def test_every_parameter_is_decayed(spec: EncoderSpec) -> None:
    [group] = optimizers.parameter_groups(build(spec), MOCO.config())
    assert group["weight_decay"] == 0.1


def test_draws_differ_between_views(spec: EncoderSpec, tiny: Dataset) -> None:
    batch = batch_of(build(spec), tiny, spec)
    assert isinstance(batch.rng, SampleRng)
    assert not torch.equal(*batch.views.values())
