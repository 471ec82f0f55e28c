"""The baselines: what the labels give, and what nothing gives."""

from __future__ import annotations

from typing import Any

import helpers
import pytest
import torch
from torch import Tensor

from ssl_bench.api import Batch, registry
from ssl_bench.models.backbones import EncoderSpec
from ssl_bench.training import setup
from ssl_bench.utils.rng import SampleRng


def build(name: str, spec: EncoderSpec, classes: int = 3, **config: Any) -> Any:
    plugin = registry.find("method", name)
    return setup.build_method(plugin.load_class(), plugin.config(**config), spec, classes, seed=0)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_loss_is_the_cross_entropy_with_smoothed_labels(
    spec: EncoderSpec, smoothing: float
) -> None:
    """DeiT, table 9: so much of each target is spread over all classes; it is 0.1 by default."""
    config: dict[str, Any] = {} if smoothing == 0.1 else {"label_smoothing": smoothing}
    method = build("supervised", spec, **config)
    with torch.no_grad():
        method.head.weight.normal_()
    images, labels = torch.randn(5, 3, 16, 16), torch.tensor([0, 2, 1, 1, 0])
    loss = method.loss(
        Batch({"image": images}, SampleRng(0, 0, torch.arange(5)), labels), helpers.FIRST_STEP
    )
    token: Tensor = method.encoder.forward_features(images)[:, 0].double()
    logits = token @ method.head.weight.double().T + method.head.bias.double()
    target = (1 - smoothing) * torch.eye(3)[labels].double() + smoothing / 3
    expected = -(target * logits.log_softmax(dim=1)).sum(dim=1).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_classifier_starts_near_zero(spec: EncoderSpec) -> None:
    head = build("supervised", spec, classes=100).head
    assert head.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert not head.bias.any()


def test_half_of_the_images_are_mirrored_and_cropped(spec: EncoderSpec) -> None:
    [view] = build("supervised", spec).transforms().values()
    assert (view.flip, view.crop_scale, view.interpolation) == (0.5, (0.2, 1.0), "bicubic")
    assert not any(view.jitter) and not view.blur
    [plain] = build("supervised", spec, flip=False, crop_scale=1.0).transforms().values()
    assert (plain.flip, plain.crop_scale) == (0.0, None)


def test_a_random_encoder_is_not_trained(spec: EncoderSpec) -> None:
    method = build("random-init", spec)
    assert not method.trains
    assert not any(parameter.requires_grad for parameter in method.parameters())
