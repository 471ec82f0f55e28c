"""Methods of two views, and LeJEPA, against naive float64 references written from their papers."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import helpers
import naive
import pytest
import torch
from helpers import CPU, SHAPE, batch_of, waves
from naive import Weights, under
from torch import Tensor

from ssl_bench.api import optimizers, parts, registry
from ssl_bench.api.step import Step
from ssl_bench.data import Dataset, Split
from ssl_bench.errors import UserError
from ssl_bench.models import encoders, spread
from ssl_bench.models.backbones import EncoderSpec
from ssl_bench.training import pretrain, setup
from ssl_bench.utils.rng import SampleRng

HEADS = SHAPE["num_heads"]
PATCH = 4
State = dict[str, Any]
Reference = Callable[[Weights, Sequence[Tensor], State, int], Tensor]


def module(name: str) -> Any:
    """The file of a method."""
    return importlib.import_module(registry.find("method", name).load().__name__)


def unit(x: Tensor) -> Tensor:
    return x / x.norm()


def cosine(first: Tensor, second: Tensor) -> Tensor:
    return unit(first) @ unit(second)


def tokens(weights: Weights, images: Tensor) -> Tensor:
    """Class token of each image: ``(B, D)``."""
    patches = range(len(naive.cut(images[0], PATCH)))
    return torch.stack(
        [naive.vit(weights, image, PATCH, HEADS, False, patches)[0] for image in images]
    )


def head(weights: Weights, x: Tensor, last_norm: bool = False) -> Tensor:
    """Linear layers with whatever bias and batch norm the weights show, rectified between them."""
    weights = {name.removeprefix("layers."): weight for name, weight in weights.items()}
    layers = sorted(int(name.split(".")[0]) for name, w in weights.items() if w.ndim == 2)
    for layer in layers:
        x = x @ weights[f"{layer}.weight"].T + weights.get(f"{layer}.bias", 0)
        norm = under(weights, str(layer + 1))
        has_norm = bool(norm) and norm["weight"].ndim == 1
        if has_norm or (layer == layers[-1] and last_norm):
            x = naive.batch_norm(x)
        if has_norm:
            x = x * norm["weight"] + norm["bias"]
        if layer != layers[-1]:
            x = x.clamp(min=0)
    return x


def simclr(weights: Weights, views: Sequence[Tensor], state: State, step: int) -> Tensor:
    """Equation 1 and algorithm 1, one anchor at a time; the mean over images of both views' sum."""
    projected = head(under(weights, "projector"), tokens(under(weights, "encoder"), cat(views)))
    return simclr_of(projected, 0.2)


def simclr_of(projected: Tensor, temperature: float) -> Tensor:
    count = len(projected) // 2
    losses = []
    for i, anchor in enumerate(projected):
        partner = (i + count) % (2 * count)
        similarities = torch.stack([cosine(anchor, other) for other in projected]) / temperature
        others = [k for k in range(2 * count) if k != i]
        losses.append(-similarities[partner] + similarities[others].exp().sum().log())
    return torch.stack(losses).sum() / count


def cat(views: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(views))


def projected(weights: Weights, views: Sequence[Tensor], last_norm: bool = False) -> list[Tensor]:
    return [
        head(under(weights, "projector"), tokens(under(weights, "encoder"), view), last_norm)
        for view in views
    ]


def vicreg(weights: Weights, views: Sequence[Tensor], state: State, step: int) -> Tensor:
    """Equations 1 to 6, with the official code's mean over the views' hinges."""
    first, second = projected(weights, views)
    return vicreg_of(first, second, variance=10)


def vicreg_of(first: Tensor, second: Tensor, variance: float) -> Tensor:
    count, width = first.shape
    loss = 25 * (first - second).square().mean()
    for view in (first, second):
        centred = view - view.mean(0)
        covariance = centred.T @ centred / (count - 1)
        for i in range(width):
            loss = loss + variance / 2 * (1 - (covariance[i, i] + 1e-4).sqrt()).clamp(min=0) / width
            for j in range(width):
                if i != j:
                    loss = loss + covariance[i, j] ** 2 / width
    return loss


