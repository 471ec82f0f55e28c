"""A method that uses all of the contract: teacher, crops of two sizes, its own optimiser."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import helpers
import pytest
import torch
from teacher_method import Config, Teaching
from torch import Tensor, nn

from ssl_bench.api import Batch, Method, OptimizerSpec, Step
from ssl_bench.api.optimizers import cosine
from ssl_bench.data import Dataset
from ssl_bench.errors import UserError
from ssl_bench.experiment import audit
from ssl_bench.models import backbones, encoders
from ssl_bench.models.backbones import EncoderSpec
from ssl_bench.runs.schema import Plan
from ssl_bench.training import flops, pretrain, setup


@pytest.fixture
def what(spec: EncoderSpec, tiny: Dataset) -> Plan:
    plan = helpers.plan(helpers.METHODS[0], spec, tiny)
    return dataclasses.replace(plan, epochs=3, batch_size=24)


def build(spec: EncoderSpec, **config: Any) -> Teaching:
    method = setup.build_method(Teaching, Config(**config), spec, 3, seed=0)
    assert isinstance(method, Teaching)
    return method


def run(method: Method, what: Plan, data: Dataset, folder: Path) -> list[dict[str, Any]]:
    folder.mkdir(exist_ok=True)
    pretrain.pretrain(method, data, what, folder, helpers.CPU)
    return [json.loads(line) for line in (folder / "metrics.jsonl").open()]


def test_hooks_are_called_in_order_and_each_loss_is_logged(
    spec: EncoderSpec, what: Plan, tiny: Dataset, tmp_path: Path
) -> None:
    method = build(spec)
    method.calls.clear()
    records = run(method, what, tiny, tmp_path / "run")
    steps = len(records)
    order = [(kind, n) for n in range(steps) for kind in ("loss", "before", "after")]
    assert method.calls == order
    for record in records:
        assert record["losses"].keys() == {"distance", "whiteness"}
        assert record["loss"] == pytest.approx(sum(record["losses"].values()), rel=1e-5)


def test_what_is_evaluated_is_the_teacher(
    spec: EncoderSpec, what: Plan, tiny: Dataset, tmp_path: Path
) -> None:
    method = build(spec)
    run(method, what, tiny, tmp_path / "run")
    from ssl_bench.models import weights

    encoder, _ = weights.load(tmp_path / "run")
    teacher, student = method.encoder.state_dict(), method.student.state_dict()
    assert all(torch.equal(v, teacher[k]) for k, v in encoder.state_dict().items())
    assert not torch.equal(teacher["norm.weight"], student["norm.weight"])


def test_schedules_reach_each_group(spec: EncoderSpec) -> None:
    recipe = build(spec).optimizer()
    for number in (0, 4, 9, 2):
        step = Step(number, 10, 2, 24)
        assert recipe.prepare(step) == pytest.approx(cosine(number / 10, 0.5, 0.1))
        rates = [group["lr"] for group in recipe.optimizer.param_groups]
        assert rates == pytest.approx([recipe.learning_rate(step), 0.5, rates[0]])
        decays = [group["weight_decay"] for group in recipe.optimizer.param_groups]
        assert decays == pytest.approx([0.01 * number, 0.01 * number, 0.0])


def clipping(
    parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor | None], norm: float, each: bool
) -> OptimizerSpec:
    """What moves the parameters by their clipped gradients, which they have now."""
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = None if gradient is None else gradient.clone()
    return OptimizerSpec(
        optimizer=torch.optim.SGD(parameters, lr=1.0),
        learning_rate=lambda step: 1.0,
        clip_norm=norm,
        clip_each=each,
    )


@pytest.mark.parametrize("each", [False, True])
def test_gradients_are_clipped(each: bool) -> None:
    parameters = [nn.Parameter(torch.zeros(3)) for _ in "123"]
    before = [torch.tensor([3.0, 0.0, 4.0]), torch.tensor([0.1, 0.0, 0.0]), None]
    clipping(parameters, before, 0.5, each).update()
    moved = [-parameter.detach() for parameter in parameters]
    factors = (0.1, 1.0) if each else (0.5 / (25.01**0.5),) * 2
    for new, old, factor in zip(moved, before, factors, strict=False):
        assert old is not None
        torch.testing.assert_close(new, old * factor, rtol=1e-4, atol=0)
    assert not moved[2].any() and all(p.grad is None for p in parameters)


def test_each_gradient_is_clipped_as_torch_clips_one() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(n % 7 + 1, n + 1) for n in range(40)]
    before = [torch.randn(shape, generator=generator) * 0.5 for shape in shapes]
    parameters = [nn.Parameter(torch.zeros(shape)) for shape in shapes]
    recipe = clipping(parameters, before, 3.0, True)
    with torch.profiler.profile() as profile:
        recipe.update()
    assert sum(event.count for event in profile.key_averages() if "clamp" in event.key) < 5
    for parameter, gradient in zip(parameters, before, strict=True):
        alone = nn.Parameter(torch.zeros_like(gradient))
        alone.grad = gradient.clone()
        nn.utils.clip_grad_norm_([alone], 3.0)
        assert torch.equal(-parameter.detach(), alone.grad)


@pytest.mark.parametrize("stop", [1, 4])
def test_an_interrupted_training_is_resumed_bit_for_bit(
    spec: EncoderSpec,
    what: Plan,
    tiny: Dataset,
    tmp_path: Path,
    stop: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Momenta, weight decays, queue and teacher included."""
    whole = build(spec)
    records = run(whole, what, tiny, tmp_path / "whole")
    monkeypatch.setattr(pretrain, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    first = build(spec)
    after = first.after_optimizer_step

    def dies(step: Step) -> None:
        if step.number == stop:
            raise KeyboardInterrupt
        after(step)

    first.after_optimizer_step = dies  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        run(first, what, tiny, tmp_path / "two")
    second = build(spec)
    again = run(second, what, tiny, tmp_path / "two")
    assert second.calls[0] == ("loss", stop)
    names = ("step", "loss", "losses")
    assert [{k: r[k] for k in names} for r in again] == [{k: r[k] for k in names} for r in records]
    state = whole.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in second.state_dict().items())


