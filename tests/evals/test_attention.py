"""Attention weights against the modules that use them, and what is measured of them."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from helpers import CPU
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ssl_bench.api import registry
from ssl_bench.data import Dataset
from ssl_bench.evaluation.features import Encoder, RawPixels, prepare
from ssl_bench.evaluation.metrics import subset
from ssl_bench.models import attention_maps, backbones
from ssl_bench.models.backbones import EncoderSpec
from ssl_bench.transforms.augmentations import evaluation_view

ATTENTION = registry.find("eval", "attention").load()
KINDS: list[dict[str, Any]] = [
    {},
    {"qk_norm": True},
    {"class_token": False, "global_pool": "avg"},
    {"reg_tokens": 2},
    {"init_values": 0.1},
    {"pre_norm": True},
]


def tiny_encoder(spec: EncoderSpec, **changes: Any) -> Any:
    encoder = backbones.build(spec, 0, **changes).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for block in encoder.blocks:  # sharper than at the start, so that mistakes show
        weight = block.attn.qkv.weight
        weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
        for norm in (block.attn.q_norm, block.attn.k_norm):
            for parameter in norm.parameters():
                parameter.add_(torch.rand(parameter.shape, generator=generator))
    return encoder


@pytest.mark.parametrize("changes", KINDS, ids=str)
@pytest.mark.parametrize("fused", [False, True])
def test_weights_are_those_that_the_modules_use(
    changes: dict[str, Any], fused: bool, spec: EncoderSpec
) -> None:
    """Values weighed by them, and projected, are what each module gives."""
    encoder = tiny_encoder(spec, **changes)
    images = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    seen: list[tuple[Tensor, Tensor]] = []
    for block in encoder.blocks:
        block.attn.fused_attn = fused
        block.attn.register_forward_hook(lambda _, taken, made: seen.append((taken[0], made)))
    hooks = [len(block.attn._forward_pre_hooks) for block in encoder.blocks]
    found = list(attention_maps.attention_by_block(encoder, images))
    assert [len(block.attn._forward_pre_hooks) for block in encoder.blocks] == hooks
    assert len(found) == len(seen) == 6
    for block, weights, (taken, made) in zip(encoder.blocks, found, seen, strict=True):
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(weights.shape[:3]))
        assert weights.amax() > 2 / weights.shape[-1], "weights that are all alike prove nothing"
        values = block.attn.qkv(taken).chunk(3, dim=-1)[2]
        values = values.unflatten(-1, (block.attn.num_heads, -1)).transpose(1, 2)
        output = block.attn.proj((weights @ values).transpose(1, 2).flatten(2))
        torch.testing.assert_close(output, made, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("changes", KINDS, ids=str)
def test_tokens_by_block_lead_to_the_features(changes: dict[str, Any], spec: EncoderSpec) -> None:
    encoder = tiny_encoder(spec, **changes)
    images = torch.randn(2, 3, 16, 16)
    tokens = list(attention_maps.tokens_by_block(encoder, images))
    assert len(tokens) == 7
    assert torch.equal(encoder.norm(tokens[-1]), encoder.forward_features(images))


def test_other_attention_is_one_line_before_anything_runs(spec: EncoderSpec, tiny: Dataset) -> None:
    module = backbones.build(spec, seed=0)
    module.blocks[2].attn = torch.nn.Identity()

    class Given:
        def trainable_copy(self) -> Any:
            return module

    attention = ATTENTION.Attention(ATTENTION.Config())
    assert "not of the Identity in this encoder's Block" in attention.supports(Given(), tiny)
    assert attention.supports(RawPixels(spec, CPU, 0), tiny)
    encoder = Encoder(backbones.build(spec, seed=0), spec, CPU, seed=0)
    assert attention.supports(encoder, tiny) is None
    assert "the class token in 6 blocks" in attention.audit(encoder)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000))
def test_rollout_sums_over_all_paths(seed: int) -> None:
    """Where each step either stays, by the residual connection, or moves by attention."""
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.rand(1, 2, 3, 3, generator=generator, dtype=torch.float64).softmax(-1)
               for _ in range(3)]  # fmt: skip
    flow = attention_maps.rollout(weights)
    torch.testing.assert_close(flow.sum(dim=-1), torch.ones(1, 3, dtype=torch.float64))
    steps = [(each.mean(dim=1)[0] + torch.eye(3, dtype=torch.float64)) / 2 for each in weights]
    for top, bottom in itertools.product(range(3), range(3)):
        paths = sum(
            steps[2][top, a] * steps[1][a, b] * steps[0][b, bottom]
            for a, b in itertools.product(range(3), range(3))
        )
        assert flow[0, top, bottom].item() == pytest.approx(float(paths))


def test_entropy_is_a_share_of_the_largest() -> None:
    alone = torch.tensor([0.0, 0.5, 0.0, 0.0])  # the rest goes to the class token
    pair = torch.tensor([0.2, 0.2, 0.0, 0.0])
    rows = torch.stack([torch.full((4,), 0.1), alone, pair])[None, None]
    torch.testing.assert_close(attention_maps.entropy(rows)[0, 0], torch.tensor([1.0, 0.0, 0.5]))
    assert attention_maps.entropy(torch.ones(2, 3, 1, 1)).eq(0).all(), "one patch is no choice"


def test_distance_is_in_patches() -> None:
    rows, columns = 2, 3
    places = list(itertools.product(range(rows), range(columns)))
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(2, 4, 6, 6, generator=generator)
    ours = attention_maps.distance(weights, rows, columns)
    for image, head in itertools.product(range(2), range(4)):
        far = 0.0
        for query, key in itertools.product(range(6), range(6)):
            share = weights[image, head, query, key] / weights[image, head, query].sum()
            far += float(share) * math.dist(places[query], places[key]) / 6
        assert ours[image, head].item() == pytest.approx(far, rel=1e-5)
    assert attention_maps.distance(torch.eye(6)[None, None], rows, columns).item() == 0


@pytest.mark.parametrize("changes", KINDS, ids=str)
def test_arrays_are_of_what_the_encoder_sees(
    changes: dict[str, Any], tiny: Dataset, spec: EncoderSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tiny_encoder(spec, **changes)
    encoder = Encoder(module, spec, CPU, seed=0)
    monkeypatch.setattr(Encoder, "trainable_copy", lambda _: module)
    result = ATTENTION.Attention(ATTENTION.Config(images=5, sample=33)).evaluate(encoder, tiny)
    arrays, index = result.arrays, torch.tensor([0, 1, 2, 3, 4])
    assert arrays["labels"].tolist() == [0, 1, 2, 0, 1]
    assert arrays["images"].dtype == torch.uint8
    assert torch.equal(arrays["images"], tiny.test.images(index))
    weights = list(
        attention_maps.attention_by_block(module, prepare(tiny.test.images(index), spec, CPU))
    )
    prefix = module.num_prefix_tokens
    queries = [0] if module.cls_token is not None else list(range(16))
    wanted = weights[-1][:, :, queries, prefix:].mean(dim=2).view(5, -1, 4, 4)
    torch.testing.assert_close(arrays["attention"], wanted)
    flow = attention_maps.rollout(weights)[:, queries, prefix:].mean(dim=1).view(5, 4, 4)
    torch.testing.assert_close(arrays["rollout"], flow)

    many = prepare(tiny.test.images(subset(40, 33, tiny.fingerprint)), spec, CPU)
    weights = list(attention_maps.attention_by_block(module, many))
    share = weights[-1][:, :, queries, prefix:].double()
    share = share / share.sum(dim=-1, keepdim=True)
    entropy = -(share * share.log()).sum(dim=-1).mean() / math.log(16)
    assert next(iter(result.scores)) == "entropy"
    assert result.scores["entropy"] == pytest.approx(100 * entropy.item(), rel=1e-5)
    assert arrays["distance"].shape == (6, module.blocks[0].attn.num_heads)
    for number in range(6):
        far = attention_maps.distance(weights[number][..., prefix:, prefix:], 4, 4).mean().item()
        assert result.scores[f"distance_{number + 1}"] == pytest.approx(far, rel=1e-5)


def test_large_images_are_shown_as_they_are_seen(tiny: Dataset, spec: EncoderSpec) -> None:
    images = tiny.test.images_NCHW.repeat_interleave(2, 2).repeat_interleave(2, 3)
    data = type(tiny)(
        "large", tiny.train, type(tiny.test)(images, tiny.test.labels_N), tiny.classes, "", "", 16
    )
    encoder = Encoder(backbones.build(spec, seed=0), spec, CPU, seed=0)
    shown = (
        ATTENTION.Attention(ATTENTION.Config(images=2, sample=4))
        .evaluate(encoder, data)
        .arrays["images"]
    )
    wanted = 255 * evaluation_view(images[:2], 16)
    assert shown.shape == (2, 3, 16, 16)
    assert (shown.float() - wanted).abs().max() <= 0.5 + 1e-3


@given(st.lists(st.integers(0, 4), min_size=1, max_size=30), st.integers(1, 40))
def test_the_first_of_each_class_come_first(labels: list[int], count: int) -> None:
    index = ATTENTION._first_of_each_class(torch.tensor(labels), count).tolist()
    turns = [(labels[:i].count(label), label, i) for i, label in enumerate(labels)]
    assert index == [i for _, _, i in sorted(turns)][:count]