def barlow_twins(weights: Weights, views: Sequence[Tensor], state: State, step: int) -> Tensor:
    first, second = projected(weights, views)
    return barlow_of(first, second, redundancy=0.02)


def barlow_of(first: Tensor, second: Tensor, redundancy: float) -> Tensor:
    """Equations 1 and 2; a correlation of batch-normalised features is that of the features."""
    first, second = naive.batch_norm(first), naive.batch_norm(second)
    loss = torch.zeros((), dtype=torch.float64)
    for i in range(first.shape[1]):
        for j in range(first.shape[1]):
            correlation = (first[:, i] * second[:, j]).mean()
            loss = loss + ((1 - correlation) ** 2 if i == j else redundancy * correlation**2)
    return loss


def byol(weights: Weights, views: Sequence[Tensor], state: State, step: int) -> Tensor:
    """Equation 2, of both directions."""
    targets = [
        head(under(weights, "target_projector"), tokens(under(weights, "target_encoder"), view))
        for view in views
    ]
    predictions = [head(under(weights, "predictor"), each) for each in projected(weights, views)]
    return byol_of(predictions[0], targets[1]) + byol_of(predictions[1], targets[0])


def byol_of(prediction: Tensor, target: Tensor) -> Tensor:
    pairs = zip(prediction, target.detach(), strict=True)
    return torch.stack([(unit(p) - unit(t)).square().sum() for p, t in pairs]).mean()


def simsiam(weights: Weights, views: Sequence[Tensor], state: State, step: int) -> Tensor:
    """Algorithm 1."""
    features = projected(weights, views, last_norm=True)
    predictions = [head(under(weights, "predictor"), each) for each in features]
    return simsiam_of(predictions[0], features[1]) / 2 + simsiam_of(predictions[1], features[0]) / 2


def simsiam_of(prediction: Tensor, target: Tensor) -> Tensor:
    pairs = zip(prediction, target.detach(), strict=True)
    return -torch.stack([cosine(p, t) for p, t in pairs]).mean()


def moco(weights: Weights, views: Sequence[Tensor], state: State, step: int) -> Tensor:
    """Algorithm 1; the queue's keys are those of the last steps, the oldest first to go."""
    keys = head(under(weights, "key_head"), tokens(under(weights, "key_encoder"), views[1]))
    queries = head(under(weights, "head"), tokens(under(weights, "encoder"), views[0]))
    keys = torch.stack([unit(key) for key in keys.detach()])
    loss = moco_of(queries, keys, state["queue.rows_KD"], 0.2)
    state["next"] = keys
    return loss


def moco_of(queries: Tensor, keys: Tensor, queue: Tensor, temperature: float) -> Tensor:
    losses = []
    for query, key in zip(queries, keys, strict=True):
        logits = torch.stack([cosine(query, key), *(cosine(query, old) for old in queue)])
        logits = logits / temperature
        losses.append(-logits[0] + logits.exp().sum().log())
    return torch.stack(losses).mean()


def lejepa(weights: Weights, views: Sequence[Tensor], state: State, step: int) -> Tensor:
    """Agreement with the mean of the two large views, and the test of each view's Gaussianity."""
    features = head(under(weights, "projector"), tokens(under(weights, "encoder"), cat(views)))
    draws = SampleRng(0, step, torch.arange(features.shape[1]))
    directions = draws.normal("directions", 16).double()
    split = features.chunk(len(views))
    middle = (split[0] + split[1]) / 2
    agreement = torch.stack([(view - middle).square().mean() for view in split]).mean()
    return 0.95 * agreement + 0.05 * torch.stack([gaussian(v, directions) for v in split]).mean()


def gaussian(features: Tensor, directions: Tensor) -> Tensor:
    """The distance of characteristic functions, integrated by trapezoids: mean over directions."""
    found = []
    for direction in directions.T:
        values = features @ unit(direction)
        integrand = []
        for knot in range(17):
            t = 3 * knot / 16
            normal = math.exp(-t * t / 2)
            real, imaginary = (t * values).cos().mean(), (t * values).sin().mean()
            integrand.append(((real - normal) ** 2 + imaginary**2) * normal)
        trapezoids = [(a + b) / 2 * 3 / 16 for a, b in itertools.pairwise(integrand)]
        found.append(2 * torch.stack(trapezoids).sum() * len(features))
    return torch.stack(found).mean()