def test_terms_may_name_their_losses(
    spec: EncoderSpec, what: Plan, tiny: Dataset, tmp_path: Path
) -> None:
    class InTerms(Teaching):
        def terms(self, batch: Batch, step: Step) -> Iterator[Mapping[str, Tensor]]:
            student_BD = self.student.forward_features(batch.views["local"])[:, 0]
            yield {"first": student_BD.square().mean()}
            yield {"second": self.head.weight.square().sum(), "third": self.head.bias.sum()}

    method = setup.build_method(InTerms, Config(), spec, 3, seed=0)
    for record in run(method, what, tiny, tmp_path / "run"):
        assert record["losses"].keys() == {"first", "second", "third"}
        assert record["loss"] == pytest.approx(sum(record["losses"].values()), rel=1e-5)


def test_labels_are_in_the_batches_of_methods_that_ask(spec: EncoderSpec, tiny: Dataset) -> None:
    class WithLabels(Teaching):
        columns = frozenset({"image", "label"})

    index_B = torch.tensor([7, 3, 93, 20, 4])
    for kind, expected in ((Teaching, None), (WithLabels, tiny.train.labels_N[index_B])):
        method = setup.build_method(kind, Config(), spec, 3, seed=0)
        batch = setup.make_batch(method, tiny.train, spec, 0, 0, index_B)
        if expected is None:
            assert batch.labels_B is None
        else:
            assert batch.labels_B is not None and torch.equal(batch.labels_B, expected)
        assert {name: view.shape[-1] for name, view in batch.views.items()} == {
            "global": 16,
            "local": 8,
        }


def test_a_crop_of_another_size_gets_its_own_positions(spec: EncoderSpec) -> None:
    """As timm's own model of that size, whose embeddings are interpolated."""
    encoder = backbones.build(spec, seed=0)
    images = torch.randn(2, spec.channels, 8, 8)
    resized = copy.deepcopy(encoder)
    backbones.resize(resized, 8)
    encoders.allow_other_sizes(encoder)
    torch.testing.assert_close(encoder(images), resized(images))
    whole = torch.randn(2, spec.channels, spec.image_size, spec.image_size)
    fresh = backbones.build(spec, seed=0)
    assert torch.equal(encoder(whole), fresh(whole))


@pytest.mark.parametrize(
    "change,told",
    [
        ({"loss": lambda self, batch, step: self.head.weight}, "scalar"),
        ({"loss": lambda self, batch, step: {}}, "scalar"),
        ({"loss": lambda self, batch, step: {"b": 0.5}}, "scalar"),
        ({"loss": Method.loss}, "neither 'loss' nor 'terms'"),
        ({"transforms": Method.transforms}, "no 'transforms'"),
    ],
)
def test_a_broken_contract_is_told_in_a_line(
    spec: EncoderSpec, tiny: Dataset, change: dict[str, Any], told: str
) -> None:
    broken = type("Broken", (Teaching,), change)
    with pytest.raises(UserError, match=f"Broken.*{told}|{told}"):
        flops.of_step(setup.build_method(broken, Config(), spec, 3, seed=0), spec, 24)


def test_an_optimiser_may_hold_what_is_frozen_and_must_be_in_a_recipe(spec: EncoderSpec) -> None:
    class All(Teaching):
        def optimizer(self) -> OptimizerSpec:
            return OptimizerSpec(
                optimizer=torch.optim.SGD(self.parameters()), learning_rate=lambda step: 0.1
            )

    class Bare(Teaching):
        def optimizer(self) -> Any:
            return torch.optim.SGD(self.parameters())

    assert "frozen" in audit.method(setup.build_method(All, Config(), spec, 3, seed=0))
    with pytest.raises(UserError, match="Bare returns a SGD; an OptimizerSpec"):
        audit.method(setup.build_method(Bare, Config(), spec, 3, seed=0))
