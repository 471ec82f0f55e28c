"""A batch encoded part by part is the whole batch, and keeps less in memory."""

from __future__ import annotations

import dataclasses

import helpers
import pytest
import torch
from helpers import CPU
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import DropPath
from torch import Tensor, nn

from ssl_bench.api import registry
from ssl_bench.api.registry import Plugin
from ssl_bench.data import Dataset
from ssl_bench.models import encoders
from ssl_bench.models.backbones import EncoderSpec
from ssl_bench.training import gradients, setup

_IN_PARTS = [p for p in helpers.METHODS if p.declared.encodes_in_parts]
_IN_FLOAT32 = {"ibot", "lejepa"}  # parts of their losses are, whatever they are given
_BATCH = 12
_WHOLE: dict[str, tuple[Tensor, dict[str, Tensor], int]] = {}


def found(
    plugin: Plugin, spec: EncoderSpec, data: Dataset, at_once: int | None
) -> tuple[Tensor, dict[str, Tensor], int]:
    """The loss, the gradients and the bytes that are kept for the backward pass.

    In float64 where it can be: a cosine near zero is a sum of numbers near one.
    """
    dtype = torch.float32 if plugin.name in _IN_FLOAT32 else torch.float64
    method = helpers.build(plugin, spec).train().to(dtype)
    encoders.keep_at_once(method, at_once)
    batch = setup.make_batch(method, data.train, spec, 0, 0, torch.arange(_BATCH))
    batch = dataclasses.replace(batch, views={k: v.to(dtype) for k, v in batch.views.items()})
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    parameters = {parameter.data_ptr() for parameter in method.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        first = next(method.terms(batch, helpers.FIRST_STEP))
    losses = gradients.backward(method, batch, helpers.FIRST_STEP, CPU)
    grads = {name: p.grad for name, p in method.named_parameters() if p.grad is not None}
    del first
    bytes_kept = sum(size for place, size in kept.items() if place not in parameters)
    return losses["loss"], grads, bytes_kept


def test_some_method_encodes_in_parts() -> None:
    assert "mocov3" in {plugin.name for plugin in _IN_PARTS}


@pytest.mark.parametrize("plugin", _IN_PARTS, ids=helpers.named)
@pytest.mark.parametrize("at_once", [1, 5, 6])
def test_loss_and_gradients_are_the_whole_batchs(
    plugin: Plugin, at_once: int, spec: EncoderSpec, tiny: Dataset
) -> None:
    spec = dataclasses.replace(spec, architecture={"depth": 2})
    if plugin.name not in _WHOLE:
        _WHOLE[plugin.name] = found(plugin, spec, tiny, None)
    loss, grads, kept = _WHOLE[plugin.name]
    ours, our_grads, our_kept = found(plugin, spec, tiny, at_once)
    torch.testing.assert_close(ours, loss, rtol=1e-5, atol=0)
    assert our_grads.keys() == grads.keys()
    largest = max(gradient.norm() for gradient in grads.values())
    for name, gradient in grads.items():
        assert (our_grads[name] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-6 * largest, name
    assert our_kept < kept / 2


@pytest.mark.parametrize("layer", [DropPath(0.5), nn.Dropout(0.5)], ids=["drop-path", "dropout"])
def test_what_is_dropped_does_not_depend_on_the_faster_thread(
    layer: nn.Module, spec: EncoderSpec, tiny: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads would share torch's own random numbers."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    method = helpers.build(registry.find("method", "mae"), spec)
    method.encoder.blocks[-1].drop_path1 = layer
    batch = setup.make_batch(method.train(), tiny.train, spec, 0, 0, torch.arange(_BATCH))

    def loss() -> float:
        torch.manual_seed(0)
        return gradients.backward(method, batch, helpers.FIRST_STEP, CPU, 2)["loss"].item()

    first = loss()
    assert {loss() for _ in range(20)} == {first}
    layer.eval()
    assert loss() != first


@given(count=st.integers(1, 9), at_once=st.none() | st.integers(1, 10))
@settings(max_examples=20, deadline=None)
def test_parts_are_put_together_in_order(count: int, at_once: int | None) -> None:
    layer, rows = nn.Linear(3, 2), torch.randn(count, 3)
    sizes: list[int] = []

    def encode(part: Tensor) -> Tensor:
        sizes.append(len(part))
        return layer(part)

    together = encoders.in_parts(encode, rows, at_once)
    assert sum(sizes) == count and max(sizes) <= (at_once or count)
    torch.testing.assert_close(together, layer(rows))
    with torch.no_grad():
        torch.testing.assert_close(encoders.in_parts(encode, rows, at_once), layer(rows))


@pytest.mark.parametrize("threads,most", [(1, 4), (2, 4), (2, 2), (3, 1)])
def test_parts_of_unequal_size_weigh_as_much_as_they_hold(
    threads: int, most: int, spec: EncoderSpec, tiny: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    method = helpers.build(registry.find("method", "mae"), spec).train()
    batch = setup.make_batch(method, tiny.train, spec, 0, 0, torch.arange(7))

    def gradient(at_once: int | None) -> tuple[float, Tensor]:
        method.zero_grad()
        losses = gradients.backward(method, batch, helpers.FIRST_STEP, CPU, at_once)
        grads = [p.grad.flatten() for p in method.parameters() if p.grad is not None]
        return losses["loss"].item(), torch.cat(grads)

    (whole, expected), (loss, ours) = gradient(None), gradient(most)
    assert loss == pytest.approx(whole, rel=1e-5)
    assert (ours - expected).norm() < 1e-4 * expected.norm()