METHODS: Mapping[str, tuple[Reference, dict[str, Any]]] = {
    "simclr": (simclr, {"temperature": 0.2, "proj_hidden_dim": 32, "proj_output_dim": 16}),
    "vicreg": (vicreg, {"variance": 10.0, "proj_hidden_dim": 32, "proj_output_dim": 8}),
    "barlow-twins": (
        barlow_twins,
        {"redundancy": 0.02, "proj_hidden_dim": 32, "proj_output_dim": 8},
    ),
    "byol": (byol, {"momentum": 0.8, "proj_hidden_dim": 32, "proj_output_dim": 16}),
    "simsiam": (simsiam, {"proj_hidden_dim": 32, "proj_output_dim": 16, "pred_hidden_dim": 8}),
    "moco": (moco, {"momentum": 0.8, "queue_size": 36, "proj_output_dim": 16}),
    "lejepa": (
        lejepa,
        {"local_crops": 0, "directions": 16, "proj_hidden_dim": 32, "proj_output_dim": 8},
    ),
}
FOLLOWING = {
    "byol": {"target_encoder": "encoder", "target_projector": "projector"},
    "moco": {"key_encoder": "encoder", "key_head": "head"},
}


def build(name: str, **changes: Any) -> Any:
    plugin = registry.find("method", name)
    config = plugin.config(**(METHODS[name][1] | changes))
    spec = EncoderSpec("vit_micro", 16, PATCH, 3, (0.5,) * 3, (0.25,) * 3, SHAPE)
    method: Any = setup.build_method(plugin.load_class(), config, spec, 3, seed=0)
    naive.randomise(method)
    with torch.no_grad():
        for parameter, value in method.named_parameters():
            if parameter.endswith("cls_token"):
                value.mul_(0.1)
        if name == "simclr":
            method.projector[-1].bias.zero_()
    for slow, fast in FOLLOWING.get(name, {}).items():
        getattr(method, slow).load_state_dict(getattr(method, fast).state_dict())
    return method.train()


def views_of(count: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    colours = torch.randn(count, 3, 1, 1, generator=generator)
    return [colours + torch.randn(count, 3, 16, 16, generator=generator) for _ in "12"]


@pytest.mark.parametrize("name", METHODS)
def test_loss_and_gradients_equal_the_naive_reference(name: str) -> None:
    reference, _ = METHODS[name]
    method = build(name)
    weights = naive.weights_of(method)
    state: State = {key: value.double().clone() for key, value in method.named_buffers()}
    views = views_of(12)
    theirs = [view.double().requires_grad_() for view in views]
    for view in views:
        view.requires_grad_()
    expected = reference(weights, theirs, state, 0)
    expected.backward()
    loss = method.loss(batch_of(method, views), helpers.FIRST_STEP)
    loss = loss if isinstance(loss, Tensor) else torch.stack(list(loss.values())).sum()
    loss.backward()
    assert naive.relative_error(loss, expected) < 1e-5
    errors = naive.gradient_errors(method, weights)
    for number, (mine, view) in enumerate(zip(views, theirs, strict=True)):
        if view.grad is None:
            assert mine.grad is None
        else:
            errors[f"view {number}"] = naive.relative_error(mine.grad, view.grad)
    if name != "moco":  # a shift of all class tokens is gone after batch norm
        assert errors.pop("encoder.norm.bias") > 0
    assert max(errors.values()) < 2e-5, max(errors.items(), key=lambda item: item[1])


@pytest.mark.parametrize("name", METHODS)
def test_a_collapse_is_looked_for_in_what_is_compared(name: str) -> None:
    """In the online network's features of a view, or of both where they go through it together."""
    method, views = build(name), views_of(6)
    method.loss(batch_of(method, views), helpers.FIRST_STEP)
    seen = {"byol": views[1], "moco": views[0], "simclr": cat(views), "lejepa": cat(views)}
    heads = method.head if name == "moco" else method.projector
    expected = heads(encoders.represent(method.encoder, seen.get(name, views[0])))
    expected = expected[:6] if name == "lejepa" else expected
    torch.testing.assert_close(method.watched_BD, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_training_keeps_the_order_of_operations(
    name: str, tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four steps of the training loop against plain SGD, averages and queue spelt out."""
    reference, _ = METHODS[name]
    epochs, batch_size, per_epoch, base_lr = 2, 12, 2, 0.5
    method = build(name, base_lr=base_lr, warmup=0.0, weight_decay=0.0)
    weights = naive.weights_of(method)
    state: State = {key: value.double().clone() for key, value in method.named_buffers()}
    batches = [views_of(batch_size, seed) for seed in range(epochs * per_epoch)]
    monkeypatch.setattr(
        setup, "batches", lambda *a: (batch_of(method, batches[d.step], d.step) for d in a[-1])
    )
    monkeypatch.setattr(optimizers, "adamw", lambda groups, beta2: torch.optim.SGD(groups, lr=0.0))
    count = batch_size * per_epoch
    data = dataclasses.replace(
        tiny, train=Split(tiny.train.images_NCHW[:count], tiny.train.labels_N[:count])
    )
    spec = EncoderSpec("vit_micro", 16, PATCH, 3, (0.5,) * 3, (0.25,) * 3, SHAPE)
    plan = helpers.plan(registry.find("method", name), spec, data)
    plan = dataclasses.replace(plan, epochs=epochs, batch_size=batch_size)
    pretrain.pretrain(method, data, plan, tmp_path, CPU)
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    assert len(records) == epochs * per_epoch

    peak, total = base_lr * batch_size / 256, epochs * per_epoch
    for step, record in enumerate(records):
        expected = reference(weights, [view.double() for view in batches[step]], state, step)
        expected.backward()
        assert record["loss"] == pytest.approx(expected.item(), rel=1e-5), step
        half_cosine = (1 + math.cos(math.pi * step / total)) / 2
        with torch.no_grad():
            for key, weight in weights.items():
                if weight.grad is not None:
                    fixed = name == "simsiam" and key.startswith("predictor.")
                    weight.sub_(peak * (1 if fixed else half_cosine) * weight.grad)
                    weight.grad = None
            m = 1 - 0.2 * half_cosine if name == "byol" else 0.8
            for slow, fast in FOLLOWING.get(name, {}).items():
                for key, weight in under(weights, slow).items():
                    weight.mul_(m).add_((1 - m) * weights[f"{fast}.{key}"])
        if name == "moco":
            place = step * batch_size % 36
            state["queue.rows_KD"][place : place + batch_size] = state["next"]
    for key, parameter in method.named_parameters():
        if weights[key].any():
            assert naive.relative_error(parameter, weights[key]) < 1e-5, key
        else:
            assert not parameter.any(), key
    if name == "moco":
        assert naive.relative_error(method.queue.rows_KD, state["queue.rows_KD"]) < 1e-5
        assert method.queue.pointer.item() == total * batch_size % 36


OFFICIAL = {
    "simclr": (0.05584282082, [0.1296614443, 0.07145045429]),
    "vicreg": (6.774260142, [1.972401329, 2.062640877]),
    "barlow-twins": (0.03450609927, [0.02426449592, 0.01732203856]),
    "byol": (0.3470014356, [0.1794855502, 0.1464173587]),
    "simsiam": (-0.9132496411, [0.04487138755, 0.03660433967]),
    "moco": (0.3338181668, [0.06550276199]),
    "lejepa": (0.1669789572, [0.2052289539]),
}
"""Loss, and norms of the gradients by the inputs, of the official code (SimCLR and BYOL: of their
formulas) on `waves`, in float64; LeJEPA's has float32 tables."""


@pytest.mark.parametrize("name", OFFICIAL)
def test_losses_are_those_of_the_official_code(name: str) -> None:
    loss, inputs = loss_of(name, waves(8, 6, 0), waves(8, 6, 0.3))
    expected, norms = OFFICIAL[name]
    assert loss.item() == pytest.approx(expected, rel=1e-7)
    loss.backward()
    found = [each.grad.norm().item() for each in inputs if each.grad is not None]
    assert found == pytest.approx(norms, rel=1e-7)


def loss_of(name: str, first: Tensor, second: Tensor) -> tuple[Any, list[Tensor]]:
    """A method's loss of the features that it compares, and those that carry gradient."""
    code, both = module(name), [first, second]
    if name == "simclr":
        return code.contrast(first, second, 0.1), both
    if name == "vicreg":
        return sum(code.regularise(first, second, 25.0, 25.0, 1.0).values()), both
    if name == "barlow-twins":
        return sum(
            build(name, proj_output_dim=6, redundancy=0.0051).decorrelate(first, second).values()
        ), both
    if name == "moco":
        rows = torch.nn.functional.normalize
        queue = rows(waves(16, 6, 1).detach(), dim=1).to(first.dtype)
        return code.contrast(first, rows(second.detach(), dim=1), queue, 0.2), [first]
    if name == "lejepa":
        return code.sigreg(first[None], torch.eye(6, dtype=first.dtype)), [first]
    targets = [waves(8, 6, shift).detach().to(first.dtype) for shift in (0.5, 0.7)]
    if name == "byol":
        return code.distance(first, targets[0]) + code.distance(second, targets[1]), both
    return (
        code.negative_cosine(first, targets[0]) + code.negative_cosine(second, targets[1])
    ) / 2, both


@pytest.mark.parametrize("name", METHODS)
def test_mixed_precision_rounds_the_networks_and_not_the_loss(name: str) -> None:
    rounded = [waves(8, 6, shift).detach().bfloat16() for shift in (0, 0.3)]
    with torch.autocast("cpu", torch.bfloat16):
        mixed, _ = loss_of(name, *rounded)
    exact, _ = loss_of(name, *[each.float() for each in rounded])
    assert mixed.dtype == torch.float32
    assert mixed.item() == pytest.approx(exact.item(), rel=1e-3)

    method, views = build(name), views_of(24)
    found = []
    for enabled in (False, True):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = method.loss(batch_of(method, views), helpers.FIRST_STEP)
        found.append(float(loss if isinstance(loss, Tensor) else sum(loss.values())))
    assert found[1] == pytest.approx(found[0], rel=0.03)  # features of 8 bits, batch-normalised


def test_small_crops_are_views_like_the_others() -> None:
    method = build("lejepa", local_crops=3)
    sizes = [transform.size for transform in method.transforms().values()]
    assert sizes == [16, 16, 8, 8, 8]
    how = {(view.interpolation, view.flip) for view in method.transforms().values()}
    assert how == {("bicubic", 0.5)}
    views = [torch.randn(6, 3, size, size) for size in sizes]
    loss = method.loss(batch_of(method, views), helpers.FIRST_STEP)
    sum(loss.values()).backward()
    changed = [*views[:4], views[4] + 1]
    other = method.loss(batch_of(method, changed), helpers.FIRST_STEP)
    assert other["agreement"] != loss["agreement"] and other["sigreg"] != loss["sigreg"]
    assert method.encoder.cls_token.grad.norm() > 0


@pytest.mark.parametrize("width", [4, 64])
def test_sigreg_is_about_one_for_a_gaussian_and_grows_for_others(width: int) -> None:
    code, generator = module("lejepa"), torch.Generator().manual_seed(0)
    normal = torch.randn(2, 4000, width, generator=generator)
    directions = torch.randn(width, 64, generator=generator)
    expected = 1.08  # of standard normal samples, whatever their number
    assert code.sigreg(normal, directions).item() == pytest.approx(expected, rel=0.35)
    for other in (2 * normal, normal + 1, normal.sign() * 3, normal * 0.01):
        assert code.sigreg(other, directions) > 20


@pytest.mark.parametrize(
    ("rate", "fractions"), [(0.03, [0, 0.59]), (0.003, [0.6, 0.79]), (0.0003, [0.8, 0.999])]
)
def test_v1_divides_its_learning_rate_in_steps(rate: float, fractions: list[float]) -> None:
    recipe = build("moco", base_lr=0.03, step_schedule=True, warmup=0.0).optimizer()
    for fraction in fractions:
        step = Step(round(1000 * fraction), 1000, 10, 256)
        assert recipe.prepare(step) == pytest.approx(rate)


def test_v1_warms_up_where_it_is_told_to() -> None:
    recipe = build("moco", base_lr=0.03, step_schedule=True, warmup=0.1).optimizer()
    rates = [recipe.prepare(Step(number, 1000, 10, 256)) for number in (0, 50, 100, 599, 600)]
    assert rates == pytest.approx([0, 0.015, 0.03, 0.03, 0.003])


def test_lejepas_projector_ends_in_a_layer_with_bias() -> None:
    """As torchvision's ``MLP`` in MINIMAL.md; no norm follows that would take it away."""
    last = build("lejepa").projector[-1]
    assert isinstance(last, torch.nn.Linear) and last.bias is not None


def test_terms_of_vicreg_can_be_left_out_but_not_all() -> None:
    config = registry.find("method", "vicreg").config
    for name in ("invariance", "variance", "covariance"):
        assert getattr(config(**{name: 0.0}), name) == 0
    with pytest.raises(UserError, match="all 0"):
        config(invariance=0.0, variance=0.0, covariance=0.0)


def test_agreement_is_with_the_mean_of_the_large_crops_alone() -> None:
    """Equation 6 of LeJEPA: a small crop is compared with it, and does not move it."""
    views = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(0)).double()
    middle = (views[0] + views[1]) / 2
    expected = torch.stack([(view - middle).square().mean() for view in views]).mean()
    assert module("lejepa").disagreement(views).item() == pytest.approx(expected.item())


def test_a_predictor_is_a_bottleneck() -> None:
    """SimSiam's, section 3; both layers of the head that lightly makes."""
    method = build("simsiam", proj_output_dim=16, pred_hidden_dim=8)
    weights = [
        layer.weight for layer in method.predictor.modules() if hasattr(layer, "in_features")
    ]
    assert [tuple(weight.shape) for weight in weights] == [(8, 16), (16, 8)]


def test_initial_projectors_are_the_official_ones() -> None:
    """SimCLR's: normal numbers of a deviation of 0.01."""
    plugin = registry.find("method", "simclr")
    spec = EncoderSpec("vit_micro", 16, PATCH, 3, (0.5,) * 3, (0.25,) * 3, SHAPE)
    method: Any = setup.build_method(plugin.load_class(), plugin.config(), spec, 3, seed=0)
    layers = [layer for layer in method.projector if isinstance(layer, torch.nn.Linear)]
    assert len(layers) == 3
    for layer in layers:
        naive.assert_normal(layer.weight.detach(), 0.01)


def test_a_queue_starts_with_keys_of_length_one() -> None:
    """MoCo's: random ones, each in a direction of its own."""
    queue_KD = build("moco").queue.rows_KD
    torch.testing.assert_close(queue_KD.norm(dim=1), torch.ones(len(queue_KD)))
    assert (queue_KD @ queue_KD.T).fill_diagonal_(0).abs().mean() < 0.5


def test_v1_has_a_linear_head_and_no_blur() -> None:
    """And the hidden layer of v2's head is as wide as the encoder's features."""
    method = build("moco", head="linear", blur=False)
    assert isinstance(method.head, torch.nn.Linear)
    widths = [p.shape[0] for p in build("moco", proj_output_dim=8).head.parameters()]
    assert widths == [SHAPE["embed_dim"], SHAPE["embed_dim"], 8, 8]
    assert {view.blur for view in method.transforms().values()} == {0.0}
    assert {view.blur for view in build("moco").transforms().values()} == {0.5}


@pytest.mark.parametrize(
    ("size", "batch", "images", "works"),
    [
        *((36, 12, 100, None), (36, 24, 100, 48), (40, 24, 100, 48), (4, 24, 100, 24)),
        *((96, 24, 100, None), (120, 24, 100, 96), (4096, 24, 100, 96), (4100, 24, 100, 96)),
    ],
)
def test_a_queue_takes_whole_batches_of_different_images(
    size: int, batch: int, images: int, works: int | None
) -> None:
    moco = registry.find("method", "moco")
    config = moco.config(queue_size=size)
    reason = moco.load_class().refuses(config, batch, images, epochs=1)
    assert reason is None if works is None else (str(size) in reason and f" {works} " in reason)


@pytest.mark.parametrize("decays", [False, True])
def test_biases_are_slower_under_lars(decays: bool) -> None:
    how = {"optimizer": "lars", "base_lr": 0.2, "decay_norm_and_bias": decays}
    recipe = build("barlow-twins", **how).optimizer()
    recipe.prepare(Step(50, 100, 10, 256))
    rates = {p.ndim > 1: g["lr"] for g in recipe.optimizer.param_groups for p in g["params"]}
    assert rates[False] / rates[True] == pytest.approx(0.0048 / 0.2)
    assert isinstance(recipe.optimizer, optimizers.LARS)
    recipe = build("barlow-twins", base_lr=0.2, decay_norm_and_bias=decays).optimizer()
    recipe.prepare(Step(50, 100, 10, 256))
    assert len({group["lr"] for group in recipe.optimizer.param_groups}) == 1


def test_a_fixed_predictor_keeps_its_learning_rate() -> None:
    method = build("simsiam", optimizer="sgd", base_lr=0.05, warmup=0.0)
    own = set(method.predictor.parameters())
    for fixed in (True, False):
        method.config = dataclasses.replace(method.config, fix_predictor_lr=fixed)
        recipe = method.optimizer()
        recipe.prepare(Step(75, 100, 10, 512))
        rates = {p in own: g["lr"] for g in recipe.optimizer.param_groups for p in g["params"]}
        slow = 0.1 * (1 + math.cos(0.75 * math.pi)) / 2
        assert rates == pytest.approx({True: 0.1 if fixed else slow, False: slow})
        held = [p for group in recipe.optimizer.param_groups for p in group["params"]]
        assert len(held) == len(set(held)) == sum(p.requires_grad for p in method.parameters())


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        (torch.ones(50, 8) + 1e-4 * torch.eye(50, 8), "alike"),
        (torch.randn(50, 1).sign() * torch.ones(1, 8), "rank"),
        (torch.randn(50, 8), ""),
    ],
)
def test_a_collapse_is_seen(features: Tensor, expected: str) -> None:
    why = spread.collapsed(spread.of_watched(features))
    assert expected in why and bool(why) == bool(expected)


def test_a_collapse_is_looked_for_in_256_features() -> None:
    """Few enough to be cheap, and many enough for a rank far above that of a collapse."""
    features = torch.randn(400, 64, generator=torch.Generator().manual_seed(0))
    points = features[:256].double()
    points /= points.norm(dim=1, keepdim=True)
    variances = torch.linalg.eigvalsh(torch.cov(points.T))
    shares = variances / variances.sum()
    rank = math.exp(-(shares * shares.log()).sum())
    assert rank > 50
    expected = {"spread": points.std(dim=0, correction=0).mean().item() * 8, "effective_rank": rank}
    assert spread.of_watched(features) == pytest.approx(expected, abs=0.01)


def test_features_all_over_the_sphere_have_a_spread_of_one() -> None:
    features = torch.randn(4000, 16, generator=torch.Generator().manual_seed(0))
    assert spread.spread(features) == pytest.approx(1, abs=0.01)
    assert spread.spread(torch.ones(5, 3)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_losses_are_computed_in_float32_at_least(dtype: torch.dtype) -> None:
    found = parts.in_float32(lambda rows: rows)(torch.ones(2, dtype=dtype)).dtype
    assert found == (torch.float64 if dtype == torch.float64 else torch.float32)
